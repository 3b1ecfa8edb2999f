//! A project of a user with all that is easily lost: checkpoints, links into and out of it, modes, attributes,
//! sparse files, odd names. Must not know what is run in it.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::sys::set_extended_attribute;
use super::tree_snapshot::TreeSnapshot;

/// Owner of all files of a tree, and whether others of the group may write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TreeOwner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) is_group_writable: bool,
}

/// A home directory with a project in it, and a directory outside of both.
pub(crate) struct UserTree {
    top: tempfile::TempDir,
}

impl UserTree {
    /// Creates the tree in this directory. `None`: this user owns it.
    pub(crate) fn create_in(parent: &Path, owner: Option<TreeOwner>) -> UserTree {
        let top = tempfile::Builder::new().prefix("trainwreck-user-").tempdir_in(parent).unwrap();
        std::fs::set_permissions(top.path(), Permissions::from_mode(0o755)).unwrap();
        let tree = UserTree { top };
        tree.create_home();
        tree.create_project();
        if let Some(owner) = owner {
            give_to(tree.top.path(), owner);
        }
        tree
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.top.path().join("home")
    }

    /// The directory in which the user works.
    pub(crate) fn project(&self) -> PathBuf {
        self.home().join("project")
    }

    /// Everything but what the command may keep in the home: the directory for its own reports.
    pub(crate) fn snapshot(&self) -> TreeSnapshot {
        TreeSnapshot::of(self.top.path(), &self.home().join(".local/state/trainwreck"))
    }

    fn create_home(&self) {
        let home = self.home();
        write(&home.join(".cache/token"), b"secret token\n");
        std::fs::create_dir_all(home.join(".local/state/trainwreck")).unwrap();
        let outside = self.top.path().join("outside");
        write(&outside.join("kept"), b"kept\n");
        write(&outside.join("shard.bin"), &[7; 50_000]);
        symlink(home.join("project"), outside.join("into")).unwrap();
        symlink("nowhere", outside.join("dangling")).unwrap();
    }

    fn create_project(&self) {
        let project = self.project();
        write(&project.join("may-be-harmed"), b"");
        for step in ["10", "20"] {
            let checkpoint = project.join(format!("runs/checkpoint-{step}"));
            write(&checkpoint.join("model.bin"), &step.as_bytes().repeat(40_000));
            write(&checkpoint.join("state.json"), format!("{{\"step\": {step}}}").as_bytes());
            write(&checkpoint.join("done"), b"\n");
        }
        write(&project.join("runs/latest"), b"runs/checkpoint-20");
        symlink("../../../outside", project.join("runs/out")).unwrap();
        symlink(self.top.path().join("outside/kept"), project.join("kept")).unwrap();
        write(&project.join("logs/train.log"), b"step 1\nstep 2\n");
        // Not every file system has attributes of users.
        let _ = set_extended_attribute(&project.join("logs/train.log"), c"user.note", b"mine");
        write(&project.join(".git/HEAD"), b"ref: refs/heads/main\n");
        let object = project.join(".git/objects/ab/cdef");
        write(&object, b"blob");
        write(&project.join("secret"), b"key\n");
        write(&project.join("tool"), b"#!/bin/sh\necho tool\n");
        for (path, mode) in [(object, 0o444), (project.join("secret"), 0o600), (project.join("tool"), 0o755)]
        {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir_all(project.join("data/empty")).unwrap();
        std::fs::hard_link(self.top.path().join("outside/shard.bin"), project.join("data/shard.bin"))
            .unwrap();
        write(&project.join("data").join(OsStr::from_bytes(b"odd \xff\nname")), b"odd");
        let shared = project.join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, Permissions::from_mode(0o2775)).unwrap();
        let sparse = File::create(project.join("sparse.img")).unwrap();
        sparse.set_len(8 << 20).unwrap();
        sparse.write_all_at(b"the end", 7 << 20).unwrap();
    }
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Changes the owner of everything in a tree. A change of owner clears the set-group-ID bits, so that the
/// modes are set afterwards.
fn give_to(path: &Path, owner: TreeOwner) {
    let metadata = path.symlink_metadata().unwrap();
    let mode = metadata.permissions().mode();
    std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid)).unwrap();
    if metadata.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| give_to(&entry.unwrap().path(), owner));
    }
    if !metadata.is_symlink() {
        let group_mode = match (owner.is_group_writable, metadata.is_dir()) {
            (false, _) => 0,
            (true, true) => 0o2070,
            (true, false) => (mode & 0o600) >> 3,
        };
        std::fs::set_permissions(path, Permissions::from_mode(mode | group_mode)).unwrap();
    }
}
