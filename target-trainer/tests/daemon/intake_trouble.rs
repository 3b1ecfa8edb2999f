//! Runs the built command with files of the inbox that can't be taken, thousands of them, and with results,
//! queue entries and hidden files that somebody or a crash has damaged. Checks that no other file waits
//! because of them, and that no data is thrown away.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::trainer_root::{
    PROGRAM, TrainerRoot, adapter_digest, all_output, run, sorted_names, text, wait_for,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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

/// A daemon that ends when all is done, with its output in the file `stdout` beside the root.
fn start_drain(root: &TrainerRoot) -> Child {
    let open = |name| std::fs::File::create(root.dir.path().join(name)).unwrap();
    let mut drain = Command::new(PROGRAM);
    drain.args(["daemon", root.path_str(), "--drain"]).stdout(open("stdout")).stderr(open("stderr"));
    drain.spawn().unwrap()
}

fn exit_code(root: &TrainerRoot, mut drain: Child) -> (Option<i32>, String) {
    let code = drain.wait().unwrap().code();
    (code, printed(root) + &std::fs::read_to_string(root.dir.path().join("stderr")).unwrap())
}

#[test]
fn a_drain_takes_the_file_that_was_put_aside_when_the_others_are_gone() {
    let root = TrainerRoot::new(&[SHORT_RUN[0], SHORT_RUN[1], "train.save_patience_s=600"]);
    let (outside, inbox) = (root.dir.path().join("outside"), root.path().join("inbox"));
    std::fs::write(&outside, sample(1)).unwrap();
    (0..8193).for_each(|number| {
        std::fs::hard_link(&outside, inbox.join(format!("a{number}.jsonl"))).unwrap();
    });
    let drain = start_drain(&root);
    let is_told = |output: &str, name: &str| output.contains(&format!("{name} could not be accepted"));
    wait_for("the failures", || printed(&root).matches("could not be accepted yet").count() == 8192);
    wait_for("the last one", || printed(&root).contains("more than 8192 files"));
    let output = printed(&root);
    let (told, put_aside): (Vec<String>, Vec<String>) =
        sorted_names(&inbox).into_iter().partition(|name| is_told(&output, name));
    assert_eq!(put_aside.len(), 1);
    // The last name of the file is in the inbox: now it is a good file.
    std::fs::remove_file(&outside).unwrap();
    told.iter().for_each(|name| std::fs::remove_file(inbox.join(name)).unwrap());
    let (code, output) = exit_code(&root, drain);
    assert!(output.contains(&format!("1 samples from {}", put_aside[0])), "{}", sorted_names(&inbox).len());
    assert!(code == Some(0) && output.contains("finished job") && sorted_names(&inbox).is_empty());
}

#[test]
fn a_drain_that_leaves_files_names_them_and_has_the_exit_code_of_the_reason() {
    let root = TrainerRoot::new(&[SHORT_RUN[0], SHORT_RUN[1], "train.save_patience_s=1"]);
    let (outside, inbox) = (root.dir.path().join("outside"), root.path().join("inbox"));
    std::fs::write(&outside, sample(1)).unwrap();
    for number in 10..40 {
        std::fs::hard_link(&outside, inbox.join(format!("a\u{1b}{number}.jsonl"))).unwrap();
    }
    std::fs::write(inbox.join("good.jsonl"), sample(2)).unwrap();
    let (code, output) = exit_code(&root, start_drain(&root));
    assert!(code == Some(20) && output.contains("finished job"), "{code:?} {output}");
    let expected = r"30 files are left in the inbox (a\u{1b}10.jsonl, a\u{1b}11.jsonl, ";
    assert!(output.contains(expected), "{output}");
    assert!(output.contains(r"a\u{1b}29.jsonl and 10 more): the file has other names"), "{output}");
}

#[test]
fn a_drain_waits_for_a_file_that_comes_while_intake_is_paused() {
    let root = TrainerRoot::new(&[SHORT_RUN[0], "limits.settle_s=3", "train.save_patience_s=600"]);
    let (inbox, base) = (root.path().join("inbox"), root.path().join("base/config.json"));
    let config = std::fs::read(&base).unwrap();
    std::fs::remove_file(&base).unwrap();
    let first = root.dir.path().join("first.jsonl");
    std::fs::write(&first, sample(1)).unwrap();
    assert!(submit(&root, &first).status.success());
    let drain = start_drain(&root);
    wait_for("the pause", || printed(&root).contains("intake paused"));
    std::fs::write(inbox.join("second.jsonl"), sample(2)).unwrap();
    std::fs::remove_file(inbox.join("first.jsonl")).unwrap();
    wait_for("the notice", || printed(&root).contains("vanished before it could be read: first.jsonl"));
    std::fs::write(&base, config).unwrap();
    let (code, output) = exit_code(&root, drain);
    assert!(output.contains("1 samples from second.jsonl"), "{output}");
    assert!(code == Some(0) && sorted_names(&inbox).is_empty(), "{output}");
}

