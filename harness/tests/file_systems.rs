//! File systems of the harness's own: what passes through them does the same as below, except for names and times.
//! Random programs of file operations run on one and on an ordinary directory, or on a small model of names without
//! case. Not covered: mapped files, and calls that wait for another process.

#![expect(clippy::unwrap_used, reason = "a test panics at the first unexpected result")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use engine::sandbox::{
    FileSystemServer, FileSystemTraits, HostAccess, LaunchSpec, ProcessExit, Sandbox, SandboxSpec,
};
use libtest_mimic::Trial;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use support::machine::{Need, missing};
use support::seeded_random::SeededRandom;

/// Operations of one program.
const OPERATIONS: usize = 120;
const PROGRAMS: u64 = 40;

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    support::trial::run(trials![
        missing(&[Need::Mechanism("user-namespace"), Need::Mechanism("fuse")]);
        random_programs_do_the_same_as_on_the_directory_below,
        names_that_differ_in_case_are_one_name,
        times_are_multiples_of_the_unit,
        evidence_comes_from_programs_of_the_sandbox_only,
        a_server_that_has_ended_makes_calls_fail_and_nothing_hang,
        a_target_that_moves_directories_keeps_nothing_mounted,
    ] as Vec<Trial>)
}

/// A sandbox with an ordinary directory, `plain`, and one with a file system over it, `other`.
struct TwoDirs {
    sandbox: Sandbox,
    server: FileSystemServer,
    _dir: tempfile::TempDir,
}

impl TwoDirs {
    fn new(traits: FileSystemTraits) -> TwoDirs {
        let dir = tempfile::tempdir().unwrap();
        let sandbox_dir = dir.path().join("sandbox");
        std::fs::create_dir(&sandbox_dir).unwrap();
        let sandbox = Sandbox::build(SandboxSpec {
            dir: sandbox_dir,
            visible_root: Some("/trainwreck-test".into()),
            distinct_pids: false,
            mounts: Vec::new(),
            binds: Vec::new(),
            cgroups: Vec::new(),
            host_access: HostAccess::default(),
            cwd: "/".into(),
        })
        .unwrap();
        for name in ["plain", "other"] {
            std::fs::create_dir(sandbox.host_path_in_root(Path::new(name))).unwrap();
        }
        let server = sandbox.mount_file_system(Path::new("other"), traits).unwrap();
        TwoDirs { sandbox, server, _dir: dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.host_path_in_root(Path::new(name))
    }

    fn shell(&self, script: &str) -> Option<ProcessExit> {
        let path = ("PATH".into(), std::env::var_os("PATH").unwrap());
        let argv = ["/bin/sh", "-c", script].map(Into::into).to_vec();
        let launch = LaunchSpec { argv, env: vec![path], cwd: Some("/trainwreck-test/other".into()) };
        self.sandbox.spawn(&launch).unwrap().wait_timeout(Duration::from_secs(60))
    }
}

/// An operation with up to two names.
struct Operation {
    kind: usize,
    names: [String; 2],
    number: usize,
}

const KINDS: usize = 20;

impl Operation {
    fn random(random: &mut SeededRandom, names: &[&str]) -> Operation {
        let mut name = || {
            let parts = 1 + usize::from(random.below(3) == 0);
            (0..parts).map(|_| names[random.below(names.len())]).collect::<Vec<_>>().join("/")
        };
        let names = [name(), name()];
        Operation { kind: random.below(KINDS), names, number: random.below(6000) }
    }

    /// Does it in a directory. Returns what it has read, or the number of its error.
    fn run(&self, dir: &Path) -> String {
        let done = self.perform(&dir.join(&self.names[0]), &dir.join(&self.names[1]));
        done.unwrap_or_else(|error| format!("error {:?}", error.raw_os_error()))
    }

