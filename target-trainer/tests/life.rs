//! The built command: killed, stopped, damaged, misfed. What it says and what it leaves.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_target-trainer");

/// A root with one job of sums in its inbox.
struct TrainerRoot {
    dir: TempDir,
}

impl TrainerRoot {
    fn new(settings: &[&str]) -> TrainerRoot {
        let root = TrainerRoot { dir: tempfile::tempdir().unwrap() };
        // Also where there is a card: what is counted and timed here is the CPU's.
        let mut init = vec!["init", root.path_str(), "--seed", "1", "--set", "device.use=cpu"];
        settings.iter().for_each(|setting| init.extend(["--set", setting]));
        assert!(run(&init).status.success());
        root
    }

    fn with_job(settings: &[&str]) -> TrainerRoot {
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

    fn path(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn path_str(&self) -> &str {
        // Leaked: a test's few bytes, so that arguments can be written in a line.
        Box::leak(self.path().display().to_string().into_boxed_str())
    }

    fn spawn_daemon(&self) -> Child {
        Command::new(PROGRAM)
            .args(["daemon", self.path_str(), "--drain"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs the daemon until everything is done; what it said.
    fn drain(&self) -> String {
        let output = self.spawn_daemon().wait_with_output().unwrap();
        let said = text(&output.stdout);
        assert!(output.status.success(), "{:?} {said} {}", output.status, text(&output.stderr));
        said
    }

    /// A daemon under way, with so many checkpoints made.
    fn daemon_with_checkpoints(&self, checkpoints: usize) -> Child {
        let daemon = self.spawn_daemon();
        let jobs = self.path().join("checkpoints");
        let made =
            |job: &str| sorted_names(&jobs.join(job)).iter().filter(|name| name.starts_with("step-")).count();
        wait_for("checkpoints", || {
            jobs.is_dir() && sorted_names(&jobs).first().is_some_and(|job| made(job) >= checkpoints)
        });
        daemon
    }

    /// Killed with so many checkpoints made.
    fn kill_after_checkpoints(&self, checkpoints: usize) {
        let mut daemon = self.daemon_with_checkpoints(checkpoints);
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Bytes of the one adapter in `done/`.
    fn finished_adapter(&self) -> Vec<u8> {
        let done = self.path().join("done");
        std::fs::read(done.join(&sorted_names(&done)[0]).join("adapter_model.safetensors")).unwrap()
    }

    fn job_id(&self) -> String {
        sorted_names(&self.path().join("checkpoints"))[0].clone()
    }

    fn newest_checkpoint(&self) -> PathBuf {
        let dir = self.path().join("checkpoints").join(self.job_id());
        dir.join(sorted_names(&dir).last().unwrap())
    }

    fn verify(&self) -> Output {
        run(&["verify", self.path_str()])
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn sorted_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The adapter's digest in the daemon's last words.
fn adapter_digest(said: &str) -> &str {
    let line = said
        .lines()
        .find(|line| line.starts_with("finished job"))
        .unwrap_or_else(|| panic!("not finished: {said}"));
    line.rsplit("adapter ").next().unwrap()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Long enough to be stopped half way on a busy machine.
const LONG_RUN: [&str; 1] = ["recipe.steps=300"];

fn long_baseline() -> &'static str {
    static ADAPTER: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ADAPTER.get_or_init(|| adapter_digest(&TrainerRoot::with_job(&LONG_RUN).drain()).to_owned())
}

fn baseline() -> String {
    adapter_digest(&TrainerRoot::with_job(&[]).drain()).to_owned()
}

/// Each kill comes at a random part of the time that an undisturbed run takes here, so that twenty fit into it.
#[test]
fn twenty_kills_at_random_moments_end_with_the_weights_of_an_undisturbed_run() {
    let slow = ["train.threads=1", "recipe.steps=600"];
    let undisturbed = TrainerRoot::with_job(&slow);
    let began = Instant::now();
    undisturbed.drain();
    let whole = began.elapsed();
    let root = TrainerRoot::with_job(&slow);
    let mut random = 12345u64;
    let mut killed = 0;
    for _ in 0..20 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut daemon = root.spawn_daemon();
        std::thread::sleep(whole * u32::try_from((random >> 33) % 100).unwrap() / 1000);
        killed += u32::from(daemon.try_wait().unwrap().is_none());
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
    root.drain();
    eprintln!("{killed} of 20 kills came before the end");
    assert!(killed >= 5, "only {killed} kills came before the end");
    assert_eq!(root.finished_adapter(), undisturbed.finished_adapter());
    assert!(root.verify().status.success());
}

#[test]
fn data_that_changed_in_the_queue_is_not_trained_on() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    root.kill_after_checkpoints(1);
    let data = root.path().join("queue/processing").join(root.job_id()).join("data.jsonl");
    // Still a good line of data, only another one.
    let text = std::fs::read_to_string(&data).unwrap();
    let at = text.find(|letter: char| letter.is_ascii_digit()).unwrap();
    let digit = if &text[at..=at] == "1" { "2" } else { "1" };
    std::fs::write(&data, format!("{}{digit}{}", &text[..at], &text[at + 1..])).unwrap();
    let verify = root.verify();
    assert_eq!(verify.status.code(), Some(1), "{}", all_output(&verify));
    assert!(all_output(&verify).contains("changed since"), "{}", all_output(&verify));
    let said = root.drain();
    assert!(said.contains("changed since"), "{said}");
    assert!(sorted_names(&root.path().join("done")).is_empty());
}

fn all_output(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn no_worker_trains_on_without_its_daemon() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    let mut daemon = root.daemon_with_checkpoints(1);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).unwrap();
    let worker = PathBuf::from(format!("/proc/{}", children.trim()));
    assert!(worker.exists());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    wait_for("the worker's end", || {
        !worker.exists()
            || std::fs::read_to_string(worker.join("stat")).is_ok_and(|stat| stat.contains(") Z "))
    });
}

#[test]
fn a_sigterm_is_deferred_until_the_step_is_saved_and_nothing_is_lost() {
    let root = TrainerRoot::with_job(&["recipe.steps=2000"]);
    let daemon = root.daemon_with_checkpoints(1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let output = daemon.wait_with_output().unwrap();
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let last = |word: &str| {
        said.lines().rev().find_map(|line| line.strip_prefix(word)?.split(' ').next()?.parse::<u64>().ok())
    };
    assert_eq!(last("saved step "), last("step "), "{said}");
    assert!(root.verify().status.success());
}

#[test]
fn a_second_daemon_refuses_and_names_the_first() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    let mut first = root.daemon_with_checkpoints(1);
    let second = run(&["daemon", root.path_str()]);
    assert_eq!(second.status.code(), Some(10));
    assert!(text(&second.stderr).contains(&format!("pid {}", first.id())), "{}", text(&second.stderr));
    first.kill().unwrap();
    first.wait().unwrap();
}

/// Stops a run half way, damages its newest checkpoint, goes on.
fn check_damage(damage: impl Fn(&Path)) {
    let root = TrainerRoot::with_job(&LONG_RUN);
    root.kill_after_checkpoints(2);
    damage(&root.newest_checkpoint());
    assert_eq!(root.verify().status.code(), Some(1), "verify finds the damage");
    let said = root.drain();
    assert!(said.contains("passed over checkpoint step-"), "{said}");
    assert_eq!(adapter_digest(&said), long_baseline());
}

fn flip_bit(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at % bytes.len();
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_in_the_newest_checkpoint_makes_it_fall_back_to_the_one_before() {
    check_damage(|checkpoint| flip_bit(&checkpoint.join("adapter_model.safetensors"), 5000));
    check_damage(|checkpoint| flip_bit(&checkpoint.join("optimizer.safetensors"), 100_000));
    check_damage(|checkpoint| flip_bit(&checkpoint.join("state.json"), 60));
}

#[test]
fn a_truncated_or_missing_file_makes_it_fall_back_to_the_one_before() {
    check_damage(|checkpoint| std::fs::write(checkpoint.join("adapter_model.safetensors"), b"").unwrap());
    check_damage(|checkpoint| std::fs::remove_file(checkpoint.join("manifest.json")).unwrap());
    check_damage(|checkpoint| std::fs::remove_file(checkpoint.join("optimizer.safetensors")).unwrap());
}

#[test]
fn when_no_checkpoint_verifies_the_job_fails_with_its_reason_and_nothing_is_deleted() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    root.kill_after_checkpoints(2);
    let dir = root.path().join("checkpoints").join(root.job_id());
    let checkpoints: Vec<String> =
        sorted_names(&dir).into_iter().filter(|name| name.starts_with("step-")).collect();
    checkpoints.iter().for_each(|name| std::fs::write(dir.join(name).join("manifest.json"), b"{").unwrap());
    let said = root.drain();
    assert!(said.contains("failed job") && said.contains("nothing was deleted"), "{said}");
    assert!(checkpoints.iter().all(|name| dir.join(name).exists()));
    assert!(root.path().join("failed").join(root.job_id()).join("reason.json").exists());
}

#[test]
fn what_can_not_be_data_is_rejected_without_blocking_and_the_queue_goes_on() {
    let root = TrainerRoot::with_job(&[]);
    let inbox = root.path().join("inbox");
    nix::unistd::mkfifo(&inbox.join("pipe.jsonl"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", inbox.join("zero.jsonl")).unwrap();
    std::os::unix::fs::symlink("loop.jsonl", inbox.join("loop.jsonl")).unwrap();
    std::fs::create_dir(inbox.join("folder.jsonl")).unwrap();
    std::fs::write(inbox.join("empty.jsonl"), b"").unwrap();
    std::fs::write(inbox.join("cut.jsonl"), b"{\"text\":\"whole\"}\n{\"text\":\"cu").unwrap();
    std::fs::write(inbox.join("esc\u{1b}[31m.jsonl"), b"[]\n").unwrap();
    // A name that is not UTF-8 is a name all the same.
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(&b"odd\xff.jsonl"[..]);
    std::fs::write(inbox.join::<&std::ffi::OsStr>(odd), b"[]\n").unwrap();
    let said = root.drain();
    for name in ["pipe", "zero", "loop", "folder", "empty"] {
        assert!(said.contains(&format!("rejected {name}.jsonl: ")), "{name}: {said}");
    }
    assert!(said.contains("rejected cut.jsonl: line 2 column 11: "), "{said}");
    assert!(said.contains("rejected odd"), "{said}");
    assert!(!said.contains('\u{1b}'), "no terminal escapes in what it says");
    adapter_digest(&said);
}

#[test]
fn the_same_content_is_trained_once() {
    let root = TrainerRoot::with_job(&[]);
    std::fs::copy(root.dir.path().join("sums.jsonl"), root.path().join("inbox/again.jsonl")).unwrap();
    let said = root.drain();
    assert_eq!(said.matches("finished job").count(), 1, "{said}");
    assert!(said.contains("duplicate "), "{said}");
}

#[test]
fn a_root_can_be_moved_between_two_runs() {
    let root = TrainerRoot::with_job(&[]);
    let elsewhere = root.dir.path().join("elsewhere");
    std::fs::rename(root.path(), &elsewhere).unwrap();
    let output = run(&["daemon", elsewhere.to_str().unwrap(), "--drain"]);
    assert_eq!(adapter_digest(&text(&output.stdout)), baseline());
}

#[test]
fn a_silent_worker_is_replaced_and_the_weights_stay_the_same() {
    let root = TrainerRoot::with_job(&["train.heartbeat_s=1", "recipe.steps=1500"]);
    let daemon = root.daemon_with_checkpoints(1);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).unwrap();
    let worker = nix::unistd::Pid::from_raw(children.trim().parse().unwrap());
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let said = text(&daemon.wait_with_output().unwrap().stdout);
    assert!(said.contains("worker gave no sign of life and was killed; started again"), "{said}");
    assert_eq!(adapter_digest(&said), adapter_digest(&TrainerRoot::with_job(&["recipe.steps=1500"]).drain()));
}

#[test]
fn a_base_that_is_not_the_one_trained_on_is_refused_naming_both() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    root.kill_after_checkpoints(2);
    let other = TrainerRoot::new(&[]);
    flip_bit(&other.path().join("base/model.safetensors"), 50_000);
    std::fs::copy(other.path().join("base/model.safetensors"), root.path().join("base/model.safetensors"))
        .unwrap();
    let said = root.drain();
    assert!(
        said.contains("the checkpoints were made with base") && said.contains("and this root's base is"),
        "{said}"
    );
}

/// A root whose 30th sample overflows its loss.
fn root_with_overflowing_sample(policy: &str) -> TrainerRoot {
    let root = TrainerRoot::new(&[policy]);
    let data = root.dir.path().join("poisoned.jsonl");
    assert!(
        run(&["make-data", "arithmetic", "--samples", "64", "--out", data.to_str().unwrap()])
            .status
            .success()
    );
    let text = std::fs::read_to_string(&data).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[29] = lines[29].replace('}', ",\"weight\":3.0e38}");
    std::fs::write(&data, lines.join("\n")).unwrap();
    assert!(run(&["submit", root.path_str(), data.to_str().unwrap()]).status.success());
    root
}

#[test]
fn a_loss_that_is_not_finite_is_skipped_or_rolled_back_or_stops_the_job_as_configured() {
    let skipped = root_with_overflowing_sample("train.on_non_finite=skip");
    let said = skipped.drain();
    assert!(said.contains("skipped step ") && said.contains("non-finite loss"), "{said}");
    let rolled_back = root_with_overflowing_sample("train.on_non_finite=rollback").drain();
    assert!(rolled_back.contains("rolled back to step "), "{rolled_back}");
    // What a rollback repeats, it repeats bit for bit; then the batch is skipped all the same.
    assert_eq!(adapter_digest(&rolled_back), adapter_digest(&said));
    let stopped = root_with_overflowing_sample("train.on_non_finite=stop");
    let said = stopped.drain();
    assert!(said.contains("failed job") && said.contains("non-finite loss"), "{said}");
    assert!(stopped.verify().status.success(), "what was saved before is sound");
}

#[test]
fn beyond_the_budget_steps_that_are_not_finite_are_no_longer_borne() {
    let root = root_with_overflowing_sample("train.non_finite_budget=2");
    let said = root.drain();
    assert!(said.contains("failed job") && said.contains("2 are borne"), "{said}");
}
