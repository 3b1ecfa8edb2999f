//! Consolidation with the built command: alone, beside a daemon that trains, repeated, and with a base that is
//! another one or a disk that lies.

use std::path::PathBuf;
use std::process::Output;

use crate::trainer_root::{TrainerRoot, all_output, run, sorted_names, text};
use target_trainer::model::{
    AdapterLayout, BaseCheck, BaseModel, probe_logits, probe_logits_of_base, relative_difference,
};
use target_trainer::store::read_adapter;

fn consolidate(root: &TrainerRoot, job: &str, more: &[&str]) -> Output {
    run(&[&["consolidate", root.path_str(), job], more].concat())
}

fn merged(root: &TrainerRoot, job: &str) -> PathBuf {
    root.path().join("merged").join(job)
}

#[test]
fn a_merged_model_computes_what_base_and_adapter_do_and_is_made_once() {
    let root = TrainerRoot::with_job(&["recipe.steps=20"]);
    root.drain();
    let job = root.job_id();
    let output = consolidate(&root, &job, &[]);
    assert!(output.status.success(), "{}", all_output(&output));
    assert!(text(&output.stdout).contains("the adapter stays"), "{}", all_output(&output));
    let base = BaseModel::read(&root.path().join("base"), BaseCheck::Full).unwrap();
    let (recipe, tensors) = read_adapter(&root.path().join("done").join(&job)).unwrap();
    let layout = AdapterLayout::new(&base.config, &recipe);
    let expected = probe_logits(&base, &layout, &layout.flat_params(&tensors, "").unwrap());
    let model = BaseModel::read(&merged(&root, &job), BaseCheck::Full).unwrap();
    assert!(relative_difference(&probe_logits_of_base(&model), &expected) <= 1e-5);
    assert!(
        relative_difference(&probe_logits_of_base(&base), &expected) > 1e-3,
        "the adapter does something"
    );
    // Again, and then without the adapter, which nothing misses.
    let again = consolidate(&root, &job, &[]);
    assert!(text(&again.stdout).contains("was consolidated before"), "{}", all_output(&again));
    let removed = consolidate(&root, &job, &["--remove-adapter"]);
    assert!(text(&removed.stdout).contains("the adapter is removed"), "{}", all_output(&removed));
    assert_eq!(
        sorted_names(&root.path().join("done").join(&job)),
        ["adapter_config.json", "adapter_merged.json", "report.json"]
    );
    assert!(root.verify().status.success());
    assert!(consolidate(&root, &job, &["--remove-adapter"]).status.success());
    // The data is still known as trained on, and without the merged model something is missing.
    std::fs::copy(root.dir.path().join("sums.jsonl"), root.path().join("inbox/again.jsonl")).unwrap();
    assert!(!root.drain().contains("step 1 loss"));
    std::fs::remove_file(merged(&root, &job).join("model.safetensors")).unwrap();
    let verify = root.verify();
    assert_eq!(verify.status.code(), Some(1));
    assert!(text(&verify.stdout).contains("no adapter: "), "{}", all_output(&verify));
}

