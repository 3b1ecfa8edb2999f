//! Files of the inbox that are not taken because of their names. They are told, each once. Opens none of
//! them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use super::daemon_config::DaemonConfig;
use super::hidden_files::{is_hidden_by_daemon, is_submit_name};
use crate::names::{IGNORED_RULE, is_ignored, shown_name};

/// Names that are told.
const MAX_TOLD: usize = 100;
/// A file of a `submit` that has not changed for so long is that of one that was killed.
const SUBMIT_PATIENCE: Duration = Duration::from_secs(60);

/// The names in the inbox that are never taken, apart from those that the daemon and `submit` give.
pub(super) fn ignored_names(dir: &Path) -> impl Iterator<Item = OsString> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_own = |name: &OsStr| is_hidden_by_daemon(name) || is_submit_name(name);
    entries.map(|entry| entry.file_name()).filter(move |name| is_ignored(name) && !is_own(name))
}

/// The ignored names that were told.
#[derive(Default)]
pub(super) struct IgnoredNames {
    told: BTreeSet<OsString>,
    /// There were more than [`MAX_TOLD`].
    is_full: bool,
}

impl IgnoredNames {
    /// Tells an ignored name, once, when its file is no longer written.
    pub(super) fn tell(&mut self, dir: &Path, name: &OsStr, config: &DaemonConfig<'_>) {
        if self.is_full || is_hidden_by_daemon(name) || self.told.contains(name) {
            return;
        }
        let wait = match is_submit_name(name) {
            true => SUBMIT_PATIENCE,
            false => Duration::from_secs(config.settings.limits.settle_s),
        };
        let modified = dir.join(name).symlink_metadata().and_then(|metadata| metadata.modified());
        // A time in the future is not that of a write that goes on.
        if !modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age >= wait)) {
            return;
        }
        if self.told.len() == MAX_TOLD {
            self.is_full = true;
            (config.print_line)(&format!(
                "more than {MAX_TOLD} files of the inbox are not taken because of their names; no more are named"
            ));
            return;
        }
        self.told.insert(name.to_owned());
        (config.print_line)(&format!("not taken: {}: {IGNORED_RULE}", shown_name(name)));
    }
}
