//! Finds the files in the working directory that an ordinary user may change, but whose owner or group has no
//! number in a sandbox. Changes nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::unistd::{AccessFlags, access, getegid, geteuid};

use crate::locks::LockExt;

/// At most this many entries of the working directory are looked at.
const MAX_SCANNED: usize = 200_000;
/// At most this many bytes of files are copied. What is beyond cannot be changed in the sandbox.
const MAX_COPIED_BYTES: u64 = 256 << 20;

/// What was found for each working directory, so that not each sandbox of a run looks again.
static FOUND: Mutex<BTreeMap<PathBuf, Vec<PathBuf>>> = Mutex::new(BTreeMap::new());

/// The files and directories below `dir` that a sandbox must copy so that the target can change them, each
/// directory before what is in it. None for root, whose sandboxes have all ids.
pub(super) fn unmapped_files(dir: &Path) -> Vec<PathBuf> {
    if geteuid().is_root() {
        return Vec::new();
    }
    let mut found = FOUND.locked();
    found.entry(dir.into()).or_insert_with(|| [usual_dirs(dir), scan(dir)].concat()).clone()
}

/// Directories in which programs write, whatever is in them. Those above them may belong to root.
fn usual_dirs(dir: &Path) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let usual = [dir.to_path_buf(), "/var/tmp".into()];
    usual.into_iter().chain(home).filter_map(|dir| dir.canonicalize().ok()).collect()
}

fn scan(dir: &Path) -> Vec<PathBuf> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_path_buf()]);
    let (mut scanned, mut copied_bytes) = (0, 0);
    while let Some(path) = pending.pop() {
        let Ok(metadata) = path.symlink_metadata() else { continue };
        scanned += 1;
        if metadata.is_dir() && scanned < MAX_SCANNED {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(entries.map(|entry| entry.path()));
        }
        let is_mapped = metadata.uid() == uid && metadata.gid() == gid;
        let may_change = metadata.uid() == uid || access(&path, AccessFlags::W_OK).is_ok();
        if is_mapped || !may_change || metadata.is_symlink() {
            continue;
        }
        let len_bytes = if metadata.is_file() { metadata.len() } else { 0 };
        if copied_bytes + len_bytes <= MAX_COPIED_BYTES {
            copied_bytes += len_bytes;
            found.push(path);
        }
    }
    found
}