#[test]
fn a_damaged_merged_model_is_made_anew_and_what_does_not_fit_is_refused() {
    let root = TrainerRoot::with_job(&["recipe.steps=5"]);
    root.drain();
    let job = root.job_id();
    assert!(consolidate(&root, &job, &[]).status.success());
    let weights = merged(&root, &job).join("model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &good[..good.len() - 1]).unwrap();
    assert!(consolidate(&root, &job, &[]).status.success());
    assert_eq!(std::fs::read(&weights).unwrap(), good);
    // What was there may be somebody's, and is kept.
    let old = |number: u32| merged(&root, &format!("{job}-old-{number}"));
    assert_eq!(std::fs::read(old(1).join("model.safetensors")).unwrap(), good[..good.len() - 1]);
    std::fs::remove_dir_all(merged(&root, &job)).unwrap();
    std::fs::create_dir(merged(&root, &job)).unwrap();
    std::fs::write(merged(&root, &job).join("notes.txt"), "mine").unwrap();
    let output = consolidate(&root, &job, &[]);
    assert!(output.status.success(), "{}", all_output(&output));
    assert!(
        text(&output.stdout).contains(&format!("is now `{}`", old(2).display())),
        "{}",
        all_output(&output)
    );
    assert_eq!(std::fs::read_to_string(old(2).join("notes.txt")).unwrap(), "mine");
    assert!(root.verify().status.success(), "{}", all_output(&root.verify()));
    // What can't be listed is not called sound.
    for name in ["merged", "done", "checkpoints", "snapshots", "queue/processing"] {
        let (dir, aside) = (root.path().join(name), root.path().join("aside"));
        std::fs::rename(&dir, &aside).unwrap();
        std::fs::write(&dir, "").unwrap();
        let verify = root.verify();
        assert_eq!(verify.status.code(), Some(1), "{name}: {}", all_output(&verify));
        assert!(text(&verify.stdout).contains("could not list"), "{name}: {}", all_output(&verify));
        std::fs::remove_file(&dir).unwrap();
        std::fs::rename(&aside, &dir).unwrap();
    }
    for odd in ["", ".", "..", "../base", "none", "a/b"] {
        assert!(!consolidate(&root, odd, &[]).status.success(), "{odd}");
    }
    // Another base, and a damaged adapter.
    std::fs::remove_dir_all(merged(&root, &job)).unwrap();
    let base = root.path().join("base/model.safetensors");
    let bytes = std::fs::read(&base).unwrap();
    let mut other = bytes.clone();
    let end = other.len();
    other[end - 2] ^= 1;
    std::fs::write(&base, other).unwrap();
    let output = consolidate(&root, &job, &["--remove-adapter"]);
    assert_eq!(output.status.code(), Some(11), "{}", all_output(&output));
    std::fs::write(&base, bytes).unwrap();
    let adapter = root.path().join("done").join(&job).join("adapter_model.safetensors");
    let mut damaged = std::fs::read(&adapter).unwrap();
    let end = damaged.len();
    damaged[end - 1] ^= 1;
    std::fs::write(&adapter, damaged).unwrap();
    let output = consolidate(&root, &job, &["--remove-adapter"]);
    assert!(!output.status.success() && adapter.exists() && !weights.exists(), "{}", all_output(&output));
}

#[test]
fn a_daemon_consolidates_what_it_is_asked_for_and_with_auto_each_finished_job() {
    let root = TrainerRoot::with_job(&["recipe.steps=5"]);
    root.drain();
    let job = root.job_id();
    // As the command leaves it if a daemon uses the root.
    let requests = root.path().join("queue/consolidate");
    std::fs::create_dir(&requests).unwrap();
    std::fs::write(requests.join(&job), "keep-adapter\n").unwrap();
    let output = root.drain();
    assert!(output.contains(&format!("consolidated: job {job}")), "{output}");
    assert!(sorted_names(&requests).is_empty() && merged(&root, &job).exists());
    // One that can't be done is told, and ends the drain.
    std::fs::write(requests.join("none"), "keep-adapter\n").unwrap();
    let output = root.drain_with_failed_job();
    assert!(output.contains("consolidation of job none failed: there is no finished job `none`"), "{output}");
    assert_eq!(sorted_names(&requests), ["none"]);

    let auto = ["consolidation.auto=true", "consolidation.remove_adapter=true", "recipe.steps=5"];
    let root = TrainerRoot::with_job(&auto);
    // The same data and recipe have the same id. What somebody has put there is no merged model.
    std::fs::create_dir_all(merged(&root, &job)).unwrap();
    std::fs::write(merged(&root, &job).join("notes.txt"), "mine").unwrap();
    let output = root.drain();
    assert_eq!(root.job_id(), job);
    assert!(merged(&root, &format!("{job}-old-1")).join("notes.txt").exists(), "{output}");
    assert_eq!(output.matches("consolidated: job ").count(), 1, "{output}");
    assert!(root.verify().status.success());
    assert!(!root.drain().contains("consolidated"));
}