    fn perform(&self, path: &Path, other: &Path) -> Result<String, Error> {
        let bytes = vec![b'a' + (self.number % 20) as u8; self.number];
        let done = |()| "done".to_owned();
        let open = |options: &mut OpenOptions| options.open(path);
        match self.kind {
            0 | 1 => std::fs::write(path, bytes).map(done),
            2 => open(OpenOptions::new().append(true).create(true))?.write_all(&bytes).map(done),
            3 => open(OpenOptions::new().write(true).create_new(true))?.write_all(&bytes).map(done),
            4 => {
                let mut file = open(OpenOptions::new().read(true).write(true))?;
                file.seek(SeekFrom::Start(self.number as u64 / 2))?;
                file.write_all(b"middle")?;
                file.sync_all()?;
                file.rewind()?;
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                Ok(text)
            }
            5 => open(OpenOptions::new().write(true))?.set_len(self.number as u64).map(done),
            6 | 7 => std::fs::rename(path, other).map(done),
            8 => renameat2(AT_FDCWD, path, AT_FDCWD, other, RenameFlags::RENAME_NOREPLACE)
                .map(done)
                .map_err(Error::from),
            9 => renameat2(AT_FDCWD, path, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE)
                .map(done)
                .map_err(Error::from),
            10 => std::fs::hard_link(path, other).map(done),
            11 => symlink(&self.names[1], path).map(done),
            12 => std::fs::remove_file(path).map(done),
            13 | 14 => std::fs::create_dir(path).map(done),
            15 => std::fs::remove_dir(path).map(done),
            16 => std::fs::set_permissions(
                path,
                std::fs::Permissions::from_mode(0o600 | (self.number % 64) as u32),
            )
            .map(done),
            17 => Ok(std::fs::read_link(path)?.display().to_string()),
            18 => {
                // A file that has lost its name can still be used.
                let mut file = open(OpenOptions::new().read(true).write(true))?;
                std::fs::remove_file(path)?;
                file.write_all(&bytes)?;
                file.rewind()?;
                let metadata = file.metadata()?;
                Ok(format!("{} {}", metadata.len(), metadata.nlink()))
            }
            _ => {
                let dir = File::open(path)?;
                dir.sync_all()?;
                Ok(format!("{}", dir.metadata()?.is_dir()))
            }
        }
    }
}

/// What is in a directory: for each path its type, its mode, its number of names and its content.
fn tree(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let kind = metadata.file_type();
            assert!(!kind.is_fifo());
            let content = if kind.is_dir() {
                dirs.push(path.clone());
                "directory".into()
            } else if kind.is_symlink() {
                format!("link to {}", std::fs::read_link(&path).unwrap().display())
            } else {
                format!("{} {:?}", metadata.nlink(), std::fs::read(&path).unwrap())
            };
            let mode = if kind.is_symlink() { 0 } else { metadata.mode() };
            let owner = (metadata.uid(), metadata.gid());
            let line = format!("{mode:o} {owner:?} {content}");
            found.insert(path.strip_prefix(dir).unwrap().to_owned(), line);
        }
    }
    found
}

fn random_programs_do_the_same_as_on_the_directory_below() {
    for traits in [FileSystemTraits::default(), FileSystemTraits { time_unit_s: Some(2), folds_case: true }] {
        for seed in 0..PROGRAMS {
            let mut random = SeededRandom::new(seed);
            let dirs = TwoDirs::new(traits);
            let (plain, other) = (dirs.path("plain"), dirs.path("other"));
            let mut ran = Vec::new();
            for _ in 0..OPERATIONS {
                // Names without a twin, so that case makes no difference.
                let operation = Operation::random(&mut random, &["a", "b", "c", "d", "e-long-name", "é"]);
                let [below, above] = [&plain, &other].map(|dir| operation.run(dir));
                ran.push(format!("{} {:?} {}", operation.kind, operation.names, operation.number));
                assert_eq!(below, above, "seed {seed}: {}", ran.join("\n"));
            }
            assert_eq!(tree(&plain), tree(&other), "seed {seed}: {}", ran.join("\n"));
            dirs.sandbox.unmount_file_system(Path::new("other")).unwrap();
            assert_eq!(tree(&plain), tree(&dirs.path("other")), "seed {seed}, below");
        }
    }
}

