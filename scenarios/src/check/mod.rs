//! Draft -> Scenario: checks what the types of the draft cannot express, and collects every problem of the
//! file. Reads no files, and knows nothing of how a fault is injected.

mod check_gpu;

use std::collections::BTreeMap;

use crate::calls::{CrashModel, FileCallKind};
use crate::draft::{
    CallDraft, CommonKeys, CrashStatesDraft, DataKindDraft, EffectiveIfDraft, FaultDraft, KillPointDraft,
    MountDraft, PersistenceDraft, ReplacementDraft, ScenarioDraft, SeverityDraft, SignalDraft, SubmitDraft,
    TriggerDraft, UntilDraft,
};
use crate::expect_draft::{ExpectationDraft, FactDraft};
use crate::problem::{InvalidFile, Problem, SourceSpan};
use crate::scenario::{
    CallTrigger, CrashStates, DataKind, Effect, Expectation, Fact, Fault, KillPoint, Modality, Mount,
    NameKind, Persistence, PlantedFile, Replacement, Scenario, Severity, SubmittedFile, Trigger, Until,
};
use crate::signal::{SentSignal, SignalName};
use crate::spanned::Spanned;
use crate::tree::{YamlNode, YamlNodeKind};
use crate::{read, tree};

/// Default of `max-trials`.
const DEFAULT_MAX_TRIALS: u32 = 64;
/// Largest `max-trials`.
const MAX_TRIALS_LIMIT: u32 = 100_000;
/// 2^22 leaves are about 50 MB of text.
const MAX_JSON_LEVELS: u32 = 22;

/// Reads and checks a scenario file. `file` is only named in errors.
pub(crate) fn check_scenario(text: &str, file: &str) -> Result<Scenario, InvalidFile> {
    let mut root = tree::parse(text).map_err(|problem| InvalidFile::new(file, text, vec![problem]))?;
    let expectations = expectation_texts(&root);
    let (draft, problems) = read::deserialize_all::<ScenarioDraft>(&mut root);
    let mut checker = Checker {
        is_complete: problems.is_empty(),
        problems,
        target_names: Vec::new(),
        mounts: BTreeMap::new(),
    };
    let scenario = draft.map(|draft| checker.scenario(draft, &expectations, file, text));
    match (scenario, checker.problems.is_empty()) {
        (Some(mut scenario), true) => {
            scenario.target_names = checker.target_names;
            Ok(scenario)
        }
        _ => Err(InvalidFile::new(file, text, checker.problems)),
    }
}

/// The text of each expectation, on one line.
fn expectation_texts(root: &YamlNode) -> Vec<String> {
    let YamlNodeKind::Map(pairs) = &root.kind else { return Vec::new() };
    let list = pairs.iter().find(|(key, _)| key.flow() == "expect").map(|(_, value)| &value.kind);
    let Some(YamlNodeKind::List(items)) = list else { return Vec::new() };
    let text = |item: &YamlNode| {
        if let YamlNodeKind::Map(pairs) = &item.kind { YamlNode::flow_pairs(pairs) } else { item.flow() }
    };
    items.iter().map(text).collect()
}

struct Checker {
    /// No value had to be removed from the tree. A list that is empty was then written empty, so it is worth
    /// reporting.
    is_complete: bool,
    problems: Vec<Problem>,
    /// Names that can be checked only against the target file.
    target_names: Vec<(NameKind, Spanned<String>)>,
    /// Places with a mount of their own, each with whether its inodes are limited.
    mounts: BTreeMap<String, bool>,
}

