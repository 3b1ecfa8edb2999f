//! Judges a resume from the files that a trial left at its end. Pure; knows no expectation.

use scenarios::{EndResume, Ending, Outcome, ResumedJob};

use super::job_ledger::JobLedger;

/// The outcome of a resume from this step although a later one was acknowledged.
pub(super) fn lost(from: u64, acknowledged: u64) -> (Outcome, String) {
    match from {
        0 => (
            Outcome::Restarted,
            format!("started from scratch although step {acknowledged} was acknowledged"),
        ),
        from => (
            Outcome::LostWork,
            format!("resumed from step {from} although step {acknowledged} was acknowledged"),
        ),
    }
}

/// Whether a resume from the files of an undisturbed run shows what a sound one looks like. A target that begins
/// again from scratch, or that fails, shows nothing: that is its way.
pub fn is_sound_control(control: &EndResume, of_baseline: &JobLedger<'_>) -> bool {
    let ended = matches!(control.ending, None | Some(Ending::Exited(0)));
    ended && control.resumed.iter().all(|resumed| broken_promise(resumed, of_baseline).is_none())
}

/// What a resume from the files that a trial left shows against the trial. `control`: the same of the baseline, which
/// is sound. `ledger`: the announcements of the trial.
pub(super) fn fault(
    resume: &EndResume,
    control: &EndResume,
    ledger: &JobLedger<'_>,
    is_refused: impl Fn(&i32) -> bool,
) -> Option<(Outcome, String)> {
    let at_end = |what: String| format!("{what}, when it was resumed from the files of its end");
    if let Some((outcome, what)) = resume.resumed.iter().find_map(|resumed| broken_promise(resumed, ledger)) {
        return Some((outcome, at_end(what)));
    }
    match resume.ending.filter(|ending| control.ending != Some(*ending))? {
        Ending::Exited(0) => None,
        Ending::Exited(code) if is_refused(&code) => {
            Some((Outcome::Refused, at_end(format!("refused with exit code {code}"))))
        }
        Ending::TimedOut => Some((Outcome::Hung, at_end("made no progress within its time limit".into()))),
        ending => Some((Outcome::Crashed, at_end(ending.to_string()))),
    }
}

/// What is wrong with one resumed job.
fn broken_promise(resumed: &ResumedJob, ledger: &JobLedger<'_>) -> Option<(Outcome, String)> {
    let acknowledged = ledger.acknowledged(resumed.job.as_deref())?;
    (resumed.from < acknowledged).then(|| lost(resumed.from, acknowledged))
}
