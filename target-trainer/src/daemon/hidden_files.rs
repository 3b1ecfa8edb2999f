//! Files of the inbox that the daemon itself has hidden, by a name of its own, while it takes them away. If
//! it is killed then, or fails, they are found again. Copies nothing.

use std::ffi::OsStr;
use std::path::Path;

use super::daemon_config::DaemonConfig;
use super::inbox_file::put_back;
use super::rejection::{REJECTED_PREFIX, finish_rejection};
use super::trouble::Trouble;
use crate::durable::{DurableError, TEMPORARY_MARKER};
use crate::file_error::chain;
use crate::plain_text::shown;
use crate::store::RootLayout;

/// Begin of the names of files that are being removed after they were accepted.
pub(super) const TAKEN_PREFIX: &str = ".taken-";

/// Whether the daemon has hidden this file.
pub(super) fn is_hidden_by_daemon(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(TAKEN_PREFIX) || name.starts_with(REJECTED_PREFIX)
}

/// Whether this is the name of a copy that a `submit` has not finished.
pub(super) fn is_submit_name(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with(TEMPORARY_MARKER)
}

/// The hidden files that can't be restored yet.
#[derive(Default)]
pub(super) struct HiddenFiles {
    /// For one that may hold data that is nowhere else.
    taken: Option<Trouble>,
    /// For one that was rejected, and has been reported as such.
    rejected: Option<Trouble>,
    /// The listing has found one that may hold data.
    has_taken: bool,
}

impl HiddenFiles {
    /// Why a file that may hold data can't be restored.
    pub(super) fn trouble(&self) -> &Option<Trouble> {
        &self.taken
    }

    /// To be called before the names of a listing. What the one before has not found is gone.
    pub(super) fn begin_listing(&mut self) {
        if !std::mem::replace(&mut self.has_taken, false) {
            self.taken = None;
        }
    }

    /// Finishes what was done with a file, if the daemon has hidden it.
    pub(super) fn restore(&mut self, dir: &Path, name: &OsStr, config: &DaemonConfig<'_>) {
        if !is_hidden_by_daemon(name) {
            return;
        }
        let text = name.to_string_lossy();
        let is_taken = text.starts_with(TAKEN_PREFIX);
        self.has_taken |= is_taken;
        let slot = if is_taken { &mut self.taken } else { &mut self.rejected };
        if slot.as_ref().is_some_and(|trouble| !trouble.is_due()) {
            return;
        }
        match restore(&config.layout, &dir.join(name)) {
            Ok(()) => *slot = None,
            Err(error) => {
                let message = format!("{} could not be restored: {}", shown(&text), chain(&error));
                if Trouble::record(slot, &message) {
                    (config.print_line)(&format!("{message}; will try again"));
                }
            }
        }
    }
}

/// One that was being removed gets a visible name, and is then most often found to be a duplicate; one that
/// was being rejected goes to `failed/`.
fn restore(layout: &RootLayout, path: &Path) -> Result<(), DurableError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if let Some(job) = name.strip_prefix(TAKEN_PREFIX) {
        put_back(path, &path.with_file_name(format!("taken-{job}.jsonl")))
    } else if let Some(label) = name.strip_prefix(REJECTED_PREFIX) {
        finish_rejection(layout, path, label)
    } else {
        Ok(())
    }
}
