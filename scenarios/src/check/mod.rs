//! A scenario file: as it is written, and the checks that the types cannot express. All problems of a file
//! are collected. The JSON schema is made from these types, and an editor shows their doc comments as help.
//! Reads no files, and knows no single fault.

mod expectation;
mod fault;
mod inherited;
mod key_spans;
mod placeholders;
mod target_file;
mod target_gpu;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::checker::{Checker, NameKind};
use crate::effect::target_need::{NeedKind, TargetNeed};
use crate::effect::{Effect, FaultDraft};
use crate::scenario::{Expectation, Fault, Mount, Scenario, Severity, SubmittedFile};
use crate::units::ByteSize;
use crate::yaml::leaf::{FileName, ScenarioId, SettingValue};
use crate::yaml::problem::InvalidFile;
use crate::yaml::spanned::Spanned;
use crate::yaml::tree::{YamlNode, YamlNodeKind};
use crate::yaml::{read, tree};

use expectation::{ExpectationDraft, check_expectations_fit, checked_expectation};
use fault::checked_fault;
use target_gpu::{GpuDraft, check_faults_fit_gpu, checked_gpu};

pub(crate) use target_file::TargetDraft;

/// A Trainwreck scenario: a target, the faults that are injected into it, and what is expected of it then.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "Trainwreck scenario, version 1")]
pub(crate) struct ScenarioDraft {
    /// Version of the scenario language: 1.
    pub(crate) version: Spanned<u32>,
    /// Unique name of the scenario: a domain and two digits, such as `fs-01`.
    pub(crate) id: Spanned<ScenarioId>,
    /// One line that describes what happens to the trainer.
    pub(crate) title: Spanned<String>,
    /// How bad it is if a trainer does not survive this scenario.
    pub(crate) severity: Severity,
    /// The trainer under test and its input.
    pub(crate) target: TargetUseDraft,
    /// Places of the target that get a tmpfs of their own.
    #[serde(default)]
    pub(crate) mounts: Vec<MountDraft>,
    /// The faults, in order. A fault is injected once per trial unless it has `persistence: persistent`, so
    /// that a resumed target is not hit again.
    pub(crate) method: Spanned<Vec<FaultDraft>>,
    /// What must hold.
    pub(crate) expect: Spanned<Vec<ExpectationDraft>>,
    /// Protections of the target that this scenario relies on. `trainwreck ablate` switches off one at a
    /// time; the scenario must then be violated.
    #[serde(default)]
    pub(crate) guards: Vec<Spanned<String>>,
}

/// The trainer under test and its input.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct TargetUseDraft {
    /// Name of a shipped target (`reference`), or the path of a target file, relative to this file.
    #[serde(rename = "use")]
    pub(crate) target: Spanned<String>,
    /// The GPU that the target sees. Default: none.
    pub(crate) gpu: Option<Spanned<GpuDraft>>,
    /// Settings of the target that differ from its defaults.
    #[serde(default)]
    pub(crate) settings: Option<Spanned<BTreeMap<String, SettingValue>>>,
    /// Data files that are submitted to the target before it starts.
    #[serde(default)]
    pub(crate) submit: Option<Spanned<Vec<SubmitDraft>>>,
}

/// A data file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SubmitDraft {
    /// A file in the directory of this scenario file.
    File(Spanned<FileName>),
    /// A file that one of the target's `generate` commands makes.
    Generate(GenerateDraft),
}

/// A data file to be generated.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct GenerateDraft {
    /// Which of the target's `generate` commands, such as `arithmetic`.
    pub(crate) kind: Spanned<String>,
    /// Number of samples.
    pub(crate) samples: Spanned<u32>,
    /// Approximate bytes per sample. Default: the command's own.
    pub(crate) length: Option<u32>,
}

/// A tmpfs for one place of the target.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MountDraft {
    /// A place of the target file.
    pub(crate) place: Spanned<String>,
    /// Size of the tmpfs.
    pub(crate) size: ByteSize,
    /// Number of files and directories that it can hold. Default: the kernel's choice.
    pub(crate) inodes: Option<u64>,
}

