//! Runs the built command through kills, stops, damaged checkpoints and invalid data, and checks what it
//! prints and which files it leaves.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::trainer_root::{TrainerRoot, adapter_digest, all_output, run, sorted_names, text, wait_for};

/// Long enough to be stopped before the end on a busy machine.
const LONG_RUN: [&str; 1] = ["recipe.steps=300"];

fn long_baseline() -> &'static str {
    static ADAPTER: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ADAPTER.get_or_init(|| adapter_digest(&TrainerRoot::with_job(&LONG_RUN).drain()).to_owned())
}

/// Each kill comes after a random fraction of the baseline's duration, so that twenty kills fit into one run.
#[test]
fn a_run_with_twenty_kills_at_random_times_ends_with_the_weights_of_the_baseline() {
    let slow = ["train.threads=1", "recipe.steps=600"];
    let baseline = TrainerRoot::with_job(&slow);
    let start = Instant::now();
    baseline.drain();
    let baseline_duration = start.elapsed();
    let root = TrainerRoot::with_job(&slow);
    let mut random = 12345u64;
    let mut killed = 0;
    for _ in 0..20 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut daemon = root.spawn_daemon();
        std::thread::sleep(baseline_duration * u32::try_from((random >> 33) % 100).unwrap() / 1000);
        killed += u32::from(daemon.try_wait().unwrap().is_none());
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
    root.drain();
    eprintln!("{killed} of 20 kills came before the end");
    assert!(killed >= 5, "only {killed} kills came before the end");
    assert_eq!(root.finished_adapter(), baseline.finished_adapter());
    assert!(root.verify().status.success());
}

#[test]
fn data_that_was_changed_in_the_queue_is_not_trained_on() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    root.kill_after_checkpoints(1);
    let data = root.path().join("queue/processing").join(root.job_id()).join("data.jsonl");
    // The line stays valid but has another content.
    let text = std::fs::read_to_string(&data).unwrap();
    let index = text.find(|letter: char| letter.is_ascii_digit()).unwrap();
    let digit = if &text[index..=index] == "1" { "2" } else { "1" };
    std::fs::write(&data, format!("{}{digit}{}", &text[..index], &text[index + 1..])).unwrap();
    let verify = root.verify();
    assert_eq!(verify.status.code(), Some(1), "{}", all_output(&verify));
    assert!(all_output(&verify).contains("changed since"), "{}", all_output(&verify));
    let output = root.drain_with_failed_job();
    assert!(output.contains("changed since"), "{output}");
    assert!(sorted_names(&root.path().join("done")).is_empty());
}

#[test]
fn a_worker_does_not_outlive_its_daemon() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    let mut daemon = root.daemon_with_checkpoints(1);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).unwrap();
    let worker = PathBuf::from(format!("/proc/{}", children.trim()));
    assert!(worker.exists());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    wait_for("the worker to exit", || {
        !worker.exists()
            || std::fs::read_to_string(worker.join("stat")).is_ok_and(|stat| stat.contains(") Z "))
    });
}

#[test]
fn sigterm_is_deferred_until_the_step_is_saved() {
    let root = TrainerRoot::with_job(&["recipe.steps=2000"]);
    let daemon = root.daemon_with_checkpoints(1);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    let output = daemon.wait_with_output().unwrap();
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(15), "work is left: {stdout}");
    let last_step = |prefix: &str| {
        stdout
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix(prefix)?.split(' ').next()?.parse::<u64>().ok())
    };
    assert!(last_step("saved step ").is_some_and(|step| step < 2000), "{stdout}");
    assert_eq!(last_step("saved step "), last_step("step "), "{stdout}");
    assert!(root.verify().status.success());
}

#[test]
fn a_second_daemon_exits_with_an_error_that_names_the_first() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    let mut first = root.daemon_with_checkpoints(1);
    let second = run(&["daemon", root.path_str()]);
    assert_eq!(second.status.code(), Some(10));
    assert!(text(&second.stderr).contains(&format!("pid {}", first.id())), "{}", text(&second.stderr));
    first.kill().unwrap();
    first.wait().unwrap();
}

