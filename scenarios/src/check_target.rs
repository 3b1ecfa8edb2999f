//! Target draft -> TargetFile: checks what the types of the draft cannot express, and collects every problem
//! of the file. Reads no files.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use regex::Regex;

use crate::leaf::{Pattern, SettingValue};
use crate::problem::{InvalidFile, Problem, suggestion};
use crate::spanned::Spanned;
use crate::target::{Announces, Phase, TargetFile};
use crate::target_draft::{PhaseDraft, TargetDraft};
use crate::{read, tree};

/// Default of `timeouts: stall`.
const DEFAULT_STALL: Duration = Duration::from_secs(60);
/// Default of `timeouts: finish`.
const DEFAULT_FINISH: Duration = Duration::from_secs(600);

/// Reads and checks a target file. `file` is only named in errors.
pub(crate) fn check_target(text: &str, file: &str) -> Result<TargetFile, InvalidFile> {
    let mut root = tree::parse(text).map_err(|problem| InvalidFile::new(file, text, vec![problem]))?;
    let (draft, mut problems) = read::deserialize_all::<TargetDraft>(&mut root);
    let target = draft.map(|draft| checked_target(draft, &mut problems));
    match target {
        Some(target) if problems.is_empty() => Ok(target),
        _ => Err(InvalidFile::new(file, text, problems)),
    }
}

/// The target file. It is only valid if no problem is added.
fn checked_target(draft: TargetDraft, problems: &mut Vec<Problem>) -> TargetFile {
    if draft.version.value != 1 {
        problems.push(
            draft
                .version
                .problem(format!("version {} is not supported", draft.version.value))
                .help("write `version: 1`"),
        );
    }
    if draft.program.value.is_empty() {
        problems.push(
            draft.program.problem("`program` is empty").help("write the name or the path of a program"),
        );
    }
    let places =
        draft.places.iter().map(|(name, place)| (name.clone(), checked_place(place, problems))).collect();
    let phases = draft
        .phases
        .into_iter()
        .map(|(name, phase)| (name, checked_phase(phase, &places, problems)))
        .collect();
    let start = checked_command(draft.start, problems);
    let resume = draft.resume.map_or_else(|| start.clone(), |resume| checked_command(resume, problems));
    TargetFile {
        id: draft.id,
        title: draft.title,
        program: PathBuf::from(draft.program.value),
        environment: setting_texts(draft.environment),
        prepare: draft.prepare.into_iter().map(|command| checked_command(command, problems)).collect(),
        generate: draft
            .generate
            .into_iter()
            .map(|(kind, command)| (kind, checked_command(command, problems)))
            .collect(),
        submit: draft.submit.map(|command| checked_command(command, problems)),
        verify: draft.verify.map(|command| checked_command(command, problems)),
        start,
        resume,
        setting_args: draft.setting_args,
        announces: Announces {
            step: pattern_with_group(draft.announces.step, "step", problems),
            saved: draft.announces.saved.map(|pattern| pattern_with_group(pattern, "step", problems)),
            resumed: draft.announces.resumed.map(|pattern| pattern_with_group(pattern, "step", problems)),
        },
        same: draft.same.map(|pattern| pattern_with_group(pattern, "value", problems)),
        refused_exits: draft.refused_exits.into_iter().map(i32::from).collect(),
        guards: draft.guards.into_iter().map(|(name, settings)| (name, setting_texts(settings))).collect(),
        stall: draft.timeouts.stall.map_or(DEFAULT_STALL, |time| time.0),
        finish: draft.timeouts.finish.map_or(DEFAULT_FINISH, |time| time.0),
        places,
        phases,
    }
}

fn setting_texts(settings: BTreeMap<String, SettingValue>) -> BTreeMap<String, String> {
    settings.into_iter().map(|(key, value)| (key, value.0)).collect()
}

/// A command, which must have a program.
fn checked_command(command: Spanned<Vec<String>>, problems: &mut Vec<Problem>) -> Vec<String> {
    if command.value.first().is_none_or(String::is_empty) {
        problems.push(command.problem("the command has no program").help("start it with '{program}'"));
    }
    command.value
}

/// A path below the root.
fn checked_place(place: &Spanned<String>, problems: &mut Vec<Problem>) -> PathBuf {
    let path = Path::new(&place.value);
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !path.components().all(is_plain) || place.value.is_empty() {
        problems.push(
            place
                .problem(format!("`{}` is not a path below the root", place.value))
                .help("write a relative path without `..`"),
        );
    }
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// A pattern, which must have this named group.
fn pattern_with_group(pattern: Spanned<Pattern>, group: &str, problems: &mut Vec<Problem>) -> Regex {
    if !pattern.value.0.capture_names().flatten().any(|name| name == group) {
        let message = format!("the pattern has no group `{group}`");
        problems.push(
            pattern
                .problem(message)
                .help(format!("write `(?<{group}>...)` around the part that it must find")),
        );
    }
    pattern.value.0
}

/// A phase, whose place must be one of the target's.
fn checked_phase(
    draft: PhaseDraft,
    places: &BTreeMap<String, PathBuf>,
    problems: &mut Vec<Problem>,
) -> Phase {
    if !places.contains_key(&draft.place.value) {
        let message = format!("`places` has no `{}`", draft.place.value);
        problems.push(
            draft
                .place
                .problem(message)
                .help(suggestion(&draft.place.value, places.keys().map(String::as_str))),
        );
    }
    Phase { begins: draft.begins.0, ends: draft.ends.0, place: draft.place.value }
}
