//! Expectations + what happened -> verdict. Pure: no clock, no files, no processes, so a record can be judged again.

mod trial_facts;

use scenarios::{BaselineFacts, Expectation, Fact, Modality, Outcome, Reason, Scenario, TrialFacts, Verdict};

pub use trial_facts::{TrialEvents, trial_facts};

const MEBIBYTE: u64 = 1 << 20;
/// In the place of an expectation, of what nobody had to expect.
const NO_GPU_DEFECTS: &str = "the simulated GPU finds nothing";

/// A trial's facts with the lines that it said.
pub struct JudgedTrial<'a> {
    pub number: u32,
    pub facts: &'a TrialFacts,
    /// Lines of the target's that were recorded.
    pub lines: &'a [String],
}

/// The verdict on a scenario.
pub fn verdict(scenario: &Scenario, steady: &BaselineFacts, trials: &[JudgedTrial<'_>]) -> Verdict {
    if !steady.ended_well {
        let found = steady.gpu_defects.first().map(|what| format!(" (the simulated GPU found: {what})"));
        return Verdict::Inconclusive {
            why: format!(
                "the undisturbed run did not end well{}, so there is nothing to compare with",
                found.unwrap_or_default()
            ),
        };
    }
    if trials.is_empty() {
        return Verdict::Inconclusive {
            why: "there was nothing to strike at: no trial could be made".into(),
        };
    }
    let mut reasons: Vec<Reason> =
        scenario.expect().iter().flat_map(|expectation| violations(expectation, steady, trials)).collect();
    reasons.extend(trials.iter().filter_map(gpu_defect_reason));
    if !reasons.is_empty() {
        return Verdict::Violated { reasons };
    }
    match trials.iter().filter(|trial| trial.facts.evidence.is_empty()).count() {
        0 => Verdict::Survived,
        missed => Verdict::Inconclusive {
            why: format!("the fault did not land in {missed} of {} trials", trials.len()),
        },
    }
}

/// What no scenario has to ask for: the simulated GPU has nothing to say against the target.
fn gpu_defect_reason(trial: &JudgedTrial<'_>) -> Option<Reason> {
    let what = trial.facts.gpu_defects.first()?;
    let more = trial.facts.gpu_defects.len() - 1;
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Some(Reason {
        expectation: NO_GPU_DEFECTS.into(),
        trial: Some(trial.number),
        found: format!("{what}{more}"),
    })
}

fn violations(expectation: &Expectation, steady: &BaselineFacts, trials: &[JudgedTrial<'_>]) -> Vec<Reason> {
    let found =
        |trial: &JudgedTrial<'_>| check_fact(&expectation.fact, &expectation.text, steady, trial).err();
    let reason = |trial, found| Reason { expectation: expectation.text.clone(), trial, found };
    match expectation.modality {
        Modality::Always => {
            trials.iter().filter_map(|trial| Some(reason(Some(trial.number), found(trial)?))).collect()
        }
        Modality::Sometimes | Modality::Reached => {
            let misses: Vec<String> = trials.iter().map_while(found).collect();
            let none_held = misses.len() == trials.len();
            none_held
                .then(|| reason(None, format!("in none of {} trials: {}", trials.len(), misses[0])))
                .into_iter()
                .collect()
        }
    }
}

/// `Err` says what was found instead.
fn check_fact(
    fact: &Fact,
    text: &str,
    steady: &BaselineFacts,
    trial: &JudgedTrial<'_>,
) -> Result<(), String> {
    let facts = trial.facts;
    match fact {
        Fact::Outcome(wanted) if wanted.contains(&facts.outcome) => Ok(()),
        Fact::Outcome(_) => Err(format!("{}: {}", facts.outcome, facts.because)),
        Fact::LostSteps { max } => at_most(facts.lost_steps, *max, "steps lost"),
        Fact::SameAsBaseline => check_same_values(facts),
        Fact::FinalLoss { within_percent } => check_final_loss(facts, steady, *within_percent),
        Fact::Restarts { max } => at_most(Some(facts.restarts), *max, "restarts by the harness"),
        Fact::RecoveryTime { max } => check_recovery_time(facts.recovery_seconds, max.as_secs_f64()),
        Fact::PeakMemory { max } => {
            at_most(facts.peak_memory_bytes.map(mebibytes), max.0.div_ceil(MEBIBYTE), "MiB of peak memory")
        }
        Fact::Output(pattern) if trial.lines.iter().any(|line| pattern.is_match(line)) => Ok(()),
        Fact::Output(pattern) => Err(format!("no line matched `{pattern}`")),
        Fact::Verifies
        | Fact::VerifiesBeforeResume
        | Fact::LeavesNoProcess
        | Fact::EndsWith(_)
        | Fact::Files { .. } => check_probe(facts, text),
    }
}

fn at_most<T: PartialOrd + std::fmt::Display>(found: Option<T>, max: T, what: &str) -> Result<(), String> {
    match found {
        Some(found) if found <= max => Ok(()),
        Some(found) => Err(format!("{found} {what}")),
        None => Err(format!("{what}: not known")),
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(MEBIBYTE)
}

fn check_recovery_time(found: Option<f64>, max: f64) -> Result<(), String> {
    match found {
        Some(found) if found <= max => Ok(()),
        Some(found) => Err(format!("{found:.2} s to recover")),
        None => Err("it did not recover".into()),
    }
}

fn check_same_values(facts: &TrialFacts) -> Result<(), String> {
    match facts.same_as_baseline {
        Some(true) => Ok(()),
        Some(false) => Err(format!("ended with {}", list_values(&facts.same))),
        None => Err("the target gave no value to compare".into()),
    }
}

/// Only the loss of the same step can be compared.
fn check_final_loss(facts: &TrialFacts, steady: &BaselineFacts, within_percent: f64) -> Result<(), String> {
    if facts.final_step != Some(steady.steps) {
        let step = facts.final_step.map_or_else(|| "no step".into(), |step| format!("step {step}"));
        return Err(format!("ended at {step}, the undisturbed run at step {}", steady.steps));
    }
    match (facts.final_loss, steady.final_loss) {
        (Some(loss), Some(undisturbed)) => {
            let off = (loss - undisturbed).abs();
            let message = format!("a loss of {loss} at its end, {undisturbed} undisturbed");
            if off <= undisturbed.abs() * within_percent / 100.0 { Ok(()) } else { Err(message) }
        }
        (None, _) => Err("the loss of its last step was not told, or is not finite".into()),
        (_, None) => Err("the undisturbed run told no finite loss of its last step".into()),
    }
}

fn list_values(values: &[String]) -> String {
    if values.is_empty() { "no value".into() } else { values.join(", ") }
}

fn check_probe(facts: &TrialFacts, text: &str) -> Result<(), String> {
    let probe = facts.probes.iter().find(|probe| probe.probe == text);
    match probe {
        Some(probe) if probe.held => Ok(()),
        Some(probe) => Err(probe.found.clone()),
        None => Err("was not asked".into()),
    }
}

/// Whether an outcome is one from which the user's work came back.
pub fn is_acceptable(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Recovered | Outcome::Refused)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use scenarios::{Ending, Event, RecordEntry, TargetFile};

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

    fn baseline(found: &[&str]) -> BaselineFacts {
        BaselineFacts {
            ended_well: found.is_empty(),
            steps: 20,
            saves: Vec::new(),
            same: vec!["aa".into()],
            seconds: 1.0,
            peak_memory_bytes: None,
            counted: BTreeMap::new(),
            final_loss: Some(2.0),
            gpu_defects: found.iter().map(|what| (*what).into()).collect(),
            cached: false,
        }
    }

    /// The verdict on a trial whose weights are not the undisturbed run's, with these last steps and findings.
    fn judge_trial(steps: &[(u64, Option<f64>)], found: &[&str], steady: &BaselineFacts) -> Verdict {
        let scenario = Scenario::parse(SCENARIO, "s").unwrap();
        let target = TargetFile::parse(TARGET, "t").unwrap();
        let comparable = crate::plan::TrialPlan::new(&scenario, 1, &BTreeMap::new()).comparable();
        let mut events = vec![Event::FaultEffective { fault: "gpu-state".into(), evidence: "lost".into() }];
        events.extend(steps.iter().map(|&(step, loss)| Event::Step { step, loss }));
        events.extend(found.iter().map(|what| Event::GpuDefect { what: (*what).into() }));
        events.push(Event::Output { stream: scenarios::OutputStream::Stdout, line: "weights bb".into() });
        events.push(Event::TargetEnded { attempt: 1, ending: Ending::Exited(0) });
        let entry = |event| RecordEntry { at_us: 0, scenario: None, trial: Some(1), event };
        let entries: Vec<RecordEntry> = events.into_iter().map(entry).collect();
        let facts =
            trial_facts(&TrialEvents { target: &target, baseline: steady, comparable, entries: &entries });
        verdict(&scenario, steady, &[JudgedTrial { number: 1, facts: &facts, lines: &[] }])
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
        assert!(found(&[(19, Some(2.0))]).contains("ended at step 19, the undisturbed run at step 20"));
        assert!(found(&[(19, Some(2.0)), (20, None)]).contains("not finite"));
        assert!(found(&[]).contains("no step"));
    }

    #[test]
    fn what_the_simulated_gpu_finds_is_a_violation_whatever_is_expected() {
        let found =
            violation(judge_trial(&[(20, Some(2.0))], &["read out of bounds", "again"], &baseline(&[])));
        assert_eq!(found, "read out of bounds; and 1 more");
    }

    #[test]
    fn what_it_finds_undisturbed_leaves_nothing_to_compare_with() {
        let verdict = judge_trial(&[(20, Some(2.0))], &[], &baseline(&["read out of bounds"]));
        assert!(
            matches!(&verdict, Verdict::Inconclusive { why } if why.contains("read out of bounds")),
            "{verdict:?}"
        );
    }
}
