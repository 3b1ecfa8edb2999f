//! The settings file as `init` writes it: every key with what it means.

use super::Settings;

const DESCRIPTIONS: [(&str, &str); 72] = [
    ("train", "How a job is run. On the CPU nothing in here changes a bit of the weights."),
    (
        "train.micro_batch",
        "Samples in memory at a time. Halved where memory is short. On a GPU another one gives close weights.",
    ),
    ("train.threads", "Threads of the worker; 0: one for each core."),
    ("train.save_every", "Steps between checkpoints: what is lost at most."),
    ("train.keep", "Checkpoints kept of each job."),
    (
        "train.on_non_finite",
        "A loss, gradient or weight that is not finite: skip the batch, rollback to the last checkpoint, or stop.",
    ),
    ("train.non_finite_budget", "So many such steps are borne in one job."),
    (
        "train.save_patience_s",
        "The last save of a job is tried again for so long before the job is given up.",
    ),
    ("train.heartbeat_s", "A worker that gives no sign of life for so long is replaced."),
    ("train.max_crashes", "Crashes in a row without progress after which a job is put aside."),
    ("train.backoff_ms", "Wait before the first restart of a worker; doubled each time."),
    (
        "device",
        "Where training runs. Another device or precision gives weights that are close; the same kind of device, the same bits.",
    ),
    ("device.use", "auto: the first GPU that can be used, else the CPU. Or cpu, or cuda:N."),
    ("device.precision", "Of weights and activations on a GPU: f32 or bf16. Sums are in f32 always."),
    (
        "device.on_lost",
        "Once the GPU is gone for good, or can't be used: stop, or cpu (go on there, slowly).",
    ),
    ("device.lost_patience_s", "A GPU that is gone is looked for again for so long."),
    ("device.patience_s", "A worker whose GPU has not answered for so long is replaced."),
    (
        "device.recheck_every",
        "Every so many steps a batch is computed twice and compared bit by bit; 0: never.",
    ),
    ("device.background_save", "On a GPU checkpoints are written while training goes on."),
    ("device.health_every_ms", "Between two looks at the GPU's temperature, clocks and error counts."),
    ("recipe", "What the weights depend on, beside base and data."),
    ("recipe.steps", "Optimizer steps of a job."),
    ("recipe.batch", "Samples whose gradients are summed for one step."),
    ("recipe.learning_rate", "Peak learning rate."),
    ("recipe.warmup_steps", "Steps of linear warm-up."),
    ("recipe.min_ratio", "The learning rate decays along a cosine to this part of its peak."),
    ("recipe.weight_decay", "AdamW's decoupled weight decay."),
    ("recipe.beta1", "AdamW's decay of the first moment."),
    ("recipe.beta2", "AdamW's decay of the second moment."),
    ("recipe.epsilon", "AdamW's term against division by zero."),
    ("recipe.clip_norm", "Gradients are scaled down to this norm."),
    ("recipe.rank", "Rank of the LoRA matrices."),
    ("recipe.alpha", "LoRA's scale is alpha / rank."),
    ("recipe.targets", "Projections that get LoRA matrices."),
    ("recipe.context", "Tokens of a sample at most; longer ones are cut off."),
    ("recipe.seed", "Decides the LoRA matrices' start and the order of samples."),
    ("limits", "What is taken in at most. A file beyond a limit is rejected by line and column."),
    ("limits.line_bytes", "Bytes of a line."),
    ("limits.nesting", "Nesting of JSON."),
    ("limits.number_chars", "Characters of a number."),
    ("limits.lines", "Lines of a file."),
    ("limits.file_bytes", "Bytes of a file."),
    ("limits.settle_ms", "A file in the inbox is taken once it has not changed for so long."),
    ("guards", "Protections, each to be taken away only to show what it is there for."),
    ("guards.atomic_save", "Checkpoints are written aside and renamed; off: in place, over the only one."),
    ("guards.whole_writes", "A write goes on until all is written; off: written once, whatever comes of it."),
    ("guards.sync", "Files and folders are synced before a save is announced."),
    ("guards.directory_sync", "The folders that name saved files are synced as well; off: only the files are."),
    ("guards.sync_errors", "A sync that fails makes the save fail; off: its answer is not heard."),
    (
        "guards.manifest_digest",
        "A checkpoint is resumed from only if every file has the digest of its manifest.",
    ),
    (
        "guards.verify_before_prune",
        "An old checkpoint is removed only after its successor has been read back.",
    ),
    (
        "guards.prune_whole",
        "An old checkpoint or a finished job loses its name before its files; off: file by file.",
    ),
    ("guards.space_check", "Free bytes and free inodes are checked before a save."),
    ("guards.abort_cleanup", "A save that failed removes what it had written."),
    ("guards.read_only_wait", "A read-only file system is waited for; off: worker and daemon end."),
    ("guards.finite_check", "A step that is not finite is not applied; off: it is, and saved too."),
    ("guards.shrink_on_oom", "After an OOM kill the micro-batch is halved."),
    ("guards.heartbeat", "A worker without a sign of life is replaced."),
    ("guards.quarantine", "A job that crashes its worker again and again is put aside."),
    (
        "guards.nesting_limit",
        "Deep nesting is refused before it is parsed; off: parsed by recursion without a bound.",
    ),
    ("guards.line_limit", "Long lines are refused while they are read; off: read into memory whole."),
    (
        "guards.tolerate_vanished",
        "A file that vanishes between listing and opening is a warning; off: the daemon ends.",
    ),
    ("guards.atomic_status", "status.json is replaced as a whole; off: written in place."),
    ("guards.defer_stop", "SIGTERM and SIGINT wait for the step and its save; off: they end at once."),
    ("guards.gpu_restart", "After a CUDA error a fresh process goes on; off: the job is given up."),
    (
        "guards.gpu_fallback",
        "A GPU that is gone is looked for again, then done without; off: the job is given up.",
    ),
    ("guards.gpu_health", "Temperature, clocks, ECC counts and XIDs are watched through NVML."),
    ("guards.gpu_watchdog", "A worker whose GPU no longer answers is replaced."),
    ("guards.gpu_shrink", "Where device memory is short, the micro-batch is halved; off: the worker ends."),
    ("guards.recheck", "Some batches are computed twice and compared."),
    ("guards.weight_check", "Frozen weights in device memory are checked by their sum before each save."),
    ("guards.parity_check", "A worker's first sample is computed on the CPU too and compared."),
];

