//! Runs the daemon while its surroundings go wrong: nobody reads its output, its terminal or its program goes
//! away, the queue holds strange entries. Checks that it goes on, and that its end tells the truth.

#![expect(clippy::unwrap_used, reason = "a test fails at the first unexpected value")]

#[expect(dead_code, reason = "this test uses a part of it")]
#[path = "support/trainer_root.rs"]
mod trainer_root;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use trainer_root::{PROGRAM, TrainerRoot, all_output, sorted_names, text, wait_for};

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

fn status(root: &TrainerRoot) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(root.path().join("status.json")).unwrap()).unwrap()
}

fn worker_of(daemon: &Child) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", daemon.id());
    wait_for("a worker", || !std::fs::read_to_string(&children).unwrap().trim().is_empty());
    Pid::from_raw(std::fs::read_to_string(&children).unwrap().trim().parse().unwrap())
}

#[test]
fn output_that_nobody_reads_holds_nothing_up() {
    let root = TrainerRoot::with_job(&["recipe.steps=400"]);
    let mut daemon = root.spawn_daemon();
    // A small pipe is full after a few lines.
    let (stdout, stderr) = (daemon.stdout.take().unwrap(), daemon.stderr.take().unwrap());
    let size = nix::fcntl::fcntl(&stdout, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096));
    assert_eq!(size, Ok(4096));
    wait_for("the daemon to finish", || daemon.try_wait().unwrap().is_some());
    assert!(daemon.wait().unwrap().success());
    assert_eq!(sorted_names(&root.path().join("done")).len(), 1);
    drop((stdout, stderr));
}

#[test]
fn sighup_saves_and_ends_the_daemon_unless_it_is_ignored() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    let daemon = root.daemon_with_checkpoints(1);
    // A terminal that goes away signals the daemon and its worker.
    let worker = worker_of(&daemon);
    kill(worker, Signal::SIGHUP).unwrap();
    send(&daemon, Signal::SIGHUP);
    let output = daemon.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(15), "{}", all_output(&output));
    assert!(text(&output.stdout).contains("shut down by a signal"), "{}", all_output(&output));
    assert!(root.verify().status.success());
    // As `nohup` starts it.
    let command = format!("trap '' HUP; exec {PROGRAM} daemon {} --drain", root.path_str());
    let daemon = Command::new("sh").args(["-c", &command]).stdout(Stdio::piped()).spawn().unwrap();
    let steps = || status(&root)["step"].as_u64().unwrap_or(0);
    let before = steps();
    wait_for("steps", || status(&root)["pid"] == daemon.id() && steps() > before);
    send(&daemon, Signal::SIGHUP);
    let before = steps();
    wait_for("more steps", || steps() > before + 50);
    send(&daemon, Signal::SIGTERM);
    assert_eq!(daemon.wait_with_output().unwrap().status.code(), Some(15));
}

#[test]
fn a_daemon_whose_program_was_replaced_starts_workers_as_before() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000", "train.backoff_ms=0"]);
    let program = root.dir.path().join("program");
    std::fs::copy(PROGRAM, &program).unwrap();
    let daemon = Command::new(&program)
        .args(["daemon", root.path_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let first = worker_of(&daemon);
    std::fs::remove_file(&program).unwrap();
    std::fs::write(&program, "not a program").unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    wait_for("another worker", || worker_of(&daemon) != first);
    let is_worker = |pid: Pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "target-trainer\n")
    };
    wait_for("its name", || is_worker(worker_of(&daemon)));
    send(&daemon, Signal::SIGTERM);
    let output = daemon.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(15), "{}", all_output(&output));
}