impl Checker {
    fn scenario(&mut self, draft: ScenarioDraft, texts: &[String], file: &str, text: &str) -> Scenario {
        if draft.version.value != 1 {
            self.problems.push(
                draft
                    .version
                    .problem(format!("version {} is not supported", draft.version.value))
                    .help("write `version: 1`"),
            );
        }
        if draft.title.value.trim().is_empty() || draft.title.value.contains('\n') {
            self.problems.push(draft.title.problem("the title must be one line of text"));
        }
        self.require_not_empty(&draft.method, "`method` contains no fault");
        self.require_not_empty(&draft.expect, "`expect` contains no expectation");
        let mounts: Vec<Mount> = draft.mounts.into_iter().map(|mount| self.mount(mount)).collect();
        let submit = draft.target.submit.into_iter().map(|submit| self.submit(submit)).collect();
        let method_span = draft.method.span;
        let method: Vec<Fault> =
            draft.method.value.into_iter().map(|fault| self.fault(fault, method_span)).collect();
        self.check_crash_states_alone(&method, method_span);
        let gpu = draft.target.gpu.map(|gpu| self.target_gpu(gpu));
        self.check_faults_fit_gpu(&method, gpu.as_ref(), method_span);
        let expect_span = draft.expect.span;
        let expect: Vec<Expectation> = draft
            .expect
            .value
            .into_iter()
            .zip(texts)
            .map(|(expectation, text)| self.expectation(expectation, text))
            .collect();
        let is_before_resume = |expectation: &Expectation| {
            matches!(&expectation.fact, Fact::VerifiesBeforeResume | Fact::Files { before_resume: true, .. })
        };
        let has_crash_states = method.iter().any(|fault| matches!(fault.effect, Effect::CrashStates(_)));
        if !has_crash_states && self.is_complete && expect.iter().any(is_before_resume) {
            let message = "`before-resume` and `verifies-before-resume` need a method with `crash-states`";
            self.problems.push(Problem::at(expect_span, message).help("remove them, or use `crash-states`"));
        }
        let expects =
            |is_kind: fn(&Fact) -> bool| expect.iter().any(|expectation| is_kind(&expectation.fact));
        if expects(|fact| matches!(fact, Fact::FinalLoss { .. }))
            && expects(|fact| matches!(fact, Fact::SameAsBaseline))
        {
            let message =
                "`final-loss` allows weights to differ, and `same-as-baseline` requires equal weights";
            self.problems.push(Problem::at(expect_span, message).help("remove one of the two"));
        }
        let guards = draft.guards.into_iter().map(|guard| self.target_name(NameKind::Guard, guard)).collect();
        Scenario {
            id: draft.id.value.0,
            title: draft.title.value,
            severity: severity(draft.severity),
            target: draft.target.target,
            gpu,
            settings: draft.target.settings.into_iter().map(|(key, value)| (key, value.0)).collect(),
            submit,
            mounts,
            method,
            expect,
            guards,
            target_names: Vec::new(),
            file: file.into(),
            text: text.into(),
        }
    }

    fn require_not_empty<T>(&mut self, list: &Spanned<Vec<T>>, message: &str) {
        if list.value.is_empty() && self.is_complete {
            self.problems.push(list.problem(message));
        }
    }

    fn target_name(&mut self, kind: NameKind, name: Spanned<String>) -> String {
        self.target_names.push((kind, name.clone()));
        name.value
    }

    fn mount(&mut self, draft: MountDraft) -> Mount {
        if self.mounts.insert(draft.place.value.clone(), draft.inodes.is_some()).is_some() {
            self.problems.push(draft.place.problem(format!("`{}` is mounted twice", draft.place.value)));
        }
        let place = self.target_name(NameKind::Place, draft.place);
        Mount { place, size: draft.size.0, inodes: draft.inodes }
    }

    /// Checks that a place has a mount of its own.
    fn mounted_place(&mut self, place: Spanned<String>, with_inodes: bool) -> String {
        match (self.mounts.get(&place.value), with_inodes) {
            (None, _) if self.is_complete => {
                let help = format!(
                    "add to `mounts`: {{place: {}, size: 64 MiB{}}}",
                    place.value,
                    if with_inodes { ", inodes: 512" } else { "" }
                );
                self.problems
                    .push(place.problem(format!("`{}` has no mount of its own", place.value)).help(help));
            }
            (Some(false), true) => {
                self.problems.push(
                    place
                        .problem(format!("the mount of `{}` does not limit its inodes", place.value))
                        .help("add `inodes: 512` to the mount"),
                );
            }
            _ => {}
        }
        self.target_name(NameKind::Place, place)
    }

