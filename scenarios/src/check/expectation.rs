//! The expectations of a scenario file: as they are written, and their checks. Knows nothing of how a run is
//! judged.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::checker::Checker;
use crate::effect::target_need::{NeedKind, TargetNeed};
use crate::scenario::{Expectation, Fact, Fault, Modality};
use crate::units::{ByteSize, TimeSpan};
use crate::verdict::Outcome;
use crate::yaml::leaf::{PathGlob, Pattern, Percent};
use crate::yaml::problem::{Problem, SourceSpan};
use crate::yaml::spanned::Spanned;

/// An expectation: in how many trials a fact must hold, then the fact.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ExpectationDraft {
    /// The fact holds in every trial.
    Always(FactDraft),
    /// The fact holds in at least one trial.
    Sometimes(FactDraft),
    /// The fact holds at least once. Shows that the run reached the situation that the scenario is about.
    Reached(FactDraft),
}

/// A fact about a trial, which holds or does not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FactDraft {
    /// What the target did is one of these.
    Outcome(Vec<Outcome>),
    /// Number of steps that were trained again.
    LostSteps(MaxCount),
    /// What the target file's `same` pattern finds, such as a hash of the weights, equals what it found in
    /// the baseline.
    SameAsBaseline,
    /// The loss of the last step is near the baseline's. For a target that may finish on another device,
    /// where the weights need not be equal.
    FinalLoss(Tolerance),
    /// How often the harness had to start the target again, without the restarts that the method itself
    /// causes.
    Restarts(MaxCount),
    /// Time from when the fault became effective to the next announced step.
    RecoveryTime(MaxTime),
    /// Resident memory of the target's largest process.
    PeakMemory(MaxBytes),
    /// How many files, sockets and pipes one process had open, at any time.
    OpenFiles(MaxCount),
    /// How many threads all processes had together, at any time.
    Threads(MaxCount),
    /// The longest time that a process was a zombie: it had ended, and its parent had not waited for it.
    ZombieTime(MaxTime),
    /// The target's `verify` command exits with 0 at the end.
    Verifies,
    /// The target's `verify` command exits with 0 on the files that `crash-states` left, before the target is
    /// resumed.
    VerifiesBeforeResume,
    /// After a `signal` that asks the target to exit, the main process exits with one of these codes.
    EndsWith(Vec<u8>),
    /// Each command of `run-command` exits with one of these codes.
    CommandsEndWith(Vec<u8>),
    /// What the clients of `http-request` are answered.
    Answers(AnswersDraft),
    /// When the main process has exited by itself, no other process of the target is left.
    LeavesNoProcess,
    /// A line of the target's output matches.
    Output(Pattern),
    /// The number of matching files below the root at the end.
    Files(FilesDraft),
}

/// An upper bound on a number.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MaxCount {
    /// At most this many.
    pub(crate) max: u64,
}

/// How near to the baseline's value.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Tolerance {
    /// Largest difference, as a percentage of the baseline's value.
    pub(crate) within: Percent,
}

/// An upper bound on a time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MaxTime {
    /// At most this long.
    pub(crate) max: TimeSpan,
}

/// An upper bound on a size.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MaxBytes {
    /// At most this much.
    pub(crate) max: ByteSize,
}

/// Files to be counted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct FilesDraft {
    /// Paths of the files.
    pub(crate) matching: PathGlob,
    /// Only files whose first MiB matches.
    pub(crate) containing: Option<Pattern>,
    /// At least this many. Default: 0.
    pub(crate) min: Option<u64>,
    /// At most this many. Default: no limit.
    pub(crate) max: Option<u64>,
    /// Only files that everybody on the machine may write to. Default: false.
    #[serde(default)]
    pub(crate) writable_by_others: bool,
    /// Count the files as `crash-states` left them, before the target is resumed, not at the end. Default:
    /// false.
    #[serde(default)]
    pub(crate) before_resume: bool,
}

