//! Judges a resume from the files that a trial left at its end, or right after a save. Pure; knows no expectation.

use scenarios::{AnnouncedSave, BaselineFacts, BaselineProgress, EndResume, Ending, Outcome, ResumedJob};

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

/// Whether the target resumes from the files right after each save that was tried, so that it can be asked after a
/// fault, too.
pub fn can_resume_from_saves(baseline: &BaselineProgress) -> bool {
    let mut controls = baseline.save_controls.iter().map(|control| control.outcome).peekable();
    controls.peek().is_some() && controls.all(|outcome| outcome == Outcome::Recovered)
}

/// What a resume from files that a trial left shows against the trial. `None`: nothing.
pub(super) fn fault(
    resume: &EndResume,
    baseline: &BaselineFacts,
    ledger: &JobLedger<'_>,
    is_refused: impl Fn(&i32) -> bool,
) -> Option<(Outcome, String)> {
    let (control, broken, place) = match &resume.after_save {
        Some(save) if can_resume_from_saves(&baseline.progress) => {
            let place = format!("when it was resumed from the files right after the save of {save}");
            (Ending::Exited(0), broken_promise_of_save(resume, save), place)
        }
        Some(_) => return None,
        None => {
            let control = baseline.progress.control.as_ref()?.ending.unwrap_or(Ending::Exited(0));
            let broken = resume.resumed.iter().find_map(|resumed| broken_promise(resumed, ledger));
            (control, broken, "when it was resumed from the files of its end".to_owned())
        }
    };
    let there = |what: String| format!("{what}, {place}");
    if let Some((outcome, what)) = broken {
        return Some((outcome, there(what)));
    }
    let ending = resume.ending?;
    match ending {
        ending if ending == control => None,
        Ending::Exited(0) => None,
        Ending::Exited(code) if is_refused(&code) => {
            Some((Outcome::Refused, there(format!("refused with exit code {code}"))))
        }
        Ending::TimedOut => Some((Outcome::Hung, there("made no progress within its time limit".into()))),
        ending => Some((Outcome::Crashed, there(ending.to_string()))),
    }
}

/// Which values of a resume no job of the baseline ended with.
pub(super) fn other_values(resume: &EndResume, baseline: &BaselineFacts) -> Option<(Outcome, String)> {
    let other = resume.values.iter().find(|value| !baseline.same.contains(value))?;
    let place = match &resume.after_save {
        Some(save) => format!("right after the save of {save}"),
        None => "of its end".into(),
    };
    let baseline = baseline.same.join(", ");
    let what = format!(
        "ended with [{other}], the baseline run with [{baseline}], when it was resumed from the files {place}"
    );
    Some((Outcome::Corrupt, what))
}

/// What is wrong with one resumed job.
fn broken_promise(resumed: &ResumedJob, ledger: &JobLedger<'_>) -> Option<(Outcome, String)> {
    let acknowledged = ledger.acknowledged(resumed.job.as_deref())?;
    (resumed.from < acknowledged).then(|| lost(resumed.from, acknowledged))
}

/// What is wrong with the job whose save it was. A line without a name is about the job that was at work.
fn broken_promise_of_save(resume: &EndResume, save: &AnnouncedSave) -> Option<(Outcome, String)> {
    let of_job = resume.resumed.iter().find(|resumed| resumed.job == save.job)?;
    (of_job.from < save.step).then(|| lost(of_job.from, save.step))
}
