//! What a target announced of its jobs, in order: their steps, promises and ends. It notices what was promised and
//! not held, for one job or several, whether or not the lines name them. Pure; knows no outcome.
//!
//! A line without a name is about the current job. The line that ends a job may name it: only then is known whose
//! steps the lines before it were about.

use std::collections::BTreeMap;

use scenarios::{BaselineJob, BaselineProgress, ResumedJob};

use super::job_progress::{JobProgress, OrderFault, Resumption, StepGrid};
use crate::announcements::{Announced, Announcement};

/// The announcements so far.
#[derive(Debug, Clone)]
pub struct JobLedger<'a> {
    /// What the baseline announced. Empty while the baseline itself is followed.
    baseline: &'a BaselineProgress,
    /// Whether a line has said that a job is resumed, so that a step that comes again without such a line is wrong.
    announces_resumes: bool,
    /// Whether there are jobs that the baseline does not have, so that a line without a name may be about one.
    has_more_jobs: bool,
    named: BTreeMap<String, JobProgress>,
    /// The names of the jobs that have announced their end, in this order.
    ended: Vec<String>,
    current: JobProgress,
    /// Resumes of which it is not known whether they are about the job before them or about the next one.
    deferred: Vec<Resumption>,
    /// The jobs without a name that have announced their end.
    finished: Vec<JobProgress>,
    /// The number of the target's start; 0: what was before is not a run that can be followed step by step.
    start: u32,
    worst_resume: Option<Resumption>,
    order_fault: Option<OrderFault>,
    done_again: Option<DoneAgain>,
    /// The resumes of the last start.
    resumed: Vec<ResumedJob>,
    steps: StepDistances,
}

/// A job that was done a second time, from scratch, although it had announced its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DoneAgain {
    pub(super) job: Option<String>,
}

impl std::fmt::Display for DoneAgain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.job {
            Some(job) => write!(f, "did job `{job}` from scratch although it had announced its end"),
            None => f.write_str("did a job from scratch although it had announced its end"),
        }
    }
}

/// An end before the one that the baseline reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EarlyEnd {
    pub(super) job: Option<String>,
    pub(super) step: u64,
    pub(super) baseline: u64,
}

impl std::fmt::Display for EarlyEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let EarlyEnd { job, step, baseline } = self;
        let job = job.as_ref().map(|job| format!("job `{job}` ")).unwrap_or_default();
        write!(f, "{job}ended after step {step}, and the baseline after step {baseline}")
    }
}

/// The distances between the announced steps.
#[derive(Debug, Clone, Default)]
struct StepDistances {
    first: Option<u64>,
    stride: Option<u64>,
    is_irregular: bool,
}

impl StepDistances {
    fn add(&mut self, before: Option<u64>, step: u64) {
        let known = match before {
            None => &mut self.first,
            Some(_) => &mut self.stride,
        };
        let found = before.map_or(Some(step), |before| step.checked_sub(before).filter(|stride| *stride > 0));
        self.is_irregular |= found.is_none() || known.is_some_and(|known| Some(known) != found);
        *known = found.or(*known);
    }
}

impl<'a> JobLedger<'a> {
    /// Follows a target of which the baseline is known.
    pub fn new(baseline: &'a BaselineProgress) -> JobLedger<'a> {
        JobLedger {
            baseline,
            announces_resumes: false,
            has_more_jobs: false,
            named: BTreeMap::new(),
            ended: Vec::new(),
            deferred: Vec::new(),
            current: JobProgress::default(),
            finished: Vec::new(),
            start: 0,
            worst_resume: None,
            order_fault: None,
            done_again: None,
            resumed: Vec::new(),
            steps: StepDistances::default(),
        }
    }

    /// There are jobs that the baseline does not have.
    #[must_use]
    pub fn with_more_jobs(self, has_more_jobs: bool) -> JobLedger<'a> {
        JobLedger { has_more_jobs, ..self }
    }

    /// The target has been started. `start`: 1 for the first time.
    pub fn on_start(&mut self, start: u32) {
        self.start = start;
        self.resumed.clear();
    }

    /// The target announced something.
    pub fn on_announcement(&mut self, announcement: &Announcement) {
        let Announcement { job, what } = announcement;
        match what {
            Announced::Finished { .. } => self.on_finished(job.as_deref()),
            Announced::Consumed { .. } => {}
            Announced::Step { step, .. } => self.on_step(job.as_deref(), *step),
            Announced::Saved { step } => {
                let progress = self.mention(job.as_deref());
                progress.acknowledged = progress.acknowledged.max(Some(*step));
            }
            Announced::Resumed { step } => {
                self.announces_resumes = true;
                self.on_resumed(job.as_deref(), *step);
            }
            Announced::RolledBack { step } => self.mention(job.as_deref()).roll_back(*step),
        }
    }

