//! The work of one maintenance. It changes nothing that training reads, and each of its operations leaves
//! files that the next maintenance continues from. Decides nothing about when.

use jiff::civil::Date;

use crate::day_logs::{self, LogLimits};
use crate::durable::{self, TEMPORARY_MARKER};
use crate::file_error::chain;
use crate::settings::Settings;
use crate::state::Recipe;
use crate::store::{
    CheckpointStore, CopiedCheckpoint, RootLayout, SaveOptions, damaged_checkpoints, damaged_merges,
    damaged_results, read_result, sorted_names, sync_policy,
};

/// What a maintenance has done and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MaintenanceReport {
    /// Checkpoints that were copied.
    pub(super) snapshots: usize,
    /// Log files that are gone.
    pub(super) removed_logs: usize,
    /// Damage of what is stored. Nothing of it was deleted.
    pub(super) damage: Vec<String>,
    /// What could not be done.
    pub(super) troubles: Vec<String>,
}

/// Copies the newest checkpoints, cleans up the logs and reads all that is stored. `today`: the date of the log
/// that is being written.
pub(super) fn maintain(layout: &RootLayout, settings: &Settings, today: Date) -> MaintenanceReport {
    let mut report = MaintenanceReport::default();
    if settings.guards.snapshots {
        copy_checkpoints(layout, settings, &mut report);
        remove_snapshots_of_results(layout, settings, &mut report);
    }
    let maintenance = &settings.maintenance;
    let limits = LogLimits { days: maintenance.log_days, bytes: maintenance.log_bytes };
    if settings.guards.log_limits {
        match day_logs::clean_up(&layout.logs(), limits, today) {
            Ok(removed) => report.removed_logs = removed,
            Err(error) => report.troubles.push(chain(&error)),
        }
    }
    report.damage = damaged_checkpoints(&layout.checkpoints());
    report.damage.extend(damaged_checkpoints(&layout.snapshots()));
    report.damage.extend(damaged_results(layout));
    report.damage.extend(damaged_merges(layout));
    report
}

/// Copies the newest valid checkpoint of each queued job.
fn copy_checkpoints(layout: &RootLayout, settings: &Settings, report: &mut MaintenanceReport) {
    let options = SaveOptions { guards: settings.guards.clone(), keep: settings.maintenance.snapshots };
    // Neither base nor recipe matter to a copy. The worker that uses it compares them.
    let store = |dir| CheckpointStore::new(dir, String::new(), Recipe::default(), options.clone());
    for job in queued_jobs(layout) {
        let (from, to) = (store(layout.job_checkpoints(&job)), store(layout.job_snapshots(&job)));
        match from.copy_newest_to(&to) {
            Ok(CopiedCheckpoint::Step(_)) => report.snapshots += 1,
            Ok(CopiedCheckpoint::Nothing) => {}
            Err(error) => report.troubles.push(format!("snapshot of job {job}: {}", chain(&error))),
        }
    }
}

/// Removes the copies of jobs that have a complete result, and what an earlier removal has left.
fn remove_snapshots_of_results(layout: &RootLayout, settings: &Settings, report: &mut MaintenanceReport) {
    let queued = queued_jobs(layout);
    for job in sorted_names(&layout.snapshots()) {
        let is_rest = job.starts_with(TEMPORARY_MARKER);
        let is_done = || !queued.contains(&job) && read_result(&layout.done().join(&job), &job).is_ok();
        if !is_rest && !is_done() {
            continue;
        }
        let dir = layout.job_snapshots(&job);
        let removed = match is_rest {
            true => durable::remove_tree(&dir),
            false => durable::remove_atomically(&dir, sync_policy(&settings.guards)),
        };
        report.troubles.extend(removed.err().map(|error| chain(&error)));
    }
}

fn queued_jobs(layout: &RootLayout) -> Vec<String> {
    let mut names = sorted_names(&layout.processing());
    names.retain(|name| !name.starts_with(TEMPORARY_MARKER));
    names
}

impl std::fmt::Display for MaintenanceReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |count: usize, one: &str, many: &str| match count {
            1 => format!("1 {one}"),
            count => format!("{count} {many}"),
        };
        let copied = count(self.snapshots, "checkpoint", "checkpoints");
        write!(f, "{copied} copied, {} removed", count(self.removed_logs, "old log", "old logs"))?;
        match self.damage.len() {
            0 => f.write_str(", no damage found"),
            damage => write!(f, ", {} damaged", count(damage, "stored item is", "stored items are")),
        }?;
        match self.troubles.first() {
            Some(trouble) => write!(f, "; not done: {trouble}"),
            None => Ok(()),
        }
    }
}
