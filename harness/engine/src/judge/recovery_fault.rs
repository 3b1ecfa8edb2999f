//! What is wrong with a recovery, by what its target had announced of its jobs before and announces now. Pure; knows
//! nothing of files.

use scenarios::{BaselineJob, BaselineProgress, Outcome};

use super::end_resume;
use super::job_ledger::JobLedger;
use super::job_progress::Resumption;

/// What is wrong with a recovery that ended well, and the outcome that this means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryFault {
    pub outcome: Outcome,
    /// In words.
    pub what: String,
}

/// The first broken promise. `before`: how far the jobs had come when the target was ended. `ledger` has also followed
/// the recovery, which came to an end of its own.
pub fn recovery_fault(
    ledger: &JobLedger<'_>,
    before: &BaselineProgress,
    baseline: &BaselineProgress,
) -> Option<RecoveryFault> {
    if let Some(again) = ledger.done_again() {
        return Some(RecoveryFault { outcome: Outcome::Restarted, what: again.to_string() });
    }
    if let Some(resume) = ledger.worst_resume().filter(Resumption::is_broken_promise) {
        let (outcome, what) = end_resume::lost(resume.resumed_from, resume.acknowledged?);
        return Some(RecoveryFault { outcome, what });
    }
    if let Some(early) = ledger.early_end() {
        return Some(RecoveryFault { outcome: Outcome::EndedEarly, what: early.to_string() });
    }
    let after = ledger.clone().into_progress();
    missing_job(before, &after, baseline)
}

/// A job of the baseline that was neither done before nor by the recovery.
fn missing_job(
    before: &BaselineProgress,
    after: &BaselineProgress,
    baseline: &BaselineProgress,
) -> Option<RecoveryFault> {
    let is_ended = |job: &BaselineJob, expected: &BaselineJob| {
        job.finished || (job.last_step.is_some() && job.last_step >= expected.last_step)
    };
    let at_work = || before.jobs.iter().filter(|job| job.name.is_none() && !job.finished);
    // A target that is killed between the end of a job and the line about it has nothing left to do for it.
    let is_excused = |expected: &BaselineJob| at_work().any(|job| is_ended(job, expected));
    let is_missing = |expected: &&BaselineJob| {
        let known = after.jobs.iter().find(|job| job.name == expected.name);
        !known.is_some_and(|job| is_ended(job, expected))
    };
    let named = baseline.jobs.iter().filter(|job| job.name.is_some());
    let missing: Vec<&BaselineJob> = named.filter(is_missing).collect();
    let excused = missing.iter().position(|expected| is_excused(expected));
    let first = missing.iter().enumerate().find(|(index, _)| Some(*index) != excused);
    if let Some((_, expected)) = first {
        let named = before.jobs.iter().find(|job| job.name == expected.name);
        return Some(never_done(expected.name.as_deref(), named.or(at_work().next())));
    }
    let unnamed = |progress: &BaselineProgress| {
        progress.jobs.iter().filter(|job| job.name.is_none() && job.finished).count()
    };
    let shortest = baseline.jobs.iter().filter(|job| job.name.is_none()).min_by_key(|job| job.last_step);
    let excused = usize::from(shortest.is_some_and(is_excused));
    (unnamed(after) + excused < unnamed(baseline)).then(|| never_done(None, at_work().next()))
}

fn never_done(job: Option<&str>, before: Option<&BaselineJob>) -> RecoveryFault {
    let acknowledged = before.and_then(|job| job.acknowledged);
    let job = job.map_or_else(|| "a job".to_owned(), |job| format!("job `{job}`"));
    match acknowledged {
        Some(step) => RecoveryFault {
            outcome: Outcome::LostWork,
            what: format!("ended without {job}, of which step {step} was acknowledged"),
        },
        None => RecoveryFault {
            outcome: Outcome::EndedEarly,
            what: format!("ended without {job}, which the baseline did"),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    fn job(name: Option<&str>, last_step: u64, finished: bool) -> BaselineJob {
        let acknowledged = Some(last_step).filter(|step| *step > 0);
        BaselineJob { name: name.map(str::to_owned), last_step: Some(last_step), acknowledged, finished }
    }

    fn progress(jobs: &[BaselineJob]) -> BaselineProgress {
        BaselineProgress { jobs: jobs.into(), ..BaselineProgress::default() }
    }

    /// The outcome if a job is missing. The baseline does jobs a and b of 4 steps.
    fn outcome(before: &[BaselineJob], after: &[BaselineJob], is_named: bool) -> Option<Outcome> {
        let names = if is_named { [Some("a"), Some("b")] } else { [None, None] };
        let baseline = progress(&names.map(|name| job(name, 4, true)));
        missing_job(&progress(before), &progress(after), &baseline).map(|fault| fault.outcome)
    }

    #[test]
    fn a_job_that_is_neither_done_before_nor_by_the_recovery_is_missing() {
        let [a, b] = [Some("a"), Some("b")].map(|name| job(name, 4, true));
        assert_eq!(outcome(slice::from_ref(&a), &[a.clone(), b], true), None);
        assert_eq!(outcome(slice::from_ref(&a), slice::from_ref(&a), true), Some(Outcome::EndedEarly));
        let half = job(Some("a"), 2, false);
        assert_eq!(
            outcome(slice::from_ref(&half), &[half.clone(), job(Some("b"), 4, true)], true),
            Some(Outcome::LostWork)
        );
        let done = job(None, 4, true);
        assert_eq!(outcome(slice::from_ref(&done), &[done.clone(), done.clone()], false), None);
        assert_eq!(outcome(slice::from_ref(&done), slice::from_ref(&done), false), Some(Outcome::EndedEarly));
    }

    #[test]
    fn a_job_that_was_killed_after_its_last_step_may_have_been_done() {
        let b = job(Some("b"), 4, true);
        assert_eq!(outcome(&[job(None, 4, false)], slice::from_ref(&b), true), None);
        assert_eq!(outcome(&[job(None, 2, false)], slice::from_ref(&b), true), Some(Outcome::LostWork));
        assert_eq!(outcome(&[job(None, 4, false)], &[job(None, 4, true)], false), None);
        assert_eq!(outcome(&[job(None, 4, false)], &[], false), Some(Outcome::LostWork), "only one of two");
    }
}