    fn submit(&mut self, draft: SubmitDraft) -> SubmittedFile {
        match draft {
            SubmitDraft::File(name) => SubmittedFile::File(name.0),
            SubmitDraft::Generate(generate) => {
                self.require_positive(&generate.samples, "samples");
                let kind = self.target_name(NameKind::DataKind, generate.kind);
                SubmittedFile::Generated { kind, samples: generate.samples.value, length: generate.length }
            }
        }
    }

    fn require_positive(&mut self, number: &Spanned<u32>, key: &str) -> u32 {
        if number.value == 0 {
            self.problems.push(number.problem(format!("`{key}` must be at least 1")));
        }
        number.value
    }

    fn fault(&mut self, draft: FaultDraft, method_span: SourceSpan) -> Fault {
        let common = common_keys(&draft);
        let max_trials = common.max_trials.map_or(DEFAULT_MAX_TRIALS, |max| {
            if !(1..=MAX_TRIALS_LIMIT).contains(&max.value) {
                self.problems.push(max.problem(format!("`max-trials` must be from 1 to {MAX_TRIALS_LIMIT}")));
            }
            max.value
        });
        self.require_call_trigger(&draft, method_span);
        let when = self.trigger(common.when, &draft);
        let persistence = match common.persistence {
            PersistenceDraft::Transient => Persistence::Transient,
            PersistenceDraft::Persistent => Persistence::Persistent,
        };
        let effective_if_output =
            common.effective_if.map(|EffectiveIfDraft::Output(pattern)| pattern.0.clone());
        let until = match common.until {
            None | Some(UntilDraft::Never) => Until::Never,
            Some(UntilDraft::After(time)) => Until::After(time.0),
            Some(UntilDraft::Output(pattern)) => Until::Output(pattern.0.clone()),
        };
        Fault {
            effect: self.effect(draft, method_span),
            when,
            persistence,
            until,
            effective_if_output,
            max_trials,
        }
    }

    fn trigger(&mut self, draft: Option<&TriggerDraft>, fault: &FaultDraft) -> Trigger {
        match draft {
            None | Some(TriggerDraft::Start) => Trigger::Start,
            Some(TriggerDraft::Step(step)) => Trigger::Step(*step),
            Some(TriggerDraft::Output(pattern)) => Trigger::Output(pattern.0.clone()),
            Some(TriggerDraft::After(time)) => Trigger::After(time.0),
            Some(TriggerDraft::Call(call)) => self.call_trigger(call, fault),
        }
    }

    fn call_trigger(&mut self, call: &CallDraft, fault: &FaultDraft) -> Trigger {
        let fits: Option<fn(FileCallKind) -> bool> = match fault {
            FaultDraft::ShortCall(_) => Some(|kind| matches!(kind, FileCallKind::Read | FileCallKind::Write)),
            FaultDraft::SwapFile(_) => Some(FileCallKind::takes_path),
            _ => None,
        };
        let kinds = match &call.to {
            Some(kinds) if !kinds.value.is_empty() => kinds.value.clone(),
            _ => FileCallKind::MUTATING.to_vec(),
        };
        if let Some(wrong) = fits.and_then(|fits| kinds.iter().find(|kind| !fits(**kind))) {
            let fitting: Vec<&str> = FileCallKind::ALL
                .into_iter()
                .filter(|kind| fits.is_some_and(|fits| fits(*kind)))
                .map(FileCallKind::name)
                .collect();
            let message = format!("this fault cannot be injected at a `{}` call", wrong.name());
            let span = call.to.as_ref().map_or(call.at.span, |kinds| kinds.span);
            self.problems.push(
                Problem::at(span, message)
                    .help(format!("write `to` with one or more of: {}", fitting.join(", "))),
            );
        }
        Trigger::Call(CallTrigger {
            kinds,
            paths: call.on.as_ref().map(|on| on.0.compile_matcher()),
            phase: call.during.as_ref().map(|during| self.target_name(NameKind::Phase, during.clone())),
            occurrence: call.at.value.0,
        })
    }

