//! Judges the controls of a target: resumes from the files right after a save, without any fault. One that fails is a
//! finding of its own, and what the trials show beyond it is another. Pure.

use scenarios::{
    BaselineFacts, BaselineProgress, Cause, Fact, FailureSubject, Modality, Outcome, Reason, SaveControl,
    Scenario, ViolationKind,
};

/// The control that fails, and the expectation that it does not meet.
#[derive(Clone, Copy)]
pub(super) struct FailingControl<'a> {
    control: &'a SaveControl,
    expectation: &'a str,
    /// Whether the target resumes from other undamaged files, so that this save is only not there yet.
    resumes_elsewhere: bool,
}

impl<'a> FailingControl<'a> {
    /// The first control with an outcome that the scenario does not expect. `None`: there is none, or the scenario
    /// expects no outcome.
    pub(super) fn find(scenario: &'a Scenario, baseline: &'a BaselineFacts) -> Option<FailingControl<'a>> {
        let fails = |control: &&SaveControl| !control.is_sound();
        baseline.progress.save_controls.iter().filter(fails).find_map(|control| {
            let unmet = scenario.expect().iter().find(|expectation| match &expectation.fact {
                Fact::Outcome(expected) if expectation.modality == Modality::Always => {
                    !expected.contains(&control.outcome)
                }
                _ => false,
            })?;
            let resumes_elsewhere = resumes_somewhere(&baseline.progress);
            Some(FailingControl { control, expectation: &unmet.text, resumes_elsewhere })
        })
    }

    /// Whether what is found in this trial is what happens without any fault too.
    pub(super) fn explains(&self, fact: &Fact, outcome: Outcome) -> bool {
        let is_about_end = matches!(fact, Fact::Outcome(_) | Fact::SameAsBaseline | Fact::LostSteps { .. });
        is_about_end && outcome == self.control.outcome
    }

    /// The finding. `trials`: the outcome of each trial.
    pub(super) fn reason(&self, trials: &[Outcome]) -> Reason {
        let SaveControl { save, outcome, because, .. } = self.control;
        let alike = trials.iter().filter(|trial| *trial == outcome).count();
        let alike = match alike {
            0 => String::new(),
            alike => format!("; {alike} of {} trials end in the same way", trials.len()),
        };
        let cause = self.cause();
        Reason {
            expectation: self.expectation.to_owned(),
            trial: None,
            found: format!(
                "{outcome}: {because}, when it was resumed without any fault from the files right after the save of \
                 {save}{alike}. Cause: {cause}; {}",
                cause.advice(FailureSubject::Directory)
            ),
            kind: ViolationKind::Control,
        }
    }

    fn cause(&self) -> Cause {
        match self.control.outcome {
            Outcome::Corrupt | Outcome::EndedEarly => Cause::ResumeDiffers,
            Outcome::LostWork => Cause::AcknowledgedTooEarly,
            Outcome::Restarted if self.resumes_elsewhere => Cause::AcknowledgedTooEarly,
            _ => Cause::DoesNotResume,
        }
    }
}

/// Whether the target resumes from the files of another save, or from those of its end.
fn resumes_somewhere(baseline: &BaselineProgress) -> bool {
    let from_end = baseline.control.iter().flat_map(|control| &control.resumed);
    baseline.save_controls.iter().any(|control| control.outcome == Outcome::Recovered)
        || from_end.into_iter().any(|resumed| resumed.from > 0)
}
