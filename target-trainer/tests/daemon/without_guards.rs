//! Runs the built command twice through each of a number of faults: with the protection against it, and with
//! that guard off. The second run must go wrong in the way that the guard prevents. So each of these guards
//! is known to be what protects, and each check is known to be able to fail. The guards that scenarios remove
//! are not here.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::trainer_root::{PROGRAM, TrainerRoot, all_output, run, sorted_names, text, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A root with this guard on or off.
fn root(guard: &str, is_on: bool, settings: &[&str]) -> TrainerRoot {
    let guard = format!("guards.{guard}={is_on}");
    TrainerRoot::new(&[&[guard.as_str()], settings].concat())
}

/// The same with a job in the inbox.
fn root_with_job(guard: &str, is_on: bool, settings: &[&str]) -> TrainerRoot {
    let guard = format!("guards.{guard}={is_on}");
    TrainerRoot::with_job(&[&[guard.as_str()], settings].concat())
}

/// A daemon whose output goes to the file `stdout` beside the root.
fn start_daemon(root: &TrainerRoot) -> Child {
    let open = |name| std::fs::File::create(root.dir.path().join(name)).unwrap();
    Command::new(PROGRAM)
        .args(["daemon", root.path_str()])
        .stdout(open("stdout"))
        .stderr(open("stderr"))
        .spawn()
        .unwrap()
}

fn printed(root: &TrainerRoot) -> String {
    std::fs::read_to_string(root.dir.path().join("stdout")).unwrap()
}

fn signal(daemon: &Child, signal: Signal) {
    kill(Pid::from_raw(daemon.id() as i32), signal).unwrap();
}

fn stop(mut daemon: Child) {
    signal(&daemon, Signal::SIGTERM);
    daemon.wait().unwrap();
}

fn worker_of(daemon: &Child) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", daemon.id());
    let read = || std::fs::read_to_string(&children).unwrap_or_default();
    wait_for("a worker", || !read().trim().is_empty());
    Pid::from_raw(read().trim().parse().unwrap())
}

