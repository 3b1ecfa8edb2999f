//! Runs the daemon on a machine that goes wrong: its disk hangs, a thread does not return, it gets no
//! threads. Checks that the daemon tells what it is, stays responsive, and loses no job.

#![expect(clippy::unwrap_used, reason = "a test fails at the first unexpected value")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;
mod sys;
#[expect(dead_code, reason = "this test uses a part of it")]
#[path = "../support/trainer_root.rs"]
mod trainer_root;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use trainer_root::{PROGRAM, TrainerRoot, adapter_digest, all_output, sorted_names, text, wait_for};

/// A user id that nothing else on the machine uses, so that its processes can be counted.
const UNUSED_USER: u32 = 61_873;

fn main() -> ExitCode {
    let mut trials = trials![
        missing_for_frozen_disk();
        a_disk_that_hangs_for_a_while_costs_nothing,
        without_kernel_hangs_a_worker_is_killed_that_would_go_on,
        a_disk_that_hangs_stops_the_daemon_and_the_job_stays,
        a_signal_ends_the_daemon_while_the_disk_hangs,
    ];
    trials.extend(trials![
        missing_for_ptrace();
        a_thread_that_does_not_return_is_noticed_although_others_live,
    ]);
    trials.extend(trials![
        missing_for_other_user();
        refused_threads_cost_no_job,
    ]);
    trials.extend(trials![
        missing_for_small_disk();
        a_data_file_takes_no_room_from_the_saves_of_the_running_job,
        a_drain_does_not_end_well_while_data_is_hidden_in_the_inbox,
    ]);
    support::trial::run_mostly_waiting(trials)
}

/// A root on a file system of its own of this size.
struct SmallDisk {
    root: TrainerRoot,
}

