//! Roots of other versions. `first_version` is what commit 41fe9d6 left, without its base model, which is the one of
//! seed 1: a finished job, one at step 4 of 8, one that waits in the queue, a data file in the inbox, and a rejected
//! one. It is killed while it trains.

#![expect(clippy::unwrap_used, reason = "a test fails at the first unexpected value")]

#[expect(dead_code, reason = "this test uses a part of it")]
#[path = "support/trainer_root.rs"]
mod trainer_root;

use std::path::{Path, PathBuf};

use trainer_root::{TrainerRoot, all_output, run, sorted_names, text};

/// The jobs of the queue and of the inbox, with the adapters that the first version made of them when it was
/// started again.
const UNFINISHED: [(Option<&str>, &str); 3] = [
    (
        Some("f536a95225944d8c408149e462c5fecc"),
        "2ce0f12c0029003161c21c321a272699b0c19f99a37bdb80b3a2ff9afd96f139",
    ),
    (
        Some("e4dfeeafbeb11515255c8e66757ca35c"),
        "d34778bcae2e27e64e5fcc5abd8ef1343c6a0c9ef6e36990d270696184c05831",
    ),
    // Its id is made in another way today.
    (None, "3370932c4196439dce0c8db9200351f43d04cd65393c3227ad4640eec0ae649f"),
];
const FINISHED: &str = "7c6979c9ee80caabd4add8bfb4130fbb";

/// A copy of the first version's root.
fn first_version() -> TrainerRoot {
    let root = TrainerRoot::new(&[]);
    for name in sorted_names(&root.path()) {
        let path = root.path().join(&name);
        if name != "base" {
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
        }
    }
    copy_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/first_version"), &root.path());
    // Git keeps no empty directories.
    std::fs::create_dir_all(root.path().join("queue/processing")).unwrap();
    root
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in sorted_names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy_tree(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn everything_that_the_first_version_has_left_is_used() {
    let root = first_version();
    let settings = std::fs::read(root.path().join("settings.toml")).unwrap();
    let report = std::fs::read(root.path().join("done").join(FINISHED).join("report.json")).unwrap();
    let output = root.spawn_daemon().wait_with_output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    let printed = text(&output.stdout);
    assert!(printed.contains("resumed from step 4\n"), "{printed}");
    for (job, adapter) in UNFINISHED {
        let line = match job {
            Some(job) => format!("finished job {job} at step 8 adapter blake3:{adapter}\n"),
            None => format!(" at step 8 adapter blake3:{adapter}\n"),
        };
        assert!(printed.contains(&line), "`{line}` is not in {printed}");
    }
    let warned = all_output(&output);
    for part in [
        "`guards.folder_sync = true` of an earlier version is read as `directory_sync = true`",
        "`settle_s = 2`",
    ] {
        assert!(warned.contains(part), "`{part}` is not in {warned}");
    }
    assert_eq!(std::fs::read(root.path().join("settings.toml")).unwrap(), settings);
    assert_eq!(std::fs::read(root.path().join("done").join(FINISHED).join("report.json")).unwrap(), report);
    assert_eq!(sorted_names(&root.path().join("done")).len(), 4);
    assert_eq!(sorted_names(&root.path().join("queue/processing")), [""; 0]);
    assert_eq!(sorted_names(&root.path().join("failed")), ["rejected-80951601a4afbff2"]);
    assert!(root.verify().status.success(), "{}", all_output(&root.verify()));
    let merged = run(&["consolidate", root.path_str(), FINISHED]);
    assert!(merged.status.success(), "{}", all_output(&merged));
}

/// Gives a record the format of a newer version.
fn make_newer(record: &Path) {
    let text = std::fs::read_to_string(record).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["format"] = 2.into();
    value["unheard-of"] = serde_json::json!([1]);
    std::fs::write(record, value.to_string()).unwrap();
}

#[test]
fn records_of_a_newer_version_are_refused_by_name_and_stay() {
    let root = first_version();
    let job = root.path().join("queue/processing").join(UNFINISHED[0].0.unwrap()).join("job.json");
    let result = root.path().join("done").join(FINISHED).join("report.json");
    let records: [PathBuf; 2] = [job, result];
    records.iter().for_each(|record| make_newer(record));
    let before: Vec<Vec<u8>> = records.iter().map(|record| std::fs::read(record).unwrap()).collect();
    let output = root.spawn_daemon().wait_with_output().unwrap();
    let printed = all_output(&output);
    assert!(!output.status.success(), "{printed}");
    // The other jobs are trained.
    assert!(printed.contains(UNFINISHED[1].1) && printed.contains(UNFINISHED[2].1), "{printed}");
    assert!(printed.contains("job.json: it has format 2, which is newer than 1"), "{printed}");
    let verified = all_output(&root.verify());
    for record in ["job.json", "report.json"] {
        assert!(
            verified.lines().any(|line| line.contains(record) && line.contains("format 2")),
            "{verified}"
        );
    }
    for (record, before) in records.iter().zip(before) {
        assert_eq!(std::fs::read(record).unwrap(), before, "{}", record.display());
    }
}

/// Neither is it trained again, nor is the result of the newer version replaced.
#[test]
fn data_of_a_result_of_a_newer_version_stays_in_the_inbox() {
    let root = TrainerRoot::with_job(&["recipe.steps=5", "train.save_patience_s=1"]);
    root.drain();
    let done = root.path().join("done");
    let job = sorted_names(&done)[0].clone();
    make_newer(&done.join(&job).join("report.json"));
    let data = root.dir.path().join("sums.jsonl");
    assert!(run(&["submit", root.path_str(), data.to_str().unwrap()]).status.success());
    let output = root.spawn_daemon().wait_with_output().unwrap();
    let printed = all_output(&output);
    assert!(!output.status.success() && printed.contains("format 2"), "{printed}");
    assert_eq!(sorted_names(&done), [job]);
    assert_eq!(sorted_names(&root.path().join("inbox")), ["sums.jsonl"]);
    assert!(!printed.contains("step 1 "), "{printed}");
}

#[test]
fn results_say_of_which_format_they_are() {
    let root = TrainerRoot::with_job(&["recipe.steps=5"]);
    root.drain();
    let done = root.path().join("done");
    let report = std::fs::read_to_string(done.join(&sorted_names(&done)[0]).join("report.json")).unwrap();
    assert!(report.contains("\"format\":1"), "{report}");
}
