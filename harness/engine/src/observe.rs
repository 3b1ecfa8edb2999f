//! Passes the engine's events to observers, with a time and in order. Knows no other part of the engine;
//! prints nothing.

use crate::locks::LockExt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use scenarios::{Event, RecordEntry};

/// Receives the entries of a run.
pub trait Observer: Send + Sync {
    /// Receives one entry.
    fn observe(&self, entry: &RecordEntry);
}

/// Entries that may wait for the observers. If more would wait, the runs that emit them wait too.
const MAX_WAITING_ENTRIES: usize = 1 << 14;

/// Passes each entry to several observers in a thread of its own, one entry at a time, so that all see the same order.
/// Runs don't wait for a disk that is busy or a terminal that is stopped: a fault that is due is not late because of them.
pub struct ObserverThread {
    running: Mutex<Option<RunningObservers>>,
}

struct RunningObservers {
    sender: SyncSender<RecordEntry>,
    thread: JoinHandle<()>,
}

impl ObserverThread {
    /// Starts the thread.
    pub fn start(observers: Vec<Arc<dyn Observer>>) -> ObserverThread {
        let (sender, entries) = sync_channel::<RecordEntry>(MAX_WAITING_ENTRIES);
        let thread = std::thread::spawn(move || {
            for entry in entries {
                observers.iter().for_each(|observer| observer.observe(&entry));
            }
        });
        ObserverThread { running: Mutex::new(Some(RunningObservers { sender, thread })) }
    }

    /// Waits until the observers have seen all entries that were emitted until now. They see no later ones.
    ///
    /// # Panics
    /// If an observer panicked.
    pub fn finish(&self) {
        let Some(RunningObservers { sender, thread }) = self.running.locked().take() else { return };
        drop(sender);
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Observer for ObserverThread {
    fn observe(&self, entry: &RecordEntry) {
        let sender = self.running.locked().as_ref().map(|running| running.sender.clone());
        if let Some(sender) = sender {
            // It fails only if an observer has panicked, which `finish` passes on.
            let _ = sender.send(entry.clone());
        }
    }
}

impl Drop for ObserverThread {
    fn drop(&mut self) {
        // A run that ends with an error has a record of what happened until then.
        if let Some(RunningObservers { sender, thread }) = self.running.locked_mut().take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

/// Observes nothing.
struct Unobserved;

impl Observer for Unobserved {
    fn observe(&self, _entry: &RecordEntry) {}
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
        Reporter { observer: Arc::new(Unobserved), ..self.for_trial(0) }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Waits before its first entry until it is told to go on.
    struct SlowDisk {
        begin: Mutex<Receiver<()>>,
        seen: Mutex<Vec<u64>>,
    }

    impl Observer for SlowDisk {
        fn observe(&self, entry: &RecordEntry) {
            if self.seen.locked().is_empty() {
                self.begin.locked().recv().unwrap();
            }
            self.seen.locked().push(entry.at_us);
        }
    }

    #[test]
    fn a_slow_observer_delays_nobody_and_sees_everything_in_order() {
        let (go_on, begin) = channel();
        let disk = Arc::new(SlowDisk { begin: Mutex::new(begin), seen: Mutex::default() });
        let observers = Arc::new(ObserverThread::start(vec![disk.clone()]));
        let reporter = Reporter::new(observers.clone());
        (0..1000).for_each(|at_us| reporter.emit_at(at_us, Event::Memory { peak_bytes: 1 }));
        assert!(disk.seen.locked().is_empty(), "it waits, and `emit` has not waited for it");
        go_on.send(()).unwrap();
        observers.finish();
        assert_eq!(*disk.seen.locked(), (0..1000).collect::<Vec<_>>());
    }
}
