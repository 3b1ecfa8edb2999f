//! Holds a recovery to what was promised of each job, if the recorded run did several. Pure; knows no causes.

use std::collections::{BTreeMap, BTreeSet};

use scenarios::{BaselineProgress, Outcome};

use crate::announcements::{Announced, Announcement, AnnouncementPatterns};
use crate::explore::record::{OpEffect, Recording};
use crate::judge::{JobLedger, RecoveryFault, recovery_fault};

/// Something that the recorded run announced.
#[derive(Debug, Clone)]
struct JobLine {
    /// The index of the operation that printed it.
    op: usize,
    announcement: Announcement,
}

/// The jobs of a recorded run that did several.
#[derive(Debug, Clone)]
pub(super) struct RecordedJobs {
    patterns: AnnouncementPatterns,
    announced: Vec<JobLine>,
    baseline: BaselineProgress,
    /// The values with which jobs ended, by their names.
    values: BTreeMap<Option<String>, BTreeSet<String>>,
}

impl RecordedJobs {
    /// The jobs of this recording. `None`: it did one job, as far as its lines tell. `is_known`: it is known to do
    /// several, even if this run had to do only one.
    pub(super) fn of(
        recording: &Recording,
        patterns: AnnouncementPatterns,
        is_known: bool,
    ) -> Option<RecordedJobs> {
        let lines = recording.ops.iter().enumerate().filter_map(|(op, recorded)| match &recorded.effect {
            OpEffect::Output { line, on_stdio: true, .. } => Some((op, line)),
            _ => None,
        });
        let announced = lines.flat_map(|(op, line)| {
            let announcements = patterns.parse(line).into_iter();
            announcements.map(move |announcement| JobLine { op, announcement })
        });
        let announced: Vec<JobLine> = announced.collect();
        let nothing_known = BaselineProgress::default();
        let mut ledger = JobLedger::new(&nothing_known);
        ledger.on_start(1);
        announced.iter().for_each(|recorded| ledger.on_announcement(&recorded.announcement));
        let baseline = ledger.into_progress();
        // One job can end with several values, and several processes can report the same resume.
        let is_resume = |recorded: &&JobLine| matches!(recorded.announcement.what, Announced::Resumed { .. });
        let has_several = baseline.jobs.len() > 1
            && (patterns.name_jobs() || announced.iter().filter(is_resume).count() > 1);
        if !has_several && !is_known {
            return None;
        }
        let mut values: BTreeMap<Option<String>, BTreeSet<String>> = BTreeMap::new();
        for JobLine { announcement: Announcement { job, what }, .. } in &announced {
            if let Announced::Finished { value } = what {
                values.entry(job.clone()).or_default().insert(value.clone());
            }
        }
        Some(RecordedJobs { patterns, announced, baseline, values })
    }

    /// What a recovery announced that decides about its jobs: of the steps of a job, the first and the last one since
    /// another line.
    pub(super) fn announcements(&self, output: &str) -> Vec<Announcement> {
        let mut kept: Vec<Announcement> = Vec::new();
        let mut last_steps: BTreeMap<Option<String>, Announcement> = BTreeMap::new();
        let mut begun: BTreeSet<Option<String>> = BTreeSet::new();
        for announcement in output.lines().flat_map(|line| self.patterns.parse(line)) {
            match announcement.what {
                Announced::Step { .. } if begun.insert(announcement.job.clone()) => kept.push(announcement),
                Announced::Step { .. } => {
                    last_steps.insert(announcement.job.clone(), announcement);
                }
                Announced::Consumed { .. } => {}
                _ => {
                    begun.clear();
                    kept.extend(std::mem::take(&mut last_steps).into_values());
                    kept.push(announcement);
                }
            }
        }
        kept.extend(last_steps.into_values());
        kept
    }

    /// What is wrong with a recovery that ended well. `op_count`: the crash point.
    pub(super) fn fault(&self, recovery: &[Announcement], op_count: usize) -> Option<RecoveryFault> {
        let mut ledger = JobLedger::new(&self.baseline);
        ledger.on_start(1);
        let before = self.announced.iter().take_while(|recorded| recorded.op < op_count);
        before.for_each(|recorded| ledger.on_announcement(&recorded.announcement));
        let before = ledger.clone().into_progress();
        ledger.on_start(2);
        recovery.iter().for_each(|announcement| ledger.on_announcement(announcement));
        recovery_fault(&ledger, &before, &self.baseline).or_else(|| self.wrong_value(recovery))
    }

    /// A value with which a job did not end in the recorded run.
    fn wrong_value(&self, recovery: &[Announcement]) -> Option<RecoveryFault> {
        recovery.iter().find_map(|Announcement { job, what }| {
            let Announced::Finished { value } = what else { return None };
            let known = self.values.get(job).into_iter().flatten();
            let known: Vec<&str> = known.map(String::as_str).collect();
            let named = job.as_ref().map_or_else(|| "a job".to_owned(), |job| format!("job `{job}`"));
            (!known.contains(&value.as_str())).then(|| RecoveryFault {
                outcome: Outcome::Corrupt,
                what: format!(
                    "{named} ended with `{value}`, but with `{}` in the baseline run",
                    known.join("` or `")
                ),
            })
        })
    }
}
