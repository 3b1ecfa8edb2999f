//! The sections of the settings, with their default values. `documented.rs` describes each key.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::device_request::DeviceRequest;
use super::time_of_day::TimeOfDay;
use crate::device::Precision;

/// What a non-finite step leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnNonFinite {
    /// The batch is skipped.
    Skip,
    /// Training returns to the last checkpoint. If the same step is not finite again, the batch is skipped.
    Rollback,
    /// The job fails.
    Stop,
}

/// How jobs are run. On the CPU none of these settings changes a bit of the weights.
/// `documented.rs` describes each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainSettings {
    pub micro_batch: usize,
    pub threads: usize,
    pub sample_memory_bytes: u64,
    pub save_every: u64,
    pub keep: usize,
    pub checkpoint_dir: String,
    pub on_non_finite: OnNonFinite,
    pub non_finite_budget: usize,
    pub save_patience_s: u64,
    pub heartbeat_s: u64,
    pub max_crashes: u32,
    pub backoff_ms: u64,
}

impl Default for TrainSettings {
    fn default() -> TrainSettings {
        TrainSettings {
            micro_batch: 4,
            threads: 0,
            sample_memory_bytes: 64 << 20,
            save_every: 5,
            keep: 3,
            checkpoint_dir: String::new(),
            on_non_finite: OnNonFinite::Skip,
            non_finite_budget: 10,
            save_patience_s: 60,
            heartbeat_s: 10,
            max_crashes: 3,
            backoff_ms: 50,
        }
    }
}

/// What to do if the GPU is permanently gone or unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnGpuLost {
    /// Continue on the CPU.
    Cpu,
    /// Stop the daemon. With `device.use = "auto"`, continue on the CPU.
    Stop,
}

/// Where training runs. The same kind of device gives the same bits; another one gives weights within a
/// tolerance.
/// `documented.rs` describes each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceSettings {
    /// The setting `device.use`: `auto`, `cpu` or `cuda:N`.
    #[serde(rename = "use")]
    pub request: DeviceRequest,
    pub precision: Precision,
    pub on_lost: OnGpuLost,
    pub lost_patience_s: u64,
    pub patience_s: u64,
    pub recheck_every: u64,
    pub background_save: bool,
    pub health_every_ms: u64,
}

impl Default for DeviceSettings {
    fn default() -> DeviceSettings {
        DeviceSettings {
            request: DeviceRequest::Auto,
            precision: Precision::F32,
            on_lost: OnGpuLost::Stop,
            lost_patience_s: 60,
            patience_s: 30,
            recheck_every: 50,
            background_save: true,
            health_every_ms: 500,
        }
    }
}

/// What is done once a day. `documented.rs` describes each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaintenanceSettings {
    pub at: TimeOfDay,
    pub after_saves: u64,
    pub snapshots: usize,
    pub snapshot_dir: String,
    pub log_dir: String,
    pub log_days: usize,
    pub log_bytes: u64,
}

impl Default for MaintenanceSettings {
    fn default() -> MaintenanceSettings {
        MaintenanceSettings {
            at: TimeOfDay::default(),
            after_saves: 0,
            snapshots: 2,
            snapshot_dir: String::new(),
            log_dir: String::new(),
            log_days: 30,
            log_bytes: 256 << 20,
        }
    }
}

/// Whether finished adapters are merged. `documented.rs` describes each key.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsolidationSettings {
    pub auto: bool,
    pub remove_adapter: bool,
}

/// The daemon's HTTP server. `documented.rs` describes each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorSettings {
    pub enabled: bool,
    pub address: IpAddr,
    pub port: u16,
    pub pinned: bool,
    pub connections: usize,
    pub upload_bytes: u64,
    pub history_bytes: u64,
}

impl Default for MonitorSettings {
    fn default() -> MonitorSettings {
        MonitorSettings {
            enabled: false,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8420,
            pinned: false,
            connections: 64,
            upload_bytes: 256 << 20,
            history_bytes: 4 << 20,
        }
    }
}

/// When the daemon warns of the machine's state. `documented.rs` describes each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSettings {
    pub interval_s: u64,
    pub free_bytes: u64,
    pub free_inodes: u64,
}

impl Default for HealthSettings {
    fn default() -> HealthSettings {
        HealthSettings { interval_s: 5, free_bytes: 1 << 30, free_inodes: 10_000 }
    }
}

/// Limits for data files. `documented.rs` describes each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub line_bytes: usize,
    pub nesting: usize,
    pub number_chars: usize,
    pub lines: u64,
    pub file_bytes: u64,
    pub settle_s: u64,
    pub strict: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            line_bytes: 1 << 20,
            nesting: 64,
            number_chars: 64,
            lines: 10_000_000,
            file_bytes: 64 << 30,
            settle_s: 2,
            strict: false,
        }
    }
}

macro_rules! guards {
    ($($name:ident,)*) => {
        /// Protections. All are on by default. Each can be switched off to show what it protects against.
        /// `documented.rs` describes each key.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Guards {
            $(pub $name: bool,)*
        }

        impl Default for Guards {
            fn default() -> Guards {
                Guards { $($name: true,)* }
            }
        }
    };
}

guards! {
    atomic_save,
    whole_writes,
    sync,
    directory_sync,
    sync_errors,
    manifest_digest,
    complete_checkpoint,
    read_errors,
    step_names,
    verify_before_prune,
    valid_prune,
    prune_whole,
    no_links,
    space_check,
    abort_cleanup,
    read_only_wait,
    finite_check,
    shrink_on_oom,
    heartbeat,
    pause_allowance,
    kernel_hangs,
    machine_faults,
    running_program,
    output_queue,
    worker_cleanup,
    content_names,
    twin_names,
    regular_files,
    valid_text,
    base_identity,
    quarantine,
    nesting_limit,
    line_limit,
    tolerate_vanished,
    intake_retry,
    submit_names,
    settled_files,
    compare_content,
    base_check,
    learned_check,
    job_identity,
    escape_text,
    atomic_status,
    optional_status,
    defer_stop,
    gpu_restart,
    gpu_fallback,
    gpu_health,
    gpu_watchdog,
    gpu_shrink,
    recheck,
    weight_check,
    parity_check,
    no_orphan,
    root_lock,
    kernel_lock,
    step_order,
    resume_schedule,
    resume_order,
    save_progress,
    strict_settings,
    setting_ranges,
    accepted_recipe,
    settings_at_start,
    private_files,
    policy_suspect,
    sample_order,
    clean_start,
    known_jobs,
    empty_batches,
    daily_record,
    local_calendar,
    whole_record,
    log_limits,
    log_errors,
    snapshots,
    lost_checkpoints,
    merge_whole,
    merge_first,
    serial_merge,
    free_port,
    client_limits,
    request_limits,
    journal_counts,
    change_token,
    host_warnings,
}