/// Kills a run, damages its newest checkpoint, and runs the daemon again.
fn check_damage(damage: impl Fn(&Path)) {
    let root = TrainerRoot::with_job(&LONG_RUN);
    root.kill_after_checkpoints(2);
    damage(&root.newest_checkpoint());
    assert_eq!(root.verify().status.code(), Some(1), "verify finds the damage");
    let output = root.drain();
    assert!(output.contains("skipped checkpoint step-"), "{output}");
    assert_eq!(adapter_digest(&output), long_baseline());
}

fn flip_bit(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let offset = offset % bytes.len();
    bytes[offset] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_flipped_bit_in_the_newest_checkpoint_makes_the_run_resume_from_the_previous_one() {
    check_damage(|checkpoint| flip_bit(&checkpoint.join("adapter_model.safetensors"), 5000));
    check_damage(|checkpoint| flip_bit(&checkpoint.join("optimizer.safetensors"), 100_000));
    check_damage(|checkpoint| flip_bit(&checkpoint.join("state.json"), 60));
}

#[test]
fn a_truncated_or_missing_file_makes_the_run_resume_from_the_previous_checkpoint() {
    check_damage(|checkpoint| std::fs::write(checkpoint.join("adapter_model.safetensors"), b"").unwrap());
    check_damage(|checkpoint| std::fs::remove_file(checkpoint.join("manifest.json")).unwrap());
    check_damage(|checkpoint| std::fs::remove_file(checkpoint.join("optimizer.safetensors")).unwrap());
}

/// `verify` finds all damage, also if the base model is not supported or gone. `resume-info` says what a
/// worker would do.
#[test]
fn verify_checks_everything_although_the_base_model_is_not_supported() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000", "guards.base_check=false"]);
    root.kill_after_checkpoints(2);
    let base = root.path().join("base/config.json");
    let good = std::fs::read_to_string(&base).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&good).unwrap();
    config["hidden_act"] = "gelu".into();
    std::fs::write(&base, config.to_string()).unwrap();
    let verify = || {
        let output = root.verify();
        assert_eq!(output.status.code(), Some(1), "{}", all_output(&output));
        all_output(&output)
    };
    let found = verify();
    assert!(found.contains("hidden_act") && !found.contains("step-"), "{found}");
    let info = run(&["resume-info", root.path_str()]);
    assert!(text(&info.stdout).contains("can't resume: "), "another base: {}", all_output(&info));
    let checkpoint = root.newest_checkpoint();
    flip_bit(&checkpoint.join("state.json"), 60);
    let name = checkpoint.file_name().unwrap().to_str().unwrap();
    let found = verify();
    assert!(found.contains("hidden_act") && found.contains(name), "{found}");
    std::fs::remove_file(&base).unwrap();
    assert!(verify().contains(name), "{}", verify());
    std::fs::write(&base, good).unwrap();
    let info = run(&["resume-info", root.path_str()]);
    assert!(text(&info.stdout).contains("would resume from step"), "{}", all_output(&info));
}

#[test]
fn without_a_valid_checkpoint_the_job_fails_with_a_reason_and_nothing_is_deleted() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    root.kill_after_checkpoints(2);
    let dir = root.path().join("checkpoints").join(root.job_id());
    let checkpoints: Vec<String> =
        sorted_names(&dir).into_iter().filter(|name| name.starts_with("step-")).collect();
    checkpoints.iter().for_each(|name| std::fs::write(dir.join(name).join("manifest.json"), b"{").unwrap());
    let output = root.drain_with_failed_job();
    assert!(output.contains("failed job") && output.contains("nothing was deleted"), "{output}");
    assert!(checkpoints.iter().all(|name| dir.join(name).exists()));
    assert!(root.path().join("failed").join(root.job_id()).join("reason.json").exists());
}