    /// The job that a line is about.
    fn mention(&mut self, job: Option<&str>) -> &mut JobProgress {
        let start = self.start;
        let progress = match job {
            Some(job) => self.named.entry(job.to_owned()).or_default(),
            None => {
                self.reopen_last_job();
                &mut self.current
            }
        };
        progress.mentioned_in = start;
        progress
    }

    /// If all jobs have ended and the target was started again, its lines can only be about the last of them.
    fn reopen_last_job(&mut self) {
        let is_new_start = self.finished.iter().all(|job| job.mentioned_in < self.start);
        let jobs = self.baseline.jobs.iter().filter(|job| job.name.is_none() && job.finished).count().max(1);
        if !self.current.is_known() && is_new_start && self.finished.len() >= jobs {
            self.current = self.finished.pop().unwrap_or_default();
        }
    }

    /// Whether this is the first line about a job since the target was started again.
    fn is_first_line(&self, job: Option<&str>) -> bool {
        let (start, mentioned_in) = (self.start, self.job(job).map_or(0, |job| job.mentioned_in));
        start > 1 && mentioned_in < start
    }

    fn job(&self, job: Option<&str>) -> Option<&JobProgress> {
        match job {
            Some(job) => self.named.get(job),
            None if self.current.is_known() => Some(&self.current),
            None => self.finished.last().or_else(|| self.named.get(self.ended.last()?)),
        }
    }

    fn on_step(&mut self, job: Option<&str>, step: u64) {
        let is_first_line = self.is_first_line(job);
        if is_first_line && self.mention(job).is_known() {
            // It was not announced from which step it resumes.
            let from = self.begin_of_first_step(step);
            self.on_resumed(job, from);
        }
        let grid = self.baseline.first_step.zip(self.baseline.stride);
        let grid = grid.filter(|_| self.announces_resumes && self.start > 0);
        let grid = grid.map(|(first, stride)| StepGrid { first, stride });
        let start = self.start;
        let progress = self.mention(job);
        let before = progress.position.filter(|_| progress.has_trained);
        if progress.began_at.is_none() && progress.position.is_none() {
            progress.began_at = Some(0);
        }
        progress.worked_in = start;
        let fault = progress.step(step, grid);
        self.steps.add(before, step);
        self.order_fault = self.order_fault.or(fault);
    }

    /// The step that a run must have been resumed from if this is its first one.
    fn begin_of_first_step(&self, step: u64) -> u64 {
        match self.baseline.first_step {
            Some(first) if step <= first => 0,
            Some(0) => step,
            _ => step.saturating_sub(1),
        }
    }

    fn on_resumed(&mut self, job: Option<&str>, from: u64) {
        let is_first_line = self.is_first_line(job);
        let start = self.start;
        let progress = self.mention(job);
        progress.worked_in = start;
        let resumption = progress.resume(from);
        self.resumed.push(ResumedJob { job: job.map(str::to_owned), from });
        let is_broken = resumption.is_some_and(|resumption| resumption.is_broken_promise());
        let has_several_jobs = self.has_more_jobs || self.jobs_of_baseline() > 1;
        if job.is_none() && is_first_line && is_broken && has_several_jobs {
            // The target may have been killed when the job was done and the line about its end was not yet written.
            self.deferred.extend(resumption);
        } else {
            self.add_resumption(resumption);
        }
    }

    fn jobs_of_baseline(&self) -> usize {
        self.baseline.jobs.iter().filter(|job| job.finished).count()
    }

    fn finished_jobs(&self) -> usize {
        self.finished.len() + self.ended.len()
    }

    fn add_resumption(&mut self, resumption: Option<Resumption>) {
        let is_worse = |worst: Resumption| resumption.map(|new| new.severity()) >= Some(worst.severity());
        if self.worst_resume.is_none_or(is_worse) {
            self.worst_resume = resumption.or(self.worst_resume);
        }
    }