/// Answers of a server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct AnswersDraft {
    /// The status of each answer is one of these.
    pub(crate) status: Vec<u16>,
    /// Whether a connection that is closed without an answer is right, too. Default: false.
    #[serde(default)]
    pub(crate) or_closed: bool,
    /// The first MiB of each answer, its head and its body, matches.
    pub(crate) containing: Option<Pattern>,
}

/// The checked expectation. `text`: as in the file, on one line. Notes what it needs of the target file.
pub(super) fn checked_expectation(
    draft: ExpectationDraft,
    text: &Spanned<String>,
    checker: &mut Checker,
) -> Expectation {
    let (modality, fact) = match draft {
        ExpectationDraft::Always(fact) => (Modality::Always, fact),
        ExpectationDraft::Sometimes(fact) => (Modality::Sometimes, fact),
        ExpectationDraft::Reached(fact) => (Modality::Reached, fact),
    };
    let fact = checked_fact(fact);
    let need = |kind| TargetNeed { kind, span: text.span };
    checker.target_needs.extend(need_of_fact(&fact).map(need));
    Expectation { modality, fact, text: text.value.clone() }
}

/// What the target file must have so that the fact can hold.
fn need_of_fact(fact: &Fact) -> Option<NeedKind> {
    match fact {
        Fact::Verifies | Fact::VerifiesBeforeResume => Some(NeedKind::Verify),
        Fact::SameAsBaseline => Some(NeedKind::Same),
        Fact::FinalLoss { .. } => Some(NeedKind::Loss),
        Fact::LostSteps { .. } => Some(NeedKind::Resumed),
        Fact::Outcome(outcomes) if *outcomes == [Outcome::Refused] => Some(NeedKind::RefusedExits),
        Fact::Outcome(_)
        | Fact::Restarts { .. }
        | Fact::RecoveryTime { .. }
        | Fact::PeakMemory { .. }
        | Fact::OpenFiles { .. }
        | Fact::Threads { .. }
        | Fact::ZombieTime { .. }
        | Fact::EndsWith(_)
        | Fact::CommandsEndWith(_)
        | Fact::Answers { .. }
        | Fact::LeavesNoProcess
        | Fact::Output(_)
        | Fact::Files { .. } => None,
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
        FactDraft::PeakMemory(bound) => Fact::PeakMemory { max: bound.max },
        FactDraft::OpenFiles(bound) => Fact::OpenFiles { max: bound.max },
        FactDraft::Threads(bound) => Fact::Threads { max: bound.max },
        FactDraft::ZombieTime(bound) => Fact::ZombieTime { max: bound.max.0 },
        FactDraft::Verifies => Fact::Verifies,
        FactDraft::VerifiesBeforeResume => Fact::VerifiesBeforeResume,
        FactDraft::EndsWith(codes) => Fact::EndsWith(codes.into_iter().map(i32::from).collect()),
        FactDraft::CommandsEndWith(codes) => {
            Fact::CommandsEndWith(codes.into_iter().map(i32::from).collect())
        }
        FactDraft::Answers(answers) => Fact::Answers {
            status: answers.status,
            or_closed: answers.or_closed,
            containing: answers.containing.map(|pattern| pattern.0),
        },
        FactDraft::LeavesNoProcess => Fact::LeavesNoProcess,
        FactDraft::Output(pattern) => Fact::Output(pattern.0),
        FactDraft::Files(files) => Fact::Files {
            matching: files.matching.0.compile_matcher(),
            containing: files.containing.map(|pattern| pattern.0),
            min: files.min.unwrap_or(0),
            max: files.max,
            writable_by_others: files.writable_by_others,
            before_resume: files.before_resume,
        },
    }
}