#[test]
fn invalid_files_are_rejected_without_blocking_and_the_queue_continues() {
    let root = TrainerRoot::with_job(&["limits.settle_s=0"]);
    let inbox = root.path().join("inbox");
    nix::unistd::mkfifo(&inbox.join("pipe.jsonl"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("/dev/zero", inbox.join("zero.jsonl")).unwrap();
    std::os::unix::fs::symlink("loop.jsonl", inbox.join("loop.jsonl")).unwrap();
    std::fs::create_dir(inbox.join("directory.jsonl")).unwrap();
    std::fs::write(inbox.join("empty.jsonl"), b"").unwrap();
    std::fs::write(inbox.join("cut.jsonl"), b"{\"text\":\"whole\"}\n{\"text\":\"cu").unwrap();
    std::fs::write(inbox.join("esc\u{1b}[31m.jsonl"), b"[]\n").unwrap();
    // File names need not be UTF-8.
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(&b"odd\xff.jsonl"[..]);
    std::fs::write(inbox.join::<&std::ffi::OsStr>(odd), b"[]\n").unwrap();
    let output = root.drain();
    for name in ["pipe", "zero", "loop", "directory", "empty"] {
        assert!(output.contains(&format!("rejected {name}.jsonl: ")), "{name}: {output}");
    }
    assert!(output.contains("rejected cut.jsonl: line 2 column 11: "), "{output}");
    assert!(output.contains("rejected odd"), "{output}");
    assert!(!output.contains('\u{1b}'), "terminal escapes were printed");
    adapter_digest(&output);
}

#[test]
fn the_same_content_is_trained_once() {
    let root = TrainerRoot::with_job(&["limits.settle_s=0"]);
    std::fs::copy(root.dir.path().join("sums.jsonl"), root.path().join("inbox/again.jsonl")).unwrap();
    let output = root.drain();
    assert_eq!(output.matches("finished job").count(), 1, "{output}");
    assert!(output.contains("duplicate "), "{output}");
}

#[test]
fn a_root_can_be_moved_between_two_runs() {
    let root = TrainerRoot::with_job(&LONG_RUN);
    root.kill_after_checkpoints(1);
    let elsewhere = root.dir.path().join("elsewhere");
    std::fs::rename(root.path(), &elsewhere).unwrap();
    let output = run(&["daemon", elsewhere.to_str().unwrap(), "--drain"]);
    let output = text(&output.stdout);
    assert!(
        output.lines().any(|line| line.starts_with("resumed from step ") && !line.ends_with(" 0")),
        "{output}"
    );
    assert_eq!(adapter_digest(&output), long_baseline());
}

#[test]
fn an_unresponsive_worker_is_replaced_and_the_weights_stay_the_same() {
    let root = TrainerRoot::with_job(&["train.heartbeat_s=1", "recipe.steps=1500"]);
    let daemon = root.daemon_with_checkpoints(1);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.id())).unwrap();
    let worker = nix::unistd::Pid::from_raw(children.trim().parse().unwrap());
    nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let output = text(&daemon.wait_with_output().unwrap().stdout);
    assert!(output.contains("worker sent no heartbeat in time and was killed; restarted"), "{output}");
    assert_eq!(
        adapter_digest(&output),
        adapter_digest(&TrainerRoot::with_job(&["recipe.steps=1500"]).drain())
    );
}

#[test]
fn another_base_model_is_an_error_that_names_both() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000"]);
    root.kill_after_checkpoints(2);
    let other = TrainerRoot::new(&[]);
    flip_bit(&other.path().join("base/model.safetensors"), 50_000);
    let original = std::fs::read(root.path().join("base/model.safetensors")).unwrap();
    std::fs::copy(other.path().join("base/model.safetensors"), root.path().join("base/model.safetensors"))
        .unwrap();
    // No job is at fault.
    let output = root.spawn_daemon().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(11), "{}", all_output(&output));
    let error = text(&output.stderr);
    assert!(
        error.contains("the job was accepted with base") && error.contains("and this root's base is"),
        "{error}"
    );
    assert_eq!(sorted_names(&root.path().join("queue/processing")).len(), 1);
    assert!(sorted_names(&root.path().join("failed")).is_empty());
    std::fs::write(root.path().join("base/model.safetensors"), original).unwrap();
    let output = text(&run(&["resume-info", root.path_str()]).stdout);
    assert!(output.contains("would resume from step ") && !output.contains("from step 0"), "{output}");
}

