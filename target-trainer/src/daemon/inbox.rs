//! Scans the inbox: lists all names, then accepts each file that has not changed for a while.
//! Another process may remove or replace a file at any time between these steps.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::accept::accept_file;
use super::daemon_config::DaemonConfig;
use super::error::{AcceptError, DaemonError};
use crate::durable::TEMPORARY_MARKER;
use crate::file_error::file_error;
use crate::store::RootLayout;

/// A file that was seen and not yet accepted.
#[derive(Debug, Clone, PartialEq)]
struct PendingFile {
    len_bytes: u64,
    modified: Option<SystemTime>,
    unchanged_since: Instant,
}

/// The inbox and the files in it that are not accepted yet.
pub(super) struct Inbox {
    dir: PathBuf,
    pending: BTreeMap<OsString, PendingFile>,
    /// Change notifications of the kernel. `None` if inotify is unavailable; then only the periodic scan
    /// finds files.
    changes: Option<(RecommendedWatcher, Receiver<()>)>,
}

impl Inbox {
    pub(super) fn new(layout: &RootLayout) -> Inbox {
        let dir = layout.inbox();
        let changes = watch(&dir)
            .inspect_err(|error| {
                tracing::warn!("no notifications for the inbox, it is scanned twice a second: {error}")
            })
            .ok();
        Inbox { dir, pending: BTreeMap::new(), changes }
    }

    /// Whether no file waits to be accepted.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && ready_names(&self.dir).is_ok_and(|names| names.is_empty())
    }

    /// Whether something has changed, or a file waits until it is old enough.
    pub(super) fn needs_scan(&self) -> bool {
        let has_changed = self.changes.as_ref().is_some_and(|(_, changes)| changes.try_iter().count() > 0);
        has_changed || !self.pending.is_empty()
    }

    /// Checks each file once. Stops early if a stop is requested.
    pub(super) fn scan(&mut self, config: &DaemonConfig<'_>) -> Result<(), DaemonError> {
        let listed = ready_names(&self.dir).map_err(file_error("read", &self.dir))?;
        let names: std::collections::BTreeSet<OsString> =
            listed.into_iter().chain(self.pending.keys().cloned()).collect();
        for name in names {
            if (config.stop_requested)() {
                return Ok(());
            }
            match self.check_file(&name, config) {
                Err(error) if error.is_vanished() && config.settings.guards.tolerate_vanished => {
                    self.pending.remove(&name);
                    (config.print_line)(&format!(
                        "vanished before it could be read: {}",
                        name.to_string_lossy().escape_debug()
                    ));
                }
                result => {
                    result.map_err(|source| DaemonError::Accept { path: self.dir.join(&name), source })?
                }
            }
        }
        Ok(())
    }

    fn check_file(&mut self, name: &OsStr, config: &DaemonConfig<'_>) -> Result<(), AcceptError> {
        let path = self.dir.join(name);
        let metadata = path.symlink_metadata()?;
        let settle_time = Duration::from_millis(config.settings.limits.settle_ms);
        let now = PendingFile {
            len_bytes: metadata.len(),
            modified: metadata.modified().ok(),
            unchanged_since: Instant::now(),
        };
        match self.pending.get(name) {
            // Anything but a regular file is rejected at once.
            _ if !metadata.is_file() => {}
            Some(before) if before.len_bytes == now.len_bytes && before.modified == now.modified => {
                if before.unchanged_since.elapsed() < settle_time {
                    return Ok(());
                }
            }
            _ => {
                self.pending.insert(name.to_owned(), now);
                return Ok(());
            }
        }
        let accepted = accept_file(config, &path, &name.to_string_lossy());
        if accepted.is_ok() {
            self.pending.remove(name);
        }
        accepted
    }
}

/// Names of the files in the inbox, without hidden files and unfinished copies.
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
    // The send fails only if the daemon has dropped the receiver.
    let mut watcher = notify::recommended_watcher(move |event: Result<notify::Event, notify::Error>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = sender.send(());
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok((watcher, changes))
}
