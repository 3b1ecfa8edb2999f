//! Looks through the inbox: lists all names, then looks at each, and takes those that have not changed for a while.
//! A name may be gone, or be something else, at any moment between.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::{DaemonConfig, DaemonError, accept};
use crate::durable::TEMPORARY_MARKER;
use crate::store::RootLayout;

/// A file that was looked at and not yet taken.
#[derive(Debug, Clone, PartialEq)]
struct PendingFile {
    len_bytes: u64,
    modified: Option<SystemTime>,
    unchanged_since: Instant,
}

pub(super) struct Inbox {
    dir: PathBuf,
    pending: BTreeMap<OsString, PendingFile>,
    /// Word from the kernel that something changed. None where inotify is exhausted: then only the rescan looks.
    changes: Option<(RecommendedWatcher, Receiver<()>)>,
}

impl Inbox {
    pub(super) fn new(layout: &RootLayout) -> Inbox {
        let dir = layout.inbox();
        let changes = watch(&dir)
            .inspect_err(|error| tracing::warn!("the inbox is looked through twice a second only: {error}"))
            .ok();
        Inbox { dir, pending: BTreeMap::new(), changes }
    }

    /// Nothing waits to be taken.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && ready_names(&self.dir).is_ok_and(|names| names.is_empty())
    }

    pub(super) fn needs_scan(&self) -> bool {
        let told = self.changes.as_ref().is_some_and(|(_, changes)| changes.try_iter().count() > 0);
        told || !self.pending.is_empty()
    }

    pub(super) fn scan(&mut self, orders: &DaemonConfig<'_>) -> Result<(), DaemonError> {
        let listed = ready_names(&self.dir)
            .map_err(|error| DaemonError::Read { path: self.dir.display().to_string(), error })?;
        let names: std::collections::BTreeSet<OsString> =
            listed.into_iter().chain(self.pending.keys().cloned()).collect();
        for name in names {
            if (orders.stop_requested)() {
                return Ok(());
            }
            match self.check_file(&name, orders) {
                Err(error)
                    if error.kind() == std::io::ErrorKind::NotFound
                        && orders.settings.guards.tolerate_vanished =>
                {
                    self.pending.remove(&name);
                    (orders.print_line)(&format!(
                        "vanished before it could be read: {}",
                        name.to_string_lossy().escape_debug()
                    ));
                }
                looked => looked.map_err(|error| DaemonError::Read {
                    path: self.dir.join(&name).display().to_string(),
                    error,
                })?,
            }
        }
        Ok(())
    }

    fn check_file(&mut self, name: &OsStr, orders: &DaemonConfig<'_>) -> Result<(), std::io::Error> {
        let path = self.dir.join(name);
        let facts = path.symlink_metadata()?;
        let settle = Duration::from_millis(orders.settings.limits.settle_ms);
        let now = PendingFile {
            len_bytes: facts.len(),
            modified: facts.modified().ok(),
            unchanged_since: Instant::now(),
        };
        match self.pending.get(name) {
            // What is no plain file does not settle, and is rejected at once.
            _ if !facts.is_file() => {}
            Some(before) if before.len_bytes == now.len_bytes && before.modified == now.modified => {
                if before.unchanged_since.elapsed() < settle {
                    return Ok(());
                }
            }
            _ => {
                self.pending.insert(name.to_owned(), now);
                return Ok(());
            }
        }
        let taken = accept::accept_file(orders, &path, &name.to_string_lossy());
        if taken.is_ok() {
            self.pending.remove(name);
        }
        taken
    }
}

/// Names of what lies in the inbox; unfinished and hidden things are nobody's business yet.
fn ready_names(dir: &std::path::Path) -> Result<Vec<OsString>, std::io::Error> {
    let names = std::fs::read_dir(dir)?.flatten().map(|entry| entry.file_name());
    let is_ready = |name: &OsString| {
        let name = name.to_string_lossy();
        !name.starts_with('.') && !name.contains(TEMPORARY_MARKER)
    };
    Ok(names.filter(is_ready).collect())
}

fn watch(dir: &std::path::Path) -> Result<(RecommendedWatcher, Receiver<()>), notify::Error> {
    let (sender, changes) = channel();
    // A daemon that is gone needs no word.
    let mut watcher = notify::recommended_watcher(move |event: Result<notify::Event, notify::Error>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = sender.send(());
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok((watcher, changes))
}