#[test]
fn a_job_keeps_the_recipe_of_its_acceptance_and_another_recipe_is_another_job() {
    let root = TrainerRoot::with_job(&LONG_RUN);
    root.kill_after_checkpoints(2);
    // In the middle of the job: for later jobs only.
    let path = root.path().join("settings.toml");
    let settings = std::fs::read_to_string(&path).unwrap();
    let changed = settings.replacen("rank = 8", "rank = 4", 1).replacen("steps = 300", "steps = 5", 1);
    assert_ne!(changed, settings);
    std::fs::write(&path, &changed).unwrap();
    assert!(root.verify().status.success());
    let output = root.drain();
    assert!(output.contains("resumed from step ") && !output.contains("resumed from step 0"), "{output}");
    assert_eq!(adapter_digest(&output), long_baseline());
    // The same data again, with the other recipe.
    let data = root.dir.path().join("sums.jsonl");
    let submit = || assert!(run(&["submit", root.path_str(), data.to_str().unwrap()]).status.success());
    submit();
    let output = root.drain();
    assert!(output.contains("accepted job") && output.contains("finished job"), "{output}");
    assert_ne!(adapter_digest(&output), long_baseline());
    // And with another base.
    flip_bit(&root.path().join("base/model.safetensors"), 50_000);
    submit();
    assert!(root.drain().contains("finished job"));
    assert_eq!(sorted_names(&root.path().join("done")).len(), 3);
    // Each of them is known now.
    submit();
    assert!(root.drain().contains("duplicate"));
}

#[test]
fn a_job_that_an_earlier_version_has_accepted_goes_on() {
    let root = TrainerRoot::with_job(&LONG_RUN);
    root.kill_after_checkpoints(2);
    let queue = root.path().join("queue/processing");
    let id = sorted_names(&queue)[0].clone();
    let job: serde_json::Value =
        serde_json::from_slice(&std::fs::read(queue.join(&id).join("job.json")).unwrap()).unwrap();
    let old_id = job["data"].as_str().unwrap();
    let old = serde_json::json!({"id": old_id, "name": "sums.jsonl", "samples": 64, "order": 1});
    std::fs::write(queue.join(&id).join("job.json"), old.to_string()).unwrap();
    std::fs::rename(queue.join(&id), queue.join(old_id)).unwrap();
    let checkpoints = root.path().join("checkpoints");
    std::fs::rename(checkpoints.join(&id), checkpoints.join(old_id)).unwrap();
    assert!(root.verify().status.success());
    let output = root.drain();
    assert!(!output.contains("resumed from step 0"), "{output}");
    assert_eq!(adapter_digest(&output), long_baseline());
}

#[test]
fn samples_that_stay_in_the_file_give_the_same_weights() {
    let root = TrainerRoot::with_job(&["recipe.steps=300", "train.sample_memory_bytes=0"]);
    root.kill_after_checkpoints(2);
    assert_eq!(adapter_digest(&root.drain()), long_baseline());
}

/// A root whose 30th sample makes the loss overflow.
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
fn a_non_finite_loss_is_skipped_rolled_back_or_fails_the_job_as_configured() {
    let skipped = root_with_overflowing_sample("train.on_non_finite=skip");
    let output = skipped.drain();
    assert!(output.contains("skipped step ") && output.contains("non-finite loss"), "{output}");
    let rolled_back = root_with_overflowing_sample("train.on_non_finite=rollback").drain();
    assert!(rolled_back.contains("rolled back to step "), "{rolled_back}");
    // A rollback repeats the steps bit by bit, and then skips the same batch.
    assert_eq!(adapter_digest(&rolled_back), adapter_digest(&output));
    let stopped = root_with_overflowing_sample("train.on_non_finite=stop");
    let output = stopped.drain_with_failed_job();
    assert!(output.contains("failed job") && output.contains("non-finite loss"), "{output}");
    assert!(stopped.verify().status.success(), "the earlier checkpoints are valid");
}

#[test]
fn more_non_finite_steps_than_the_budget_fail_the_job() {
    let root = root_with_overflowing_sample("train.non_finite_budget=2");
    let output = root.drain_with_failed_job();
    assert!(output.contains("failed job") && output.contains("2 are allowed"), "{output}");
}