/// Here and not beside the type, because a checked scenario knows nothing of how it is written.
impl Scenario {
    /// Parses and checks the text of a scenario file. `file` is only named in errors.
    ///
    /// # Errors
    ///
    /// Returns every problem of the file.
    pub fn parse(text: &str, file: &str) -> Result<Scenario, InvalidFile> {
        let mut root = tree::parse(text).map_err(|problem| InvalidFile::new(file, text, vec![problem]))?;
        let expectations = expectation_texts(&root);
        let (draft, problems) = read::deserialize_all::<ScenarioDraft>(&mut root);
        let is_complete = problems.is_empty();
        let mut checker = Checker { is_complete, problems, ..Checker::default() };
        let scenario = draft.map(|draft| checked_scenario(draft, &expectations, &mut checker));
        match scenario {
            Some(scenario) if checker.problems.is_empty() => Ok(Scenario {
                target_names: checker.target_names,
                target_needs: checker.target_needs,
                file: file.into(),
                text: text.into(),
                ..scenario
            }),
            _ => Err(InvalidFile::new(file, text, checker.problems)),
        }
    }
}

/// The text of each expectation, on one line.
fn expectation_texts(root: &YamlNode) -> Vec<Spanned<String>> {
    let YamlNodeKind::Map(pairs) = &root.kind else { return Vec::new() };
    let list = pairs.iter().find(|(key, _)| key.flow() == "expect").map(|(_, value)| &value.kind);
    let Some(YamlNodeKind::List(items)) = list else { return Vec::new() };
    let text = |item: &YamlNode| {
        let is_map = if let YamlNodeKind::Map(pairs) = &item.kind { Some(pairs) } else { None };
        let value = is_map.map_or_else(|| item.flow(), |pairs| YamlNode::flow_pairs(pairs));
        Spanned { value, span: item.span }
    };
    items.iter().map(text).collect()
}

/// The scenario, without its file. It is only valid if no problem is added. `texts`: of the expectations.
fn checked_scenario(draft: ScenarioDraft, texts: &[Spanned<String>], checker: &mut Checker) -> Scenario {
    check_head(&draft, checker);
    checker.method_span = draft.method.span;
    let mounts: Vec<Mount> = draft.mounts.iter().map(|mount| checked_mount(mount, checker)).collect();
    let submit: Vec<SubmittedFile> = draft
        .target
        .submit
        .iter()
        .flat_map(|submit| &submit.value)
        .map(|submit| checked_submit(submit, checker))
        .collect();
    let method: Vec<Fault> = draft.method.value.iter().map(|fault| checked_fault(fault, checker)).collect();
    let data_file = |submit: &SubmitDraft| match submit {
        SubmitDraft::File(name) => Some(Spanned { value: name.value.0.clone(), span: name.span }),
        SubmitDraft::Generate(_) => None,
    };
    let data_files =
        draft.target.submit.iter().flat_map(|submit| &submit.value).filter_map(data_file).collect();
    check_workload(&draft.target, &submit, &method, checker);
    check_crash_states_alone(&method, checker);
    check_mounts(&method, checker);
    let gpu = draft.target.gpu.as_ref().map(|gpu| checked_gpu(&gpu.value, checker));
    check_faults_fit_gpu(&method, gpu.as_ref(), checker);
    let expect_span = draft.expect.span;
    let expect: Vec<Expectation> = draft
        .expect
        .value
        .into_iter()
        .zip(texts)
        .map(|(expectation, text)| checked_expectation(expectation, text, checker))
        .collect();
    check_expectations_fit(&expect, &method, expect_span, checker);
    let guards = draft.guards.iter().map(|guard| checker.target_name(NameKind::Guard, guard)).collect();
    Scenario {
        id: draft.id.value.0,
        title: draft.title.value,
        severity: draft.severity,
        target: draft.target.target,
        gpu,
        settings: draft
            .target
            .settings
            .into_iter()
            .flat_map(|settings| settings.value)
            .map(|(key, value)| (key, value.0))
            .collect(),
        submit,
        data_files,
        mounts,
        method,
        expect,
        guards,
        target_names: Vec::new(),
        target_needs: Vec::new(),
        file: String::new(),
        text: String::new(),
    }
}

/// Checks what stands before the faults, and that there are faults and expectations.
fn check_head(draft: &ScenarioDraft, checker: &mut Checker) {
    if draft.version.value != 1 {
        let problem = draft.version.problem(format!("version {} is not supported", draft.version.value));
        checker.problems.push(problem.help("write `version: 1`"));
    }
    if draft.title.value.trim().is_empty() || draft.title.value.contains('\n') {
        checker.problems.push(draft.title.problem("the title must be one line of text"));
    }
    checker.require_not_empty(&draft.method, "`method` contains no fault");
    checker.require_not_empty(&draft.expect, "`expect` contains no expectation");
}

