//! The daily maintenance of the built command: what it does, what it leaves alone, and that training does not
//! depend on it. `src/daemon/maintenance/schedule.rs` tests when it is due.

use crate::trainer_root::{TrainerRoot, adapter_digest, all_output, sorted_names, text, wait_for};

/// A record in which no day is done: a maintenance is due at the start.
const NO_DAY: &str = r#"{"done": []}"#;

fn lines<'a>(output: &'a str, begin: &str) -> Vec<&'a str> {
    output.lines().filter(|line| line.starts_with(begin)).collect()
}

#[test]
fn a_new_root_has_its_first_maintenance_on_the_next_day_and_a_day_has_one() {
    let root = TrainerRoot::new(&[]);
    assert!(lines(&root.drain(), "maintenance").is_empty());
    let record = root.path().join("maintenance.json");
    std::fs::write(&record, NO_DAY).unwrap();
    let first = root.drain();
    assert_eq!(lines(&first, "maintenance of 2").len(), 1, "{first}");
    assert!(lines(&root.drain(), "maintenance").is_empty());
    let status = std::fs::read_to_string(root.path().join("status.json")).unwrap();
    assert!(status.contains("\"maintenance\": null"), "{status}");
    // One that can't be read is replaced, and does not end the daemon.
    std::fs::write(&record, "{").unwrap();
    assert!(lines(&root.drain(), "maintenance").is_empty());
    assert!(std::fs::read_to_string(&record).unwrap().contains("20"));
}

#[test]
fn old_logs_go_and_damage_is_told_and_stays() {
    let root = TrainerRoot::with_job(&["recipe.steps=20"]);
    let digest = adapter_digest(&root.drain()).to_owned();
    let logs = root.path().join("logs");
    for day in 1..=31 {
        std::fs::write(logs.join(format!("daemon-2020-01-{day:02}.log")), "old").unwrap();
    }
    std::fs::write(logs.join("daemon.log"), "of an earlier version").unwrap();
    let checkpoint = root.newest_checkpoint();
    std::fs::write(checkpoint.join("optimizer.safetensors"), "damaged").unwrap();
    let adapter = root.path().join("done").join(root.job_id()).join("adapter_config.json");
    std::fs::write(&adapter, "{}").unwrap();
    std::fs::write(root.path().join("maintenance.json"), NO_DAY).unwrap();
    let output = root.drain();
    let damaged = lines(&output, "damaged, and not deleted: ");
    assert!(damaged.len() == 2 && damaged[0].contains("optimizer.safetensors"), "{output}");
    assert!(output.contains(" copied, 1 old log removed, 2 stored items are damaged"), "{output}");
    assert!(checkpoint.join("optimizer.safetensors").exists() && adapter.exists() && !digest.is_empty());
    let names = sorted_names(&logs);
    // The newest thirty days are those, and the one of today, which was not there before.
    assert!(names.len() == 32 && !names.contains(&"daemon-2020-01-01.log".into()), "{names:?}");
    let status = std::fs::read_to_string(root.path().join("status.json")).unwrap();
    assert!(status.contains("optimizer.safetensors"), "{status}");
}

#[test]
fn a_maintenance_beside_training_finds_no_damage_and_changes_no_bit() {
    let settings = ["recipe.steps=60", "train.save_every=1", "train.keep=1"];
    let baseline = TrainerRoot::with_job(&settings);
    baseline.drain();
    let root = TrainerRoot::with_job(&[&settings[..], &["maintenance.after_saves=1"]].concat());
    let output = root.drain();
    let between = lines(&output, "maintenance in between: ");
    // How often depends on how busy the machine is.
    assert!(!between.is_empty() && between.iter().all(|line| line.contains("no damage")), "{output}");
    assert_eq!(root.finished_adapter(), baseline.finished_adapter());
}

#[test]
fn training_goes_on_without_a_log() {
    let root = TrainerRoot::with_job(&["recipe.steps=20"]);
    std::fs::write(root.path().join("maintenance.json"), NO_DAY).unwrap();
    let logs = root.path().join("logs");
    std::fs::remove_dir(&logs).unwrap();
    std::fs::write(&logs, "a file in the way").unwrap();
    let output = root.spawn_daemon().wait_with_output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    assert_eq!(text(&output.stderr).matches("the log is not written from now on").count(), 1);
    assert!(lines(&text(&output.stdout), "finished job").len() == 1);
}

/// Checkpoints with a snapshot of each, and none left of the first kind: a directory that is gone, one that is
/// empty, and one in which all are damaged.
#[test]
fn lost_checkpoints_are_replaced_by_a_snapshot_whatever_is_wrong_with_them() {
    let settings = ["recipe.steps=400", "train.save_every=10"];
    let baseline = TrainerRoot::with_job(&settings);
    baseline.drain();
    for wrong in ["gone", "empty", "damaged"] {
        let root = TrainerRoot::with_job(&[&settings[..], &["maintenance.after_saves=1"]].concat());
        let snapshots = || root.path().join("snapshots");
        let mut daemon = root.daemon_with_checkpoints(2);
        wait_for("a snapshot", || {
            let jobs = sorted_names(&snapshots());
            let names = |job: &String| sorted_names(&snapshots().join(job));
            jobs.first().is_some_and(|job| names(job).iter().any(|name| name.starts_with("step-")))
        });
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let dir = root.path().join("checkpoints").join(root.job_id());
        for name in sorted_names(&dir) {
            match wrong {
                "damaged" => drop(std::fs::write(dir.join(name).join("state.json"), "{")),
                _ => std::fs::remove_dir_all(dir.join(name)).unwrap(),
            }
        }
        if wrong == "gone" {
            std::fs::remove_dir(&dir).unwrap();
        }
        let output = root.drain();
        assert_eq!(lines(&output, "using the snapshot of step ").len(), 1, "{wrong}: {output}");
        assert_eq!(root.finished_adapter(), baseline.finished_adapter(), "{wrong}");
    }
}

#[test]
fn lost_checkpoints_without_a_snapshot_fail_the_job_and_the_data_trained_again_begins_at_step_0() {
    let root = TrainerRoot::with_job(&["recipe.steps=400"]);
    root.kill_after_checkpoints(2);
    let job = root.job_id();
    std::fs::remove_dir_all(root.path().join("checkpoints").join(&job)).unwrap();
    let output = root.drain_with_failed_job();
    assert!(output.contains("has no checkpoint, and there is no snapshot; nothing was deleted"), "{output}");
    let failed = root.path().join("failed").join(&job);
    assert!(failed.join("data.jsonl").exists());
    std::fs::copy(failed.join("data.jsonl"), root.path().join("inbox/again.jsonl")).unwrap();
    let output = root.drain();
    assert!(output.contains("resumed from step 0") && output.contains("finished job"), "{output}");
}
