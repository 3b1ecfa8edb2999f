//! Compares the facts of the trials with the expectations of a scenario and gives its verdict. Pure: no
//! clock, no files, no processes, so that a record can be judged again.

mod ablation;
mod end_resume;
mod failing_control;
mod followed_run;
mod job_ledger;
mod job_progress;
mod probe_check;
mod recovery_fault;
mod trial_facts;
mod unmet;

use std::collections::BTreeMap;

use scenarios::{
    BaselineFacts, Fact, FailedRun, Modality, NotEffective, Outcome, Reason, Scenario, TrialBound,
    TrialFacts, TrialsPlanned, UndisturbedCommand, Verdict, ViolationKind, counted, grouped,
};

use failing_control::FailingControl;
use probe_check::check_probes;
use unmet::{CountedQuantity, Unmet};

pub use ablation::{AblationRuns, ablation_verdict};
pub use end_resume::{can_resume_from_saves, is_sound_control};
pub use followed_run::FollowedRun;
pub use job_ledger::JobLedger;
pub use job_progress::OrderFault;
pub use recovery_fault::{RecoveryFault, recovery_fault};
pub use trial_facts::{TrialEvents, trial_facts};

/// How many reasons are shown for trials without an effective fault.
const MAX_REASONS: usize = 3;
const MEBIBYTE: u64 = 1 << 20;
/// Text of the expectation that every scenario has without stating it.
const NO_GPU_DEFECTS: &str = "the simulated GPU finds no defect";

/// A trial as it is judged.
pub struct JudgedTrial<'a> {
    /// 1-based.
    pub number: u32,
    /// Its facts, see [`trial_facts`].
    pub facts: &'a TrialFacts,
    /// The recorded lines of the target.
    pub lines: &'a [String],
}