/// The settings as a file's text.
pub fn documented_toml(settings: &Settings) -> String {
    let mut text =
        String::from("# Settings of this trainer root. Read once, when the daemon or a worker starts.\n");
    let table = toml::Table::try_from(settings).unwrap_or_default();
    for (name, _) in DESCRIPTIONS.iter().filter(|(name, _)| !name.is_empty() && !name.contains('.')) {
        text.push_str(&format!("\n# {}\n[{name}]\n", describe(name)));
        for (key, value) in table.get(*name).and_then(toml::Value::as_table).into_iter().flatten() {
            text.push_str(&format!("# {}\n{key} = {value}\n", describe(&format!("{name}.{key}"))));
        }
    }
    text
}

fn describe(key: &str) -> &'static str {
    DESCRIPTIONS.iter().find(|(name, _)| *name == key).map_or("", |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::{Settings, describe, documented_toml};

    #[test]
    fn every_setting_is_documented_and_reads_back() {
        let text = documented_toml(&Settings::default());
        assert_eq!(Settings::parse(&text, "settings.toml").unwrap(), Settings::default());
        let table = toml::Table::try_from(Settings::default()).unwrap();
        for (section, keys) in &table {
            for key in keys.as_table().unwrap().keys() {
                assert!(
                    !describe(&format!("{section}.{key}")).is_empty(),
                    "{section}.{key} is not documented"
                );
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_one() {
        let error = Settings::parse("[train]\nsave_evry = 3\n", "s.toml").unwrap_err().to_string();
        assert_eq!(error, "s.toml:2:1: unknown key `save_evry`; did you mean `save_every`?");
        let error = Settings::default().with(&["guards.atomic_sav=false".into()]).unwrap_err().to_string();
        assert_eq!(
            error,
            "--set guards.atomic_sav=false: unknown key `atomic_sav`; did you mean `atomic_save`?"
        );
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_the_range() {
        let error = Settings::default().with(&["train.keep=0".into()]).unwrap_err().to_string();
        assert_eq!(error, "--set train.keep=0: train.keep is at least 1");
    }
}