    fn on_finished(&mut self, name: Option<&str>) {
        let start = self.start;
        let end = |job: JobProgress| JobProgress { is_finished: true, mentioned_in: start, ..job };
        let Some(name) = name else {
            self.mention(None);
            let job = end(std::mem::take(&mut self.current));
            self.finished.push(job);
            return self.check_finished_count();
        };
        // The steps before it were about this job, unless it was finished before: then they must be of this start.
        let is_of_this_start = self.current.is_known() && self.current.mentioned_in == start;
        let known = self.named.remove(name);
        let was_finished = known.as_ref().is_some_and(|job| job.is_finished);
        let takes_current = self.current.is_known() && (is_of_this_start || !was_finished);
        let job = match (known, takes_current) {
            (known, true) => {
                let job = std::mem::take(&mut self.current);
                if let Some(before) = known.filter(|before| before.is_finished) {
                    self.check_done_again(name, &before, &job);
                }
                job
            }
            (known, false) => known.unwrap_or_default(),
        };
        self.named.insert(name.to_owned(), end(job));
        if !was_finished {
            self.ended.push(name.to_owned());
        }
    }

    /// Holds a job that is done now to its earlier end.
    fn check_done_again(&mut self, name: &str, before: &JobProgress, again: &JobProgress) {
        let Some(from) = again.began_at.filter(|_| again.has_trained) else { return };
        if from == 0 {
            self.done_again.get_or_insert(DoneAgain { job: Some(name.to_owned()) });
        } else {
            self.add_resumption(before.clone().resume(from));
        }
    }

    /// Jobs without names can only be counted.
    fn check_finished_count(&mut self) {
        let of_baseline = self.jobs_of_baseline();
        let from_scratch = |job: &&JobProgress| job.has_trained && job.began_at == Some(0);
        if of_baseline > 0
            && !self.has_more_jobs
            && self.finished.iter().filter(from_scratch).count() > of_baseline
        {
            self.done_again.get_or_insert(DoneAgain { job: None });
        }
    }

    /// The worst resume. One that may have been about the next job counts if as many jobs ended as in the baseline:
    /// then none ended without a line.
    pub(super) fn worst_resume(&self) -> Option<Resumption> {
        let all_ended = !self.has_more_jobs && self.finished_jobs() >= self.jobs_of_baseline();
        let deferred = self.deferred.iter().filter(|_| all_ended);
        deferred.copied().chain(self.worst_resume).max_by_key(Resumption::severity)
    }

    /// Whether a line that names no job may be about a lost promise or about a job that the baseline does not have.
    pub(super) fn has_unclear_resume(&self) -> bool {
        self.has_more_jobs && !self.deferred.is_empty()
    }

    /// The first step that was left out or repeated.
    pub fn order_fault(&self) -> Option<OrderFault> {
        self.order_fault
    }

    /// A job that was done twice.
    pub(super) fn done_again(&self) -> Option<&DoneAgain> {
        self.done_again.as_ref()
    }

    /// The resumes since the last start.
    pub fn resumed(&self) -> &[ResumedJob] {
        &self.resumed
    }

    /// The newest acknowledged step of a job.
    pub fn acknowledged(&self, job: Option<&str>) -> Option<u64> {
        self.job(job)?.acknowledged
    }

    /// Whether some job has an acknowledged step.
    pub fn has_promises(&self) -> bool {
        let all = self.named.values().chain(&self.finished).chain([&self.current]);
        all.into_iter().any(|job| job.acknowledged.is_some())
    }

    /// The job that came to its end before the step at which it ended in the baseline. Of a job that the last start
    /// did not work at, nothing was left to do.
    pub(super) fn early_end(&self) -> Option<EarlyEnd> {
        let is_early = |job: &JobProgress, expected: &BaselineJob| {
            let (step, baseline) = job.position.zip(expected.last_step)?;
            let is_early = job.worked_in == self.start && step < baseline;
            is_early.then(|| EarlyEnd { job: expected.name.clone(), step, baseline })
        };
        let (named, unnamed): (Vec<_>, Vec<_>) =
            self.baseline.jobs.iter().partition(|job| job.name.is_some());
        let of_named = |expected: &&BaselineJob| {
            let name = expected.name.as_deref()?;
            is_early(self.named.get(name).or(Some(&self.current).filter(|job| job.is_known()))?, expected)
        };
        if let Some(early) = named.iter().find_map(of_named) {
            return Some(early);
        }
        // Of several jobs without names, only the last one is known to be the baseline's last.
        is_early(self.job(None)?, unnamed.last()?)
    }

    /// Whether a job is at work that has not reached the end of the baseline, or some have not begun.
    pub(super) fn has_work_left(&self) -> bool {
        let jobs = &self.baseline.jobs;
        let (finished, expected) = (self.finished_jobs(), self.jobs_of_baseline());
        let shortest = jobs.iter().filter_map(|job| job.last_step).min();
        let is_behind = |job: &JobProgress| job.position < shortest;
        match expected {
            0 => self.job(None).is_some_and(is_behind),
            expected => finished < expected && self.current.is_known() && is_behind(&self.current),
        }
    }