/// The value of a line of `/proc/PID/status`, in KiB.
fn memory_kib(pid: Pid, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key));
    value.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn submit_names() {
    for is_on in [true, false] {
        let root = root("submit_names", is_on, &["recipe.steps=2", "limits.settle_s=0"]);
        let submits: Vec<Child> = (0..40)
            .map(|number: usize| {
                let dir = root.dir.path().join(number.to_string());
                std::fs::create_dir(&dir).unwrap();
                std::fs::write(dir.join("same.jsonl"), format!("{{\"text\":\"{number}\"}}\n")).unwrap();
                Command::new(PROGRAM)
                    .args(["submit", root.path_str(), dir.join("same.jsonl").to_str().unwrap()])
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        assert!(submits.into_iter().all(|mut submit| submit.wait().unwrap().success()));
        let arrived = sorted_names(&root.path().join("inbox")).len();
        assert_eq!(arrived, if is_on { 40 } else { 1 });
        // A name that the daemon ignores.
        let hidden = root.dir.path().join(".hidden.jsonl");
        std::fs::write(&hidden, "{\"text\":\"hidden\"}\n").unwrap();
        assert!(run(&["submit", root.path_str(), hidden.to_str().unwrap()]).status.success());
        assert_eq!(root.drain().contains("from hidden.jsonl"), is_on);
    }
}

#[test]
fn settled_files() {
    for is_on in [true, false] {
        let root = root("settled_files", is_on, &["recipe.steps=2", "limits.settle_s=1"]);
        let file = root.path().join("inbox/slow.jsonl");
        let mut writer = OpenOptions::new().append(true).create(true).open(&file).unwrap();
        writer.write_all(b"{\"text\":\"one\"}\n").unwrap();
        let daemon = start_daemon(&root);
        if is_on {
            std::thread::sleep(Duration::from_millis(1500));
        } else {
            wait_for("the taking", || printed(&root).contains("accepted job"));
        }
        writer.write_all(b"{\"text\":\"two\"}\n").unwrap();
        drop(writer);
        wait_for("the job", || printed(&root).contains("finished job"));
        stop(daemon);
        assert_eq!(printed(&root).contains("2 samples from slow.jsonl"), is_on, "{}", printed(&root));
        assert!(!file.exists(), "without the guard, the second line is lost");
    }
}

#[test]
fn base_check() {
    let scaling = r#"{"rope_type":"llama3","factor":32.0,"original_max_position_embeddings":8192}"#;
    for is_on in [true, false] {
        for (key, value) in [("rope_scaling", scaling), ("hidden_act", "\"gelu\""), ("bos_token_id", "1")] {
            let settings = ["recipe.steps=2", "limits.settle_s=0", "train.save_patience_s=0"];
            let root = root_with_job("base_check", is_on, &settings);
            let path = root.path().join("base/config.json");
            let mut config: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            config[key] = serde_json::from_str(value).unwrap();
            std::fs::write(&path, config.to_string()).unwrap();
            let output = root.spawn_daemon().wait_with_output().unwrap();
            let expected = if is_on { 11 } else { 0 };
            assert_eq!(output.status.code(), Some(expected), "{key}: {}", all_output(&output));
            assert_eq!(all_output(&output).contains(&format!("`{key}` is ")), is_on);
            // Without the guard, the wrong model is trained without a word.
            assert_ne!(text(&output.stdout).contains("finished job"), is_on);
        }
    }
}

#[test]
fn learned_check() {
    for is_on in [true, false] {
        let settings = ["recipe.steps=3", "limits.settle_s=0", "train.non_finite_budget=100"];
        let root = root("learned_check", is_on, &settings);
        // Nothing to learn, and nothing that can be learned.
        for (name, weight) in [("zero", "0"), ("overflow", "3.0e38")] {
            let line = format!("{{\"text\":\"a\",\"weight\":{weight}}}\n").repeat(8);
            std::fs::write(root.path().join(format!("inbox/{name}.jsonl")), line).unwrap();
        }
        let output = root.spawn_daemon().wait_with_output().unwrap();
        let expected = if is_on { 20 } else { 0 };
        assert_eq!(output.status.code(), Some(expected), "{}", all_output(&output));
        let finished = text(&output.stdout).matches("finished job").count();
        assert_eq!(finished, if is_on { 0 } else { 2 }, "{}", all_output(&output));
    }
}

#[test]
fn escape_text() {
    for is_on in [true, false] {
        let root = root("escape_text", is_on, &["recipe.steps=2", "limits.settle_s=0"]);
        let line = "{\"x\\nsaved step 999999\":1}\n";
        std::fs::write(root.path().join("inbox/data.jsonl"), line).unwrap();
        let output = root.drain();
        assert!(output.contains("rejected data.jsonl"), "{output}");
        assert_ne!(output.lines().any(|line| line.starts_with("saved step 999999")), is_on, "{output}");
    }
}

#[test]
fn output_queue() {
    for is_on in [true, false] {
        let root = root_with_job("output_queue", is_on, &["recipe.steps=100000"]);
        let mut daemon = root.spawn_daemon();
        let mut stdout = daemon.stdout.take().unwrap();
        let mut stderr = daemon.stderr.take().unwrap();
        nix::fcntl::fcntl(&stdout, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let status = || std::fs::read_to_string(root.path().join("status.json")).unwrap_or_default();
        wait_for("steps", || status().contains("\"training\""));
        // The pipe is full after about 150 lines.
        let checkpoints = || {
            let dir = root.path().join("checkpoints");
            let job = sorted_names(&dir).first().map(|job| dir.join(job));
            job.and_then(|job| sorted_names(&job).last().cloned()) > Some("step-00000400".into())
        };
        wait_for("400 steps", checkpoints);
        signal(&daemon, Signal::SIGTERM);
        if is_on {
            wait_for("the end", || daemon.try_wait().unwrap().is_some());
        } else {
            // It does not even see the signal.
            std::thread::sleep(Duration::from_secs(4));
            assert!(daemon.try_wait().unwrap().is_none());
        }
        let (mut read, mut errors) = (String::new(), String::new());
        stdout.read_to_string(&mut read).unwrap();
        stderr.read_to_string(&mut errors).unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(15), "{errors}");
    }
}

#[test]
fn machine_faults() {
    for is_on in [true, false] {
        let root =
            root_with_job("machine_faults", is_on, &["recipe.steps=100000", "train.save_patience_s=0"]);
        root.kill_after_checkpoints(1);
        std::fs::remove_file(root.path().join("base/model.safetensors")).unwrap();
        let output = root.spawn_daemon().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(if is_on { 11 } else { 20 }), "{}", all_output(&output));
        assert_eq!(sorted_names(&root.path().join("failed")).is_empty(), is_on, "{}", all_output(&output));
    }
}

#[test]
fn job_identity() {
    for is_on in [true, false] {
        let root = root_with_job("job_identity", is_on, &["recipe.steps=3"]);
        root.drain();
        let path = root.path().join("settings.toml");
        let settings = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, settings.replacen("rank = 8", "rank = 4", 1)).unwrap();
        let data = root.dir.path().join("sums.jsonl");
        assert!(run(&["submit", root.path_str(), data.to_str().unwrap()]).status.success());
        let output = root.drain();
        assert_eq!(output.contains("finished job"), is_on, "{output}");
        assert_ne!(output.contains("duplicate"), is_on, "without the guard, the data is thrown away");
    }
}

