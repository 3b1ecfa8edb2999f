//! Copies of directory trees: what the command's own tests, which compare whole trees, do not have. Deep trees,
//! holes, sockets, hard links, directories that an ordinary user may not read.

#![expect(clippy::unwrap_used, reason = "a test stops at the first unexpected result")]

use std::fs::{File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use engine::explore::copy_tree;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

fn inode(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().ino()
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    std::fs::create_dir(&from).unwrap();
    let mut file = File::create(from.join("sparse")).unwrap();
    file.write_all(b"first").unwrap();
    file.seek(SeekFrom::Start(3 << 30)).unwrap();
    file.write_all(b"middle").unwrap();
    file.set_len(10 << 30).unwrap();
    copy_tree(&from, &to).unwrap();
    let copy = to.join("sparse").metadata().unwrap();
    assert_eq!(copy.len(), 10 << 30);
    assert!(copy.blocks() * 512 < 1 << 20, "{} blocks", copy.blocks());
    let mut bytes = [0; 6];
    std::os::unix::fs::FileExt::read_exact_at(&File::open(to.join("sparse")).unwrap(), &mut bytes, 3 << 30)
        .unwrap();
    assert_eq!(&bytes, b"middle");
}

#[test]
fn names_of_one_file_are_names_of_one_copy() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    std::fs::create_dir_all(from.join("a/b")).unwrap();
    std::fs::create_dir_all(from.join("c")).unwrap();
    std::fs::write(from.join("a/b/file"), "text").unwrap();
    std::fs::hard_link(from.join("a/b/file"), from.join("c/file")).unwrap();
    std::fs::hard_link(from.join("a/b/file"), from.join("file")).unwrap();
    symlink("nowhere", from.join("link")).unwrap();
    std::fs::hard_link(from.join("link"), from.join("c/link")).unwrap();
    copy_tree(&from, &to).unwrap();
    assert_eq!(inode(&to.join("a/b/file")), inode(&to.join("c/file")));
    assert_eq!(inode(&to.join("a/b/file")), inode(&to.join("file")));
    assert_eq!(inode(&to.join("link")), inode(&to.join("c/link")));
    assert_ne!(inode(&from.join("file")), inode(&to.join("file")));
    assert_eq!(to.join("file").metadata().unwrap().nlink(), 3);
}

/// Deeper than this process may have files open, and than a path may be long.
#[test]
fn a_tree_of_three_thousand_levels_is_copied() {
    const LEVELS: usize = 3_000;
    // On a disk, removing the trees takes a minute.
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    std::fs::create_dir(&from).unwrap();
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let open = |path: &Path| nix::fcntl::open(path, flags, Mode::empty()).unwrap();
    let mut current = open(&from);
    for _ in 0..LEVELS {
        mkdirat(&current, "d", Mode::S_IRWXU).unwrap();
        current = openat(&current, "d", flags, Mode::empty()).unwrap();
    }
    nix::unistd::symlinkat("bottom", &current, "link").unwrap();
    nix::unistd::linkat(&current, "link", &current, "again", nix::fcntl::AtFlags::empty()).unwrap();
    copy_tree(&from, &to).unwrap();
    let mut current = open(&to);
    for _ in 0..LEVELS {
        current = openat(&current, "d", flags, Mode::empty()).unwrap();
    }
    assert_eq!(nix::fcntl::readlinkat(&current, "again").unwrap(), "bottom");
    // The standard library cannot remove such a tree.
    let removed = std::process::Command::new("rm").arg("-rf").args([&from, &to]).status().unwrap();
    assert!(removed.success());
}

#[test]
fn sockets_are_left_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    std::fs::create_dir_all(from.join("run")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("run/socket")).unwrap();
    let report = copy_tree(&from, &to).unwrap();
    assert_eq!((report.left_out.count, report.left_out.first), (1, Some(from.join("run/socket"))));
    assert_eq!(to.join("run").read_dir().unwrap().count(), 0);
}

#[test]
fn times_of_directories_and_links_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    std::fs::create_dir_all(from.join("below")).unwrap();
    std::fs::write(from.join("below/file"), "text").unwrap();
    symlink("below/file", from.join("link")).unwrap();
    for (name, time) in [("below/file", 10), ("link", 20), ("below", 30), (".", 40)] {
        let time = nix::sys::time::TimeSpec::new(time, 5);
        let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &from.join(name), &time, &time, flags).unwrap();
    }
    copy_tree(&from, &to).unwrap();
    for (name, time) in [("below/file", 10), ("link", 20), ("below", 30), (".", 40)] {
        let copy = to.join(name).symlink_metadata().unwrap();
        assert_eq!((copy.mtime(), copy.mtime_nsec()), (time, 5), "{name}");
        let source = from.join(name).symlink_metadata().unwrap();
        assert_eq!(source.mtime(), time, "the source has changed: {name}");
        // Reading a link changes its access time.
        assert!(source.atime() == time || name == "link", "the source has changed: {name}");
    }
}

/// Root may read everything.
#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
    std::fs::create_dir_all(from.join("a/secret")).unwrap();
    std::fs::write(from.join("a/secret/file"), "text").unwrap();
    std::fs::set_permissions(from.join("a/secret"), Permissions::from_mode(0o000)).unwrap();
    let copied = copy_tree(&from, &to);
    std::fs::set_permissions(from.join("a/secret"), Permissions::from_mode(0o700)).unwrap();
    match copied {
        Ok(_) => assert!(nix::unistd::geteuid().is_root()),
        Err(error) => assert!(error.to_string().contains(from.join("a/secret").to_str().unwrap()), "{error}"),
    }
}