fn checked_mount(draft: &MountDraft, checker: &mut Checker) -> Mount {
    if checker.mounts.insert(draft.place.value.clone(), draft.inodes.is_some()).is_some() {
        checker.problems.push(draft.place.problem(format!("`{}` is mounted twice", draft.place.value)));
    }
    let place = checker.target_name(NameKind::Place, &draft.place);
    Mount { place, size: draft.size, inodes: draft.inodes }
}

fn checked_submit(draft: &SubmitDraft, checker: &mut Checker) -> SubmittedFile {
    match draft {
        SubmitDraft::File(name) => SubmittedFile::File(name.value.0.clone()),
        SubmitDraft::Generate(generate) => {
            let samples = checker.require_positive(&generate.samples, "samples");
            let kind = checker.target_name(NameKind::DataKind, &generate.kind);
            SubmittedFile::Generated { kind, samples, length: generate.length }
        }
    }
}

/// Checks that settings and data files have a way to the target, and that faults in the data have data.
fn check_workload(
    target: &TargetUseDraft,
    submit: &[SubmittedFile],
    method: &[Fault],
    checker: &mut Checker,
) {
    if let Some(settings) = target.settings.as_ref().filter(|settings| !settings.value.is_empty()) {
        checker.target_needs.push(TargetNeed { kind: NeedKind::Settings, span: settings.span });
    }
    if let Some(list) = target.submit.as_ref().filter(|list| !list.value.is_empty()) {
        checker.target_needs.push(TargetNeed { kind: NeedKind::Submit, span: list.span });
    }
    let changes_data = method.iter().find(|fault| fault.effect.spec().changes_workload());
    if let Some(fault) = changes_data.filter(|_| submit.is_empty() && checker.is_complete) {
        checker.method_problem(
            format!("`{}` changes the submitted data, and no data is submitted", fault.effect.name()),
            "add to `target`: submit: [{generate: {kind: arithmetic, samples: 64}}]",
        );
    }
    // How many samples a file of the user has is not known here.
    let samples = |file: &SubmittedFile| match file {
        SubmittedFile::Generated { samples, .. } => *samples,
        SubmittedFile::File(_) => u32::MAX,
    };
    let most_samples = submit.iter().map(samples).max();
    for fault in method {
        let missing =
            fault.effect.spec().changed_sample().filter(|n| most_samples.is_some_and(|most| *n > most));
        if let Some(number) = missing {
            checker.method_problem(
                format!(
                    "`{}` changes sample {number}, and no submitted file has so many",
                    fault.effect.name()
                ),
                "write the number of an earlier sample, or generate more",
            );
        }
    }
}

/// A file system that is mounted over a place hides the mount that another fault would change.
fn check_mounts(method: &[Fault], checker: &mut Checker) {
    let is_mounted_over = |fault: &Fault| matches!(fault.effect, Effect::FileSystem(_));
    for (index, fault) in method.iter().enumerate() {
        let Some(place) = fault.effect.spec().changed_mount() else { continue };
        let clash = method[index + 1..].iter().find(|other| {
            other.effect.spec().changed_mount() == Some(place)
                && (is_mounted_over(fault) || is_mounted_over(other))
        });
        if let Some(other) = clash {
            let (one, other) = (fault.effect.name(), other.effect.name());
            checker.method_problem(
                format!("`{one}` and `{other}` can't both change the mount of `{place}`"),
                "move one of them to a scenario of its own",
            );
        }
    }
}

/// A recording starts with the untouched root and ends by itself, so no other fault may disturb it.
fn check_crash_states_alone(method: &[Fault], checker: &mut Checker) {
    let has_crash_states = method.iter().any(|fault| fault.effect.spec().crash_states().is_some());
    if has_crash_states && method.len() > 1 {
        checker.method_problem(
            "`crash-states` must be the only fault of a method",
            "move the other fault to a scenario of its own",
        );
    }
    if has_crash_states && !checker.mounts.is_empty() {
        checker.method_problem(
            "`crash-states` needs all places on one file system",
            "remove `mounts` from this scenario",
        );
    }
}
