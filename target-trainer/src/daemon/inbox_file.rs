//! A file of the inbox: what identifies it, how it is opened, and how it is taken away without touching
//! another file that has come to its name meanwhile.

use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::open_writers::{OpenWriters, open_writers};
use crate::denial::{Access, explained};
use crate::durable::{self, DurableError};
use crate::intake::ContentId;

/// What a file is recognized by. A file that was written to, or replaced, has another identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
    pub(super) len_bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl FileIdentity {
    pub(super) fn of(metadata: &Metadata) -> FileIdentity {
        FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            len_bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        }
    }
}

/// What an entry of the inbox is, if it is not a regular file.
pub(super) fn other_type(metadata: &Metadata) -> Option<&'static str> {
    match metadata.file_type() {
        kind if kind.is_file() => None,
        kind if kind.is_symlink() => Some("a symbolic link"),
        kind if kind.is_dir() => Some("a directory"),
        kind if kind.is_fifo() => Some("a pipe"),
        kind if kind.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

/// Opens a file. Never blocks on a pipe and never follows a symbolic link. The caller compares the identity:
/// another process may have replaced the file.
pub(super) fn open(path: &Path) -> std::io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    opened.map_err(|error| explained(error, path, Access::Read))
}

/// Files up to this size are read again before they are removed. A larger one only if its time may hide a change.
const ALWAYS_COMPARED_BYTES: u64 = 16 << 20;

impl FileIdentity {
    /// Whether the times of the file system are so coarse that a file may change and keep its time: vfat has 2 s, and
    /// others whole seconds.
    pub(super) fn has_coarse_time(&self) -> bool {
        self.modified_ns == 0
    }

    /// Whether the content must be compared to know that a file is the one that was copied.
    fn needs_comparison(&self) -> bool {
        self.has_coarse_time() || self.len_bytes <= ALWAYS_COMPARED_BYTES
    }
}

/// Whether a file has the content with this id. `content`: of what was copied. `None`: it is not to be compared.
pub(super) fn has_content(
    path: &Path,
    identity: &FileIdentity,
    content: Option<&str>,
) -> std::io::Result<bool> {
    match content {
        Some(content) if identity.needs_comparison() => Ok(ContentId::of_reader(open(path)?)? == content),
        _ => Ok(true),
    }
}

/// Whether an attempt to take a file has got that very file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It has its new name.
    Yes,
    /// It no longer exists, another file has its name, or a process has it open for writing. What is there
    /// has been left where it is.
    Replaced,
}

/// Renames a file of the inbox to `aside`, if it is still the file with this identity, and nobody writes to
/// it. A file that has come to its name meanwhile gets its name back; if even that is taken again, another
/// one in the inbox.
pub(super) fn take_aside(path: &Path, aside: &Path, identity: FileIdentity) -> Result<Taken, DurableError> {
    // What an earlier daemon has left there is restored by `restore`, unless it was that daemon's last act.
    if !durable::rename_new(path, aside)? {
        put_back(aside, &path.with_file_name("taken"))?;
        if !durable::rename_new(path, aside)? {
            return Ok(Taken::Replaced);
        }
    }
    // Nobody opens it by this name. Whoever has it open may still write to it.
    let is_same = || aside.symlink_metadata().is_ok_and(|metadata| FileIdentity::of(&metadata) == identity);
    let is_regular = || aside.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    let is_written =
        || is_regular() && open(aside).is_ok_and(|file| open_writers(&file) == OpenWriters::Some);
    if is_same() && !is_written() && is_same() {
        return Ok(Taken::Yes);
    }
    put_back(aside, path)?;
    Ok(Taken::Replaced)
}

/// Renames a file back to `path`, or to a free name made from it.
pub(super) fn put_back(aside: &Path, path: &Path) -> Result<(), DurableError> {
    let dir = path.parent().unwrap_or(Path::new(""));
    durable::rename_to_free_name(aside, dir, path.file_name().unwrap_or(OsStr::new("data.jsonl"))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(path: &Path) -> FileIdentity {
        FileIdentity::of(&path.symlink_metadata().unwrap())
    }

    #[test]
    fn only_the_very_file_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("a"), dir.path().join(".taken"));
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        std::fs::write(&path, "one").unwrap();
        let before = identity(&path);
        // Replaced by rename, then written to in place.
        std::fs::write(dir.path().join("b"), "two").unwrap();
        std::fs::rename(dir.path().join("b"), &path).unwrap();
        assert_eq!(take_aside(&path, &aside, before).unwrap(), Taken::Replaced);
        assert_eq!(text(&path), "two");
        let before = identity(&path);
        std::fs::write(&path, "three").unwrap();
        assert_eq!(take_aside(&path, &aside, before).unwrap(), Taken::Replaced);
        assert_eq!(text(&path), "three");
        assert_eq!(take_aside(&path, &aside, identity(&path)).unwrap(), Taken::Yes);
        assert!(!path.exists() && text(&aside) == "three");
        // A file at the name aside is not lost either.
        std::fs::write(&path, "four").unwrap();
        assert_eq!(take_aside(&path, &aside, identity(&path)).unwrap(), Taken::Yes);
        assert_eq!((text(&aside), text(&dir.path().join("taken"))), ("four".into(), "three".into()));
    }

    /// The content was copied, and its writer has come back before the file is taken away.
    #[test]
    fn a_file_that_is_open_for_writing_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("a"), dir.path().join(".taken"));
        std::fs::write(&path, "one").unwrap();
        let before = identity(&path);
        let mut writer = OpenOptions::new().append(true).open(&path).unwrap();
        assert_eq!(take_aside(&path, &aside, before).unwrap(), Taken::Replaced);
        std::io::Write::write_all(&mut writer, b" two").unwrap();
        drop(writer);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one two");
        assert_eq!(take_aside(&path, &aside, before).unwrap(), Taken::Replaced);
        assert_eq!(take_aside(&path, &aside, identity(&path)).unwrap(), Taken::Yes);
    }

    #[test]
    fn a_change_is_seen_by_the_content_whatever_the_time_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let whole_second = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(whole_second).unwrap();
        };
        write("one");
        let (before, content) = (identity(&path), ContentId::of_reader(&b"one"[..]).unwrap());
        assert!(has_content(&path, &before, Some(&content)).unwrap());
        write("two");
        assert!(identity(&path) == before && before.has_coarse_time(), "the time does not show the change");
        assert!(!has_content(&path, &before, Some(&content)).unwrap());
        assert!(has_content(&path, &before, None).unwrap());
    }

    #[test]
    fn a_file_is_put_back_under_another_name_if_its_own_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("a"), dir.path().join(".taken"));
        for (name, content) in [("a", "1"), ("1-a", "2"), (".taken", "3")] {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        put_back(&aside, &path).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("2-a")).unwrap(), "3");
    }
}
