//! A target file: as it is written, and its checks. The JSON schema is made from these types, and an editor
//! shows their doc comments as help. Reads no files.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::inherited::checked_inherit;
use super::key_spans::KeySpans;
use super::placeholders::{self, TextChecker, TextUse};
use crate::target::{Announces, Phase, TargetFile, TargetNetwork};
use crate::template::{CommandArgument, Placeholder, Template};
use crate::units::TimeSpan;
use crate::yaml::leaf::{Pattern, SettingValue};
use crate::yaml::problem::{InvalidFile, Problem, suggestion};
use crate::yaml::spanned::Spanned;
use crate::yaml::{read, tree};

/// Default of `timeouts: stall`.
const DEFAULT_STALL: Duration = Duration::from_secs(60);
/// Default of `timeouts: finish`.
const DEFAULT_FINISH: Duration = Duration::from_secs(600);

/// How a trainer is started, watched, resumed and verified. Commands are lists of arguments. In them
/// `{program}`, `{root}`, `{seed}` and `{<place>}` are replaced, and an argument `{settings}` becomes the
/// arguments of all settings. `{{word}}` stands for the text `{word}`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "Trainwreck target, version 1")]
pub(crate) struct TargetDraft {
    /// Version of the target language: 1.
    pub(crate) version: Spanned<u32>,
    /// Name of the target.
    pub(crate) id: String,
    /// One line that describes the target.
    pub(crate) title: String,
    /// The program. A bare name is looked for next to the `trainwreck` binary, then on PATH. A path is
    /// relative to this file.
    pub(crate) program: Spanned<String>,
    /// Directories below the root, by the names that faults and mounts use for them.
    #[serde(default)]
    pub(crate) places: BTreeMap<String, Spanned<String>>,
    /// Environment variables of the target. `{program}`, `{root}`, `{seed}` and `{<place>}` are replaced. In
    /// addition, PATH, HOME and LANG are set, and what `inherit` names.
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, Spanned<SettingValue>>,
    /// Names of environment variables that the target gets from the environment of `trainwreck`, if they are
    /// set there: `[HF_HOME, CUDA_VISIBLE_DEVICES]`. `environment` comes first. Default: only PATH.
    #[serde(default)]
    pub(crate) inherit: Vec<Spanned<String>>,
    /// Directories of the host in which the trainer may write. It sees the real directories: what it writes
    /// or deletes there stays. A relative path is relative to this file. Default: none; what the trainer
    /// writes outside of its root is thrown away.
    #[serde(default)]
    pub(crate) writable: Vec<Spanned<String>>,
    /// The network that the trainer sees. Default: `private`.
    pub(crate) network: Option<NetworkDraft>,
    /// Commands that prepare an empty root. Each must exit with 0.
    #[serde(default)]
    pub(crate) prepare: Vec<CommandDraft>,
    /// The arguments for one setting, with `{key}` and `{value}`.
    #[serde(default)]
    pub(crate) setting_args: Vec<Spanned<String>>,
    /// Commands that make a data file, by kind of data, with `{file}`, `{samples}`, `{seed}` and `{length}`
    /// (0: the command's default).
    #[serde(default)]
    pub(crate) generate: BTreeMap<String, CommandDraft>,
    /// Submits one data file, `{file}`, before the start.
    pub(crate) submit: Option<CommandDraft>,
    /// Runs the trainer until everything is done, then exits with 0.
    pub(crate) start: CommandDraft,
    /// Runs the trainer after a crash. Default: the same as `start`.
    pub(crate) resume: Option<CommandDraft>,
    /// Exits with 0 if everything that the trainer keeps on disk is intact.
    pub(crate) verify: Option<CommandDraft>,
    /// What the trainer announces in its output.
    pub(crate) announces: AnnouncesDraft,
    /// Named periods of the trainer's work, such as `checkpoint-save`.
    #[serde(default)]
    pub(crate) phases: BTreeMap<String, PhaseDraft>,
    /// Pattern with a group `value`. What it finds in the baseline must be found after a recovery too. The line
    /// ends a job; a group `job` names it.
    pub(crate) same: Option<Spanned<Pattern>>,
    /// Exit codes with which the trainer refuses to go on, after a clear, documented error.
    #[serde(default)]
    pub(crate) refused_exits: Vec<u8>,
    /// Whether the trainer exits with 0 when a signal asks it to stop and work is left. Default: `false`; such an
    /// exit is then `ended-early`, because whoever sees it does not start the trainer again.
    #[serde(default)]
    pub(crate) stops_with_zero: bool,
    /// How long the trainer may take.
    #[serde(default)]
    pub(crate) timeouts: TimeoutsDraft,
    /// Protections of the trainer, each with the settings that switch it off.
    #[serde(default)]
    pub(crate) guards: BTreeMap<String, Spanned<BTreeMap<String, SettingValue>>>,
}

