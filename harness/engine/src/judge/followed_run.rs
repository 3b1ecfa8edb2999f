//! Follows what a run announced, by the entries of its record. Pure.

use scenarios::{BaselineProgress, Event, RecordEntry, TargetFile};

use super::job_ledger::JobLedger;
use crate::announcements::{Announced, Announcement, AnnouncementPatterns};

/// What a run announced.
pub struct FollowedRun<'a> {
    /// Its jobs.
    pub ledger: JobLedger<'a>,
    /// The values with which jobs ended, in order.
    pub values: Vec<String>,
    patterns: AnnouncementPatterns,
}

impl<'a> FollowedRun<'a> {
    /// A run of which nothing is known yet.
    pub fn new(target: &TargetFile, baseline: &'a BaselineProgress) -> FollowedRun<'a> {
        FollowedRun {
            ledger: JobLedger::new(baseline),
            values: Vec::new(),
            patterns: AnnouncementPatterns::of_target(target),
        }
    }

    /// The same of a run with jobs that the baseline does not have.
    #[must_use]
    pub fn with_more_jobs(self, has_more_jobs: bool) -> FollowedRun<'a> {
        FollowedRun { ledger: self.ledger.with_more_jobs(has_more_jobs), ..self }
    }

    /// The run with these entries.
    pub fn of(
        target: &TargetFile,
        baseline: &'a BaselineProgress,
        entries: &[RecordEntry],
    ) -> FollowedRun<'a> {
        let mut run = FollowedRun::new(target, baseline);
        entries.iter().for_each(|entry| run.on_event(&entry.event));
        run
    }

    /// Follows an event.
    pub fn on_event(&mut self, event: &Event) {
        match event {
            Event::TargetStarted(started) => self.ledger.on_start(started.attempt),
            Event::Output { line, .. } => self.on_line(line),
            event => {
                Announcement::of_event(event).iter().for_each(|found| self.ledger.on_announcement(found));
            }
        }
    }

    /// Takes the values of finished jobs from a line. What else it announces has an event of its own.
    fn on_line(&mut self, line: &str) {
        for announcement in self.patterns.parse(line) {
            if let Announced::Finished { value } = &announcement.what {
                self.values.push(value.clone());
                self.ledger.on_announcement(&announcement);
            }
        }
    }
}