/// Checks that the expectations fit the method and one another.
pub(super) fn check_expectations_fit(
    expect: &[Expectation],
    method: &[Fault],
    expect_span: SourceSpan,
    checker: &mut Checker,
) {
    let is_before_resume = |expectation: &Expectation| {
        matches!(&expectation.fact, Fact::VerifiesBeforeResume | Fact::Files { before_resume: true, .. })
    };
    let names_not_judged = |expectation: &Expectation| matches!(&expectation.fact, Fact::Outcome(outcomes) if outcomes.contains(&Outcome::NotJudged));
    if expect.iter().any(names_not_judged) {
        let message = "`not-judged` means that nothing is known, so no trial can be expected to be it";
        checker.problems.push(Problem::at(expect_span, message).help("name another outcome"));
    }
    let has_crash_states = method.iter().any(|fault| fault.effect.spec().crash_states().is_some());
    if !has_crash_states && checker.is_complete && expect.iter().any(is_before_resume) {
        let message = "`before-resume` and `verifies-before-resume` need a method with `crash-states`";
        checker.problems.push(Problem::at(expect_span, message).help("remove them, or use `crash-states`"));
    }
    for fact in expect.iter().map(|expectation| &expectation.fact) {
        let is_empty = matches!(fact, Fact::Outcome(list) if list.is_empty())
            || matches!(fact, Fact::EndsWith(list) | Fact::CommandsEndWith(list) if list.is_empty())
            || matches!(fact, Fact::Answers { status, or_closed: false, .. } if status.is_empty());
        if is_empty && checker.is_complete {
            let message = "an empty list of outcomes or exit codes can never hold";
            checker.problems.push(Problem::at(expect_span, message).help("write at least one"));
        }
    }
    let asks_to_exit = method.iter().any(|fault| fault.effect.spec().asks_to_exit());
    let expects_exit = expect.iter().any(|expectation| matches!(expectation.fact, Fact::EndsWith(_)));
    if expects_exit && !asks_to_exit && checker.is_complete {
        let message = "`ends-with` needs a method with a `signal` that asks the target to exit";
        let help = "remove it, or add `signal: {which: [TERM], when: {step: 4}}`";
        checker.problems.push(Problem::at(expect_span, message).help(help));
    }
    let runs_commands = method.iter().any(|fault| fault.effect.spec().runs_commands());
    let expects_codes = expect.iter().any(|expectation| matches!(expectation.fact, Fact::CommandsEndWith(_)));
    if expects_codes && !runs_commands && checker.is_complete {
        let message = "`commands-end-with` needs a method with `run-command`";
        checker.problems.push(Problem::at(expect_span, message).help("remove it, or add the fault"));
    }
    let asks = method.iter().any(|fault| fault.effect.spec().asks_a_server());
    let expects_answers = expect.iter().any(|expectation| matches!(expectation.fact, Fact::Answers { .. }));
    if expects_answers && !asks && checker.is_complete {
        let message = "`answers` needs a method with `http-request`";
        checker.problems.push(Problem::at(expect_span, message).help("remove it, or add the fault"));
    }
    let expects = |is_kind: fn(&Fact) -> bool| expect.iter().any(|expectation| is_kind(&expectation.fact));
    if expects(|fact| matches!(fact, Fact::FinalLoss { .. }))
        && expects(|fact| matches!(fact, Fact::SameAsBaseline))
    {
        let message = "`final-loss` allows weights to differ, and `same-as-baseline` requires equal weights";
        checker.problems.push(Problem::at(expect_span, message).help("remove one of the two"));
    }
}

#[cfg(test)]
mod tests {
    use crate::scenario::Scenario;

    #[test]
    fn no_trial_can_be_expected_to_be_not_judged() {
        let parse = |outcome: &str| {
            let text = format!(
                "version: 1\nid: fs-01\ntitle: t\nseverity: extra\ntarget: {{use: x}}\n\
                 method: [{{crash: {{when: {{step: 4}}}}}}]\nexpect: [{{always: {{outcome: [{outcome}]}}}}]\n"
            );
            Scenario::parse(&text, "s").map_err(|error| error.problems[0].message.clone())
        };
        assert!(parse("recovered").is_ok());
        assert!(parse("not-judged").unwrap_err().contains("nothing is known"));
    }
}
