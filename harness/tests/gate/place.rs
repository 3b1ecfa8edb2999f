//! A room with a watched folder in it, and the small program that is run there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use trainwreck::gate::{
    CallHandler, FilterOptions, WatchedMounts, build_filter, mount_id, serve_notifications,
};
use trainwreck::sandbox::{BindMount, LaunchSpec, ProcessExit, Sandbox, SandboxSpec};

/// The program of `targets/calls.c`.
pub(crate) fn compile(flags: &[&str]) -> PathBuf {
    try_compile(flags).unwrap()
}

pub(crate) fn try_compile(flags: &[&str]) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/calls.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("calls{}", flags.concat()));
    if program.exists()
        && program.metadata().unwrap().modified().unwrap() > source.metadata().unwrap().modified().unwrap()
    {
        return Some(program);
    }
    let fresh = program.with_extension("new");
    let done = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&fresh)
        .arg(&source)
        .args(flags)
        .arg("-lpthread")
        .output()
        .ok()?;
    if !done.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&done.stderr));
        return None;
    }
    std::fs::rename(fresh, &program).unwrap();
    Some(program)
}

/// A room whose `/…/watched` is watched; everything is gone with it.
pub(crate) struct WatchedSandbox {
    pub(crate) sandbox: Sandbox,
    pub(crate) watched: PathBuf,
    pub(crate) dir: tempfile::TempDir,
}

impl WatchedSandbox {
    pub(crate) fn new() -> WatchedSandbox {
        let dir = tempfile::tempdir().unwrap();
        let (real, watched) = (dir.path().join("real"), dir.path().join("watched"));
        std::fs::create_dir(&real).unwrap();
        std::fs::create_dir(&watched).unwrap();
        let binds = vec![BindMount { source: real, mount_point: watched.clone() }];
        let spec =
            SandboxSpec { dir: dir.path().join("room"), mounts: Vec::new(), binds, memory_cgroup: false };
        std::fs::create_dir(&spec.dir).unwrap();
        WatchedSandbox { sandbox: Sandbox::build(spec).unwrap(), watched, dir }
    }

    fn launch(&self, words: &[&str]) -> LaunchSpec {
        let path = ("PATH".into(), std::env::var_os("PATH").unwrap());
        LaunchSpec {
            argv: words.iter().map(Into::into).collect(),
            env: vec![path],
            cwd: Some(self.watched.clone()),
        }
    }

    /// Runs it to its end; what it said.
    pub(crate) fn run<O: CallHandler + 'static>(
        &self,
        words: &[&str],
        interest: &FilterOptions,
        overseer: &Arc<Mutex<O>>,
    ) -> (ProcessExit, String) {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let ((stdout, their_stdout), (_stderr, their_stderr)) = (pipe(), pipe());
        let watched = WatchedMounts::new([mount_id(&self.sandbox.host_path(&self.watched)).unwrap()]);
        let mut attendance = None;
        let running = self
            .sandbox
            .spawn_filtered(
                &self.launch(words),
                build_filter(interest),
                [their_stdout, their_stderr],
                |listener| {
                    attendance = Some(serve_notifications(listener, watched, Arc::clone(overseer)));
                },
            )
            .unwrap();
        let said = std::io::read_to_string(std::fs::File::from(stdout)).unwrap();
        let ended = running.wait_timeout(Duration::from_secs(60)).expect("it ends");
        self.sandbox.kill_all().unwrap();
        attendance.unwrap().join();
        (ended, said)
    }

    pub(crate) fn file(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.sandbox.host_path(&self.watched.join(name))).ok()
    }
}
