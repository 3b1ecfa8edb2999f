//! The daily maintenance: once for each local day, on a thread beside training. A maintenance that was
//! interrupted is done again. Training never waits for it.

mod day_record;
mod schedule;
mod work;

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use jiff::civil::{Date, DateTime};

use super::daemon_config::DaemonConfig;
use super::status::StatusWriter;
use super::trouble::Trouble;
use crate::file_error::chain;
use crate::settings::Guards;
use day_record::{read_done_days, write_done_days};
use schedule::{Schedule, ScheduleRule, maintenance_day};
use work::{MaintenanceReport, maintain};

/// Minimum time between two looks at the clock.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Damaged items that are printed and shown in the status; the rest is counted.
const MAX_SHOWN_DAMAGE: usize = 20;

/// The maintenance of one daemon.
pub(super) struct Maintenance {
    schedule: Schedule,
    running: Option<RunningMaintenance>,
    last_look: Option<Instant>,
    /// Saves since the last maintenance.
    saves: u64,
    /// Whether the record on the disk lacks a day.
    is_unrecorded: bool,
    /// Why the last attempt failed.
    trouble: Option<Trouble>,
}

/// A maintenance that runs on its thread.
struct RunningMaintenance {
    /// The day that it is for. `None` if it is one in between.
    day: Option<Date>,
    report: Receiver<MaintenanceReport>,
    since: Instant,
}

impl Maintenance {
    /// Reads the days that are done. A root without a record begins with the present day as done.
    pub(super) fn new(config: &DaemonConfig<'_>) -> Maintenance {
        let Guards { daily_record, local_calendar, .. } = config.settings.guards;
        let rule = match (daily_record, local_calendar) {
            (true, true) => ScheduleRule::DoneDays,
            (true, false) => ScheduleRule::SameMinute,
            (false, _) => ScheduleRule::OtherDay,
        };
        let at = config.settings.maintenance.at.time();
        let read = match daily_record {
            true => read_done_days(&config.layout.maintenance_record()),
            false => Ok(Some(Vec::new())),
        };
        let read = read.unwrap_or_else(|error| {
            tracing::warn!("maintenance.json is not used: {error}; the next maintenance is that of tomorrow");
            None
        });
        let is_unrecorded = read.is_none();
        let done = read.unwrap_or_else(|| vec![maintenance_day((config.local_now)(), at)]);
        Maintenance {
            schedule: Schedule::new(at, rule, done),
            running: None,
            last_look: None,
            saves: 0,
            is_unrecorded,
            trouble: None,
        }
    }

    /// Whether one is running, and has not been for longer than this.
    pub(super) fn is_running(&self, patience: Duration) -> bool {
        self.running.as_ref().is_some_and(|running| running.since.elapsed() < patience)
    }

    /// Counts a save. After `maintenance.after_saves` of them there is a maintenance too.
    pub(super) fn count_save(&mut self) {
        self.saves += 1;
    }

    /// Looks at the clock, starts a maintenance that is due, and reports one that is done.
    pub(super) fn look(&mut self, config: &DaemonConfig<'_>, status: &mut StatusWriter) {
        if let Some(running) = &self.running {
            match running.report.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(report) => self.finish(config, status, &report),
                Err(TryRecvError::Disconnected) => {
                    self.running = None;
                    self.fail("the thread has ended");
                }
            }
        }
        let is_early = self.last_look.is_some_and(|look| look.elapsed() < LOOK_INTERVAL);
        if is_early || self.trouble.as_ref().is_some_and(|trouble| !trouble.is_due()) {
            return;
        }
        self.last_look = Some(Instant::now());
        if self.is_unrecorded {
            self.record(config);
        }
        let now = (config.local_now)();
        let after_saves = config.settings.maintenance.after_saves;
        let due = self.schedule.due(now);
        if due.is_some() || (after_saves > 0 && self.saves >= after_saves) {
            self.start(config, due, now);
        }
    }

    fn start(&mut self, config: &DaemonConfig<'_>, day: Option<Date>, now: DateTime) {
        let (layout, settings) = (config.layout.clone(), config.settings.clone());
        let (sender, report) = channel();
        let work = move || {
            // The receiver is gone if the daemon exits.
            let _ = sender.send(maintain(&layout, &settings, now.date()));
        };
        match std::thread::Builder::new().name("maintenance".into()).spawn(work) {
            Ok(_) => {
                self.saves = 0;
                self.running = Some(RunningMaintenance { day, report, since: Instant::now() });
            }
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn fail(&mut self, message: &str) {
        if Trouble::record(&mut self.trouble, message) {
            tracing::warn!("the maintenance could not be done, will try again: {message}");
        }
    }

    fn finish(&mut self, config: &DaemonConfig<'_>, status: &mut StatusWriter, report: &MaintenanceReport) {
        let day = self.running.take().and_then(|running| running.day);
        self.trouble = None;
        for damage in report.damage.iter().take(MAX_SHOWN_DAMAGE) {
            tracing::warn!("damaged, and not deleted: {damage}");
            (config.print_line)(&format!("damaged, and not deleted: {damage}"));
        }
        for trouble in &report.troubles {
            tracing::warn!("maintenance: {trouble}");
        }
        let name = day.map_or_else(|| "maintenance in between".into(), |day| format!("maintenance of {day}"));
        tracing::info!("{name}: {report}");
        (config.print_line)(&format!("{name}: {report}"));
        let shown = report.damage.iter().take(MAX_SHOWN_DAMAGE).cloned().collect();
        status.set_maintenance(day.map(|day| day.to_string()), shown);
        if let Some(day) = day {
            self.schedule.set_done(day);
            self.is_unrecorded = true;
            self.record(config);
        }
    }

    /// Writes the days that are done. What can't be written now is kept in memory, and tried again.
    fn record(&mut self, config: &DaemonConfig<'_>) {
        let Guards { daily_record, whole_record, .. } = config.settings.guards;
        if !daily_record {
            self.is_unrecorded = false;
            return;
        }
        match write_done_days(&config.layout.maintenance_record(), self.schedule.done(), whole_record) {
            Ok(()) => (self.is_unrecorded, self.trouble) = (false, None),
            Err(error) => self.fail(&chain(&error)),
        }
    }
}
