//! The settings file as `init` writes it: every key with a description.

use super::root_settings::Settings;

/// Each section and setting with its description.
const DESCRIPTIONS: &[(&str, &str)] = &[
    ("train", "How jobs are run. On the CPU none of these settings changes a bit of the weights."),
    (
        "train.micro_batch",
        "Samples in memory at once. Halved when memory runs out. On a GPU it changes bits of the weights.",
    ),
    ("train.threads", "Threads of the worker; 0: one per core."),
    (
        "train.sample_memory_bytes",
        "Memory for the samples of a job. If they need more, each is read from the file when it is trained on.",
    ),
    ("train.save_every", "Steps between two checkpoints. A crash loses at most this many steps."),
    ("train.keep", "Checkpoints to keep per job."),
    (
        "train.checkpoint_dir",
        "Directory of the checkpoints, for this root only; empty: `checkpoints` below the root.",
    ),
    (
        "train.on_non_finite",
        "If a step is not finite: skip its batch, rollback to the last checkpoint, or stop the job.",
    ),
    ("train.non_finite_budget", "Non-finite steps that one job may have before it fails."),
    (
        "train.save_patience_s",
        "Seconds to retry what the machine refuses, such as the last save, before the daemon stops.",
    ),
    ("train.heartbeat_s", "A worker that makes no progress for this many seconds is replaced."),
    ("train.max_crashes", "A job fails after this many crashes in a row without progress."),
    ("train.backoff_ms", "Wait before the first restart of a worker; doubled with each crash."),
    (
        "device",
        "Where training runs. Bits are equal only on the same kind of device and with the same precision.",
    ),
    ("device.use", "auto: the first usable GPU, else the CPU. Or cpu, or cuda:N."),
    (
        "device.precision",
        "Number format of weights and activations on a GPU: f32 or bf16. Sums are always in f32.",
    ),
    (
        "device.on_lost",
        "If the GPU is permanently gone or unusable: stop, or cpu to continue slowly on the CPU.",
    ),
    ("device.lost_patience_s", "Seconds to look for a missing GPU before on_lost applies."),
    ("device.patience_s", "A worker whose GPU has not answered for this many seconds is replaced."),
    (
        "device.recheck_every",
        "Every this many steps a batch is computed twice and compared bit by bit; 0: never.",
    ),
    ("device.background_save", "On a GPU, checkpoints are written while training continues."),
    (
        "device.health_every_ms",
        "Time between two readings of the GPU's temperature, clocks and error counts.",
    ),
    ("recipe", "What the weights depend on, in addition to the base model and the data."),
    ("recipe.steps", "Optimizer steps of a job."),
    ("recipe.batch", "Samples whose gradients are summed for one step."),
    ("recipe.learning_rate", "Peak learning rate."),
    ("recipe.warmup_steps", "Steps of linear warm-up."),
    ("recipe.min_ratio", "The learning rate decays along a cosine to this fraction of its peak."),
    ("recipe.weight_decay", "AdamW's decoupled weight decay."),
    ("recipe.beta1", "AdamW's decay of the first moment."),
    ("recipe.beta2", "AdamW's decay of the second moment."),
    ("recipe.epsilon", "AdamW's term against division by zero."),
    ("recipe.clip_norm", "Gradients are scaled down to this norm."),
    ("recipe.rank", "Rank of the LoRA matrices."),
    ("recipe.alpha", "LoRA's scale is alpha / rank."),
    ("recipe.targets", "Projections that get LoRA matrices."),
    ("recipe.context", "Maximum tokens of a sample; longer samples are cut off."),
    ("recipe.seed", "Seed of the LoRA matrices' initial values and of the order of samples."),
    ("limits", "Limits for data files. A file beyond a limit is rejected with line and column."),
    ("limits.line_bytes", "Maximum bytes of a line."),
    ("limits.nesting", "Maximum nesting of JSON."),
    ("limits.number_chars", "Maximum characters of a number."),
    ("limits.lines", "Maximum lines of a file."),
    ("limits.file_bytes", "Maximum bytes of a file."),
    ("limits.strict", "Reject a file with keys that are not used; otherwise they are counted."),
    (
        "limits.settle_s",
        "A file in the inbox is taken once it has not changed for this many seconds, and no process has it \
         open for writing. Files that `submit` has put there are complete.",
    ),
    (
        "maintenance",
        "What is done once a day, beside training: checkpoints are copied, old logs go, what is stored is checked.",
    ),
    (
        "maintenance.at",
        "Local time of day, as HH:MM, in the zone of the machine or of TZ. Once for each date, whatever the clock does.",
    ),
    ("maintenance.after_saves", "A maintenance also after this many saves; 0: only the daily one."),
    ("maintenance.snapshots", "Copies of checkpoints to keep per queued job."),
    (
        "maintenance.snapshot_dir",
        "Directory of the copies, for this root only, best on another disk; empty: `snapshots` below the root.",
    ),
    ("maintenance.log_dir", "Directory of the log files; empty: `logs` below the root."),
    ("maintenance.log_days", "The newest days that have a log are kept, this many."),
    (
        "maintenance.log_bytes",
        "Bytes of all log files; the oldest go first. One day has a quarter of it at most, and 16 MiB.",
    ),
    ("consolidation", "Whether the adapters of finished jobs are merged into the base model, in `merged/`."),
    ("consolidation.auto", "The adapter of each finished job is merged when no job is being trained."),
    (
        "consolidation.remove_adapter",
        "With auto: the adapter is removed when the merged model has been read back.",
    ),
    (
        "monitor",
        "An HTTP server with a page, metrics for Prometheus, and a door for jobs. Training does not depend on it.",
    ),
    ("monitor.enabled", "Whether it is there."),
    (
        "monitor.address",
        "Address to listen at. Anything but a loopback address makes every request need the token.",
    ),
    (
        "monitor.port",
        "Port to listen at; 0: any free one. If it is taken, one of the next 20; status.json has it.",
    ),
    ("monitor.pinned", "Use this port only; if it is taken, the daemon ends with exit code 23."),
    (
        "monitor.connections",
        "Connections at once. Beyond that, the one that has been idle for longest is closed.",
    ),
    ("monitor.upload_bytes", "Maximum bytes of a data file that is submitted over HTTP."),
    (
        "monitor.history_bytes",
        "Bytes of the history of a job in metrics/; when it has more, every second line is left out.",
    ),
    (
        "health",
        "When the daemon warns of the machine's state: memory, disks and limits. It changes nothing else.",
    ),
    ("health.interval_s", "Seconds between two looks."),
    (
        "health.free_bytes",
        "Warns if fewer bytes are free, and no more than 5 % of the file system; 0: never.",
    ),
    ("health.free_inodes", "The same for inodes."),
    ("guards", "Protections. Switch one off only to show what it protects against."),
    (
        "guards.atomic_save",
        "Checkpoints are written to a temporary directory and renamed; off: overwritten in place.",
    ),
    ("guards.whole_writes", "Short writes are continued; off: they are not, and write errors are ignored."),
    ("guards.sync", "Files and directories are synced before a save is announced."),
    ("guards.directory_sync", "The directories of saved files are synced as well; off: only the files are."),
    ("guards.sync_errors", "A failed sync makes the save fail; off: sync errors are ignored."),
    (
        "guards.complete_checkpoint",
        "A checkpoint without its optimizer or position is damaged; off: it is resumed with fresh ones.",
    ),
    (
        "guards.read_errors",
        "A checkpoint that can't be read is not damaged: it is tried again, and never removed.",
    ),
    (
        "guards.manifest_digest",
        "A checkpoint is resumed from only if every file matches its digest in the manifest.",
    ),
    (
        "guards.step_names",
        "A checkpoint's name is that of its step, newer formats are refused; off: neither is looked at.",
    ),
    (
        "guards.verify_before_prune",
        "Old checkpoints are removed only after the newest one has been read back.",
    ),
    ("guards.valid_prune", "Only valid checkpoints count when old ones are removed; off: names count."),
    (
        "guards.prune_whole",
        "Old checkpoints and finished jobs are renamed, then removed; off: removed file by file.",
    ),
    ("guards.no_links", "Symbolic links in the place of directories that are written to are refused."),
    ("guards.space_check", "Free bytes and inodes are checked before a save."),
    ("guards.abort_cleanup", "A failed save removes the files that it has written."),
    ("guards.read_only_wait", "A read-only file system is waited for; off: worker and daemon exit."),
    ("guards.finite_check", "A step that is not finite is not applied; off: it is applied and saved."),
    ("guards.shrink_on_oom", "The micro-batch is halved after an OOM kill."),
    ("guards.heartbeat", "A worker that sends no events is replaced."),
    ("guards.pause_allowance", "After a pause of the whole machine, a worker gets its time anew."),
    (
        "guards.kernel_hangs",
        "A worker that hangs in the kernel is reported and waited for; off: it is killed like any other.",
    ),
    ("guards.machine_faults", "Faults of the machine or of the base model move no job to failed/."),
    (
        "guards.running_program",
        "Workers are started from the running program, and again if that fails; off: from its file.",
    ),
    (
        "guards.output_queue",
        "A slow reader of the output is waited for once, for 0.2 s; then lines are dropped and counted; off: \
         the daemon waits until its output is read.",
    ),
    (
        "guards.worker_cleanup",
        "The daemon waits for a worker that has ended and closes its pipe; off: both stay until the daemon ends.",
    ),
    (
        "guards.content_names",
        "A job is named by the digest of its content; off: by the name of its file, of which twins are one.",
    ),
    ("guards.twin_names", "A name that looks like that of another file is told, with what differs."),
    ("guards.regular_files", "Only regular files are opened; off: whatever is in the inbox, also a pipe."),
    ("guards.valid_text", "A line that is not UTF-8 is rejected; off: bytes that are none are replaced."),
    (
        "guards.base_identity",
        "A job is continued only with the base model that it began with; off: with the one that is there.",
    ),
    ("guards.quarantine", "A job that keeps crashing its worker is moved to failed/."),
    (
        "guards.nesting_limit",
        "Deeply nested JSON is rejected before it is parsed; off: parsed by unbounded recursion.",
    ),
    ("guards.line_limit", "Long lines are rejected while they are read; off: read into memory as a whole."),
    (
        "guards.tolerate_vanished",
        "A file that vanishes between listing and opening is reported; off: the daemon exits.",
    ),
    (
        "guards.intake_retry",
        "What fails in the inbox or the queue is reported and tried again; off: the daemon exits.",
    ),
    (
        "guards.submit_names",
        "submit never replaces a file, and never uses a name that is not taken; off: it renames to the name.",
    ),
    (
        "guards.settled_files",
        "A file is taken when its writer is done, and removed only if it is the one that was copied.",
    ),
    (
        "guards.compare_content",
        "Whether a file has changed is seen by its content; off: by its times, which may be coarse.",
    ),
    (
        "guards.base_check",
        "A base model that would be computed wrongly is refused; off: what is not known is ignored.",
    ),
    (
        "guards.learned_check",
        "Data without a token to learn is rejected, and a job is finished only if something was learned.",
    ),
    (
        "guards.job_identity",
        "A job is its data, recipe and base together; off: its data alone, with the settings of today.",
    ),
    ("guards.escape_text", "Texts from outside are printed on one line, without control characters."),
    ("guards.atomic_status", "status.json is replaced as a whole; off: written in place."),
    ("guards.optional_status", "A status.json that can't be written is told once; off: it ends the daemon."),
    (
        "guards.defer_stop",
        "SIGTERM and SIGINT wait until the step is done and saved; off: they end the process at once.",
    ),
    ("guards.gpu_restart", "After a CUDA error a new worker process continues; off: the job fails."),
    ("guards.gpu_fallback", "A missing GPU is looked for, then on_lost applies; off: the job fails."),
    ("guards.gpu_health", "Temperature, clocks, ECC counts and XIDs are monitored through NVML."),
    ("guards.gpu_watchdog", "A worker whose GPU does not answer is replaced."),
    ("guards.gpu_shrink", "The micro-batch is halved when device memory runs out; off: the worker exits."),
    ("guards.recheck", "Some batches are computed twice and compared."),
    ("guards.weight_check", "A checksum of the frozen weights in device memory is checked before each save."),
    (
        "guards.parity_check",
        "The worker computes its first sample on the CPU as well and compares the results.",
    ),
    ("guards.no_orphan", "A worker ends with its daemon; off: it trains on after its daemon was killed."),
    ("guards.root_lock", "One daemon at a time uses the root; off: two of them do."),
    (
        "guards.kernel_lock",
        "The lock of the kernel tells whether a daemon runs; off: so does the number in its file.",
    ),
    ("guards.step_order", "Checkpoints are ordered by their steps; off: by their time stamps."),
    ("guards.resume_schedule", "The learning rate continues after a resume; off: its schedule begins anew."),
    ("guards.resume_order", "The order of the data continues after a resume; off: the epoch begins anew."),
    (
        "guards.save_progress",
        "Each write and sync of a save counts as progress; off: only computing and reading do.",
    ),
    ("guards.strict_settings", "An unknown key of the settings is an error; off: it is ignored."),
    ("guards.setting_ranges", "A setting out of its range is an error; off: it is used."),
    (
        "guards.accepted_recipe",
        "A job keeps the recipe of its acceptance; off: it gets that of the settings.",
    ),
    (
        "guards.settings_at_start",
        "Workers use the settings that the daemon has read at its start; off: they read the file.",
    ),
    (
        "guards.private_files",
        "Nobody but owner and group can read or write the files; off: the umask decides.",
    ),
    (
        "guards.policy_suspect",
        "A denial that owner and mode do not explain names who may deny it; off: it is only reported.",
    ),
    ("guards.sample_order", "Gradients are summed in the order of the samples; off: in parallel."),
    ("guards.clean_start", "What an earlier daemon left unfinished is removed at the start; off: it stays."),
    ("guards.known_jobs", "The same content is trained once with a recipe and a base; off: each time."),
    (
        "guards.empty_batches",
        "A batch without a token to learn has the loss 0; off: the loss is divided by 0 tokens.",
    ),
    (
        "guards.daily_record",
        "The days of maintenance are recorded in maintenance.json; off: only the last one is, in memory.",
    ),
    ("guards.whole_record", "maintenance.json is replaced as a whole; off: written in place."),
    (
        "guards.local_calendar",
        "A maintenance is due by the local date; off: whenever the clock shows the hour and the minute.",
    ),
    ("guards.log_limits", "Old and large log files are removed; off: they stay and grow."),
    (
        "guards.log_errors",
        "A log that can't be written is reported once, and training goes on; off: the daemon exits.",
    ),
    (
        "guards.snapshots",
        "Checkpoints are copied once a day, and the copy is used if they are lost; off: neither.",
    ),
    (
        "guards.merge_whole",
        "A merged model is written aside, read back and renamed; off: written in place, and not read back.",
    ),
    ("guards.merge_first", "An adapter is removed after the merged model is there; off: before that."),
    ("guards.serial_merge", "A merge waits until no job is being trained; off: it runs beside training."),
    ("guards.free_port", "A taken port leads to the next one; off: it ends the daemon."),
    (
        "guards.client_limits",
        "Connections of the monitor are bounded in number and time; off: each client keeps one for ever.",
    ),
    (
        "guards.request_limits",
        "Requests are checked before their bodies are read, which are bounded; off: read into memory as a whole.",
    ),
    ("guards.journal_counts", "The monitor counts what is in its journal; off: what this daemon has seen."),
    ("guards.host_warnings", "Warns of the machine's state, such as swapping; off: says nothing."),
    ("guards.change_token", "A request that changes something needs the token; off: nothing needs it."),
    (
        "guards.lost_checkpoints",
        "A job that was saved, and has no checkpoint any more, fails; off: it begins anew, without a word.",
    ),
];

