//! Passes the engine's events to observers, with a time and in order. Knows no other part of the engine;
//! prints nothing.

use crate::locks::LockExt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use scenarios::{Event, RecordEntry};

/// Receives the entries of a run. Called from several threads.
pub trait Observer: Send + Sync {
    /// Receives one entry.
    fn observe(&self, entry: &RecordEntry);
}

/// Passes each entry to several observers, one entry at a time, so that all see the same order.
pub struct Tee {
    observers: Mutex<Vec<Arc<dyn Observer>>>,
}

impl Tee {
    /// A tee to these observers.
    pub fn new(observers: Vec<Arc<dyn Observer>>) -> Tee {
        Tee { observers: Mutex::new(observers) }
    }
}

impl Observer for Tee {
    fn observe(&self, entry: &RecordEntry) {
        let observers = self.observers.locked();
        observers.iter().for_each(|observer| observer.observe(entry));
    }
}

/// Emits events with their time, scenario and trial. Cheap to clone; the engine narrows it to a scenario,
/// then to a trial.
#[derive(Clone)]
pub struct Reporter {
    observer: Arc<dyn Observer>,
    started: Instant,
    scenario: Option<Arc<str>>,
    trial: Option<u32>,
    /// The entries of the trial, if this is the reporter of one.
    entries: Option<Arc<Mutex<Vec<RecordEntry>>>>,
}

impl Reporter {
    /// A reporter for a run that begins now.
    pub fn new(observer: Arc<dyn Observer>) -> Reporter {
        Reporter { observer, started: Instant::now(), scenario: None, trial: None, entries: None }
    }

    /// A reporter of the same run for one scenario.
    pub fn for_scenario(&self, id: &str) -> Reporter {
        Reporter { scenario: Some(id.into()), trial: None, entries: None, ..self.clone() }
    }

    /// A reporter of the same scenario for one trial. It stores its entries, see [`Reporter::entries`].
    pub fn for_trial(&self, trial: u32) -> Reporter {
        Reporter { trial: Some(trial), entries: Some(Arc::default()), ..self.clone() }
    }

    /// A reporter for a run of which only the result is reported. It stores its entries, and no observer sees
    /// them.
    pub fn for_unreported_run(&self) -> Reporter {
        Reporter { observer: Arc::new(Tee::new(Vec::new())), ..self.for_trial(0) }
    }

    /// Emits an event that happens now.
    pub fn emit(&self, event: Event) {
        let at_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.emit_at(at_us, event);
    }

    /// Emits an event that happened earlier in this run, at `at_us` microseconds after its start.
    pub fn emit_at(&self, at_us: u64, event: Event) {
        let scenario = self.scenario.as_deref().map(str::to_owned);
        let entry = RecordEntry { at_us, scenario, trial: self.trial, event };
        self.observer.observe(&entry);
        if let Some(entries) = &self.entries {
            entries.locked().push(entry);
        }
    }

    /// The entries that this trial's reporter has emitted so far.
    pub fn entries(&self) -> Vec<RecordEntry> {
        let entries = self.entries.as_ref().map(|entries| entries.locked().clone());
        entries.unwrap_or_default()
    }

    /// Seconds since the run began.
    pub fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
