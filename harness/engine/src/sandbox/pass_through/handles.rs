//! The open files and listed directories of a pass-through file system. Answers no request.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use fuser::FileHandle;
use rustix::io::Errno;

use crate::locks::LockExt;

/// An entry of a directory when it was listed.
#[derive(Clone)]
pub(super) struct ListedEntry {
    pub(super) number: u64,
    pub(super) kind: fuser::FileType,
    pub(super) name: OsString,
}

/// What was opened.
pub(super) struct Handle {
    pub(super) fd: OwnedFd,
    /// Of a directory. Listed anew when it is read from its start.
    pub(super) entries: Mutex<Vec<ListedEntry>>,
}

#[derive(Default)]
struct Opened {
    handles: HashMap<u64, Arc<Handle>>,
    last: u64,
}

/// What is open.
#[derive(Default)]
pub(super) struct Handles(Mutex<Opened>);

impl Handles {
    pub(super) fn add(&self, fd: OwnedFd) -> FileHandle {
        let mut opened = self.0.locked();
        opened.last += 1;
        let number = opened.last;
        opened.handles.insert(number, Arc::new(Handle { fd, entries: Mutex::default() }));
        FileHandle(number)
    }

    pub(super) fn get(&self, handle: FileHandle) -> Result<Arc<Handle>, Errno> {
        self.0.locked().handles.get(&handle.0).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn remove(&self, handle: FileHandle) {
        self.0.locked().handles.remove(&handle.0);
    }
}