/// A program and its arguments.
type CommandDraft = Spanned<Vec<Spanned<String>>>;

/// The network that a trainer sees.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NetworkDraft {
    /// A network of the sandbox's own, with a loopback device only.
    Private,
    /// The host's network.
    Host,
}

/// Patterns on lines of standard output and standard error, each with a group `step`: `^saved step
/// (?<step>\d+)`. A group `job` tells the jobs of a trainer apart that has several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct AnnouncesDraft {
    /// A training step has been done. May also have a group `loss`.
    pub(crate) step: Spanned<Pattern>,
    /// A save of this step is acknowledged: it is durable from here on.
    pub(crate) saved: Option<Spanned<Pattern>>,
    /// The step that the trainer resumes from; 0 means from scratch.
    pub(crate) resumed: Option<Spanned<Pattern>>,
    /// The step that the trainer goes back to on purpose, for example because the loss is not finite. The steps
    /// after it may then come again.
    pub(crate) rolled_back: Option<Spanned<Pattern>>,
}

/// A period of work between two lines of output.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PhaseDraft {
    /// Pattern of the line with which the phase begins.
    pub(crate) begins: Pattern,
    /// Pattern of the line with which the phase ends.
    pub(crate) ends: Pattern,
    /// The place whose files the phase touches.
    pub(crate) place: Spanned<String>,
}

/// When a trainer counts as hung.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct TimeoutsDraft {
    /// Longest time without a line of output. Default: 60 s.
    pub(crate) stall: Option<TimeSpan>,
    /// Longest time that one start may run in total. Default: 10 min.
    pub(crate) finish: Option<TimeSpan>,
}

/// Here and not beside the type, because a checked target file knows nothing of how it is written.
impl TargetFile {
    /// Parses and checks the text of a target file. `file` is only named in errors.
    ///
    /// # Errors
    ///
    /// Returns every problem of the file.
    pub fn parse(text: &str, file: &str) -> Result<TargetFile, InvalidFile> {
        let mut root = tree::parse(text).map_err(|problem| InvalidFile::new(file, text, vec![problem]))?;
        let key_spans = KeySpans::of(&root);
        let (draft, mut problems) = read::deserialize_all::<TargetDraft>(&mut root);
        let is_complete = problems.is_empty();
        let target = draft.map(|draft| {
            key_spans.check_places(draft.places.keys(), &mut problems);
            key_spans.check_variables(draft.environment.keys(), &mut problems);
            let place_names = draft.places.keys().cloned().collect();
            let texts = TextChecker { file_text: text, place_names };
            let target = checked_target(draft, &texts, &mut problems);
            // A setting that could not be read is missing in its guard.
            if is_complete {
                key_spans.check_guards(&target, &mut problems);
            }
            target
        });
        match target {
            Some(target) if problems.is_empty() => Ok(target),
            _ => Err(InvalidFile::new(file, text, problems)),
        }
    }
}

/// The target file. It is only valid if no problem is added.
fn checked_target(draft: TargetDraft, texts: &TextChecker<'_>, problems: &mut Vec<Problem>) -> TargetFile {
    check_head(&draft, problems);
    let mut command = |command: &CommandDraft, used| checked_command(command, used, texts, problems);
    let start = command(&draft.start, placeholders::START);
    let resume = draft.resume.as_ref().map(|resume| command(resume, placeholders::RESUME));
    let prepare = draft.prepare.iter().map(|prepare| command(prepare, placeholders::PREPARE)).collect();
    let verify = draft.verify.as_ref().map(|verify| command(verify, placeholders::VERIFY));
    let generate = draft
        .generate
        .iter()
        .map(|(kind, generate)| (kind.clone(), command(generate, placeholders::GENERATE)))
        .collect();
    let submit = draft.submit.as_ref().map(|submit| command(submit, placeholders::SUBMIT));
    check_data_file_commands(&draft, &generate, submit.as_ref(), problems);
    let places = draft
        .places
        .iter()
        .map(|(name, place)| (name.clone(), checked_place(place, texts, problems)))
        .collect();
    TargetFile {
        id: draft.id,
        title: draft.title,
        program: PathBuf::from(texts.plain(&draft.program, placeholders::PROGRAM, problems)),
        environment: checked_environment(&draft.environment, texts, problems),
        inherit: checked_inherit(&draft.inherit, &draft.environment, problems),
        writable: draft.writable.iter().map(|dir| checked_writable(dir, texts, problems)).collect(),
        network: draft.network.map(|network| match network {
            NetworkDraft::Private => TargetNetwork::Private,
            NetworkDraft::Host => TargetNetwork::Host,
        }),
        prepare,
        generate,
        submit,
        verify,
        resume: resume.unwrap_or_else(|| start.clone()),
        start,
        setting_args: checked_setting_args(&draft.setting_args, texts, problems),
        announces: checked_announces(draft.announces, problems),
        phases: draft
            .phases
            .into_iter()
            .map(|(name, phase)| (name, checked_phase(phase, &places, problems)))
            .collect(),
        same: draft.same.map(|pattern| pattern_with_group(pattern, "value", problems)),
        refused_exits: draft.refused_exits.into_iter().map(i32::from).collect(),
        stops_with_zero: draft.stops_with_zero,
        guards: draft
            .guards
            .into_iter()
            .map(|(name, settings)| (name, setting_texts(settings.value)))
            .collect(),
        stall: draft.timeouts.stall.map_or(DEFAULT_STALL, |time| time.0),
        finish: draft.timeouts.finish.map_or(DEFAULT_FINISH, |time| time.0),
        places,
    }
}

