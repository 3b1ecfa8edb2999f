//! Judges a scenario that ran without one guard: whether the trials show that the guard matters under the
//! fault. Pure, like the verdict that it starts from.

use scenarios::{BaselineFacts, FailedRun, SaveControl, UndisturbedCommand, Verdict};

use super::JudgedTrial;

/// The undisturbed runs with which the trials are compared.
pub struct AblationRuns<'a> {
    /// With every guard.
    pub baseline: &'a BaselineFacts,
    /// Without the guard. `None` if no guard is removed.
    pub control: Option<&'a BaselineFacts>,
}

/// Returns what the verdict on the trials shows about the guard. A violation shows that it matters only if the
/// target works without the guard and without the fault, and only in a trial in which the fault was effective.
/// If no guard is removed, the verdict stays as it is.
pub fn ablation_verdict(judged: Verdict, runs: &AblationRuns<'_>, trials: &[JudgedTrial<'_>]) -> Verdict {
    if let Some(why) = runs.difference() {
        return Verdict::Inconclusive { why };
    }
    let mut reasons = match judged {
        Verdict::Violated { reasons } if runs.control.is_some() => reasons,
        other => return other,
    };
    let is_effective = |number: Option<u32>| {
        let of_reason = |trial: &&JudgedTrial<'_>| number.is_none_or(|number| trial.number == number);
        trials.iter().filter(of_reason).any(|trial| trial.facts.counts())
    };
    reasons.retain(|reason| is_effective(reason.trial));
    match reasons.is_empty() {
        false => Verdict::Violated { reasons },
        true => Verdict::Inconclusive {
            why: "the fault was effective in none of the trials that violated an expectation".into(),
        },
    }
}

impl AblationRuns<'_> {
    /// Why the trials show nothing about the guard, because the two undisturbed runs differ already.
    pub fn difference(&self) -> Option<String> {
        let control = self.control?;
        let failing = self.baseline.progress.save_controls.iter().find(|control| !control.is_sound());
        let failing = failing.map(|SaveControl { save, because, said, .. }| {
            let said = said.iter().map(|line| format!(", its last line: {line}")).collect::<String>();
            format!(
                "with every guard, a resume from the files right after the save of {save} fails ({because}{said})"
            )
        });
        let difference = failing.or_else(|| difference(self.baseline, control))?;
        Some(format!("{difference}: it is not known whether the guard matters under the fault"))
    }
}

fn difference(baseline: &BaselineFacts, control: &BaselineFacts) -> Option<String> {
    let run = UndisturbedCommand::WithoutGuard;
    if let Some(defect) = control.gpu_defects.first() {
        return Some(format!("the simulated GPU found a defect in {run} ({defect})"));
    }
    if !control.ended_well {
        let Some(ending) = control.ending else { return Some(format!("{run} did not end well")) };
        let failed = FailedRun::new(run, ending, Vec::new());
        return Some(FailedRun { shared: control.cached, ..failed }.to_string());
    }
    if control.steps != baseline.steps {
        return Some(format!(
            "{run} ended at step {}, the baseline at step {}",
            control.steps, baseline.steps
        ));
    }
    (control.same != baseline.same).then(|| {
        let (control, baseline) = (control.same.join(", "), baseline.same.join(", "));
        format!("{run} ended with [{control}], the baseline with [{baseline}]")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use scenarios::{BaselineProgress, Ending, Outcome, Reason, TrialFacts, ViolationKind};

    use super::*;

    fn undisturbed(ending: Ending, steps: u64, same: &str) -> BaselineFacts {
        BaselineFacts {
            ended_well: ending == Ending::Exited(0),
            ending: Some(ending),
            steps,
            saves: Vec::new(),
            same: vec![same.into()],
            seconds: 1.0,
            peak_memory_bytes: None,
            counted: BTreeMap::new(),
            final_loss: None,
            gpu_defects: Vec::new(),
            sandbox_hints: Vec::new(),
            progress: BaselineProgress::default(),
            unmatched: Vec::new(),
            cached: false,
        }
    }

    fn facts(is_effective: bool) -> TrialFacts {
        TrialFacts {
            what: String::new(),
            outcome: Outcome::Crashed,
            because: String::new(),
            said: None,
            evidence: is_effective.then(|| "killed".to_owned()).into_iter().collect(),
            not_effective: Vec::new(),
            step_at_fault: None,
            acknowledged: None,
            resumed_from: None,
            lost_steps: None,
            recovery_seconds: None,
            restarts: 0,
            same: Vec::new(),
            same_as_baseline: None,
            final_step: None,
            final_loss: None,
            gpu_defects: Vec::new(),
            peak_memory_bytes: None,
            resource_use: None,
            probes: Vec::new(),
            seconds: 1.0,
        }
    }

    fn violated(trials: &[Option<u32>]) -> Verdict {
        let reason = |trial: &Option<u32>| Reason {
            expectation: "always: verifies".into(),
            trial: *trial,
            found: String::new(),
            kind: ViolationKind::Harm,
        };
        Verdict::Violated { reasons: trials.iter().map(reason).collect() }
    }

    /// The verdict on trials of which the first one's fault was effective, and the second one's was not.
    fn judge(judged: Verdict, control: &BaselineFacts) -> Verdict {
        let baseline = undisturbed(Ending::Exited(0), 12, "aa");
        let facts = [facts(true), facts(false)];
        let trials = [(1, &facts[0]), (2, &facts[1])];
        let trials = trials.map(|(number, facts)| JudgedTrial { number, facts, lines: &[] });
        ablation_verdict(judged, &AblationRuns { baseline: &baseline, control: Some(control) }, &trials)
    }

    #[test]
    fn a_target_that_does_not_work_without_the_guard_has_caught_nothing() {
        for control in [
            undisturbed(Ending::Exited(1), 12, "aa"),
            undisturbed(Ending::TimedOut, 12, "aa"),
            undisturbed(Ending::Exited(0), 11, "aa"),
            undisturbed(Ending::Exited(0), 12, "bb"),
        ] {
            for judged in [violated(&[Some(1)]), Verdict::Survived] {
                let verdict = judge(judged, &control);
                assert!(matches!(verdict, Verdict::Inconclusive { .. }), "{control:?}: {verdict:?}");
            }
        }
    }

    #[test]
    fn only_a_violation_under_an_effective_fault_counts() {
        let control = undisturbed(Ending::Exited(0), 12, "aa");
        assert_eq!(judge(violated(&[Some(2), Some(1)]), &control), violated(&[Some(1)]));
        assert_eq!(judge(violated(&[None]), &control), violated(&[None]));
        assert!(matches!(judge(violated(&[Some(2)]), &control), Verdict::Inconclusive { .. }));
        assert_eq!(judge(Verdict::Survived, &control), Verdict::Survived);
    }
}