    /// Checks that a fault that changes a call has a call as its trigger.
    fn require_call_trigger(&mut self, draft: &FaultDraft, method_span: SourceSpan) {
        let name = match draft {
            FaultDraft::FailCall(_) => "fail-call",
            FaultDraft::ShortCall(_) => "short-call",
            FaultDraft::DelayCall(_) => "delay-call",
            FaultDraft::SwapFile(_) => "swap-file",
            FaultDraft::SweepErrno(_) => "sweep-errno",
            _ => return,
        };
        if !matches!(common_keys(draft).when, Some(TriggerDraft::Call(_))) {
            let message = format!("`{name}` is injected at a file system call, and `when` names none");
            let problem = Problem::at(method_span, message);
            self.problems
                .push(problem.help("add `when: {call: {to: [write], on: 'checkpoints/**', at: every}}`"));
        }
    }

    fn effect(&mut self, draft: FaultDraft, method_span: SourceSpan) -> Effect {
        match draft {
            FaultDraft::Crash(fault) => Effect::Crash {
                point: fault.point.map(|point| match point {
                    KillPointDraft::Before => KillPoint::Before,
                    KillPointDraft::Inside => KillPoint::Inside,
                    KillPointDraft::After => KillPoint::After,
                }),
            },
            FaultDraft::Signal(fault) => self.signal(fault),
            FaultDraft::FillDisk(fault) => {
                Effect::FillDisk { place: self.mounted_place(fault.place, false), leave: fault.leave.0 }
            }
            FaultDraft::ExhaustInodes(fault) => {
                Effect::ExhaustInodes { place: self.mounted_place(fault.place, true) }
            }
            FaultDraft::ReadOnly(fault) => {
                Effect::ReadOnly { place: self.target_name(NameKind::Place, fault.place) }
            }
            FaultDraft::MemoryLimit(fault) => Effect::MemoryLimit { limit: fault.max.0 },
            FaultDraft::Plant(fault) => {
                self.require_not_empty(&fault.files, "`files` is empty");
                let files = fault.files.value.into_iter().map(|file| PlantedFile {
                    name: file.name.0,
                    kind: self.data_kind(&file.holds, fault.files.span),
                });
                let files = files.collect();
                Effect::Plant { place: self.target_name(NameKind::Place, fault.place), files }
            }
            FaultDraft::Vanish(fault) => {
                let files = self.require_positive(&fault.files, "files");
                let kind = self.data_kind(&fault.holds, fault.files.span);
                Effect::Vanish { place: self.target_name(NameKind::Place, fault.place), files, kind }
            }
            FaultDraft::PoisonSample(fault) => {
                if fault.effective_if.is_none() {
                    let help = "add `effective-if: {output: ...}` with what the target prints if a loss is \
                        not finite";
                    self.problems.push(
                        fault
                            .sample
                            .problem("only the target's output can show that `poison-sample` was effective")
                            .help(help),
                    );
                }
                Effect::PoisonSample {
                    sample: self.require_positive(&fault.sample, "sample"),
                    weight: fault.weight,
                }
            }
            FaultDraft::FailCall(fault) => {
                self.require_not_empty(&fault.errno, "`errno` is empty");
                let errnos = fault.errno.value.iter().map(|errno| errno.0).collect();
                Effect::FailCall { errnos, performed: fault.performed }
            }
            FaultDraft::ShortCall(fault) => {
                Effect::ShortCall { bytes: self.require_positive(&fault.bytes, "bytes") }
            }
            FaultDraft::DelayCall(fault) => Effect::DelayCall { delay: fault.time.0 },
            FaultDraft::SwapFile(fault) => Effect::SwapFile {
                replacement: match fault.by {
                    ReplacementDraft::Nothing => Replacement::Nothing,
                    ReplacementDraft::EmptyFile => Replacement::EmptyFile,
                    ReplacementDraft::DanglingLink => Replacement::DanglingLink,
                },
            },
            FaultDraft::SweepErrno(_) => Effect::SweepErrno,
            FaultDraft::CrashStates(fault) => Effect::CrashStates(self.crash_states(fault)),
            FaultDraft::GpuError(fault) => self.gpu_error(fault),
            FaultDraft::GpuHang(fault) => {
                Effect::GpuHang { calls: self.launch_calls(fault.call, "gpu-hang", method_span) }
            }
            FaultDraft::GpuOverwrite(fault) => Effect::GpuOverwrite {
                with: fault.with,
                calls: self.launch_calls(fault.call, "gpu-overwrite", method_span),
            },
            FaultDraft::GpuFlipBit(fault) => Effect::GpuFlipBit { calls: self.gpu_calls(fault.call) },
            FaultDraft::GpuFragment(fault) => self.gpu_fragment(fault),
            FaultDraft::GpuState(fault) => self.gpu_state(fault, method_span),
        }
    }