#[test]
fn a_strange_entry_in_the_queue_is_reported_once_and_the_exit_code_tells_of_it() {
    let root = TrainerRoot::with_job(&["recipe.steps=2"]);
    let queue = root.path().join("queue/processing");
    std::fs::create_dir(queue.join("stray")).unwrap();
    std::fs::create_dir(queue.join("broken")).unwrap();
    std::fs::write(queue.join("broken/job.json"), "{").unwrap();
    let daemon = Command::new(PROGRAM)
        .args(["daemon", root.path_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("the job", || sorted_names(&root.path().join("done")).len() == 1);
    // Long enough for a few looks at the queue.
    std::thread::sleep(std::time::Duration::from_millis(1600));
    send(&daemon, Signal::SIGTERM);
    let output = daemon.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "nothing is left to do: {}", all_output(&output));
    let log = std::fs::read_to_string(root.path().join("logs/daemon.log")).unwrap();
    assert_eq!(log.matches("can't be read and is ignored").count(), 2, "{log}");
    let drained = root.spawn_daemon().wait_with_output().unwrap();
    assert_eq!(drained.status.code(), Some(20), "{}", all_output(&drained));
    assert!(text(&drained.stderr).contains("queue entry `broken` can't be read"), "{}", all_output(&drained));
}

fn ended(root: &TrainerRoot) -> serde_json::Value {
    status(root)["ended"].clone()
}

#[test]
fn the_exit_code_and_the_status_tell_how_the_daemon_ended() {
    let root = TrainerRoot::with_job(&["recipe.steps=2"]);
    root.drain();
    assert_eq!((&status(&root)["state"], &ended(&root)["exit_code"]), (&"stopped".into(), &0.into()));

    let failing = TrainerRoot::with_job(&["recipe.steps=2", "train.max_crashes=1"]);
    std::fs::write(failing.path().join("base/config.json"), "{}").unwrap();
    failing.drain_with_failed_job();
    assert_eq!(ended(&failing)["exit_code"], 20);
    // The failure was told; the next daemon has nothing to do.
    failing.drain();
    assert_eq!(ended(&failing)["exit_code"], 0);

    let long = TrainerRoot::with_job(&["recipe.steps=100000"]);
    let daemon = long.daemon_with_checkpoints(1);
    assert_eq!(ended(&long), serde_json::Value::Null);
    send(&daemon, Signal::SIGTERM);
    daemon.wait_with_output().unwrap();
    assert_eq!((&status(&long)["state"], &ended(&long)["exit_code"]), (&"stopped".into(), &15.into()));

    let idle = TrainerRoot::new(&[]);
    let daemon = Command::new(PROGRAM).args(["daemon", idle.path_str()]).spawn().unwrap();
    wait_for("the status", || idle.path().join("status.json").exists());
    send(&daemon, Signal::SIGTERM);
    assert_eq!(daemon.wait_with_output().unwrap().status.code(), Some(0));

    // Stuck: the queue is a file.
    let stuck = TrainerRoot::with_job(&["train.save_patience_s=0"]);
    std::fs::create_dir_all(stuck.path().join("failed")).unwrap();
    replace_by_file(&stuck.path().join("done"));
    let output = stuck.spawn_daemon().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(13), "{}", all_output(&output));
}

fn replace_by_file(dir: &Path) {
    std::fs::remove_dir_all(dir).unwrap();
    std::fs::write(dir, "").unwrap();
}

#[test]
fn a_base_or_a_recipe_that_teaches_nothing_never_finishes_a_job() {
    // All steps are skipped: with a budget for all of them, no update is made.
    let skipped = TrainerRoot::new(&["recipe.steps=5", "recipe.batch=8", "train.non_finite_budget=100"]);
    let line = "{\"text\":\"a\",\"weight\":3.0e38}\n".repeat(8);
    let data = skipped.dir.path().join("d.jsonl");
    std::fs::write(&data, line).unwrap();
    assert!(trainer_root::run(&["submit", skipped.path_str(), data.to_str().unwrap()]).status.success());
    let output = skipped.drain_with_failed_job();
    assert!(output.contains("nothing was learned in 5 steps with 0 updates"), "{output}");
    assert!(!output.contains("finished job"), "{output}");

    let nan = TrainerRoot::with_job(&["recipe.steps=5"]);
    let weights = nan.path().join("base/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let output = nan.drain_with_failed_job();
    assert!(output.contains("has a value that is not finite"), "{output}");
}