    /// What was followed, as the progress of a baseline.
    pub fn into_progress(self) -> BaselineProgress {
        let of = |name: Option<String>, job: JobProgress| BaselineJob {
            name,
            last_step: job.position,
            acknowledged: job.acknowledged,
            finished: job.is_finished,
        };
        let current = Some(self.current).filter(JobProgress::is_known);
        let unnamed = self.finished.into_iter().chain(current).map(|job| of(None, job));
        let (mut known, ended) = (self.named, self.ended);
        let ended: Vec<(String, JobProgress)> =
            ended.into_iter().filter_map(|name| Some((name.clone(), known.remove(&name)?))).collect();
        let named = ended.into_iter().chain(known).map(|(name, job)| of(Some(name), job));
        let StepDistances { first, stride, is_irregular } = self.steps;
        let is_regular = !is_irregular;
        BaselineProgress {
            jobs: named.chain(unnamed).collect(),
            first_step: first,
            stride: stride.filter(|_| is_regular),
            control: None,
            save_controls: Vec::new(),
            no_save_controls: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;
    use crate::announcements::AnnouncementPatterns;

    /// The patterns of these tests. The line of the end names the job if it has a name.
    fn patterns() -> AnnouncementPatterns {
        let regex = |text: &str| Regex::new(text).ok();
        AnnouncementPatterns {
            step: regex(r"^(?<job>\w+:)?step (?<step>\d+)"),
            saved: regex(r"^(?<job>\w+:)?saved (?<step>\d+)"),
            resumed: regex(r"^(?<job>\w+:)?resumed (?<step>\d+)"),
            rolled_back: regex(r"^back to (?<step>\d+)"),
            consumed: None,
            same: regex(r"^finished( (?<job>\w+))? with (?<value>\w+)"),
        }
    }

    /// Follows starts of a target: each is the lines that it prints, with `; ` between them.
    fn follow<'a>(baseline: &'a BaselineProgress, starts: &[&str]) -> JobLedger<'a> {
        let mut ledger = JobLedger::new(baseline);
        for (start, lines) in (1..).zip(starts) {
            ledger.on_start(start);
            let announcements = lines.split("; ").flat_map(|line| patterns().parse(line));
            announcements.for_each(|announcement| ledger.on_announcement(&announcement));
        }
        ledger
    }

    fn baseline(lines: &str) -> BaselineProgress {
        follow(&BaselineProgress::default(), &[lines]).into_progress()
    }