    fn signal(&mut self, fault: SignalDraft) -> Effect {
        self.require_not_empty(&fault.which, "`which` is empty");
        let stops = fault.which.value.contains(&SignalName::Stop);
        if stops && fault.r#for.is_none() {
            let problem = fault.which.problem("STOP needs the time until CONT follows");
            self.problems.push(problem.help("add `for: 2 s`"));
        }
        if stops && !matches!(fault.until, None | Some(UntilDraft::Never)) {
            let problem = fault.which.problem("a STOP ends with CONT after `for`, so it cannot have `until`");
            self.problems.push(problem.help("remove `until`"));
        }
        if let Some(time) = fault.r#for.as_ref().filter(|time| time.value.0.is_zero()) {
            self.problems.push(time.problem("`for` must be longer than 0"));
        }
        if matches!(fault.when, None | Some(TriggerDraft::Start)) {
            let problem = fault.which.problem("before its start the target cannot receive a signal");
            self.problems.push(problem.help("add `when: {step: 4}`, or another trigger"));
        }
        let duration = fault.r#for.map(|time| time.value.0);
        let sent = |signal: &SignalName| SentSignal::new(*signal, fault.to, duration);
        Effect::Signal { signals: fault.which.value.iter().map(sent).collect() }
    }

    fn crash_states(&mut self, fault: CrashStatesDraft) -> CrashStates {
        let models = match fault.of {
            Some(models) => {
                self.require_not_empty(&models, "`of` is empty");
                models.value
            }
            None => CrashModel::DEFAULTS.to_vec(),
        };
        if let Some(depth) = fault.depth.as_ref().filter(|depth| !(1..=2).contains(&depth.value)) {
            self.problems.push(
                depth.problem("`depth` must be 1 (one crash) or 2 (a second crash during the recovery)"),
            );
        }
        CrashStates {
            models,
            phase: fault.during.map(|during| self.target_name(NameKind::Phase, during)),
            paths: fault.on.map(|on| on.0.compile_matcher()),
            in_recovery: fault.depth.is_some_and(|depth| depth.value == 2),
        }
    }

    /// A recording starts with the untouched root and ends by itself, so no other fault may disturb it.
    fn check_crash_states_alone(&mut self, method: &[Fault], method_span: SourceSpan) {
        let has_crash_states = method.iter().any(|fault| matches!(fault.effect, Effect::CrashStates(_)));
        if has_crash_states && method.len() > 1 {
            let problem = Problem::at(method_span, "`crash-states` must be the only fault of a method");
            self.problems.push(problem.help("move the other fault to a scenario of its own"));
        }
        if has_crash_states && !self.mounts.is_empty() {
            let problem = Problem::at(method_span, "`crash-states` needs all places on one file system");
            self.problems.push(problem.help("remove `mounts` from this scenario"));
        }
    }

    fn data_kind(&mut self, draft: &DataKindDraft, span: SourceSpan) -> DataKind {
        match draft {
            DataKindDraft::Sound(samples) => DataKind::Sound { samples: *samples },
            DataKindDraft::NestedJson(depth) => DataKind::NestedJson { depth: *depth },
            DataKindDraft::ExponentialJson(levels) => {
                if *levels > MAX_JSON_LEVELS {
                    self.problems.push(Problem::at(
                        span,
                        format!("`exponential-json` must have at most {MAX_JSON_LEVELS} levels"),
                    ));
                }
                DataKind::ExponentialJson { levels: *levels }
            }
            DataKindDraft::LongNumber(digits) => DataKind::LongNumber { digits: *digits },
            DataKindDraft::DuplicateKeys(keys) => DataKind::DuplicateKeys { keys: *keys },
            DataKindDraft::LongLine(size) => DataKind::LongLine { size: size.0 },
        }
    }

    fn expectation(&mut self, draft: ExpectationDraft, text: &str) -> Expectation {
        let (modality, fact) = match draft {
            ExpectationDraft::Always(fact) => (Modality::Always, fact),
            ExpectationDraft::Sometimes(fact) => (Modality::Sometimes, fact),
            ExpectationDraft::Reached(fact) => (Modality::Reached, fact),
        };
        Expectation { modality, fact: checked_fact(fact), text: text.to_owned() }
    }
}

