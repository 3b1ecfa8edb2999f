//! The queue in memory: what `queue/processing` holds, in the order of training, and the moves out of it that
//! have not succeeded yet. It is read once, not for each file. Knows nothing of workers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::daemon_config::DaemonConfig;
use super::jobs::{self, Job};
use super::trouble::Trouble;
use crate::durable::{DurableError, TEMPORARY_MARKER};
use crate::file_error::{FileError, chain, file_error};
use crate::names::NameIndex;
use crate::plain_text::shown;

/// Minimum time between two looks at the directory. Jobs come through the inbox; only people put them there
/// directly.
const LIST_INTERVAL: Duration = Duration::from_millis(500);

/// Where a job goes when it leaves the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Departure {
    /// It is done: it is removed.
    Done,
    /// It has failed for this reason: it is moved to `failed/`.
    Failed(String),
}

/// A job that has left the queue in memory, but not on the disk.
struct PendingDeparture {
    job: Job,
    to: Departure,
    trouble: Option<Trouble>,
}

/// The queue in memory.
#[derive(Default)]
pub(super) struct JobQueue {
    /// By order, then by id. A job itself is read when its turn comes: there may be very many.
    jobs: BTreeSet<(u64, String)>,
    orders: HashMap<String, u64>,
    next_order: u64,
    /// Entries that can't be read, with the reason.
    unreadable: BTreeMap<String, Unreadable>,
    departures: Vec<PendingDeparture>,
    last_listed: Option<Instant>,
    /// The names of the files of all jobs that were seen.
    names: NameIndex,
}

/// Why an entry of the queue can't be read.
struct Unreadable {
    reason: String,
    /// Another attempt may succeed.
    may_pass: bool,
    since: Instant,
}

impl JobQueue {
    /// Looks at the directory, unless that was done a moment ago.
    ///
    /// # Errors
    /// If it can't be read. The queue then stays as it is.
    pub(super) fn refresh(&mut self, config: &DaemonConfig<'_>) -> Result<(), FileError> {
        if self.last_listed.is_some_and(|listed| listed.elapsed() < LIST_INTERVAL) {
            return Ok(());
        }
        let dir = config.layout.processing();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(file_error("read", &dir))? {
            names.push(entry.map_err(file_error("read", &dir))?.file_name().to_string_lossy().into_owned());
        }
        self.last_listed = Some(Instant::now());
        names.retain(|name| !name.starts_with(TEMPORARY_MARKER));
        let listed: std::collections::HashSet<&String> = names.iter().collect();
        self.unreadable.retain(|name, _| listed.contains(name));
        let gone: Vec<String> = self.orders.keys().filter(|id| !listed.contains(id)).cloned().collect();
        gone.iter().for_each(|id| self.forget(id));
        for name in &names {
            let leaves = self.departures.iter().any(|departure| departure.job.id == *name);
            if !leaves && !self.orders.contains_key(name) {
                self.read_entry(config, name);
            }
        }
        Ok(())
    }

    fn read_entry(&mut self, config: &DaemonConfig<'_>, name: &str) {
        match jobs::read_job(&config.layout, name) {
            Ok(job) => {
                self.unreadable.remove(name);
                self.insert(&job);
                let file = job.file.as_ref().unwrap_or(&job.name);
                self.tell_twins(config, &job.id, OsStr::new(file), false);
            }
            Err(error) => self.record_unreadable(name, &error),
        }
    }

    fn record_unreadable(&mut self, name: &str, error: &std::io::Error) {
        let reason = error.to_string();
        if self.unreadable.get(name).is_none_or(|before| before.reason != reason) {
            tracing::warn!("queue entry `{}` can't be read and is ignored: {reason}", shown(name));
        }
        let may_pass = error.kind() != std::io::ErrorKind::InvalidData;
        let since = self.unreadable.get(name).map_or_else(Instant::now, |before| before.since);
        self.unreadable.insert(name.to_owned(), Unreadable { reason, may_pass, since });
    }

    /// Adds a job that has been moved into the queue.
    pub(super) fn insert(&mut self, job: &Job) {
        self.next_order = self.next_order.max(job.order.saturating_add(1));
        self.orders.insert(job.id.clone(), job.order);
        self.jobs.insert((job.order, job.id.clone()));
    }

