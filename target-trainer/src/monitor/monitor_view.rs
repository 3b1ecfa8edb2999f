//! What the monitor shows, as data. The recorder changes it, the routes copy it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::history::{StepCurve, StepPoint};
use super::journal::{EventCounts, JournalEntry};
use crate::device::GpuReading;

/// Events that are shown.
const MAX_RECENT: usize = 20;
/// Steps whose times the remaining time is computed from.
const MAX_TIMED_STEPS: usize = 100;
/// A daemon that has not looked at its work for so long hangs.
const DAEMON_PATIENCE: Duration = Duration::from_secs(30);

/// What the monitor shows.
#[derive(Debug, Clone, Default)]
pub(super) struct MonitorView {
    /// The job that is being trained.
    pub(super) job: Option<String>,
    /// How many steps it has. 0 if there is none.
    pub(super) steps: u64,
    /// The last step that is done.
    pub(super) step: u64,
    pub(super) last_saved: Option<SavedStep>,
    /// What has gone wrong last.
    pub(super) trouble: Option<String>,
    pub(super) device: Option<String>,
    pub(super) gpu: Option<GpuReading>,
    pub(super) counts: EventCounts,
    /// The journal has all that is counted.
    pub(super) journal_is_complete: bool,
    /// The newest event last.
    pub(super) recent: VecDeque<JournalEntry>,
    /// The steps of the job.
    pub(super) curve: StepCurve,
    /// When the last steps were done.
    pub(super) timed_steps: VecDeque<TimedStep>,
}

/// A step that is durable.
#[derive(Debug, Clone, Copy)]
pub(super) struct SavedStep {
    pub(super) step: u64,
    pub(super) at: SystemTime,
}

/// When a step was done.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimedStep {
    pub(super) step: u64,
    pub(super) at: Instant,
}

impl MonitorView {
    /// Adds an event to those that are shown.
    pub(super) fn add_recent(&mut self, entry: JournalEntry) {
        self.recent.push_back(entry);
        while self.recent.len() > MAX_RECENT {
            self.recent.pop_front();
        }
    }

    /// Adds the time of a step.
    pub(super) fn add_timed_step(&mut self, step: u64) {
        // After a resume from an earlier step, the times begin anew.
        if self.timed_steps.back().is_some_and(|last| last.step >= step) {
            self.timed_steps.clear();
        }
        self.timed_steps.push_back(TimedStep { step, at: Instant::now() });
        while self.timed_steps.len() > MAX_TIMED_STEPS {
            self.timed_steps.pop_front();
        }
    }

    /// The last step that was measured.
    pub(super) fn last_point(&self) -> Option<StepPoint> {
        self.curve.points().last().copied()
    }

    /// The time until the last step, if the rest takes as long as the last steps.
    pub(super) fn remaining(&self) -> Option<Duration> {
        let (first, last) = (self.timed_steps.front()?, self.timed_steps.back()?);
        let steps = last.step.checked_sub(first.step).filter(|steps| *steps > 0)?;
        let seconds = last.at.duration_since(first.at).as_secs_f64() / steps as f64;
        let rest = self.steps.checked_sub(last.step)? as f64;
        Duration::try_from_secs_f64(seconds * rest).ok()
    }
}

/// Numbers that the daemon and the server count without a lock.
#[derive(Debug)]
pub(super) struct SharedFigures {
    begin: Instant,
    /// When the daemon has looked at its work last, in milliseconds since the begin.
    daemon_look_ms: AtomicU64,
    /// Reports that the recorder had no room for.
    pub(super) dropped_reports: AtomicU64,
    /// Connections that were accepted.
    pub(super) connections: AtomicU64,
    /// Idle connections that were closed to make room.
    pub(super) closed_connections: AtomicU64,
}

impl Default for SharedFigures {
    fn default() -> SharedFigures {
        SharedFigures {
            begin: Instant::now(),
            daemon_look_ms: AtomicU64::new(0),
            dropped_reports: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            closed_connections: AtomicU64::new(0),
        }
    }
}

impl SharedFigures {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The daemon does its work.
    pub(super) fn record_daemon_look(&self) {
        self.daemon_look_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// For how long the daemon has not looked at its work, if that is too long.
    pub(super) fn daemon_hangs_for(&self) -> Option<Duration> {
        let silent_ms = self.now_ms().saturating_sub(self.daemon_look_ms.load(Ordering::Relaxed));
        Some(Duration::from_millis(silent_ms)).filter(|silent| *silent > DAEMON_PATIENCE)
    }
}
