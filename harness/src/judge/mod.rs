//! Expectations + what happened -> verdict. Pure: no clock, no files, no processes, so a record can be judged again.

mod facts;

use scenarios::{Expectation, Fact, Modality, Outcome, Reason, Scenario, SteadyFacts, TrialFacts, Verdict};

pub use facts::{TrialStory, trial_facts};

const MEBIBYTE: u64 = 1 << 20;

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
        return Verdict::Inconclusive {
            why: "the undisturbed run did not end well, so there is nothing to compare with".into(),
        };
    }
    if trials.is_empty() {
        return Verdict::Inconclusive {
            why: "there was nothing to strike at: no trial could be made".into(),
        };
    }
    let reasons: Vec<Reason> =
        scenario.expect().iter().flat_map(|expectation| broken(expectation, trials)).collect();
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

fn broken(expectation: &Expectation, trials: &[JudgedTrial<'_>]) -> Vec<Reason> {
    let found = |trial: &JudgedTrial<'_>| holds(&expectation.fact, &expectation.text, trial).err();
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
fn holds(fact: &Fact, text: &str, trial: &JudgedTrial<'_>) -> Result<(), String> {
    let facts = trial.facts;
    match fact {
        Fact::Outcome(wanted) if wanted.contains(&facts.outcome) => Ok(()),
        Fact::Outcome(_) => Err(format!("{}: {}", facts.outcome, facts.because)),
        Fact::LostSteps { max } => at_most(facts.lost_steps, *max, "steps lost"),
        Fact::SameAsSteadyState => same(facts),
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