    /// Says if the name of a job's file looks like that of another one, once for each name. `is_new`: it has just come
    /// in.
    pub(super) fn tell_twins(&mut self, config: &DaemonConfig<'_>, job: &str, file: &OsStr, is_new: bool) {
        if !config.settings.guards.twin_names {
            return;
        }
        for twins in self.names.add(file, is_new) {
            (config.print_line)(&format!("job {job}: {twins}"));
        }
    }

    /// Order of the next job that comes in: after all that are in the queue.
    ///
    /// # Errors
    /// If the directory was not read yet, and can't be.
    pub(super) fn next_order(&mut self, config: &DaemonConfig<'_>) -> Result<u64, FileError> {
        if self.last_listed.is_none() {
            self.refresh(config)?;
        }
        Ok(self.next_order.max(1))
    }

    /// The first job, after a look at the directory if none is known.
    ///
    /// # Errors
    /// If the directory can't be read.
    pub(super) fn first(&mut self, config: &DaemonConfig<'_>) -> Result<Option<Job>, FileError> {
        if self.jobs.is_empty() {
            self.refresh(config)?;
        }
        while let Some((_, id)) = self.jobs.first().cloned() {
            match jobs::read_job(&config.layout, &id) {
                Ok(job) => return Ok(Some(job)),
                // Somebody has removed it.
                Err(_) if !config.layout.processing().join(&id).exists() => self.forget(&id),
                // Somebody has changed it, or the next look at the directory reads it.
                Err(error) => {
                    self.forget(&id);
                    self.record_unreadable(&id, &error);
                }
            }
        }
        Ok(None)
    }

    fn forget(&mut self, id: &str) {
        if let Some(order) = self.orders.remove(id) {
            self.jobs.remove(&(order, id.to_owned()));
        }
    }

    /// Takes a job out of the queue, on the disk as soon as that succeeds.
    pub(super) fn depart(&mut self, config: &DaemonConfig<'_>, job: Job, to: Departure) {
        self.forget(&job.id);
        self.departures.push(PendingDeparture { job, to, trouble: None });
        self.retry_departures(config);
    }

    /// Tries again to move jobs that have left the queue.
    pub(super) fn retry_departures(&mut self, config: &DaemonConfig<'_>) {
        let is_due = |departure: &PendingDeparture| departure.trouble.as_ref().is_none_or(Trouble::is_due);
        for mut departure in std::mem::take(&mut self.departures) {
            if !is_due(&departure) {
                self.departures.push(departure);
                continue;
            }
            match move_out(config, &departure.job, &departure.to) {
                Ok(None) => {}
                Ok(Some(old)) => (config.print_line)(&format!(
                    "job {}: files that were there before, or that are not the trainer's, are now in `{}`",
                    departure.job.id,
                    old.display()
                )),
                Err(error) => {
                    let message = chain(&error);
                    if Trouble::record(&mut departure.trouble, &message) {
                        let id = &departure.job.id;
                        (config.print_line)(&format!("job {id} stays in the queue for now: {message}"));
                    }
                    self.departures.push(departure);
                }
            }
        }
    }

    /// Whether no job waits.
    pub(super) fn has_no_job(&self) -> bool {
        self.jobs.is_empty()
    }

    /// A move out of the queue that keeps failing.
    pub(super) fn stuck_departure(&self) -> Option<&Trouble> {
        self.departures.iter().find_map(|departure| departure.trouble.as_ref())
    }

    /// An entry that can't be read.
    pub(super) fn unreadable_entry(&self) -> Option<UnreadableEntry<'_>> {
        let (name, Unreadable { reason, may_pass, since }) = self.unreadable.iter().next()?;
        let lasted = if *may_pass { since.elapsed() } else { Duration::MAX };
        Some(UnreadableEntry { name, reason, lasted })
    }
}

/// An entry of the queue that can't be read.
pub(super) struct UnreadableEntry<'a> {
    pub(super) name: &'a str,
    pub(super) reason: &'a str,
    /// How long it could not be read. The longest time if another attempt will not succeed.
    pub(super) lasted: Duration,
}

/// Returns where something was moved that is not the trainer's, if there was any.
fn move_out(config: &DaemonConfig<'_>, job: &Job, to: &Departure) -> Result<Option<PathBuf>, DurableError> {
    match to {
        Departure::Done => jobs::remove_from_queue(&config.layout, job, config.settings.guards.prune_whole),
        Departure::Failed(reason) => jobs::move_to_failed(&config.layout, job, reason),
    }
}