/// Checks what stands before the commands.
fn check_head(draft: &TargetDraft, problems: &mut Vec<Problem>) {
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
}

/// The environment variables of the file.
fn checked_environment(
    variables: &BTreeMap<String, Spanned<SettingValue>>,
    texts: &TextChecker<'_>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Template> {
    variables
        .iter()
        .map(|(name, Spanned { value, span })| {
            let text = Spanned { value: value.0.clone(), span: *span };
            (name.clone(), texts.template(&text, placeholders::ENVIRONMENT, problems))
        })
        .collect()
}

fn checked_announces(draft: AnnouncesDraft, problems: &mut Vec<Problem>) -> Announces {
    Announces {
        step: pattern_with_group(draft.step, "step", problems),
        saved: draft.saved.map(|pattern| pattern_with_group(pattern, "step", problems)),
        resumed: draft.resumed.map(|pattern| pattern_with_group(pattern, "step", problems)),
        rolled_back: draft.rolled_back.map(|pattern| pattern_with_group(pattern, "step", problems)),
    }
}

fn setting_texts(settings: BTreeMap<String, SettingValue>) -> BTreeMap<String, String> {
    settings.into_iter().map(|(key, value)| (key, value.0)).collect()
}

/// A command, which must have a program.
fn checked_command(
    command: &CommandDraft,
    used: TextUse,
    texts: &TextChecker<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<CommandArgument> {
    let arguments = texts.arguments(&command.value, used, problems);
    let has_program = command.value.first().is_some_and(|program| !program.value.is_empty());
    if !has_program || arguments.first() == Some(&CommandArgument::Settings) {
        problems.push(command.problem("the command has no program").help("start it with '{program}'"));
    }
    arguments
}

/// Checks that the commands for a data file are told its path.
fn check_data_file_commands(
    draft: &TargetDraft,
    generate: &BTreeMap<String, Vec<CommandArgument>>,
    submit: Option<&Vec<CommandArgument>>,
    problems: &mut Vec<Problem>,
) {
    let generated = draft.generate.values().zip(generate.values()).map(|pair| (pair, "writes"));
    let submitted = draft.submit.as_ref().zip(submit).map(|pair| (pair, "submits"));
    for ((command, arguments), does) in generated.chain(submitted) {
        if !arguments.iter().any(|argument| argument.has(&Placeholder::File)) {
            let message = format!("the command does not say which file it {does}");
            problems.push(command.problem(message).help("add an argument with '{file}'"));
        }
    }
}

/// The arguments for one setting, which must pass something of it.
fn checked_setting_args(
    arguments: &[Spanned<String>],
    texts: &TextChecker<'_>,
    problems: &mut Vec<Problem>,
) -> Vec<Template> {
    let before = problems.len();
    let templates: Vec<Template> = arguments
        .iter()
        .map(|argument| texts.template(argument, placeholders::SETTING_ARGS, problems))
        .collect();
    let passes =
        |template: &Template| [Placeholder::Key, Placeholder::Value].iter().any(|part| template.has(part));
    if let Some(first) =
        arguments.first().filter(|_| problems.len() == before && !templates.iter().any(passes))
    {
        let message = "`setting-args` pass neither `{key}` nor `{value}`";
        problems.push(first.problem(message).help("write, for example, ['--set', '{key}={value}']"));
    }
    templates
}

/// A directory of the host. Whether it exists is only known when the target runs.
fn checked_writable(dir: &Spanned<String>, texts: &TextChecker<'_>, problems: &mut Vec<Problem>) -> PathBuf {
    if dir.value.is_empty() {
        problems.push(dir.problem("the path is empty").help("write the path of a directory"));
    }
    if dir.value == "~" || dir.value.starts_with("~/") {
        problems.push(
            dir.problem("`~` is not replaced by your home directory")
                .help("write an absolute path, or one relative to this file"),
        );
    }
    PathBuf::from(texts.plain(dir, placeholders::WRITABLE, problems))
}

/// A path below the root.
fn checked_place(place: &Spanned<String>, texts: &TextChecker<'_>, problems: &mut Vec<Problem>) -> PathBuf {
    let text = texts.plain(place, placeholders::PLACES, problems);
    let path = Path::new(&text);
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