impl SmallDisk {
    fn mount(size: &str) -> Result<SmallDisk, String> {
        let root = TrainerRoot::new(&[]);
        std::fs::remove_dir_all(root.path()).unwrap();
        std::fs::create_dir(root.path()).unwrap();
        command("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "small", root.path_str()])?;
        Ok(SmallDisk { root })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A worker that was just killed may still be there.
        for _ in 0..200 {
            if command("umount", &[self.root.path_str()]).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

fn missing_for_small_disk() -> Option<String> {
    SmallDisk::mount("1m").err().map(|error| format!("no mount: {error}"))
}

/// Without the guard, the copy fills the disk, again and again.
fn a_data_file_takes_no_room_from_the_saves_of_the_running_job() {
    for guard in [true, false] {
        let disk = SmallDisk::mount("80m").unwrap();
        let root = &disk.root;
        let mut init = vec!["init", root.path_str(), "--seed", "1", "--set", "device.use=cpu"];
        let guard_setting = format!("guards.space_check={guard}");
        let settings = ["recipe.steps=100000", "limits.settle_s=0", &guard_setting];
        settings.iter().for_each(|setting| init.extend(["--set", setting]));
        assert!(trainer_root::run(&init).status.success());
        let inbox = root.path().join("inbox");
        std::fs::write(inbox.join("small.jsonl"), "{\"text\":\"a\"}\n".repeat(64)).unwrap();
        let daemon = root.daemon_with_checkpoints(3);
        // What is free then is enough for saves, and not for a copy of the file.
        let line = format!("{{\"text\":\"{}\"}}\n", "x".repeat(1000));
        let large = line.repeat(32 * 1024);
        std::fs::write(root.path().join("hidden"), &large).unwrap();
        let filler = root.path().join("filler");
        std::fs::write(&filler, vec![0; free_bytes(&root.path()) - (20 << 20)]).unwrap();
        std::fs::rename(root.path().join("hidden"), inbox.join("large.jsonl")).unwrap();
        let step = || {
            let status: serde_json::Value = serde_json::from_str(&status(root)).unwrap();
            (status["last_saved"].as_u64(), status["last_trouble"].to_string())
        };
        if guard {
            // Saves go on beside it.
            let (before, _) = step();
            wait_for("saves", || step().0 > before.map(|step| step + 100));
        } else {
            wait_for("the full disk", || step().1.contains("no space left"));
        }
        std::fs::remove_file(&filler).unwrap();
        wait_for("the file", || !inbox.join("large.jsonl").exists());
        kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
        let output = finished(daemon);
        let stdout = text(&output.stdout);
        assert_eq!(output.status.code(), Some(15), "{}", all_output(&output));
        assert_eq!(stdout.contains("large.jsonl could not be accepted yet"), guard, "{stdout}");
        assert!(!guard || !stdout.contains("save of step"), "{stdout}");
        assert_ne!(stdout.contains("data.jsonl`: no space left"), guard, "{stdout}");
    }
}

/// A daemon that was killed has hidden a file, and it can't be renamed.
fn a_drain_does_not_end_well_while_data_is_hidden_in_the_inbox() {
    let root = TrainerRoot::new(&["recipe.steps=2", "limits.settle_s=0", "train.save_patience_s=1"]);
    let hidden = root.path().join("inbox/.taken-1");
    std::fs::write(&hidden, "{\"text\":\"a\"}\n").unwrap();
    let hidden = hidden.to_str().unwrap();
    command("mount", &["--bind", hidden, hidden]).unwrap();
    let output = root.spawn_daemon().wait_with_output().unwrap();
    command("umount", &[hidden]).unwrap();
    let said = all_output(&output);
    assert!(output.status.code() == Some(20) && said.contains(".taken-1 could not be restored: "), "{said}");
    assert!(root.drain().contains("1 samples from taken-1.jsonl"));
}

fn free_bytes(path: &Path) -> usize {
    let stat = nix::sys::statvfs::statvfs(path).unwrap();
    (stat.blocks_available() * stat.fragment_size()) as usize
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What this machine lacks to freeze a file system.
fn missing_for_frozen_disk() -> Option<String> {
    if !is_root() {
        return Some("freezing a file system needs root".into());
    }
    let dir = tempfile::tempdir().unwrap();
    match FrozenDisk::mount(dir.path()) {
        Ok(_) => None,
        Err(reason) => Some(format!("no loop mount that can be frozen: {reason}")),
    }
}

fn missing_for_ptrace() -> Option<String> {
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let result = sys::stop_thread(child.id() as i32);
    child.kill().unwrap();
    child.wait().unwrap();
    result.err().map(|error| format!("ptrace: {error}"))
}

fn missing_for_other_user() -> Option<String> {
    let limited = Command::new("prlimit").args(["--nproc=4", "true"]).output();
    match limited {
        _ if !is_root() => Some("another user's limits need root".into()),
        Ok(output) if output.status.success() => None,
        _ => Some("no `prlimit`".into()),
    }
}

/// A file system of its own that can be frozen: whoever writes to it then hangs in the kernel.
struct FrozenDisk {
    place: PathBuf,
}

impl FrozenDisk {
    /// Makes a file system and mounts it below `dir`. Freezes and thaws it once.
    fn mount(dir: &Path) -> Result<FrozenDisk, String> {
        let (image, place) = (dir.join("image"), dir.join("disk"));
        std::fs::create_dir(&place).unwrap();
        std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        command("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()])?;
        command("mount", &["-o", "loop", image.to_str().unwrap(), place.to_str().unwrap()])?;
        let disk = FrozenDisk { place };
        disk.set_frozen(true)?;
        disk.set_frozen(false)?;
        Ok(disk)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), String> {
        command("fsfreeze", &[if frozen { "-f" } else { "-u" }, self.place.to_str().unwrap()])
    }
}

impl Drop for FrozenDisk {
    fn drop(&mut self) {
        // It may not be frozen.
        let _ = self.set_frozen(false);
        for _ in 0..200 {
            if command("umount", &[self.place.to_str().unwrap()]).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

fn command(program: &str, args: &[&str]) -> Result<(), String> {
    match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{program}: {}", text(&output.stderr).trim())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// A root whose checkpoints are on a disk that can be frozen, and its daemon, which has saved there.
fn daemon_on_disk(settings: &[&str]) -> (TrainerRoot, FrozenDisk, Child) {
    let settings =
        [&["recipe.steps=900", "recipe.batch=4", "train.save_every=20", "train.heartbeat_s=1"], settings]
            .concat();
    let root = TrainerRoot::with_job(&settings);
    let disk = FrozenDisk::mount(root.dir.path()).unwrap();
    let place = root.path().join("checkpoints");
    std::fs::remove_dir(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    command("mount", &["--bind", disk.place.to_str().unwrap(), place.to_str().unwrap()]).unwrap();
    // A worker that is left behind keeps standard error open: a pipe would be read for ever.
    let stderr = std::fs::File::create(root.dir.path().join("stderr")).unwrap();
    let daemon = Command::new(PROGRAM)
        .args(["daemon", root.path_str(), "--drain"])
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    wait_for("a checkpoint", || {
        let job = sorted_names(&place).into_iter().find(|name| name.len() == 32);
        job.is_some_and(|job| sorted_names(&place.join(job)).iter().any(|name| name.starts_with("step-")))
    });
    (root, disk, daemon)
}

/// Removes the second mount of the disk, as soon as the worker is gone.
fn unmount(root: &TrainerRoot, disk: &FrozenDisk) {
    let _ = disk.set_frozen(false);
    let place = root.path().join("checkpoints");
    wait_for("the disk to be free", || command("umount", &[place.to_str().unwrap()]).is_ok());
}

fn status(root: &TrainerRoot) -> String {
    std::fs::read_to_string(root.path().join("status.json")).unwrap()
}

fn finished(daemon: Child) -> Output {
    daemon.wait_with_output().unwrap()
}

fn a_disk_that_hangs_for_a_while_costs_nothing() {
    let (root, disk, daemon) = daemon_on_disk(&[]);
    disk.set_frozen(true).unwrap();
    wait_for("the status", || status(&root).contains("hangs in the kernel"));
    disk.set_frozen(false).unwrap();
    let output = finished(daemon);
    unmount(&root, &disk);
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{}", all_output(&output));
    assert!(stdout.contains("hangs in the kernel (in `"), "{stdout}");
    assert!(stdout.contains("the worker goes on") && !stdout.contains("restarted"), "{stdout}");
    let undisturbed = TrainerRoot::with_job(&["recipe.steps=900", "recipe.batch=4"]).drain();
    assert_eq!(adapter_digest(&stdout), adapter_digest(&undisturbed));
}

fn without_kernel_hangs_a_worker_is_killed_that_would_go_on() {
    let (root, disk, daemon) = daemon_on_disk(&["guards.kernel_hangs=false"]);
    disk.set_frozen(true).unwrap();
    wait_for("the status", || status(&root).contains("hangs in the kernel (in `exit`)"));
    disk.set_frozen(false).unwrap();
    let output = finished(daemon);
    unmount(&root, &disk);
    assert!(text(&output.stdout).contains("was killed; restarted"), "{}", all_output(&output));
}

fn a_disk_that_hangs_stops_the_daemon_and_the_job_stays() {
    let (root, disk, daemon) = daemon_on_disk(&["train.save_patience_s=2"]);
    disk.set_frozen(true).unwrap();
    let output = finished(daemon);
    unmount(&root, &disk);
    assert_eq!(output.status.code(), Some(21), "{}", all_output(&output));
    let stderr = std::fs::read_to_string(root.dir.path().join("stderr")).unwrap();
    assert!(stderr.contains("the job stays in the queue"), "{stderr}");
    assert_eq!(sorted_names(&root.path().join("queue/processing")).len(), 1);
    assert!(sorted_names(&root.path().join("failed")).is_empty());
}

fn a_signal_ends_the_daemon_while_the_disk_hangs() {
    let (root, disk, daemon) = daemon_on_disk(&[]);
    disk.set_frozen(true).unwrap();
    wait_for("the status", || status(&root).contains("hangs in the kernel"));
    kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
    let output = finished(daemon);
    unmount(&root, &disk);
    assert_eq!(output.status.code(), Some(15), "{}", all_output(&output));
    assert!(text(&output.stdout).contains("is left behind"), "{}", all_output(&output));
}

/// The worker's main thread is stopped, its other threads are not.
fn a_thread_that_does_not_return_is_noticed_although_others_live() {
    let root = TrainerRoot::with_job(&[
        "recipe.steps=900",
        "recipe.batch=4",
        "train.heartbeat_s=1",
        "train.threads=2",
    ]);
    let daemon = root.daemon_with_checkpoints(1);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).unwrap();
    let worker: i32 = children.trim().parse().unwrap();
    sys::stop_thread(worker).unwrap();
    // Its parent can reap it only after its tracer has.
    let is_gone = |status| matches!(status, Err(_) | Ok(WaitStatus::Signaled(..) | WaitStatus::Exited(..)));
    while !is_gone(waitpid(Pid::from_raw(worker), Some(WaitPidFlag::__WALL))) {}
    let output = finished(daemon);
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{}", all_output(&output));
    assert!(stdout.contains("made no progress in time") && stdout.contains("; restarted"), "{stdout}");
    let undisturbed = TrainerRoot::with_job(&["recipe.steps=900", "recipe.batch=4"]).drain();
    assert_eq!(adapter_digest(&stdout), adapter_digest(&undisturbed));
}

/// With room for all processes and threads, for some, and for none but the daemon.
fn refused_threads_cost_no_job() {
    let settings = ["recipe.steps=20", "train.threads=8", "train.save_patience_s=1"];
    let undisturbed = TrainerRoot::with_job(&settings).drain();
    let mut exit_codes = Vec::new();
    for limit in [40, 14, 9, 6] {
        let root = TrainerRoot::with_job(&settings);
        command("chown", &["-R", &UNUSED_USER.to_string(), root.dir.path().to_str().unwrap()]).unwrap();
        let program = root.dir.path().join("target-trainer");
        std::fs::copy(PROGRAM, &program).unwrap();
        let output = Command::new("prlimit")
            .arg(format!("--nproc={limit}"))
            .arg(&program)
            .args(["daemon", root.path_str(), "--drain"])
            .uid(UNUSED_USER)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let failed = root.path().join("failed");
        assert!(sorted_names(&failed).is_empty(), "{limit}: {}", all_output(&output));
        match output.status.code() {
            Some(0) => {
                assert_eq!(adapter_digest(&text(&output.stdout)), adapter_digest(&undisturbed));
            }
            Some(21) => {
                let output = all_output(&output);
                assert!(output.contains("the job stays in the queue"), "{limit}: {output}");
            }
            code => panic!("{limit}: {code:?} {}", all_output(&output)),
        }
        exit_codes.push(output.status.code());
    }
    assert!(exit_codes.contains(&Some(0)) && exit_codes.contains(&Some(21)), "{exit_codes:?}");
}
