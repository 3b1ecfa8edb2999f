//! Runs the daemon while its surroundings go wrong: nobody reads its output, its terminal or its program goes
//! away, the queue holds strange entries. Checks that it goes on, and that its end tells the truth.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::trainer_root::{PROGRAM, TrainerRoot, all_output, log_lines, sorted_names, text, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

/// One that schedulers, people and power supplies send, to the daemon alone and to all of its processes, and
/// several at once.
#[test]
fn every_signal_that_asks_to_end_saves_first() {
    use Signal::{SIGHUP, SIGINT, SIGPWR, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    let mut step = 0;
    for (signals, to_worker) in [
        (&[SIGINT][..], false),
        (&[SIGTERM, SIGTERM], true),
        (&[SIGUSR1], false),
        (&[SIGUSR2], true),
        (&[SIGPWR], true),
        (&[SIGXCPU], false),
        (&[SIGHUP, SIGTERM, SIGINT, SIGUSR1], true),
    ] {
        let daemon = root.spawn_daemon();
        wait_for("the daemon", || {
            root.path().join("status.json").exists() && status(&root)["pid"] == daemon.id()
        });
        wait_for("steps", || status(&root)["step"].as_u64() > Some(step));
        let worker = worker_of(&daemon);
        for signal in signals {
            if to_worker {
                // It may have ended.
                let _ = kill(worker, *signal);
            }
            let _ = kill(Pid::from_raw(daemon.id() as i32), *signal);
        }
        let output = daemon.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(15), "{signals:?}: {}", all_output(&output));
        let stdout = text(&output.stdout);
        let last = |prefix| {
            let line = stdout.lines().rev().find_map(|line| line.strip_prefix(prefix));
            line.and_then(|rest: &str| rest.split(' ').next()?.parse::<u64>().ok())
        };
        assert_eq!(last("saved step "), last("step "), "{signals:?}: {stdout}");
        step = last("saved step ").unwrap();
        assert!(root.verify().status.success());
    }
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
    std::thread::sleep(Duration::from_millis(1600));
    send(&daemon, Signal::SIGTERM);
    let output = daemon.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(20), "{}", all_output(&output));
    assert!(text(&output.stdout).contains("only queue entry `broken` is left"), "{}", all_output(&output));
    let log = log_lines(&root.path());
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

    let failing = TrainerRoot::with_job(&["recipe.steps=100000", "train.max_crashes=1"]);
    failing.kill_after_checkpoints(1);
    let queue = failing.path().join("queue/processing");
    let data = queue.join(&sorted_names(&queue)[0]).join("data.jsonl");
    std::fs::write(data, "{\"text\":\"other\"}\n").unwrap();
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

#[test]
fn a_base_that_is_missing_or_of_another_kind_moves_no_job_to_failed() {
    let root = TrainerRoot::with_job(&["recipe.steps=2", "limits.settle_s=0"]);
    for number in 0..2 {
        let data = format!("{{\"text\":\"sample {number}\"}}\n");
        std::fs::write(root.path().join(format!("inbox/{number}.jsonl")), data).unwrap();
    }
    let (base, away) = (root.path().join("base"), root.path().join("away"));
    // Missing for a moment.
    std::fs::rename(base.join("model.safetensors"), &away).unwrap();
    let daemon = root.spawn_daemon();
    wait_for("the wait", || {
        root.path().join("status.json").exists()
            && status(&root)["last_trouble"]
                .as_str()
                .is_some_and(|trouble| trouble.contains("model.safetensors"))
    });
    std::fs::rename(&away, base.join("model.safetensors")).unwrap();
    let output = daemon.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    assert_eq!(sorted_names(&root.path().join("done")).len(), 3);
    // For good, unreadable in each way.
    for spoil in ["missing", "directory", "not json"] {
        let root = TrainerRoot::with_job(&["recipe.steps=2", "train.save_patience_s=0"]);
        let config = root.path().join("base/config.json");
        std::fs::remove_file(&config).unwrap();
        match spoil {
            "directory" => std::fs::create_dir(&config).unwrap(),
            "not json" => std::fs::write(&config, "not json").unwrap(),
            _ => {}
        }
        let output = root.spawn_daemon().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(11), "{spoil}: {}", all_output(&output));
        assert!(sorted_names(&root.path().join("failed")).is_empty());
    }
}

#[test]
fn a_limit_on_the_size_of_files_stops_the_daemon_and_the_job_stays() {
    let root = TrainerRoot::with_job(&["recipe.steps=20", "train.save_patience_s=1"]);
    // In blocks of 512 bytes: the data fits, a checkpoint does not.
    let command = format!("ulimit -f 40; exec {PROGRAM} daemon {} --drain", root.path_str());
    let output = Command::new("sh").args(["-c", &command]).output().unwrap();
    assert_eq!(output.status.code(), Some(13), "{}", all_output(&output));
    assert!(
        all_output(&output).contains("the limit on the size of files is reached"),
        "{}",
        all_output(&output)
    );
    assert_eq!(sorted_names(&root.path().join("queue/processing")).len(), 1);
    assert!(root.drain().contains("finished job"));
}