#[test]
fn ignored_names_are_told_once_escaped_and_when_their_writer_is_done() {
    let root = TrainerRoot::new(&[SHORT_RUN[0], "limits.settle_s=1"]);
    let inbox = root.path().join("inbox");
    std::fs::create_dir(inbox.join(".directory")).unwrap();
    for name in [".hidden\n.jsonl", "a.part", ".tmp-submit-1-2"] {
        std::fs::write(inbox.join(name), sample(1)).unwrap();
    }
    let daemon = start_daemon(&root);
    let count = |name: &str| printed(&root).matches(&format!("not taken: {name}: ")).count();
    let mut download = OpenOptions::new().append(true).create(true).open(inbox.join("b.part")).unwrap();
    for _ in 0..20 {
        download.write_all(sample(1).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(count("b.part"), 0, "it is still downloaded");
    for name in [r".hidden\n.jsonl", "a.part", ".directory", "b.part"] {
        wait_for(name, || count(name) == 1);
    }
    // Not without a bound.
    (0..200).for_each(|number| std::fs::write(inbox.join(format!(".{number}")), "").unwrap());
    wait_for("the last line", || printed(&root).contains("more than 100 files of the inbox are not taken"));
    std::thread::sleep(Duration::from_millis(1200));
    stop(daemon);
    assert_eq!(printed(&root).matches("not taken: ").count(), 100);
    assert_eq!(printed(&root).matches("more than 100 files").count(), 1);
    assert!(!printed(&root).contains("submit-1-2"), "a `submit` may still write it");
}

#[test]
fn a_signal_does_not_end_a_daemon_well_whose_queue_has_an_entry_that_can_not_be_read() {
    let root = TrainerRoot::new(&SHORT_RUN);
    let entry = root.path().join("queue/processing/entry");
    for (is_there, code) in [(true, Some(20)), (false, Some(0))] {
        if is_there {
            std::fs::create_dir_all(&entry).unwrap();
            std::fs::write(entry.join("job.json"), "{").unwrap();
        } else {
            std::fs::remove_dir_all(&entry).unwrap();
        }
        std::fs::remove_file(root.path().join("status.json")).ok();
        let mut daemon = start_daemon(&root);
        wait_for("the daemon", || root.path().join("status.json").exists());
        kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(daemon.wait().unwrap().code(), code, "{}", printed(&root));
    }
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
    let config = job.join("adapter_config.json");
    for damage in ["missing", "cut", "directory", "without configuration", "other rank", "changed"] {
        match damage {
            "missing" => std::fs::remove_file(&adapter).unwrap(),
            "without configuration" => std::fs::remove_file(&config).unwrap(),
            "other rank" => {
                let text = std::fs::read_to_string(&config).unwrap();
                std::fs::write(&config, text.replacen("\"r\": 8", "\"r\": 4", 1)).unwrap();
            }
            // The values stay finite.
            "changed" => {
                let mut bytes = std::fs::read(&adapter).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(&adapter, bytes).unwrap();
            }
            "cut" => OpenOptions::new().write(true).open(&adapter).unwrap().set_len(100).unwrap(),
            _ => {
                std::fs::remove_dir_all(&job).unwrap();
                std::fs::create_dir(&job).unwrap();
            }
        }
        let verify = root.verify();
        assert_eq!(verify.status.code(), Some(1), "{damage}: {}", all_output(&verify));
        let output = again();
        assert!(!output.contains("duplicate"), "{damage}: {output}");
        assert_eq!(adapter_digest(&output), adapter_digest(&first), "{damage}");
        assert!(root.verify().status.success(), "{damage}");
    }
    assert!(again().contains("duplicate"));
}

/// The queued job has been accepted, and somebody or the disk has damaged its data since.
#[test]
fn a_good_copy_replaces_the_damaged_data_of_a_queued_job() {
    for damage in ["missing", "cut", "changed", "link", "directory"] {
        let root = TrainerRoot::with_job(&["recipe.steps=200", "train.save_patience_s=0"]);
        root.kill_after_checkpoints(1);
        let (queue, submitted) = (root.path().join("queue/processing"), root.dir.path().join("sums.jsonl"));
        let data = queue.join(&sorted_names(&queue)[0]).join("data.jsonl");
        let good = std::fs::read(&data).unwrap();
        match damage {
            "cut" => OpenOptions::new().write(true).open(&data).unwrap().set_len(100).unwrap(),
            "changed" => std::fs::write(&data, sample(1)).unwrap(),
            _ => std::fs::remove_file(&data).unwrap(),
        }
        match damage {
            "link" => std::os::unix::fs::symlink("/dev/null", &data).unwrap(),
            "directory" => std::fs::create_dir(&data).unwrap(),
            _ => {}
        }
        assert!(submit(&root, &submitted).status.success());
        let output = root.spawn_daemon().wait_with_output().unwrap();
        if damage == "directory" {
            // It can't be replaced, and the good copy stays where it is.
            assert_eq!(output.status.code(), Some(20), "{}", all_output(&output));
            assert_eq!(std::fs::read(root.path().join("inbox/sums.jsonl")).unwrap(), good);
            continue;
        }
        assert!(output.status.success(), "{damage}: {}", all_output(&output));
        assert!(text(&output.stdout).contains("duplicate sums.jsonl"), "{}", all_output(&output));
        assert!(text(&output.stdout).contains("finished job"), "{damage}: {}", all_output(&output));
    }
}

/// A result without its adapter is trained again, a job that has failed may fail again, and a job leaves the
/// queue: what somebody has put into their directories stays.
#[test]
fn files_that_the_trainer_did_not_make_are_never_removed() {
    let root = TrainerRoot::with_job(&SHORT_RUN);
    let data = root.dir.path().join("sums.jsonl");
    let again = || assert!(submit(&root, &data).status.success());
    let first = root.drain();
    let done = root.path().join("done");
    let job = sorted_names(&done)[0].clone();
    std::fs::write(done.join(&job).join("notes.txt"), "mine").unwrap();
    std::fs::write(done.join(&job).join("adapter_model.safetensors"), "quantized").unwrap();
    // Other programs make temporary files with such names, `rsync` and `mktemp` among them.
    let foreign = [".tmpAb12Cd", ".tmp.sync", ".tmp"];
    let dirs = ["done", "failed"].map(|dir| root.path().join(dir));
    let foreign: Vec<_> = dirs.iter().flat_map(|dir| foreign.map(|name| dir.join(name))).collect();
    for path in &foreign {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("notes.txt"), "mine").unwrap();
    }
    again();
    // Somebody keeps notes in the queue, too.
    let mut daemon = root.spawn_daemon();
    let entry = root.path().join("queue/processing").join(&job);
    wait_for("the queue", || entry.is_dir() || daemon.try_wait().unwrap().is_some());
    let has_notes = std::fs::write(entry.join("notes.txt"), "queued").is_ok();
    let output = daemon.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    assert_eq!(adapter_digest(&text(&output.stdout)), adapter_digest(&first));
    assert!(
        text(&output.stdout).contains("what was in the place of the result is now"),
        "{}",
        all_output(&output)
    );
    let read = |path: String| std::fs::read_to_string(done.join(path)).unwrap();
    let old: Vec<String> = (1..=2).map(|number| format!("{job}-old-{number}")).collect();
    let (kept, queued) = if read(format!("{}/notes.txt", old[0])) == "mine" { (0, 1) } else { (1, 0) };
    assert_eq!(read(format!("{}/notes.txt", old[kept])), "mine");
    assert_eq!(read(format!("{}/adapter_model.safetensors", old[kept])), "quantized");
    assert!(has_notes);
    assert_eq!(read(format!("{}/notes.txt", old[queued])), "queued");
    assert!(sorted_names(&root.path().join("queue/processing")).is_empty());
    assert!(root.verify().status.success(), "{}", all_output(&root.verify()));
    again();
    assert!(root.drain().contains("duplicate"));
    for path in &foreign {
        assert_eq!(std::fs::read_to_string(path.join("notes.txt")).unwrap(), "mine", "{}", path.display());
    }
}

#[test]
fn data_of_an_earlier_failure_is_kept() {
    let root = TrainerRoot::new(&[SHORT_RUN[0], SHORT_RUN[1], "train.non_finite_budget=0"]);
    let failed = root.path().join("failed");
    let line = "{\"text\":\"a\",\"weight\":3.0e38}\n".repeat(8);
    for attempt in 1..=3 {
        std::fs::write(root.path().join("inbox/overflow.jsonl"), &line).unwrap();
        let output = root.drain_with_failed_job();
        let names = sorted_names(&failed);
        assert_eq!(names.len(), attempt, "{output}");
        for name in names {
            let notes = failed.join(name).join("notes.txt");
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(notes)
                .unwrap()
                .write_all(b"x")
                .unwrap();
        }
    }
    let notes = |name: &str| std::fs::read_to_string(failed.join(name).join("notes.txt")).unwrap().len();
    let mut counts: Vec<usize> = sorted_names(&failed).iter().map(|name| notes(name)).collect();
    counts.sort();
    assert_eq!(counts, [1, 2, 3]);
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