fn checked_fact(draft: FactDraft) -> Fact {
    match draft {
        FactDraft::Outcome(outcomes) => Fact::Outcome(outcomes),
        FactDraft::LostSteps(bound) => Fact::LostSteps { max: bound.max },
        FactDraft::SameAsBaseline => Fact::SameAsBaseline,
        FactDraft::FinalLoss(tolerance) => Fact::FinalLoss { within_percent: tolerance.within.0 },
        FactDraft::Restarts(bound) => Fact::Restarts { max: u32::try_from(bound.max).unwrap_or(u32::MAX) },
        FactDraft::RecoveryTime(bound) => Fact::RecoveryTime { max: bound.max.0 },
        FactDraft::PeakMemory(bound) => Fact::PeakMemory { max: bound.max.0 },
        FactDraft::Verifies => Fact::Verifies,
        FactDraft::VerifiesBeforeResume => Fact::VerifiesBeforeResume,
        FactDraft::EndsWith(codes) => Fact::EndsWith(codes.into_iter().map(i32::from).collect()),
        FactDraft::LeavesNoProcess => Fact::LeavesNoProcess,
        FactDraft::Output(pattern) => Fact::Output(pattern.0),
        FactDraft::Files(files) => Fact::Files {
            matching: files.matching.0.compile_matcher(),
            containing: files.containing.map(|pattern| pattern.0),
            min: files.min.unwrap_or(0),
            max: files.max,
            before_resume: files.before_resume,
        },
    }
}

fn severity(draft: SeverityDraft) -> Severity {
    match draft {
        SeverityDraft::Critical => Severity::Critical,
        SeverityDraft::Medium => Severity::Medium,
        SeverityDraft::Low => Severity::Low,
        SeverityDraft::Extra => Severity::Extra,
    }
}

fn common_keys(draft: &FaultDraft) -> CommonKeys<'_> {
    match draft {
        FaultDraft::Crash(fault) => fault.common(),
        FaultDraft::Signal(fault) => fault.common(),
        FaultDraft::FillDisk(fault) => fault.common(),
        FaultDraft::ExhaustInodes(fault) => fault.common(),
        FaultDraft::ReadOnly(fault) => fault.common(),
        FaultDraft::MemoryLimit(fault) => fault.common(),
        FaultDraft::Plant(fault) => fault.common(),
        FaultDraft::Vanish(fault) => fault.common(),
        FaultDraft::PoisonSample(fault) => fault.common(),
        FaultDraft::FailCall(fault) => fault.common(),
        FaultDraft::ShortCall(fault) => fault.common(),
        FaultDraft::DelayCall(fault) => fault.common(),
        FaultDraft::SwapFile(fault) => fault.common(),
        FaultDraft::SweepErrno(fault) => fault.common(),
        FaultDraft::CrashStates(fault) => fault.common(),
        FaultDraft::GpuError(fault) => fault.common(),
        FaultDraft::GpuHang(fault) => fault.common(),
        FaultDraft::GpuOverwrite(fault) => fault.common(),
        FaultDraft::GpuFlipBit(fault) => fault.common(),
        FaultDraft::GpuFragment(fault) => fault.common(),
        FaultDraft::GpuState(fault) => fault.common(),
    }
}