#[test]
fn a_checkpoint_of_a_newer_version_stops_the_daemon_and_stays() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    root.kill_after_checkpoints(2);
    let newest = root.newest_checkpoint();
    let manifest = std::fs::read_to_string(newest.join("manifest.json")).unwrap();
    let newer = manifest.replacen("\"format\": 1", "\"new\": 1, \"format\": 2", 1);
    assert_ne!(newer, manifest);
    std::fs::write(newest.join("manifest.json"), newer).unwrap();
    let output = root.spawn_daemon().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(22), "{}", all_output(&output));
    assert!(text(&output.stderr).contains("is of a newer version"), "{}", all_output(&output));
    assert!(newest.exists() && sorted_names(&root.path().join("failed")).is_empty());
}

#[test]
fn checkpoints_are_elsewhere_only_if_a_setting_says_so() {
    let elsewhere = tempfile::tempdir().unwrap();
    let place = elsewhere.path().join("place");
    let setting = format!("train.checkpoint_dir=\"{}\"", place.display());
    let root = TrainerRoot::with_job(&["recipe.steps=20", &setting]);
    root.drain();
    assert_eq!(sorted_names(&place).into_iter().filter(|name| name != "daemon.lock").count(), 1);
    assert!(!root.path().join("checkpoints").exists());
    // Two roots that name one place do not use it at the same time.
    let long = TrainerRoot::with_job(&["recipe.steps=100000", &setting]);
    let mut first = long.spawn_daemon();
    let note = || std::fs::read_to_string(place.join("daemon.lock")).unwrap_or_default();
    wait_for("the lock", || note().contains(&format!("pid {}", first.id())));
    let output = root.spawn_daemon().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", all_output(&output));
    assert!(text(&output.stderr).contains("is in use by another daemon"), "{}", all_output(&output));
    assert_eq!(root.status()["ended"]["exit_code"], 10, "{}", root.status());
    assert!(text(&output.stderr).contains(&format!("pid {} of `{}`", first.id(), long.path().display())));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(text(&root.verify().stdout).contains("no damage found"));
    // A link in the place of any directory that is written to.
    for name in ["inbox", "queue", "queue/processing", "done", "failed", "checkpoints", "logs"] {
        let root = TrainerRoot::with_job(&["recipe.steps=2"]);
        let (dir, outside) = (root.path().join(name), root.dir.path().join("outside"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::rename(&dir, &outside).unwrap();
        std::os::unix::fs::symlink(&outside, &dir).unwrap();
        let before = sorted_names(&outside);
        let output = root.spawn_daemon().wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {}", all_output(&output));
        assert!(text(&output.stderr).contains("it is a symbolic link"), "{}", all_output(&output));
        assert_eq!(sorted_names(&outside), before);
    }
    // One that appears while a job is trained.
    let root = TrainerRoot::with_job(&["recipe.steps=3000", "train.save_patience_s=1"]);
    let daemon = root.daemon_with_checkpoints(1);
    let (dir, outside) = (root.path().join("checkpoints"), root.dir.path().join("outside"));
    std::fs::rename(&dir, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &dir).unwrap();
    let newest = || sorted_names(&outside.join(&sorted_names(&outside)[0])).last().cloned();
    let before = newest();
    let output = daemon.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(13), "{}", all_output(&output));
    // The save that was running when the link appeared may be there.
    let saves = text(&output.stdout).matches("it is a symbolic link").count();
    assert!(saves > 100 && newest() <= before.map(|name| format!("{name}9")), "{saves}");
    assert_eq!(sorted_names(&root.path().join("queue/processing")).len(), 1);
}

#[test]
fn pipes_and_devices_in_the_place_of_files_hang_nobody() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    root.kill_after_checkpoints(3);
    let pipe = |path: &Path| {
        let _ = std::fs::remove_file(path);
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    };
    pipe(&root.newest_checkpoint().join("state.json"));
    let queue = root.path().join("queue/processing");
    std::fs::create_dir(queue.join("pipe")).unwrap();
    pipe(&queue.join("pipe/job.json"));
    std::fs::create_dir(root.path().join("done/x")).unwrap();
    pipe(&root.path().join("done/x/report.json"));
    let verify = root.verify();
    assert_eq!(verify.status.code(), Some(1));
    assert_eq!(all_output(&verify).matches("a pipe or a device, not a regular file").count(), 3);
    let daemon = root.spawn_daemon();
    wait_for("steps", || status(&root)["pid"] == daemon.id() && status(&root)["step"].as_u64() > Some(0));
    wait_for("the log", || log_lines(&root.path()).contains("`pipe`"));
    send(&daemon, Signal::SIGTERM);
    let output = daemon.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(15), "{}", all_output(&output));
    assert!(text(&output.stdout).contains("skipped checkpoint step-"), "{}", all_output(&output));
}

