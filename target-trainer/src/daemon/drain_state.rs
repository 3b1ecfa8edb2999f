//! What keeps a drain from ending: the files that the inbox holds, judged by what happened to them. Looks at
//! no file but for the names of those that are left.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::trouble::Trouble;
use crate::exit::Exit;
use crate::names::{is_ignored, shown_name};

/// Files that are named when a drain ends with files left.
const MAX_NAMED: usize = 20;

/// What keeps a drain from ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum InboxState {
    Empty,
    /// There are files, and their turn comes.
    Busy,
    /// Nothing but files or directories that keep failing, for this long.
    Stuck {
        lasted: Duration,
        message: String,
        exit: Exit,
    },
}

/// Something that keeps failing, and the exit code of a drain that ends because of it.
#[derive(Clone, Copy)]
pub(super) struct Failing<'a> {
    trouble: &'a Trouble,
    exit: Exit,
}

/// The trouble, if there is one, with this exit code.
pub(super) fn failing(trouble: &Option<Trouble>, exit: Exit) -> Option<Failing<'_>> {
    trouble.as_ref().map(|trouble| Failing { trouble, exit })
}

/// What is left in the inbox.
pub(super) struct FilesLeft<'a> {
    pub(super) dir: &'a Path,
    /// How many there are.
    pub(super) count: usize,
    /// One of them is being copied.
    pub(super) is_copying: bool,
    /// One of them has not failed.
    pub(super) has_waiting: bool,
    /// Why no file is accepted at the moment.
    pub(super) pause: Option<Failing<'a>>,
    /// Why the inbox, or a file that the daemon has hidden there, can't be dealt with at the moment.
    pub(super) other_troubles: [Option<Failing<'a>>; 2],
}

impl FilesLeft<'_> {
    /// What that means for a drain. `files` are the troubles of single files.
    pub(super) fn state<'a>(&'a self, files: impl Iterator<Item = Failing<'a>>) -> InboxState {
        if self.is_copying || (self.pause.is_none() && self.has_waiting) {
            return InboxState::Busy;
        }
        let others = self.other_troubles.iter().flatten().copied();
        if self.count == 0 && others.clone().next().is_none() {
            return InboxState::Empty;
        }
        let newest = files.chain(self.pause).chain(others).min_by_key(|failing| failing.trouble.lasted());
        // Without a trouble, only files are left that were put aside. Their turn comes.
        newest.map_or(InboxState::Busy, |newest| {
            let Failing { trouble: since, exit } = self.pause.unwrap_or(newest);
            let (count, names) = (self.count, names_left(self.dir));
            InboxState::Stuck {
                lasted: since.lasted(),
                message: format!("{count} files are left in the inbox{names}: {}", newest.trouble.message()),
                exit,
            }
        })
    }
}

/// The first names of the files that are left, as a part of a sentence.
fn names_left(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    list_of_names(entries.map(|entry| entry.file_name()).filter(|name| !is_ignored(name)))
}

/// ` (a, b and 3 more)`, or nothing if there are no names. At most [`MAX_NAMED`] are kept in memory.
pub(super) fn list_of_names(all: impl Iterator<Item = OsString>) -> String {
    let (mut names, mut more) = (BTreeSet::new(), 0);
    for name in all {
        names.insert(name);
        if names.len() > MAX_NAMED {
            names.pop_last();
            more += 1;
        }
    }
    let listed: Vec<String> = names.iter().map(|name| shown_name(name)).collect();
    match (listed.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!(" ({})", listed.join(", ")),
        (false, more) => format!(" ({} and {more} more)", listed.join(", ")),
    }
}