/// Names without case: each with the case in which it was made, and a content.
#[derive(Default)]
struct CaselessModel(BTreeMap<String, (String, String)>);

impl CaselessModel {
    fn make(&mut self, name: &str, content: String) {
        self.0.entry(name.to_lowercase()).or_insert_with(|| (name.to_owned(), String::new())).1 = content;
    }

    fn rename(&mut self, from: &str, to: &str) {
        if from.to_lowercase() != to.to_lowercase()
            && let Some((_, content)) = self.0.remove(&from.to_lowercase())
        {
            self.make(to, content);
        }
    }

    fn tree(&self) -> BTreeMap<String, String> {
        self.0.values().cloned().collect()
    }
}

fn names_that_differ_in_case_are_one_name() {
    let names = ["file", "FILE", "File", "other", "OTHER", "ä", "Ä", "ß", "SS"];
    let mut dirs = TwoDirs::new(FileSystemTraits { folds_case: true, ..FileSystemTraits::default() });
    let other = dirs.path("other");
    let mut model = CaselessModel::default();
    let mut random = SeededRandom::new(5);
    for step in 0..3000 {
        let [one, two] = [0; 2].map(|_| names[random.below(names.len())]);
        let (path, to) = (other.join(one), other.join(two));
        let is_there = model.0.contains_key(&one.to_lowercase());
        let what = format!("step {step}: {one} {two}");
        match random.below(5) {
            0 => {
                std::fs::write(&path, &what).unwrap();
                model.make(one, what.clone());
            }
            1 => {
                let made = OpenOptions::new().write(true).create_new(true).open(&path);
                assert_eq!(made.is_err(), is_there, "{what}");
                model.make(
                    one,
                    model.0.get(&one.to_lowercase()).map_or(String::new(), |(_, text)| text.clone()),
                );
            }
            2 => {
                assert_eq!(std::fs::rename(&path, &to).is_ok(), is_there, "{what}");
                model.rename(one, two);
            }
            3 => {
                assert_eq!(std::fs::remove_file(&path).is_ok(), is_there, "{what}");
                model.0.remove(&one.to_lowercase());
            }
            _ => {
                let read = std::fs::read_to_string(&path).ok();
                let expected = model.0.get(&one.to_lowercase()).map(|(_, text)| text.clone());
                assert_eq!(read, expected, "{what}");
            }
        }
        let listed = std::fs::read_dir(&other).unwrap().map(|entry| entry.unwrap().file_name());
        let found: BTreeMap<String, String> = listed
            .map(|name| {
                (name.clone().into_string().unwrap(), std::fs::read_to_string(other.join(name)).unwrap())
            })
            .collect();
        assert_eq!(found, model.tree(), "{what}");
    }
    assert_eq!(dirs.server.evidence().unwrap(), None, "nobody in the sandbox has asked");
    // Directories, too: what is in one is found by each of its names.
    std::fs::create_dir(other.join("Dir")).unwrap();
    std::fs::write(other.join("dIR/x"), "x").unwrap();
    assert_eq!(std::fs::read_to_string(other.join("DIR/X")).unwrap(), "x");
    assert_eq!(
        std::fs::create_dir(other.join("dir")).unwrap_err().raw_os_error(),
        Some(Errno::EEXIST as i32)
    );
}

fn times_are_multiples_of_the_unit() {
    let dirs = TwoDirs::new(FileSystemTraits { time_unit_s: Some(2), ..FileSystemTraits::default() });
    let path = dirs.path("other").join("file");
    let file = File::create(&path).unwrap();
    for (seconds, nanos, shown) in [(1_000_001, 999_999_999, 1_000_000), (1_000_002, 0, 1_000_002)] {
        file.set_modified(UNIX_EPOCH + Duration::new(seconds, nanos)).unwrap();
        let metadata = path.metadata().unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (shown, 0));
        assert_eq!((metadata.ctime() % 2, metadata.ctime_nsec()), (0, 0));
    }
    // The time is stored so.
    dirs.sandbox.unmount_file_system(Path::new("other")).unwrap();
    let below = dirs.path("other").join("file").metadata().unwrap();
    assert_eq!((below.mtime(), below.mtime_nsec()), (1_000_002, 0));
}

