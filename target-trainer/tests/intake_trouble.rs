//! Runs the built command with files of the inbox that can't be taken, thousands of them, and with results, queue
//! entries and hidden files that somebody or a crash has damaged. Checks that no other file waits because of
//! them, and that no data is thrown away.

#![expect(clippy::unwrap_used, reason = "a test fails at the first unexpected value")]

#[expect(dead_code, reason = "this test uses a part of it")]
#[path = "support/trainer_root.rs"]
mod trainer_root;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use trainer_root::{PROGRAM, TrainerRoot, adapter_digest, all_output, run, sorted_names, text, wait_for};

const SHORT_RUN: [&str; 2] = ["recipe.steps=2", "limits.settle_s=0"];

fn sample(number: usize) -> String {
    format!("{{\"text\":\"sample {number}\"}}\n")
}

/// A daemon whose output goes to the file `stdout` beside the root.
fn start_daemon(root: &TrainerRoot) -> Child {
    let stdout = std::fs::File::create(root.dir.path().join("stdout")).unwrap();
    Command::new(PROGRAM)
        .args(["daemon", root.path_str()])
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn printed(root: &TrainerRoot) -> String {
    std::fs::read_to_string(root.dir.path().join("stdout")).unwrap()
}

fn stop(mut daemon: Child) {
    kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
    daemon.wait().unwrap();
}

fn submit(root: &TrainerRoot, file: &Path) -> Output {
    run(&["submit", root.path_str(), file.to_str().unwrap()])
}

#[test]
fn thousands_of_files_that_fail_keep_no_other_one_waiting() {
    let root = TrainerRoot::new(&SHORT_RUN);
    let (outside, inbox) = (root.dir.path().join("outside"), root.path().join("inbox"));
    std::fs::write(&outside, sample(1)).unwrap();
    // A file with another name outside is not taken.
    for number in 0..9000 {
        std::fs::hard_link(&outside, inbox.join(format!("a{number}.jsonl"))).unwrap();
    }
    let daemon = start_daemon(&root);
    wait_for("the failures", || printed(&root).contains("more than 8192 files of the inbox can't be taken"));
    std::fs::write(inbox.join("z.jsonl"), sample(2)).unwrap();
    wait_for("the good file", || printed(&root).contains("1 samples from z.jsonl"));
    wait_for("its job", || sorted_names(&root.path().join("done")).len() == 1);
    stop(daemon);
    assert_eq!(sorted_names(&inbox).len(), 9000);
    assert_eq!(printed(&root).matches("could not be accepted yet").count(), 8192);
}

#[test]
fn a_rejection_that_can_not_be_written_keeps_no_other_file_waiting() {
    let root = TrainerRoot::new(&SHORT_RUN);
    let (failed, inbox) = (root.path().join("failed"), root.path().join("inbox"));
    let daemon = start_daemon(&root);
    wait_for("the daemon", || root.path().join("status.json").exists());
    std::fs::remove_dir(&failed).unwrap();
    std::fs::write(&failed, "").unwrap();
    for number in 0..3 {
        std::fs::write(inbox.join(format!("a{number}.jsonl")), "[]").unwrap();
        std::fs::write(inbox.join(format!("b{number}.jsonl")), sample(number)).unwrap();
    }
    wait_for("the good files", || printed(&root).matches("accepted job").count() == 3);
    assert!(printed(&root).contains("the reason can't be written"), "{}", printed(&root));
    std::fs::remove_file(&failed).unwrap();
    std::fs::create_dir(&failed).unwrap();
    wait_for("the rejections", || sorted_names(&failed).len() == 3);
    stop(daemon);
    assert!(sorted_names(&inbox).is_empty());
}

#[test]
fn data_is_a_duplicate_only_of_a_result_that_is_there() {
    let root = TrainerRoot::with_job(&SHORT_RUN);
    let first = root.drain();
    let data = root.dir.path().join("sums.jsonl");
    let job = root.path().join("done").join(&sorted_names(&root.path().join("done"))[0]);
    let adapter = job.join("adapter_model.safetensors");
    let again = || {
        assert!(submit(&root, &data).status.success());
        root.drain()
    };
    assert!(again().contains("duplicate"));
    for damage in ["missing", "cut", "directory"] {
        match damage {
            "missing" => std::fs::remove_file(&adapter).unwrap(),
            "cut" => OpenOptions::new().write(true).open(&adapter).unwrap().set_len(100).unwrap(),
            _ => {
                std::fs::remove_dir_all(&job).unwrap();
                std::fs::create_dir(&job).unwrap();
            }
        }
        let output = again();
        assert!(!output.contains("duplicate"), "{damage}: {output}");
        assert_eq!(adapter_digest(&output), adapter_digest(&first), "{damage}");
        assert!(root.verify().status.success(), "{damage}");
    }
    assert!(again().contains("duplicate"));
}

#[test]
fn data_is_kept_if_the_queue_has_it_in_a_job_that_can_not_be_read() {
    let root = TrainerRoot::with_job(&["recipe.steps=100000", "train.save_patience_s=0"]);
    root.kill_after_checkpoints(1);
    let queue = root.path().join("queue/processing");
    let job = queue.join(&sorted_names(&queue)[0]).join("job.json");
    let description = std::fs::read(&job).unwrap();
    std::fs::write(&job, &description[..20]).unwrap();
    let data = root.dir.path().join("sums.jsonl");
    assert!(submit(&root, &data).status.success());
    let output = root.spawn_daemon().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(20), "{}", all_output(&output));
    assert!(all_output(&output).contains("repair or remove it"), "{}", all_output(&output));
    let kept = root.path().join("inbox/sums.jsonl");
    assert_eq!(std::fs::read(kept).unwrap(), std::fs::read(data).unwrap());
}

