//! The work of one maintenance. It changes nothing that training reads, and each of its operations leaves
//! files that the next maintenance continues from. Decides nothing about when.

use jiff::civil::Date;

use crate::day_logs::{self, LogLimits};
use crate::file_error::chain;
use crate::settings::Settings;
use crate::store::{RootLayout, damaged_checkpoints, damaged_results};

/// What a maintenance has done and found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MaintenanceReport {
    /// Log files that are gone.
    pub(super) removed_logs: usize,
    /// Damage of what is stored. Nothing of it was deleted.
    pub(super) damage: Vec<String>,
    /// What could not be done.
    pub(super) troubles: Vec<String>,
}

/// Cleans up the logs and reads all that is stored. `today` is the date of the log that is being written.
pub(super) fn maintain(layout: &RootLayout, settings: &Settings, today: Date) -> MaintenanceReport {
    let mut report = MaintenanceReport::default();
    let maintenance = &settings.maintenance;
    let limits = LogLimits { days: maintenance.log_days, bytes: maintenance.log_bytes };
    if settings.guards.log_limits {
        match day_logs::clean_up(&layout.logs(), limits, today) {
            Ok(removed) => report.removed_logs = removed,
            Err(error) => report.troubles.push(chain(&error)),
        }
    }
    report.damage = damaged_checkpoints(&layout.checkpoints());
    report.damage.extend(damaged_results(&layout.done()));
    report
}

impl std::fmt::Display for MaintenanceReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |count: usize, one: &str, many: &str| match count {
            1 => format!("1 {one}"),
            count => format!("{count} {many}"),
        };
        write!(f, "{} removed", count(self.removed_logs, "old log", "old logs"))?;
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
