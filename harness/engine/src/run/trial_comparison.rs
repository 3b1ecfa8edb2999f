//! Compares trials in which the target was forked with the same trials with new processes. Runs nothing itself.

use std::collections::BTreeSet;
use std::sync::Mutex;

use scenarios::{BaselineFacts, Outcome, Scenario, TrialsPlanned, Verdict};

use crate::explore::{ColdReason, GrowingSample, kind_of_message};
use crate::judge::{JudgedTrial, verdict};
use crate::locks::LockExt;
use crate::run::error::RunError;
use crate::run::trial::FinishedTrial;

/// Of that in which two trials differ, at most this many parts are shown.
const MAX_SHOWN_DEEDS: usize = 3;

/// Chooses the trials that are compared, and compares them.
pub(super) struct TrialComparison<'a> {
    scenario: &'a Scenario,
    baseline: &'a BaselineFacts,
    planned: TrialsPlanned,
    sample: Mutex<GrowingSample<TrialKind, Option<u64>>>,
}

/// What trials of one kind have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct TrialKind {
    outcome: Outcome,
    /// The expectations that they do not meet.
    unmet: BTreeSet<String>,
}

/// One thing that a trial did, in words.
struct Deed {
    text: String,
    /// It may be another one in each run, as a number that the target draws.
    may_vary: bool,
}

impl<'a> TrialComparison<'a> {
    pub(super) fn new(
        scenario: &'a Scenario,
        baseline: &'a BaselineFacts,
        planned: TrialsPlanned,
    ) -> TrialComparison<'a> {
        TrialComparison { scenario, baseline, planned, sample: Mutex::new(GrowingSample::new(2)) }
    }

    /// Whether this trial is compared: the first of each kind, and a sample of the others.
    pub(super) fn takes(&self, trial: &FinishedTrial) -> bool {
        let kind = TrialKind { outcome: trial.facts.outcome, unmet: self.unmet(trial) };
        self.sample.locked().takes(kind, trial.facts.acknowledged)
    }

    /// In what a forked trial differs from one with new processes. `None`: in nothing that counts, or by chance, as
    /// trials with new processes do among themselves. `run_new`: runs the trial with new processes.
    ///
    /// # Errors
    /// Those of `run_new`.
    pub(super) fn difference(
        &self,
        forked: &FinishedTrial,
        run_new: impl Fn(u32) -> Result<FinishedTrial, RunError>,
    ) -> Result<Option<ColdReason>, RunError> {
        let (forked_deeds, new_deeds) = (self.deeds(forked), self.deeds(&run_new(1)?));
        let is_same = |new: &[Deed], deed: usize| forked_deeds[deed].text == new[deed].text;
        if (0..forked_deeds.len()).all(|deed| is_same(&new_deeds, deed)) {
            return Ok(None);
        }
        let again = self.deeds(&run_new(2)?);
        let differs = |deed: &usize| {
            let varies = forked_deeds[*deed].may_vary && new_deeds[*deed].text != again[*deed].text;
            !is_same(&new_deeds, *deed) && !is_same(&again, *deed) && !varies
        };
        let different: Vec<usize> = (0..forked_deeds.len()).filter(differs).collect();
        if different.is_empty() {
            return Ok(None);
        }
        let text = |deeds: &[Deed]| {
            different
                .iter()
                .take(MAX_SHOWN_DEEDS)
                .map(|deed| deeds[*deed].text.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (forked_text, new_text) = (text(&forked_deeds), text(&new_deeds));
        Ok(Some(ColdReason::TrialDiffers {
            trial: forked.number,
            forked: forked_text,
            new_process: new_text,
        }))
    }

    /// What a trial did: always the same number of deeds.
    fn deeds(&self, trial: &FinishedTrial) -> Vec<Deed> {
        let facts = &trial.facts;
        let step = |what: &str, step: Option<u64>| match step {
            Some(step) => format!("{what} {step}"),
            None => format!("{what} unknown"),
        };
        let unmet: Vec<String> = self.unmet(trial).into_iter().collect();
        let unmet =
            if unmet.is_empty() { "all expectations met".into() } else { unmet.join(" and ") + " not met" };
        let probes: Vec<String> =
            facts.probes.iter().map(|probe| format!("{} {}", probe.probe, probe.held)).collect();
        let said = facts.said.as_deref().map(kind_of_message).filter(|said| !said.is_empty());
        let certain = |text: String| Deed { text, may_vary: false };
        let varying = |text: String| Deed { text, may_vary: true };
        // The first ones tell people most.
        vec![
            certain(format!("outcome `{}`", facts.outcome)),
            varying(said.map_or_else(|| "no error".into(), |said| format!("error `{said}`"))),
            certain(format!("{} restarts", facts.restarts)),
            certain(step("resumed step", facts.resumed_from)),
            certain(step("lost steps", facts.lost_steps)),
            certain(step("last step", facts.final_step)),
            certain(unmet),
            certain(format!("checks: {}", probes.join(", "))),
            certain(format!("evidence: {}", facts.evidence.join(", "))),
            varying(format!("values: {}", facts.same.join(", "))),
            varying(format!("final loss {:?}", facts.final_loss)),
        ]
    }

    /// The expectations that a trial does not meet.
    fn unmet(&self, trial: &FinishedTrial) -> BTreeSet<String> {
        let judged = JudgedTrial { number: trial.number, facts: &trial.facts, lines: &trial.lines };
        match verdict(self.scenario, self.baseline, &self.planned, &[judged]) {
            Verdict::Violated { reasons } => reasons
                .into_iter()
                .filter(|reason| reason.trial.is_some())
                .map(|reason| reason.expectation)
                .collect(),
            _ => BTreeSet::new(),
        }
    }
}