/// The settings as the text of a TOML file, with a description above each key.
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
    fn an_unknown_key_is_an_error_with_its_position_and_the_nearest_key() {
        let error = Settings::parse("[train]\nsave_evry = 3\n", "s.toml").unwrap_err().to_string();
        assert_eq!(error, "s.toml:2:1: unknown key `save_evry`; did you mean `save_every`?");
        let error = Settings::default().with(&["guards.atomic_sav=false".into()]).unwrap_err().to_string();
        assert_eq!(
            error,
            "--set guards.atomic_sav=false: unknown key `atomic_sav`; did you mean `atomic_save`?"
        );
    }

    #[test]
    fn a_value_out_of_range_is_an_error_with_the_range() {
        let error = Settings::default().with(&["train.keep=0".into()]).unwrap_err().to_string();
        assert_eq!(error, "--set train.keep=0: train.keep must be from 1 to 1000000000");
    }

    /// Each number of the settings, set to the largest values that TOML has, is refused, unless nothing is
    /// ever added to it.
    #[test]
    fn no_number_is_unbounded() {
        let table = toml::Table::try_from(Settings::default()).unwrap();
        let free = ["recipe.seed", "recipe.alpha", "recipe.clip_norm", "recipe.learning_rate"];
        let free = [&free[..], &["recipe.weight_decay", "recipe.epsilon"]].concat();
        for (section, keys) in &table {
            for (key, value) in keys.as_table().unwrap() {
                let name = format!("{section}.{key}");
                // None of them can be written as JSON.
                for odd in ["inf", "-inf", "nan"].into_iter().filter(|_| value.is_float()) {
                    let change = format!("{name}={odd}");
                    assert!(Settings::default().with(std::slice::from_ref(&change)).is_err(), "{change}");
                }
                if !(value.is_integer() || value.is_float()) || free.contains(&name.as_str()) {
                    continue;
                }
                for large in ["9223372036854775807", "1e18", "-1", "nan"] {
                    let change = format!("{name}={large}");
                    assert!(Settings::default().with(std::slice::from_ref(&change)).is_err(), "{change}");
                }
            }
        }
    }
}
