//! Finds out whether a process still writes a file, as far as the kernel tells. Changes nothing.

mod sys;

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::statfs::{self, FsType, fstatfs};

/// File systems whose lease tells about all writers of this machine. On a network, a refused lease may mean
/// something else.
const LOCAL_FILE_SYSTEMS: [FsType; 6] = [
    statfs::EXT4_SUPER_MAGIC,
    statfs::XFS_SUPER_MAGIC,
    statfs::BTRFS_SUPER_MAGIC,
    statfs::TMPFS_MAGIC,
    statfs::OVERLAYFS_SUPER_MAGIC,
    statfs::F2FS_SUPER_MAGIC,
];

/// What is known about a file's writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OpenWriters {
    /// No process has the file open for writing.
    None,
    /// A process has it open for writing.
    Some,
    /// The kernel does not tell.
    Unknown,
}

/// Whether a process is known to have the file open for writing.
pub fn has_open_writer(file: &File) -> bool {
    open_writers(file) == OpenWriters::Some
}

/// Looks for processes that have the file open for writing.
pub(super) fn open_writers(file: &File) -> OpenWriters {
    let is_local = fstatfs(file).is_ok_and(|stat| LOCAL_FILE_SYSTEMS.contains(&stat.filesystem_type()));
    match sys::try_read_lease(file) {
        Ok(()) if is_local => OpenWriters::None,
        Err(Errno::EAGAIN) if is_local => OpenWriters::Some,
        _ if has_visible_writer(file) => OpenWriters::Some,
        _ => OpenWriters::Unknown,
    }
}

/// Whether a process that this one may look at has the file open for writing.
fn has_visible_writer(file: &File) -> bool {
    let Ok(metadata) = file.metadata() else { return false };
    let is_the_file = |path: &std::path::Path| {
        std::fs::metadata(path)
            .is_ok_and(|other| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino()))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    processes.filter(|process| process.join("fd").is_dir()).any(|process| {
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        files.map(|entry| entry.path()).any(|path| {
            is_the_file(&path)
                && path.file_name().is_some_and(|fd| is_writable(&process.join("fdinfo").join(fd)))
        })
    })
}

/// Whether the flags of an open file, as `/proc/PID/fdinfo` shows them in octal, allow writing.
fn is_writable(info: &std::path::Path) -> bool {
    let text = std::fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
    flags & nix::libc::O_ACCMODE != nix::libc::O_RDONLY
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn an_open_writer_is_found_in_both_ways_and_a_reader_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(!has_visible_writer(&file));
        assert_ne!(open_writers(&file), OpenWriters::Some);
        for options in [OpenOptions::new().append(true), OpenOptions::new().read(true).write(true)] {
            let writer = options.open(&path).unwrap();
            assert!(has_visible_writer(&file));
            assert_eq!(open_writers(&file), OpenWriters::Some);
            drop(writer);
        }
        drop(reader);
        assert_ne!(open_writers(&file), OpenWriters::Some);
    }
}