#[test]
fn a_rejection_that_a_crash_has_cut_off_is_finished() {
    let root = TrainerRoot::new(&SHORT_RUN);
    let (inbox, failed) = (root.path().join("inbox"), root.path().join("failed"));
    std::fs::create_dir(failed.join("rejected-0")).unwrap();
    std::fs::write(failed.join("rejected-0/reason.json"), "{}").unwrap();
    std::fs::write(inbox.join(".rejected-0"), "with a reason").unwrap();
    std::fs::write(inbox.join(".rejected-1"), "without").unwrap();
    root.drain();
    assert!(sorted_names(&inbox).is_empty());
    let mut kept: Vec<String> = sorted_names(&failed)
        .iter()
        .map(|name| std::fs::read_to_string(failed.join(name).join("data")).unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["with a reason", "without"]);
}

#[test]
fn a_file_that_is_still_written_is_not_submitted() {
    let root = TrainerRoot::new(&SHORT_RUN);
    let file = root.dir.path().join("slow.jsonl");
    let mut writer = OpenOptions::new().append(true).create(true).open(&file).unwrap();
    writer.write_all(sample(1).as_bytes()).unwrap();
    let refused = submit(&root, &file);
    assert_eq!(refused.status.code(), Some(2), "{}", all_output(&refused));
    assert!(text(&refused.stderr).contains("is still being written"), "{}", all_output(&refused));
    assert!(sorted_names(&root.path().join("inbox")).is_empty());
    writer.write_all(sample(2).as_bytes()).unwrap();
    drop(writer);
    assert!(submit(&root, &file).status.success());
    // A pipe ends by itself.
    let mut piped = Command::new(PROGRAM)
        .args(["submit", root.path_str(), "/dev/stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    piped.stdin.take().unwrap().write_all(sample(3).as_bytes()).unwrap();
    assert!(piped.wait().unwrap().success());
    let output = root.drain();
    assert!(output.contains("2 samples from slow.jsonl"), "{output}");
    assert!(output.contains("1 samples from stdin"), "{output}");
}
