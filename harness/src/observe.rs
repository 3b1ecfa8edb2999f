//! From the engine to whoever looks on: dated events, in order. Knows no neighbour; prints nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use scenarios::{Event, RecordEntry};

/// Looks on while a run goes. Called from several threads.
pub trait Observer: Send + Sync {
    fn observe(&self, entry: &RecordEntry);
}

/// Hands each entry to all of several observers, one entry at a time, so that all see the same order.
pub struct Tee {
    observers: Mutex<Vec<Arc<dyn Observer>>>,
}

impl Tee {
    pub fn new(observers: Vec<Arc<dyn Observer>>) -> Tee {
        Tee { observers: Mutex::new(observers) }
    }
}

impl Observer for Tee {
    fn observe(&self, entry: &RecordEntry) {
        let observers = self.observers.lock().unwrap_or_else(PoisonError::into_inner);
        observers.iter().for_each(|observer| observer.observe(entry));
    }
}

/// Dates events and says where they belong. Cheap to clone; narrowed on the way down.
#[derive(Clone)]
pub struct Reporter {
    observer: Arc<dyn Observer>,
    started: Instant,
    scenario: Option<Arc<str>>,
    trial: Option<u32>,
    entries: Option<Arc<Mutex<Vec<RecordEntry>>>>,
}

impl Reporter {
    /// A run begins now.
    pub fn new(observer: Arc<dyn Observer>) -> Reporter {
        Reporter { observer, started: Instant::now(), scenario: None, trial: None, entries: None }
    }

    /// The same run, speaking of one scenario.
    pub fn for_scenario(&self, id: &str) -> Reporter {
        Reporter { scenario: Some(id.into()), trial: None, entries: None, ..self.clone() }
    }

    /// The same scenario, speaking of one trial; keeps its entries for [`Reporter::kept`].
    pub fn for_trial(&self, trial: u32) -> Reporter {
        Reporter { trial: Some(trial), entries: Some(Arc::default()), ..self.clone() }
    }

    pub fn emit(&self, event: Event) {
        let at_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.emit_at(at_us, event);
    }

    /// Tells again what happened earlier in this run.
    pub fn emit_at(&self, at_us: u64, event: Event) {
        let scenario = self.scenario.as_deref().map(str::to_owned);
        let entry = RecordEntry { at_us, scenario, trial: self.trial, event };
        self.observer.observe(&entry);
        if let Some(kept) = &self.entries {
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        }
    }

    /// What this trial has emitted so far.
    pub fn entries(&self) -> Vec<RecordEntry> {
        let kept =
            self.entries.as_ref().map(|kept| kept.lock().unwrap_or_else(PoisonError::into_inner).clone());
        kept.unwrap_or_default()
    }

    pub fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
