//! Expectations + what happened -> verdict. Pure: no clock, no files, no processes, so a record can be judged again.

mod facts;

use scenarios::{Expectation, Fact, Modality, Outcome, Reason, Scenario, SteadyFacts, TrialFacts, Verdict};

pub use facts::{TrialStory, trial_facts};

const MEBIBYTE: u64 = 1 << 20;
/// In the place of an expectation, of what nobody had to expect.
const NOTHING_FOUND: &str = "the simulated GPU finds nothing";

/// A trial's facts with the lines that it said.
pub struct JudgedTrial<'a> {
    pub number: u32,
    pub facts: &'a TrialFacts,
    /// Lines of the target's that were recorded.
    pub said: &'a [String],
}

/// The verdict on a scenario.
pub fn verdict(scenario: &Scenario, steady: &SteadyFacts, trials: &[JudgedTrial<'_>]) -> Verdict {
    if !steady.ended_well {
        let found = steady.found.first().map(|what| format!(" (the simulated GPU found: {what})"));
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
        scenario.expect().iter().flat_map(|expectation| broken(expectation, steady, trials)).collect();
    reasons.extend(trials.iter().filter_map(found));
    if !reasons.is_empty() {
        return Verdict::Violated { reasons };
    }
    match trials.iter().filter(|trial| trial.facts.landed.is_empty()).count() {
        0 => Verdict::Survived,
        missed => Verdict::Inconclusive {
            why: format!("the fault did not land in {missed} of {} trials", trials.len()),
        },
    }
}

/// What no scenario has to ask for: the simulated GPU has nothing to say against the target.
fn found(trial: &JudgedTrial<'_>) -> Option<Reason> {
    let what = trial.facts.found.first()?;
    let more = trial.facts.found.len() - 1;
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    Some(Reason {
        expectation: NOTHING_FOUND.into(),
        trial: Some(trial.number),
        found: format!("{what}{more}"),
    })
}

fn broken(expectation: &Expectation, steady: &SteadyFacts, trials: &[JudgedTrial<'_>]) -> Vec<Reason> {
    let found = |trial: &JudgedTrial<'_>| holds(&expectation.fact, &expectation.text, steady, trial).err();
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
fn holds(fact: &Fact, text: &str, steady: &SteadyFacts, trial: &JudgedTrial<'_>) -> Result<(), String> {
    let facts = trial.facts;
    match fact {
        Fact::Outcome(wanted) if wanted.contains(&facts.outcome) => Ok(()),
        Fact::Outcome(_) => Err(format!("{}: {}", facts.outcome, facts.because)),
        Fact::LostSteps { max } => at_most(facts.lost_steps, *max, "steps lost"),
        Fact::SameAsSteadyState => same(facts),
        Fact::FinalLoss { within_percent } => near(facts, steady, *within_percent),
        Fact::Restarts { max } => at_most(Some(facts.restarts), *max, "restarts by the harness"),
        Fact::RecoveryTime { max } => within(facts.recovery_seconds, max.as_secs_f64()),
        Fact::PeakMemory { max } => {
            at_most(facts.peak_memory_bytes.map(mebibytes), max.0.div_ceil(MEBIBYTE), "MiB of peak memory")
        }
        Fact::Says(pattern) if trial.said.iter().any(|line| pattern.is_match(line)) => Ok(()),
        Fact::Says(pattern) => Err(format!("no line matched `{pattern}`")),
        Fact::Verifies
        | Fact::VerifiesBeforeResume
        | Fact::LeavesNoProcess
        | Fact::EndsWith(_)
        | Fact::Files { .. } => probed(facts, text),
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

fn within(found: Option<f64>, max: f64) -> Result<(), String> {
    match found {
        Some(found) if found <= max => Ok(()),
        Some(found) => Err(format!("{found:.2} s to recover")),
        None => Err("it did not recover".into()),
    }
}

fn same(facts: &TrialFacts) -> Result<(), String> {
    match facts.same_as_steady {
        Some(true) => Ok(()),
        Some(false) => Err(format!("ended with {}", list(&facts.same))),
        None => Err("the target gave no value to compare".into()),
    }
}

/// Only the loss of the same step can be compared.
fn near(facts: &TrialFacts, steady: &SteadyFacts, within_percent: f64) -> Result<(), String> {
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

fn list(values: &[String]) -> String {
    if values.is_empty() { "no value".into() } else { values.join(", ") }
}

fn probed(facts: &TrialFacts, text: &str) -> Result<(), String> {
    let probe = facts.probes.iter().find(|probe| probe.probe == text);
    match probe {
        Some(probe) if probe.held => Ok(()),
        Some(probe) => Err(probe.found.clone()),
        None => Err("was not asked".into()),
    }
}

/// Whether an outcome is one from which the user's work came back.
pub fn came_back(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Recovered | Outcome::Refused)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use scenarios::{Ending, Entry, Event, TargetFile};

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

    fn steady(found: &[&str]) -> SteadyFacts {
        SteadyFacts {
            ended_well: found.is_empty(),
            steps: 20,
            saves: Vec::new(),
            same: vec!["aa".into()],
            seconds: 1.0,
            peak_memory_bytes: None,
            counted: BTreeMap::new(),
            final_loss: Some(2.0),
            found: found.iter().map(|what| (*what).into()).collect(),
            cached: false,
        }
    }

    /// The verdict on a trial whose weights are not the undisturbed run's, with these last steps and findings.
    fn judge(steps: &[(u64, Option<f64>)], found: &[&str], steady: &SteadyFacts) -> Verdict {
        let scenario = Scenario::parse(SCENARIO, "s").unwrap();
        let target = TargetFile::parse(TARGET, "t").unwrap();
        let comparable = crate::plan::Plan::new(&scenario, 1, &BTreeMap::new()).comparable();
        let mut events = vec![Event::FaultLanded { fault: "gpu-state".into(), evidence: "lost".into() }];
        events.extend(steps.iter().map(|&(step, loss)| Event::Step { step, loss }));
        events.extend(found.iter().map(|what| Event::Found { what: (*what).into() }));
        events.push(Event::Said { stream: scenarios::Stream::Stdout, line: "weights bb".into() });
        events.push(Event::TargetEnded { attempt: 1, ending: Ending::Exited(0) });
        let entry = |event| Entry { at_us: 0, scenario: None, trial: Some(1), event };
        let entries: Vec<Entry> = events.into_iter().map(entry).collect();
        let facts = trial_facts(&TrialStory { target: &target, steady, comparable, entries: &entries });
        verdict(&scenario, steady, &[JudgedTrial { number: 1, facts: &facts, said: &[] }])
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
            assert_eq!(judge(&[(19, Some(9.0)), (20, Some(loss))], &[], &steady(&[])), Verdict::Survived);
        }
    }

    #[test]
    fn a_final_loss_beyond_the_bound_or_of_another_step_or_none_is_a_violation() {
        let found = |steps: &[(u64, Option<f64>)]| violation(judge(steps, &[], &steady(&[])));
        assert!(found(&[(20, Some(2.03))]).contains("2.03"));
        assert!(found(&[(19, Some(2.0))]).contains("ended at step 19, the undisturbed run at step 20"));
        assert!(found(&[(19, Some(2.0)), (20, None)]).contains("not finite"));
        assert!(found(&[]).contains("no step"));
    }

    #[test]
    fn what_the_simulated_gpu_finds_is_a_violation_whatever_is_expected() {
        let found = violation(judge(&[(20, Some(2.0))], &["read out of bounds", "again"], &steady(&[])));
        assert_eq!(found, "read out of bounds; and 1 more");
    }

    #[test]
    fn what_it_finds_undisturbed_leaves_nothing_to_compare_with() {
        let verdict = judge(&[(20, Some(2.0))], &[], &steady(&["read out of bounds"]));
        assert!(
            matches!(&verdict, Verdict::Inconclusive { why } if why.contains("read out of bounds")),
            "{verdict:?}"
        );
    }
}