/// Returns the verdict on a scenario. `trials` are those that have ended. If some of the planned ones have
/// not, a violation in one trial still counts, and nothing else can be concluded. An expectation about all
/// trials together is violated only if all were tried, those beyond every bound too.
pub fn verdict(
    scenario: &Scenario,
    baseline: &BaselineFacts,
    planned: &TrialsPlanned,
    trials: &[JudgedTrial<'_>],
) -> Verdict {
    if let Some(why) = nothing_to_judge(baseline, planned) {
        return Verdict::Inconclusive { why };
    }
    let indices = 0..scenario.expect().len();
    let control = FailingControl::find(scenario, baseline);
    let mut reasons: Vec<Reason> =
        indices.flat_map(|index| violations(scenario, index, baseline, trials, control)).collect();
    reasons.extend(trials.iter().filter_map(gpu_defect_reason));
    let ended = trials.len();
    let counted: Vec<&JudgedTrial<'_>> = trials.iter().filter(|trial| trial.facts.counts()).collect();
    let not_reached = trials.iter().filter(|trial| trial.facts.is_not_reached()).count();
    let mut not_seen = Vec::new();
    if counted.len() < ended || !are_all_tried(planned, ended) {
        // What happened in no trial so far may still happen in one that did not run, or in which the fault
        // takes effect.
        let all_trials_together = |reason: &mut Reason| reason.trial.is_none();
        not_seen = reasons.extract_if(.., all_trials_together).collect();
    }
    let outcomes: Vec<Outcome> = trials.iter().map(|trial| trial.facts.outcome).collect();
    reasons.splice(0..0, control.map(|control| control.reason(&outcomes)));
    if !reasons.is_empty() {
        return Verdict::Violated { reasons };
    }
    if ended < planned.to_run() as usize {
        let why = format!("interrupted after {ended} of {} trials", planned.to_run());
        return Verdict::Inconclusive { why };
    }
    if counted.len() + not_reached < ended || counted.is_empty() {
        return Verdict::Inconclusive { why: not_effective_text(trials) };
    }
    if let Some(why) = not_judged_text(scenario, trials) {
        return Verdict::Inconclusive { why };
    }
    match not_seen.first() {
        Some(reason) => Verdict::Inconclusive { why: not_seen_text(reason, planned, counted.len()) },
        None => Verdict::Survived,
    }
}

/// Whether the target did what no run may do, with or without the method's faults.
fn has_harm(trial: &JudgedTrial<'_>) -> bool {
    !matches!(trial.facts.outcome, Outcome::Recovered | Outcome::Refused | Outcome::NotJudged)
}

/// Why nothing is known, if the scenario expects outcomes and some trials have none that anything shows.
fn not_judged_text(scenario: &Scenario, trials: &[JudgedTrial<'_>]) -> Option<String> {
    let expects = scenario.expect().iter().any(|expectation| matches!(expectation.fact, Fact::Outcome(_)));
    let mut not_judged = trials.iter().filter(|trial| trial.facts.outcome == Outcome::NotJudged);
    let first = not_judged.next().filter(|_| expects)?;
    let count = 1 + not_judged.count();
    Some(format!("{count} of {} trials: not-judged: {}", trials.len(), first.facts.because))
}

/// In how many trials the faults were not effective, and why in the first ones.
fn not_effective_text(trials: &[JudgedTrial<'_>]) -> String {
    let without = trials.iter().filter(|trial| !trial.facts.counts());
    let mut by_reason: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for trial in without.clone() {
        let reasons = trial.facts.not_effective.iter().map(NotEffective::to_string);
        let reason = reasons.reduce(|all, next| format!("{all}; {next}"));
        let reason = reason.unwrap_or_else(|| "all its faults are optional, and none was effective".into());
        by_reason.entry(reason).or_default().push(trial.number);
    }
    let mut reasons: Vec<_> = by_reason.into_iter().collect();
    reasons.sort_by_key(|(_, numbers)| numbers.first().copied());
    let reason = |(reason, numbers): &(String, Vec<u32>)| match numbers.as_slice() {
        [only] => format!("trial {only}: {reason}"),
        [first, others @ ..] => format!("trial {first} and {} more: {reason}", others.len()),
        [] => reason.clone(),
    };
    let shown: Vec<String> = reasons.iter().take(MAX_REASONS).map(reason).collect();
    let more = reasons.len().saturating_sub(MAX_REASONS);
    let more = if more > 0 { format!(" | and {more} other reasons") } else { String::new() };
    format!(
        "the faults were not effective in {} of {} trials: {}{more}",
        without.count(),
        trials.len(),
        shown.join(" | ")
    )
}

/// The verdict on trials of crash states whose recording does not show everything: what was violated stays
/// violated, and nothing survives.
pub fn weakened_verdict(verdict: Verdict, weaknesses: &[String]) -> Verdict {
    match (verdict, weaknesses.first()) {
        (Verdict::Survived, Some(first)) => Verdict::Inconclusive {
            why: format!("the recording of the run does not show everything: {first}"),
        },
        (verdict, _) => verdict,
    }
}

/// Whether this many trials are all that there are: no bound and no option left any out.
fn are_all_tried(planned: &TrialsPlanned, tried: usize) -> bool {
    tried as u64 >= planned.possible() && planned.not_enumerated == 0
}

/// Says that an expectation about all trials together held in none of those that ran, and what to do.
fn not_seen_text(reason: &Reason, planned: &TrialsPlanned, tried: usize) -> String {
    let (possible, expectation) = (planned.possible(), &reason.expectation);
    let left_out = possible.saturating_sub(tried as u64);
    let remedy = match (planned.only, planned.bound) {
        (Some(_), _) => "; run it without `--trial`",
        (None, Some(TrialBound::Scenario | TrialBound::Option)) => "; `--max-trials all` tries them",
        (None, _) => "",
    };
    let others = match left_out {
        0 => format!("{} candidates for crash states were not enumerated", counted(planned.not_enumerated)),
        _ => format!("{} were left out{remedy}", grouped(left_out)),
    };
    format!(
        "{} of {} trials ran, and `{expectation}` held in none; it is about all trials together, and {others}",
        grouped(tried as u64),
        grouped(possible)
    )
}

/// Why no trial of the scenario can be judged, if so.
fn nothing_to_judge(baseline: &BaselineFacts, planned: &TrialsPlanned) -> Option<String> {
    if !baseline.ended_well {
        return Some(format!("{}, so there is nothing to compare with", failed_baseline_text(baseline)));
    }
    if let Some(first) = baseline.unmatched.first() {
        return Some(unmatched_pattern_text(first));
    }
    match (planned.to_run(), planned.only) {
        (0, Some(only)) => {
            Some(format!("there is no trial {only}; the number of trials is {}", planned.possible()))
        }
        (0, None) => {
            Some("there was no trial: nothing in the baseline run matches the method's triggers".into())
        }
        _ => None,
    }
}

/// What is wrong with a pattern that matches no line of the baseline. `pattern`: its key and itself.
pub fn unmatched_pattern_text(pattern: &str) -> String {
    format!(
        "the pattern of {pattern}, matches no line of the baseline, so it would notice nothing; correct it or remove it \
         from the target file"
    )
}

fn failed_baseline_text(baseline: &BaselineFacts) -> String {
    if let Some(defect) = baseline.gpu_defects.first() {
        return format!("the simulated GPU found a defect in the baseline run ({defect})");
    }
    let Some(ending) = baseline.ending else { return "the baseline run did not end well".into() };
    let failed = FailedRun::new(UndisturbedCommand::Baseline, ending, Vec::new());
    FailedRun { shared: baseline.cached, ..failed }.to_string()
}

/// Checks the expectation that every scenario has without stating it: the simulated GPU finds no defect.
fn gpu_defect_reason(trial: &JudgedTrial<'_>) -> Option<Reason> {
    let defect = trial.facts.gpu_defects.first()?;
    let more = trial.facts.gpu_defects.len() - 1;
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Some(Reason {
        expectation: NO_GPU_DEFECTS.into(),
        trial: Some(trial.number),
        found: format!("{defect}{more}"),
        kind: ViolationKind::Harm,
    })
}

fn violations(
    scenario: &Scenario,
    index: usize,
    baseline: &BaselineFacts,
    trials: &[JudgedTrial<'_>],
    control: Option<FailingControl<'_>>,
) -> Vec<Reason> {
    let expectation = &scenario.expect()[index];
    let found = |trial: &JudgedTrial<'_>| {
        let unmet = check_fact(&expectation.fact, index, baseline, trial).err()?;
        Some(unmet.to_string())
    };
    let kind = match expectation.fact {
        Fact::Output(_) => ViolationKind::Words,
        _ => ViolationKind::Harm,
    };
    let reason = |trial, found| Reason { expectation: expectation.text.clone(), trial, found, kind };
    match expectation.modality {
        Modality::Always => {
            let explains = |trial: &JudgedTrial<'_>| {
                control.is_some_and(|control| control.explains(&expectation.fact, trial.facts.outcome))
            };
            let relevant = trials.iter().filter(|trial| trial.facts.counts() || has_harm(trial));
            let relevant = relevant.filter(|trial| !explains(trial));
            relevant.filter_map(|trial| Some(reason(Some(trial.number), found(trial)?))).collect()
        }
        Modality::Sometimes | Modality::Reached => {
            let counted: Vec<_> = trials.iter().filter(|trial| trial.facts.counts()).collect();
            let misses: Vec<String> = counted.iter().copied().map_while(found).collect();
            let none_held = misses.len() == counted.len();
            let first = misses.first().filter(|_| none_held);
            first
                .map(|first| reason(None, format!("in none of {} trials: {first}", counted.len())))
                .into_iter()
                .collect()
        }
    }
}

/// Checks one fact of one trial. `index` is the place of its expectation in the scenario.
fn check_fact(
    fact: &Fact,
    index: usize,
    baseline: &BaselineFacts,
    trial: &JudgedTrial<'_>,
) -> Result<(), Unmet> {
    let facts = trial.facts;
    match fact {
        Fact::Outcome(expected) if expected.contains(&facts.outcome) => Ok(()),
        // It is not known whether the expectation holds: the verdict says so.
        Fact::Outcome(_) if facts.outcome == Outcome::NotJudged => Ok(()),
        Fact::Outcome(_) => {
            Err(Unmet::OtherOutcome { outcome: facts.outcome, because: facts.because.clone() })
        }
        Fact::LostSteps { max } => at_most(facts.lost_steps, *max, CountedQuantity::LostSteps),
        Fact::SameAsBaseline => check_same_values(facts),
        Fact::FinalLoss { within_percent } => check_final_loss(facts, baseline, *within_percent),
        Fact::Restarts { max } => {
            at_most(Some(facts.restarts.into()), (*max).into(), CountedQuantity::Restarts)
        }
        Fact::RecoveryTime { max } => check_recovery_time(facts.recovery_seconds, max.as_secs_f64()),
        Fact::PeakMemory { max } => {
            let found = facts.peak_memory_bytes.map(mebibytes);
            at_most(found, mebibytes(max.0), CountedQuantity::PeakMemory)
        }
        Fact::OpenFiles { max } => {
            at_most(facts.resource_use.map(|used| used.open_files), *max, CountedQuantity::OpenFiles)
        }
        Fact::Threads { max } => {
            at_most(facts.resource_use.map(|used| used.threads), *max, CountedQuantity::Threads)
        }
        Fact::ZombieTime { max } => {
            let max_ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
            at_most(facts.resource_use.map(|used| used.zombie_ms), max_ms, CountedQuantity::ZombieTime)
        }
        Fact::Output(pattern) if trial.lines.iter().any(|line| pattern.is_match(line)) => Ok(()),
        Fact::Output(pattern) => Err(Unmet::NoLine { pattern: pattern.to_string() }),
        Fact::Verifies
        | Fact::VerifiesBeforeResume
        | Fact::LeavesNoProcess
        | Fact::EndsWith(_)
        | Fact::CommandsEndWith(_)
        | Fact::Answers { .. }
        | Fact::Files { .. } => check_probes(&facts.probes, index),
    }
}

fn at_most(found: Option<u64>, max: u64, of: CountedQuantity) -> Result<(), Unmet> {
    match found {
        Some(found) if found <= max => Ok(()),
        Some(found) => Err(Unmet::TooMany { found, of }),
        None => Err(Unmet::NotKnown(of)),
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(MEBIBYTE)
}

fn check_recovery_time(found_s: Option<f64>, max_s: f64) -> Result<(), Unmet> {
    match found_s {
        Some(seconds) if seconds <= max_s => Ok(()),
        Some(seconds) => Err(Unmet::SlowRecovery { seconds }),
        None => Err(Unmet::NoRecovery),
    }
}

fn check_same_values(facts: &TrialFacts) -> Result<(), Unmet> {
    match facts.same_as_baseline {
        Some(true) => Ok(()),
        Some(false) => Err(Unmet::OtherValues { values: facts.same.clone() }),
        None => Err(Unmet::NoValues),
    }
}

/// Compares the final losses. Only the losses of the same step can be compared.
fn check_final_loss(facts: &TrialFacts, baseline: &BaselineFacts, within_percent: f64) -> Result<(), Unmet> {
    if facts.final_step != Some(baseline.steps) {
        return Err(Unmet::OtherLastStep { step: facts.final_step, baseline: baseline.steps });
    }
    let loss = facts.final_loss.ok_or(Unmet::NoLoss)?;
    let baseline = baseline.final_loss.ok_or(Unmet::NoBaselineLoss)?;
    let is_within = (loss - baseline).abs() <= baseline.abs() * within_percent / 100.0;
    if is_within { Ok(()) } else { Err(Unmet::OtherLoss { loss, baseline }) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use scenarios::{BaselineProgress, Ending, Event, FaultId, RecordEntry, TargetFile};

    use super::*;

    const SCENARIO: &str = "
version: 1
id: hw-99
title: a GPU that is gone
severity: extra
target: {use: stub, gpu: simulated}
method:
  - gpu-state: {lost: true}
expect:
  - always: {final-loss: {within: 1 %}}
";
    const TARGET: &str = r"
version: 1
id: stub
title: a few lines
program: stub
start: ['{program}']
announces: {step: '^step (?<step>\d+) loss (?<loss>\S+)'}
same: '^weights (?<value>\w+)'
";

    fn gpu_state() -> FaultId {
        FaultId { number: 1, key: "gpu-state".into() }
    }

    fn planned(total: u32, only: Option<u32>) -> TrialsPlanned {
        TrialsPlanned { total, only, ..TrialsPlanned::default() }
    }

    fn baseline(gpu_defects: &[&str]) -> BaselineFacts {
        BaselineFacts {
            ended_well: gpu_defects.is_empty(),
            ending: Some(Ending::Exited(0)),
            steps: 20,
            saves: Vec::new(),
            same: vec!["aa".into()],
            seconds: 1.0,
            peak_memory_bytes: None,
            counted: BTreeMap::new(),
            final_loss: Some(2.0),
            gpu_defects: gpu_defects.iter().map(|defect| (*defect).into()).collect(),
            sandbox_hints: Vec::new(),
            progress: BaselineProgress::default(),
            unmatched: Vec::new(),
            cached: false,
        }
    }

    /// The verdict on a trial whose weights differ from the baseline's, with these last steps and GPU
    /// defects.
    fn judge_trial(steps: &[(u64, Option<f64>)], gpu_defects: &[&str], baseline: &BaselineFacts) -> Verdict {
        let scenario = Scenario::parse(SCENARIO, "s").unwrap();
        let target = TargetFile::parse(TARGET, "t").unwrap();
        let comparable = crate::plan::TrialPlan::new(&scenario, 1, &BTreeMap::new()).comparable();
        let mut events = vec![Event::FaultEffective { fault: gpu_state(), evidence: "lost".into() }];
        events.extend(steps.iter().map(|&(step, loss)| Event::Step { step, loss, job: None }));
        events.extend(gpu_defects.iter().map(|defect| Event::GpuDefect { what: (*defect).into() }));
        events.push(Event::Output { stream: scenarios::OutputStream::Stdout, line: "weights bb".into() });
        events.push(Event::TargetEnded { attempt: 1, ending: Ending::Exited(0), exit_code: None });
        let entry = |event| RecordEntry { at_us: 0, scenario: None, trial: Some(1), event };
        let entries: Vec<RecordEntry> = events.into_iter().map(entry).collect();
        let facts = trial_facts(&TrialEvents {
            target: &target,
            baseline,
            comparable,
            same_workload: true,
            adds_work: false,
            makes_calls_fail: false,
            entries: &entries,
        });
        let planned = planned(1, None);
        verdict(&scenario, baseline, &planned, &[JudgedTrial { number: 1, facts: &facts, lines: &[] }])
    }

    fn violation(verdict: Verdict) -> String {
        match verdict {
            Verdict::Violated { reasons } => reasons.into_iter().map(|reason| reason.found).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_final_loss_within_the_bound_is_enough_although_the_weights_differ() {
        for loss in [2.0, 1.981, 2.019] {
            assert_eq!(
                judge_trial(&[(19, Some(9.0)), (20, Some(loss))], &[], &baseline(&[])),
                Verdict::Survived
            );
        }
    }

    #[test]
    fn a_final_loss_beyond_the_bound_or_of_another_step_or_none_is_a_violation() {
        let found = |steps: &[(u64, Option<f64>)]| violation(judge_trial(steps, &[], &baseline(&[])));
        assert!(found(&[(20, Some(2.03))]).contains("2.03"));
        assert!(found(&[(19, Some(2.0))]).contains("ended at step 19, the baseline run at step 20"));
        assert!(found(&[(19, Some(2.0)), (20, None)]).contains("not finite"));
        assert!(found(&[]).contains("no step"));
    }

    /// The verdict on these final losses of the first trials, in short. `None`: the fault was not effective.
    fn judge_some(expect: &str, planned: TrialsPlanned, losses: &[Option<f64>]) -> String {
        let scenario = Scenario::parse(&SCENARIO.replace("always", expect), "s").unwrap();
        let facts: Vec<TrialFacts> = losses.iter().map(|loss| facts_of_step_20(*loss)).collect();
        let judged = facts.iter().zip(1..).map(|(facts, number)| JudgedTrial { number, facts, lines: &[] });
        let judged: Vec<JudgedTrial<'_>> = judged.collect();
        match verdict(&scenario, &baseline(&[]), &planned, &judged) {
            Verdict::Survived => "survived".to_owned(),
            Verdict::Violated { reasons } => format!("violated {:?}", reasons[0].trial),
            Verdict::Inconclusive { why } | Verdict::Skipped { why } => why,
        }
    }

    const GOOD: Option<f64> = Some(2.0);
    const BAD: Option<f64> = Some(3.0);

    #[test]
    fn a_verdict_on_some_of_the_planned_trials_never_says_more_than_they_show() {
        let judge = |expect: &str, total, only, losses: &[Option<f64>]| {
            judge_some(expect, planned(total, only), losses)
        };
        assert_eq!(judge("always", 3, None, &[GOOD, GOOD, GOOD]), "survived");
        assert_eq!(judge("always", 3, None, &[GOOD, GOOD]), "interrupted after 2 of 3 trials");
        assert_eq!(judge("always", 3, None, &[GOOD, BAD]), "violated Some(2)");
        assert_eq!(judge("always", 3, None, &[]), "interrupted after 0 of 3 trials");
        assert_eq!(judge("always", 3, Some(2), &[GOOD]), "survived");
        assert_eq!(judge("always", 3, Some(1), &[BAD]), "violated Some(1)");
        assert_eq!(judge("always", 3, Some(9), &[]), "there is no trial 9; the number of trials is 3");
        assert!(judge("always", 0, None, &[]).starts_with("there was no trial"));
    }

    #[test]
    fn what_never_happened_is_a_violation_only_if_all_trials_were_tried_with_an_effective_fault() {
        for expect in ["sometimes", "reached"] {
            let judge = |planned, losses: &[Option<f64>]| judge_some(expect, planned, losses);
            let cut = |bound| TrialsPlanned { possible: 5, bound: Some(bound), ..planned(3, None) };
            let not_enumerated = TrialsPlanned { not_enumerated: 7, ..planned(3, None) };
            let bounds = [TrialBound::Scenario, TrialBound::Option, TrialBound::Limit].map(cut);
            assert_eq!(judge(planned(3, None), &[BAD, BAD, BAD]), "violated None");
            assert_eq!(judge(planned(1, Some(1)), &[BAD]), "violated None");
            for some in bounds.into_iter().chain([planned(3, Some(1)), planned(3, None), not_enumerated]) {
                let to_run = some.to_run() as usize;
                // It has been seen, and nothing can change that.
                assert_eq!(judge(some, &[GOOD, BAD, BAD][..to_run]), "survived", "{some:?}");
                let why = judge(some, &[BAD, BAD, None][..to_run]);
                assert!(!why.starts_with("violated") && why != "survived", "{some:?}: {why}");
                let interrupted = judge(some, &[BAD, BAD, BAD][..to_run - 1]);
                assert_eq!(interrupted, format!("interrupted after {} of {to_run} trials", to_run - 1));
            }
            for (some, said) in [
                (cut(TrialBound::Scenario), "3 of 5 trials ran, and `"),
                (cut(TrialBound::Option), "2 were left out; `--max-trials all` tries them"),
                (planned(3, Some(1)), "2 were left out; run it without `--trial`"),
                (not_enumerated, "7 candidates for crash states were not enumerated"),
            ] {
                let why = judge(some, &[BAD, BAD, BAD][..some.to_run() as usize]);
                assert!(why.contains(said), "{some:?}: {why}");
            }
            let all = judge(planned(2, None), &[BAD, None]);
            let why = "trial 2: fault 1, gpu-state: the trial did not say what came of it";
            assert_eq!(all, format!("the faults were not effective in 1 of 2 trials: {why}"));
        }
    }

    /// `None`: the trial has no loss, and no effective fault.
    fn facts_of_step_20(loss: Option<f64>) -> TrialFacts {
        let target = TargetFile::parse(TARGET, "t").unwrap();
        let armed = Event::FaultArmed { fault: gpu_state(), mechanism: "plan".into(), optional: false };
        let effective = Event::FaultEffective { fault: gpu_state(), evidence: "lost".into() };
        let events = [
            Event::Step { step: 20, loss, job: None },
            Event::TargetEnded { attempt: 1, ending: Ending::Exited(0), exit_code: None },
        ];
        let entry = |event| RecordEntry { at_us: 0, scenario: None, trial: Some(1), event };
        let events = [armed].into_iter().chain(loss.is_some().then_some(effective)).chain(events);
        let entries: Vec<RecordEntry> = events.map(entry).collect();
        trial_facts(&TrialEvents {
            target: &target,
            baseline: &baseline(&[]),
            comparable: false,
            same_workload: true,
            adds_work: false,
            makes_calls_fail: false,
            entries: &entries,
        })
    }

    #[test]
    fn a_gpu_defect_is_a_violation_whatever_is_expected() {
        let found =
            violation(judge_trial(&[(20, Some(2.0))], &["read out of bounds", "again"], &baseline(&[])));
        assert_eq!(found, "read out of bounds; and 1 more");
    }

    #[test]
    fn a_gpu_defect_of_the_baseline_leaves_nothing_to_compare_with() {
        let verdict = judge_trial(&[(20, Some(2.0))], &[], &baseline(&["read out of bounds"]));
        assert!(
            matches!(&verdict, Verdict::Inconclusive { why } if why.contains("read out of bounds")),
            "{verdict:?}"
        );
    }
}
