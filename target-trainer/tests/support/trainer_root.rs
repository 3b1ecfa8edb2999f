//! A trainer root in a temporary directory, and the built command.

#![expect(clippy::unwrap_used, reason = "a test fails at the first unexpected value")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_target-trainer");

/// A trainer root in a temporary directory.
pub(crate) struct TrainerRoot {
    pub(crate) dir: TempDir,
}

impl TrainerRoot {
    pub(crate) fn new(settings: &[&str]) -> TrainerRoot {
        let root = TrainerRoot { dir: tempfile::tempdir().unwrap() };
        // On the CPU even if there is a GPU: these tests count steps and depend on their speed.
        let mut init = vec!["init", root.path_str(), "--seed", "1", "--set", "device.use=cpu"];
        settings.iter().for_each(|setting| init.extend(["--set", setting]));
        assert!(run(&init).status.success());
        root
    }

    /// A root with a job of sums in its inbox.
    pub(crate) fn with_job(settings: &[&str]) -> TrainerRoot {
        let root = TrainerRoot::new(settings);
        let data = root.dir.path().join("sums.jsonl");
        assert!(
            run(&["make-data", "arithmetic", "--samples", "64", "--out", data.to_str().unwrap()])
                .status
                .success()
        );
        assert!(run(&["submit", root.path_str(), data.to_str().unwrap()]).status.success());
        root
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// What `status.json` says.
    pub(crate) fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.path().join("status.json")).unwrap()).unwrap()
    }

    pub(crate) fn path_str(&self) -> &str {
        // Leaks a few bytes, so that callers can use the path as an argument without a variable.
        Box::leak(self.path().display().to_string().into_boxed_str())
    }

    pub(crate) fn spawn_daemon(&self) -> Child {
        daemon_command()
            .args([self.path_str(), "--drain"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs the daemon until all jobs are done. Returns what it printed.
    pub(crate) fn drain(&self) -> String {
        let output = self.spawn_daemon().wait_with_output().unwrap();
        let stdout = text(&output.stdout);
        assert!(output.status.success(), "{:?} {stdout} {}", output.status, text(&output.stderr));
        stdout
    }

    /// Runs the daemon until all jobs are done or failed. Returns what it printed.
    pub(crate) fn drain_with_failed_job(&self) -> String {
        let output = self.spawn_daemon().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(20), "{}", all_output(&output));
        text(&output.stdout)
    }

    /// A running daemon that has made this many checkpoints.
    pub(crate) fn daemon_with_checkpoints(&self, checkpoints: usize) -> Child {
        let daemon = self.spawn_daemon();
        let jobs = self.path().join("checkpoints");
        let count =
            |job: &str| sorted_names(&jobs.join(job)).iter().filter(|name| name.starts_with("step-")).count();
        wait_for("checkpoints", || {
            jobs.is_dir() && sorted_names(&jobs).first().is_some_and(|job| count(job) >= checkpoints)
        });
        daemon
    }

    /// Runs a daemon and kills it after this many checkpoints.
    pub(crate) fn kill_after_checkpoints(&self, checkpoints: usize) {
        let mut daemon = self.daemon_with_checkpoints(checkpoints);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Bytes of the only adapter in `done/`.
    pub(crate) fn finished_adapter(&self) -> Vec<u8> {
        let done = self.path().join("done");
        std::fs::read(done.join(&sorted_names(&done)[0]).join("adapter_model.safetensors")).unwrap()
    }

    pub(crate) fn job_id(&self) -> String {
        sorted_names(&self.path().join("checkpoints"))[0].clone()
    }

    pub(crate) fn newest_checkpoint(&self) -> PathBuf {
        let dir = self.path().join("checkpoints").join(self.job_id());
        dir.join(sorted_names(&dir).last().unwrap())
    }

    pub(crate) fn verify(&self) -> Output {
        run(&["verify", self.path_str()])
    }
}

/// The command that starts a daemon, without its arguments. Signals have their usual effect on it, also if
/// these tests were started by `nohup` or in the background of a shell, and so ignore some.
pub(crate) fn daemon_command() -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT", PROGRAM, "daemon"]);
    command
}

pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn sorted_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The lines of all log files of a root.
pub(crate) fn log_lines(root: &Path) -> String {
    let logs = root.join("logs");
    let names = if logs.exists() { sorted_names(&logs) } else { Vec::new() };
    names.into_iter().map(|name| std::fs::read_to_string(logs.join(name)).unwrap_or_default()).collect()
}

/// The adapter's digest in the line `finished job ..`.
pub(crate) fn adapter_digest(output: &str) -> &str {
    let line = output
        .lines()
        .find(|line| line.starts_with("finished job"))
        .unwrap_or_else(|| panic!("not finished: {output}"));
    line.rsplit("adapter ").next().unwrap()
}

pub(crate) fn wait_for(condition_name: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {condition_name}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Standard output, then standard error.
pub(crate) fn all_output(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}