#[test]
fn running_program() {
    for is_on in [true, false] {
        let root = root_with_job("running_program", is_on, &["recipe.steps=100000", "train.backoff_ms=0"]);
        let program = root.dir.path().join("program");
        std::fs::copy(PROGRAM, &program).unwrap();
        let mut daemon = Command::new(&program)
            .args(["daemon", root.path_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let first = worker_of(&daemon);
        std::fs::remove_file(&program).unwrap();
        kill(first, Signal::SIGKILL).unwrap();
        if is_on {
            wait_for("another worker", || worker_of(&daemon) != first);
            stop(daemon);
        } else {
            wait_for("the end", || daemon.try_wait().unwrap().is_some());
            assert_eq!(daemon.wait().unwrap().code(), Some(21));
        }
    }
}

#[test]
fn no_links() {
    for is_on in [true, false] {
        for name in ["checkpoints", "done", "failed"] {
            let root = root_with_job("no_links", is_on, &["recipe.steps=5", "limits.settle_s=0"]);
            std::fs::write(root.path().join("inbox/bad.jsonl"), "[]").unwrap();
            let (dir, outside) = (root.path().join(name), root.dir.path().join("outside"));
            std::fs::rename(&dir, &outside).unwrap();
            std::os::unix::fs::symlink(&outside, &dir).unwrap();
            let output = root.spawn_daemon().wait_with_output().unwrap();
            let expected = if is_on { 2 } else { 0 };
            assert_eq!(output.status.code(), Some(expected), "{name}: {}", all_output(&output));
            assert_eq!(sorted_names(&outside).is_empty(), is_on, "{name}");
        }
    }
}

/// As when a laptop is closed: all processes stop and go on, the daemon first. Returns whether the worker was
/// replaced.
fn pause_of_all_processes(is_on: bool) -> bool {
    let root = root_with_job("pause_allowance", is_on, &["recipe.steps=1000000", "train.heartbeat_s=4"]);
    let daemon = start_daemon(&root);
    wait_for("a checkpoint", || printed(&root).contains("saved step"));
    let worker = worker_of(&daemon);
    kill(worker, Signal::SIGSTOP).unwrap();
    // So that the daemon has read all that the worker has said.
    std::thread::sleep(Duration::from_millis(500));
    signal(&daemon, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(5));
    signal(&daemon, Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(500));
    // It may have been killed.
    let _ = kill(worker, Signal::SIGCONT);
    let before = printed(&root).len();
    wait_for("steps", || printed(&root)[before..].contains("saved step"));
    stop(daemon);
    printed(&root).contains("restarted")
}

#[test]
fn pause_allowance() {
    let without = std::thread::spawn(|| pause_of_all_processes(false));
    assert!(!pause_of_all_processes(true));
    assert!(without.join().unwrap());
}

/// Memory follows a setting and not the data: here many short samples, which need much memory each.
#[test]
fn sample_memory() {
    let lines = "{\"text\":\"a\"}\n{\"text\":\"b\"}\n".repeat(300_000);
    for (bytes, is_small) in [("1048576", true), ("1000000000000", false)] {
        let memory = format!("train.sample_memory_bytes={bytes}");
        let root = TrainerRoot::new(&["recipe.steps=100000", "limits.settle_s=0", &memory]);
        std::fs::write(root.path().join("inbox/data.jsonl"), &lines).unwrap();
        let daemon = start_daemon(&root);
        wait_for("steps", || printed(&root).contains("saved step"));
        let (daemon_pid, worker) = (Pid::from_raw(daemon.id() as i32), worker_of(&daemon));
        let (of_daemon, of_worker) = (memory_kib(daemon_pid, "VmHWM:"), memory_kib(worker, "VmHWM:"));
        stop(daemon);
        println!("sample_memory_bytes {bytes}: daemon {of_daemon} KiB, worker {of_worker} KiB");
        assert!(of_daemon < 48 << 10, "{of_daemon}");
        assert_eq!(of_worker < 64 << 10, is_small, "{of_worker}");
    }
}