#[test]
fn a_pipe_in_the_place_of_any_file_that_is_read_hangs_nobody() {
    // The log file of today, and that of tomorrow if this runs at midnight.
    let today = jiff::Zoned::now().date();
    let logs = [today, today.tomorrow().unwrap()].map(|day| format!("logs/daemon-{day}.log"));
    for (name, command, code) in [
        ("base/config.json", "daemon", 11),
        ("base/model.safetensors", "daemon", 11),
        ("settings.toml", "daemon", 2),
        ("settings.toml", "verify", 2),
        ("daemon.lock", "daemon", 13),
        ("status.json", "status", 3),
        ("status.json", "daemon", 0),
        // A strange entry of the queue is logged.
        (logs[0].as_str(), "daemon", 20),
        (logs[1].as_str(), "daemon", 20),
    ] {
        let root = TrainerRoot::with_job(&["recipe.steps=2", "train.save_patience_s=0"]);
        let path = root.path().join(name);
        let _ = std::fs::remove_file(&path);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        if code == 20 {
            std::fs::create_dir(root.path().join("queue/processing/stray")).unwrap();
        }
        let args: &[&str] = if command == "daemon" {
            &["daemon", root.path_str(), "--drain"]
        } else {
            &[command, root.path_str()]
        };
        let output = crate::trainer_root::run(args);
        assert_eq!(output.status.code(), Some(code), "{name} {command}: {}", all_output(&output));
        assert_eq!(sorted_names(&root.path().join("failed")).len(), 0);
    }
}

/// Somebody empties `done/` in the moment in which the result comes.
#[test]
fn a_job_leaves_the_queue_only_if_its_result_is_there() {
    let root = TrainerRoot::with_job(&["recipe.steps=600", "train.max_crashes=1000"]);
    let daemon = Command::new(PROGRAM)
        .args(["daemon", root.path_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (done, away) = (root.path().join("done"), root.dir.path().join("away"));
    std::fs::create_dir(&away).unwrap();
    let checkpoints = root.path().join("checkpoints");
    // The worker needs nothing of the daemon any more.
    wait_for("a save", || checkpoints.is_dir() && !sorted_names(&checkpoints).is_empty());
    let worker = worker_of(&daemon);
    // The daemon does not see the end before the result is gone.
    send(&daemon, Signal::SIGSTOP);
    wait_for("the result", || sorted_names(&done).first().is_some_and(|name| !name.starts_with('.')));
    wait_for("the end of the worker", || {
        let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    let job = sorted_names(&done)[0].clone();
    std::fs::rename(done.join(&job), away.join(&job)).unwrap();
    send(&daemon, Signal::SIGCONT);
    wait_for("the result again", || done.join(&job).join("report.json").exists());
    wait_for("the queue", || sorted_names(&root.path().join("queue/processing")).is_empty());
    send(&daemon, Signal::SIGTERM);
    let output = daemon.wait_with_output().unwrap();
    assert!(
        text(&output.stdout).contains("worker ended without a result; restarted"),
        "{}",
        all_output(&output)
    );
    let adapter = |dir: &Path| std::fs::read(dir.join(&job).join("adapter_model.safetensors")).unwrap();
    assert_eq!(adapter(&done), adapter(&away));
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
    assert!(
        crate::trainer_root::run(&["submit", skipped.path_str(), data.to_str().unwrap()]).status.success()
    );
    let output = skipped.drain_with_failed_job();
    assert!(output.contains("nothing was learned in 5 steps with 0 updates"), "{output}");
    assert!(!output.contains("finished job"), "{output}");

    let nan = TrainerRoot::with_job(&["recipe.steps=5"]);
    let weights = nan.path().join("base/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let output = nan.spawn_daemon().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(11), "{}", all_output(&output));
    assert!(text(&output.stderr).contains("has a value that is not finite"), "{}", all_output(&output));
    assert_eq!(sorted_names(&nan.path().join("queue/processing")).len(), 1);
}

#[test]
fn a_limit_of_the_machine_that_is_nearly_reached_is_said_and_no_other() {
    let warns = |limit: &str| {
        let root = TrainerRoot::with_job(&[]);
        let command = format!("{limit} exec {PROGRAM} daemon {} --drain", root.path_str());
        let output = Command::new("bash").args(["-c", &command]).output().unwrap();
        assert!(output.status.success(), "{}", all_output(&output));
        let text = all_output(&output);
        let warnings = text.lines().filter(|line| line.starts_with("host warning: a limit"));
        warnings.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(warns(""), [""; 0]);
    // The kernel holds only an ordinary user to it.
    if nix::unistd::getuid().is_root() {
        let warnings = warns("ulimit -S -u 1;");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("of 1 processes and threads of this user"), "{warnings:?}");
    }
}