    /// What is wrong, in one word.
    fn fault(baseline: &BaselineProgress, starts: &[&str]) -> &'static str {
        let ledger = follow(baseline, starts);
        let resume = ledger.worst_resume().filter(Resumption::is_broken_promise);
        match (resume, ledger.order_fault()) {
            _ if ledger.done_again().is_some() => "again",
            (Some(Resumption { resumed_from: 0, .. }), _) => "restarted",
            (Some(_), _) => "lost",
            _ if ledger.early_end().is_some() => "early",
            (_, Some(_)) => "order",
            _ => "none",
        }
    }

    const ONE_JOB: &str = "resumed 0; step 1; step 2; saved 2; step 3; step 4; saved 4; finished with a";
    const UNFINISHED: &str = "resumed 0; step 1; step 2; saved 2; step 3; step 4; saved 4";

    #[test]
    fn one_job_is_held_to_its_promises_also_after_its_end() {
        let baseline = baseline(ONE_JOB);
        assert_eq!((baseline.first_step, baseline.stride), (Some(1), Some(1)));
        for (starts, expected) in [
            (&[ONE_JOB][..], "none"),
            (
                &[
                    "resumed 0; step 1; step 2; saved 2; step 3",
                    "resumed 2; step 3; step 4; saved 4; finished with a",
                ],
                "none",
            ),
            (&["resumed 0; step 1; step 2; saved 2; step 3", ONE_JOB], "restarted"),
            (&[ONE_JOB, "resumed 4; finished with a"], "none"),
            (&[ONE_JOB, "finished with a"], "none"),
            (&[ONE_JOB, ""], "none"),
            (&[ONE_JOB, "resumed 2; step 3; step 4; saved 4; finished with a"], "lost"),
            // The promise of step 4 is not forgotten because the job has announced its end.
            (&[ONE_JOB, ONE_JOB], "restarted"),
            (&[ONE_JOB, "step 1; step 2; saved 2; step 3; step 4; finished with a"], "restarted"),
        ] {
            assert_eq!(fault(&baseline, starts), expected, "{starts:?}");
        }
    }

    #[test]
    fn an_end_before_the_baselines_is_noticed_unless_nothing_was_left() {
        let baseline = baseline(UNFINISHED);
        for (starts, expected) in [
            (&[UNFINISHED][..], "none"),
            (&["resumed 0; step 1; step 2; saved 2"], "early"),
            (&["resumed 0; step 1; step 2; saved 2; step 3; step 4", "resumed 2"], "early"),
            (&["resumed 0; step 1; step 2; saved 2; step 3", "resumed 2; step 3"], "early"),
            (&[UNFINISHED, "resumed 4"], "none"),
            (&["resumed 0; step 1; step 2; saved 2; step 3", ""], "none"),
            (&["resumed 0; step 1; step 3; step 4"], "order"),
            (&["resumed 0; step 1; step 2; step 2; step 3; step 4"], "order"),
            (&["resumed 0; step 1; step 2; back to 1; step 2; step 3; step 4"], "none"),
            (&["resumed 0; step 1; step 2; saved 2; step 3", "resumed 2; step 4"], "order"),
        ] {
            assert_eq!(fault(&baseline, starts), expected, "{starts:?}");
        }
    }

    const THREE_JOBS: [&str; 3] = [
        "resumed 0; step 1; step 2; saved 2; finished ja with a",
        "resumed 0; step 1; step 2; step 3; saved 3; finished jb with b",
        "resumed 0; step 1; saved 1; finished jc with c",
    ];

    #[test]
    fn several_jobs_that_are_named_at_their_ends_are_told_apart() {
        let [ja, jb, jc] = THREE_JOBS;
        let all = THREE_JOBS.join("; ");
        let baseline = baseline(&all);
        assert_eq!(baseline.jobs.len(), 3);
        let rest = format!("{jb}; {jc}");
        for (starts, expected) in [
            (&[all.as_str()][..], "none"),
            // Killed between two jobs: the next one begins from scratch, and nothing is lost.
            (&[ja, &rest], "none"),
            (&[ja, &format!("finished ja with a; {rest}")], "none"),
            (&["resumed 0; step 1", &all], "none"),
            (&["resumed 0; step 1; step 2; saved 2", &format!("finished ja with a; {rest}")], "none"),
            (
                &["resumed 0; step 1; step 2; saved 2", &format!("resumed 2; finished ja with a; {rest}")],
                "none",
            ),
            (&["resumed 0; step 1; step 2; saved 2", &all], "restarted"),
            (&[ja, &all], "again"),
            (&[all.as_str(), &all], "again"),
            (&[all.as_str(), ""], "none"),
            // Killed between the end of a job and the line about it: it is done, and the next one begins.
            (&["resumed 0; step 1; step 2; saved 2", &rest], "none"),
        ] {
            assert_eq!(fault(&baseline, starts), expected, "{starts:?}");
        }
    }

    #[test]
    fn several_jobs_without_names_are_counted() {
        let unnamed = |text: &str| {
            ["ja", "jb", "jc"]
                .iter()
                .fold(text.to_owned(), |text, name| text.replace(&format!("{name} "), ""))
        };
        let [ja, jb, jc] = THREE_JOBS.map(unnamed);
        let all = [ja.as_str(), &jb, &jc].join("; ");
        let baseline = baseline(&all);
        let rest = format!("{jb}; {jc}");
        for (starts, expected) in [
            (&[all.as_str()][..], "none"),
            (&[ja.as_str(), &rest], "none"),
            (&[ja.as_str(), &all], "again"),
            (&[all.as_str(), ""], "none"),
            (&[all.as_str(), "resumed 0; step 1; saved 1; finished with c"], "restarted"),
            (&["resumed 0; step 1; step 2; saved 2", &all], "restarted"),
            (&["resumed 0; step 1; step 2; saved 2", &rest], "none"),
        ] {
            assert_eq!(fault(&baseline, starts), expected, "{starts:?}");
        }
    }

    #[test]
    fn jobs_that_each_line_names_may_be_interleaved() {
        let lines = "x:resumed 0; y:resumed 0; x:step 1; y:step 1; x:saved 1; y:step 2; x:step 2; y:saved 2";
        let baseline = baseline(lines);
        let again = "x:resumed 1; y:resumed 0; x:step 2; y:step 1; y:step 2";
        assert_eq!(fault(&baseline, &[lines]), "none");
        assert_eq!(fault(&baseline, &["x:resumed 0; x:step 1; y:step 1; x:saved 1", again]), "none");
        assert_eq!(fault(&baseline, &[lines, again]), "restarted");
    }
}
