//! A sandbox with a watched directory, and the test program that runs in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::gate::{CallHandler, FilterOptions, WatchedMounts, build_filter, mount_id, serve_notifications};
use engine::sandbox::{BindMount, LaunchSpec, ProcessExit, Sandbox, SandboxSpec};

/// Compiles `targets/calls.c`. Returns the program's path.
pub(crate) fn compile(flags: &[&str]) -> PathBuf {
    try_compile(flags).unwrap()
}

/// As [`compile`], but returns `None` if the compiler fails, for example because there is no static C
/// library.
pub(crate) fn try_compile(flags: &[&str]) -> Option<PathBuf> {
    static COMPILER_LOCK: Mutex<()> = Mutex::new(());
    let _lock = COMPILER_LOCK.lock().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/calls.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("calls{}", flags.concat()));
    if program.exists()
        && program.metadata().unwrap().modified().unwrap() > source.metadata().unwrap().modified().unwrap()
    {
        return Some(program);
    }
    let new_program = program.with_extension("new");
    let output = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&new_program)
        .arg(&source)
        .args(flags)
        .arg("-lpthread")
        .output()
        .ok()?;
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    std::fs::rename(new_program, &program).unwrap();
    Some(program)
}

/// A sandbox in which the gate watches one directory. Dropping it removes everything.
pub(crate) struct WatchedSandbox {
    pub(crate) sandbox: Sandbox,
    /// The watched directory, as processes in the sandbox see it.
    pub(crate) watched: PathBuf,
    pub(crate) dir: tempfile::TempDir,
}

impl WatchedSandbox {
    /// Builds the sandbox and the watched directory in a temporary directory.
    pub(crate) fn new() -> WatchedSandbox {
        let dir = tempfile::tempdir().unwrap();
        let (real, watched) = (dir.path().join("real"), dir.path().join("watched"));
        std::fs::create_dir(&real).unwrap();
        std::fs::create_dir(&watched).unwrap();
        let binds = vec![BindMount { source: real, mount_point: watched.clone() }];
        let spec =
            SandboxSpec { dir: dir.path().join("sandbox"), mounts: Vec::new(), binds, memory_cgroup: false };
        std::fs::create_dir(&spec.dir).unwrap();
        WatchedSandbox { sandbox: Sandbox::build(spec).unwrap(), watched, dir }
    }

    fn launch(&self, argv: &[&str]) -> LaunchSpec {
        let path = ("PATH".into(), std::env::var_os("PATH").unwrap());
        LaunchSpec {
            argv: argv.iter().map(Into::into).collect(),
            env: vec![path],
            cwd: Some(self.watched.clone()),
        }
    }

    /// Runs a program until it ends. Returns its exit and its standard output.
    pub(crate) fn run<O: CallHandler + 'static>(
        &self,
        argv: &[&str],
        options: &FilterOptions,
        handler: &Arc<Mutex<O>>,
    ) -> (ProcessExit, String) {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let ((stdout, their_stdout), (_stderr, their_stderr)) = (pipe(), pipe());
        let watched = WatchedMounts::new([mount_id(&self.sandbox.host_path(&self.watched)).unwrap()]);
        let mut supervisor = None;
        let process = self
            .sandbox
            .spawn_filtered(
                &self.launch(argv),
                build_filter(options),
                [their_stdout, their_stderr],
                |listener| {
                    supervisor = Some(serve_notifications(listener, watched, Arc::clone(handler)));
                },
            )
            .unwrap();
        let stdout = std::io::read_to_string(std::fs::File::from(stdout)).unwrap();
        let exit = process.wait_timeout(Duration::from_secs(60)).expect("the program ends");
        self.sandbox.kill_all().unwrap();
        supervisor.unwrap().join();
        (exit, stdout)
    }

    /// The bytes of a file in the watched directory.
    pub(crate) fn file(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.sandbox.host_path(&self.watched.join(name))).ok()
    }
}
