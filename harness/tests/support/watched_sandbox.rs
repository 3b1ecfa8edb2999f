//! A sandbox in which the gate watches one directory. Must not know what handles the calls.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::gate::{CallHandler, FilterOptions, WatchedMounts, build_filter, serve_notifications};
use engine::sandbox::{BindMount, HostAccess, LaunchSpec, ProcessExit, Sandbox, SandboxSpec, TmpfsSpec};

/// How long a program may run, and how long what it started may keep its output open afterwards.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The sandbox, with its files in a temporary directory. Dropping it removes everything.
pub(crate) struct WatchedSandbox {
    pub(crate) sandbox: Sandbox,
    /// The watched directory, as processes in the sandbox see it.
    pub(crate) watched: PathBuf,
    pub(crate) dir: tempfile::TempDir,
    /// Where a copy of the watched directory can be made, as the harness sees it.
    pub(crate) copy: PathBuf,
}

/// The file system of a watched directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WatchedOn {
    /// That of the temporary directory.
    Disk,
    /// A tmpfs. Creating many files there is fast also after many were removed, unlike on ext4.
    Memory,
}

impl WatchedSandbox {
    /// Watches a new directory.
    pub(crate) fn new() -> WatchedSandbox {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        WatchedSandbox::build(dir, real)
    }

    /// Watches a new directory.
    pub(crate) fn on(file_system: WatchedOn) -> WatchedSandbox {
        let dir = tempfile::tempdir().unwrap();
        if file_system == WatchedOn::Disk {
            return WatchedSandbox::new();
        }
        let root = dir.path().join("sandbox/root");
        let mount = TmpfsSpec { mount_point: "memory".into(), size_bytes: 1 << 30, inodes: None };
        WatchedSandbox::build_with(dir, root.join("memory/watched"), vec![mount])
    }

    /// Watches a directory of the host.
    pub(crate) fn of(real: PathBuf) -> WatchedSandbox {
        WatchedSandbox::build(tempfile::tempdir().unwrap(), real)
    }

    fn build(dir: tempfile::TempDir, real: PathBuf) -> WatchedSandbox {
        WatchedSandbox::build_with(dir, real, Vec::new())
    }

    fn build_with(dir: tempfile::TempDir, real: PathBuf, mounts: Vec<TmpfsSpec>) -> WatchedSandbox {
        let is_in_memory = !mounts.is_empty();
        let [watched, sandbox_dir] = ["watched", "sandbox"].map(|name| dir.path().join(name));
        std::fs::create_dir(&watched).unwrap();
        std::fs::create_dir(&sandbox_dir).unwrap();
        let binds = vec![BindMount { source: real, mount_point: watched.clone() }];
        let spec = SandboxSpec {
            dir: sandbox_dir,
            mounts,
            binds,
            cgroups: Vec::new(),
            visible_root: None,
            distinct_pids: false,
            host_access: HostAccess::default(),
            cwd: watched.clone(),
        };
        let sandbox = Sandbox::build(spec).unwrap();
        let copy = match is_in_memory {
            true => sandbox.host_path_in_root("memory/copy".as_ref()),
            false => dir.path().join("copy"),
        };
        WatchedSandbox { sandbox, watched, dir, copy }
    }

    fn launch(&self, argv: &[&str]) -> LaunchSpec {
        let path = ("PATH".into(), std::env::var_os("PATH").unwrap());
        LaunchSpec {
            argv: argv.iter().map(Into::into).collect(),
            env: vec![path],
            cwd: Some(self.watched.clone()),
        }
    }

    /// Runs a program until it ends, at most for a minute. Returns its exit and its standard output.
    pub(crate) fn run<O: CallHandler + 'static>(
        &self,
        argv: &[&str],
        options: &FilterOptions,
        handler: &Arc<Mutex<O>>,
    ) -> (ProcessExit, String) {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe(), pipe());
        // A pipe that nobody reads would stop the program when it is full.
        let (stdout, _stderr) = (read_in_background(stdout), read_in_background(stderr));
        let watched = WatchedMounts::of([self.sandbox.host_path(&self.watched)]).unwrap();
        let mut supervisor = None;
        let process = self
            .sandbox
            .spawn_filtered(
                &self.launch(argv),
                build_filter(options),
                [their_stdout, their_stderr],
                |listener, rules| {
                    supervisor = Some(serve_notifications(listener, watched, Arc::clone(handler), rules));
                },
            )
            .unwrap();
        let exit = process.wait_timeout(TIME_LIMIT).expect("the program ends within a minute");
        let stdout = stdout.recv_timeout(TIME_LIMIT).expect("the output ends within a minute");
        self.sandbox.kill_all().unwrap();
        supervisor.unwrap().join().unwrap();
        (exit, stdout)
    }

    /// Runs a program without the gate. Returns its exit and its standard output.
    pub(crate) fn run_bare(&self, argv: &[&str]) -> (ProcessExit, String) {
        let mut process = self.sandbox.spawn(&self.launch(argv)).unwrap();
        let outputs = process.take_outputs().unwrap();
        let (stdout, _stderr) = (read_in_background(outputs.stdout), read_in_background(outputs.stderr));
        let exit = process.wait_timeout(TIME_LIMIT).expect("the program ends within a minute");
        let stdout = stdout.recv_timeout(TIME_LIMIT).expect("the output ends within a minute");
        self.sandbox.kill_all().unwrap();
        (exit, stdout)
    }

    /// Creates files, directories, links and a pipe in the watched directory: what the forms of `targets/forms.c`
    /// find.
    pub(crate) fn create_files_of_every_type(&self) {
        create_files_of_every_type_in(&self.sandbox.host_path(&self.watched));
    }

    /// The bytes of a file in the watched directory.
    pub(crate) fn file(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.sandbox.host_path(&self.watched.join(name))).ok()
    }
}

/// Creates files, directories, links and a pipe in a directory of the host. Large enough for offsets.
pub(crate) fn create_files_of_every_type_in(dir: &Path) {
    let pattern: Vec<u8> = (0..10_000u32).map(|n| (n * 31 + n / 256) as u8).collect();
    std::fs::write(dir.join("old"), pattern).unwrap();
    std::fs::write(dir.join("other"), "other content").unwrap();
    std::fs::hard_link(dir.join("old"), dir.join("hard")).unwrap();
    for name in ["dir", "empty", "full"] {
        std::fs::create_dir(dir.join(name)).unwrap();
    }
    for (name, text) in [("dir/inner", "inner"), ("full/inner", "full")] {
        std::fs::write(dir.join(name), text).unwrap();
    }
    for (target, name) in
        [("old", "link"), ("dir", "dirlink"), ("absent", "dangling"), ("loop", "loop"), ("..", "dir/up")]
    {
        std::os::unix::fs::symlink(target, dir.join(name)).unwrap();
    }
    nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
}

/// Reads an output to its end on a thread of its own, and then sends its text.
fn read_in_background(output: OwnedFd) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let text = std::io::read_to_string(File::from(output)).unwrap();
        // Nobody waits for it after a failure, or if it is the standard error.
        let _ = sender.send(text);
    });
    receiver
}