fn evidence_comes_from_programs_of_the_sandbox_only() {
    let mut folding = TwoDirs::new(FileSystemTraits { folds_case: true, ..FileSystemTraits::default() });
    std::fs::write(folding.path("other").join("File"), "x").unwrap();
    std::fs::read(folding.path("other").join("fILE")).unwrap();
    assert_eq!(folding.shell("cat File"), Some(ProcessExit::Exited(0)));
    assert_eq!(folding.server.evidence().unwrap(), None);
    assert_eq!(folding.shell("cat fILE"), Some(ProcessExit::Exited(0)));
    let evidence = folding.server.evidence().unwrap().unwrap().to_owned();
    assert_eq!(evidence, "`fILE` was asked for, and it was `File`");
    let mut coarse = TwoDirs::new(FileSystemTraits { time_unit_s: Some(2), ..FileSystemTraits::default() });
    let below = coarse.path("other");
    let change = |second| {
        let file = File::options().append(true).create(true).open(below.join("file")).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(second)).unwrap();
    };
    change(1000);
    assert_eq!(coarse.shell("stat file"), Some(ProcessExit::Exited(0)));
    change(1002);
    assert_eq!(coarse.shell("stat file"), Some(ProcessExit::Exited(0)));
    assert_eq!(coarse.server.evidence().unwrap(), None, "the change was seen");
    // A write that the unit hides: the kernel gives it the time of now, twice.
    let script = "until test $(($(date +%s) % 2)) = 0; do sleep 0.05; done; echo a >now; stat now; \
                  echo b >now; stat now";
    let found = (0..10).any(|_| {
        assert_eq!(coarse.shell(script), Some(ProcessExit::Exited(0)));
        coarse.server.evidence().unwrap().is_some()
    });
    let evidence = coarse.server.evidence().unwrap().unwrap_or_default().to_owned();
    assert!(found && evidence.contains("has changed from"), "{evidence}");
}

fn a_server_that_has_ended_makes_calls_fail_and_nothing_hang() {
    let TwoDirs { sandbox, server, _dir } = TwoDirs::new(FileSystemTraits::default());
    let file = sandbox.host_path_in_root(Path::new("other/file"));
    std::fs::write(&file, "x").unwrap();
    drop(server);
    assert_eq!(std::fs::read(&file).unwrap_err().raw_os_error(), Some(Errno::ENOTCONN as i32));
    sandbox.unmount_file_system(Path::new("other")).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
    sandbox.close().unwrap();
}

fn a_target_that_moves_directories_keeps_nothing_mounted() {
    let dirs = TwoDirs::new(FileSystemTraits { folds_case: true, ..FileSystemTraits::default() });
    let root = dirs.path("");
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    let inner = dirs.sandbox.mount_file_system(Path::new("a/b"), FileSystemTraits::default()).unwrap();
    assert!(dirs.sandbox.mount_file_system(Path::new("a/b"), FileSystemTraits::default()).is_err());
    std::fs::rename(root.join("a"), root.join("moved")).unwrap();
    std::fs::write(root.join("moved/b/file"), "x").unwrap();
    let open = File::open(root.join("moved/b/file")).unwrap();
    dirs.sandbox.unmount_file_system(Path::new("a/b")).unwrap();
    // What is open stays usable, and the file is in the directory below.
    assert_eq!(std::io::read_to_string(&open).unwrap(), "x");
    drop((open, inner));
    assert_eq!(std::fs::read(root.join("moved/b/file")).unwrap(), b"x");
    symlink("/tmp", root.join("link")).unwrap();
    assert!(dirs.sandbox.mount_file_system(Path::new("link"), FileSystemTraits::default()).is_err());
}
