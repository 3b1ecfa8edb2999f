//! The settings of a root: one TOML file with a description of every key. An unknown key is an error that
//! names the nearest known one.

mod device_request;
mod documented;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::device::Precision;
use crate::state::Recipe;

pub use device_request::DeviceRequest;
pub use documented::documented_toml;

/// All settings of a root.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How jobs are run.
    pub train: TrainSettings,
    /// Where training runs.
    pub device: DeviceSettings,
    /// What the weights depend on.
    pub recipe: Recipe,
    /// Limits for data files.
    pub limits: Limits,
    /// Protections.
    pub guards: Guards,
}

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
    pub save_every: u64,
    pub keep: usize,
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
            save_every: 5,
            keep: 3,
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

/// Limits for data files. `documented.rs` describes each key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub line_bytes: usize,
    pub nesting: usize,
    pub number_chars: usize,
    pub lines: u64,
    pub file_bytes: u64,
    pub settle_ms: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            line_bytes: 1 << 20,
            nesting: 64,
            number_chars: 64,
            lines: 10_000_000,
            file_bytes: 64 << 30,
            settle_ms: 40,
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
    verify_before_prune,
    prune_whole,
    space_check,
    abort_cleanup,
    read_only_wait,
    finite_check,
    shrink_on_oom,
    heartbeat,
    quarantine,
    nesting_limit,
    line_limit,
    tolerate_vanished,
    atomic_status,
    defer_stop,
    gpu_restart,
    gpu_fallback,
    gpu_health,
    gpu_watchdog,
    gpu_shrink,
    recheck,
    weight_check,
    parity_check,
}

/// Why settings are invalid.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("could not read `{path}`: {error}; `target-trainer init` creates a root")]
    Read { path: String, error: std::io::Error },
    /// A key is unknown or a value is invalid. `location` is `file:line:column` or the `--set` option.
    #[error("{location}: {message}")]
    Invalid { location: String, message: String },
}

impl Settings {
    /// Reads a root's settings file.
    ///
    /// # Errors
    /// If the file can't be read, or is not valid.
    pub fn read(path: &Path) -> Result<Settings, SettingsError> {
        let display_path = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| SettingsError::Read { path: display_path.clone(), error })?;
        Settings::parse(&text, &display_path)
    }

    /// Reads settings from text. `name` is the file name for errors.
    ///
    /// # Errors
    /// If a key is unknown, or a value has the wrong type or is out of range.
    pub fn parse(text: &str, name: &str) -> Result<Settings, SettingsError> {
        let settings: Settings = toml::from_str(text).map_err(|error| {
            let location = match error.span() {
                Some(span) => format!("{name}:{}", line_and_column(text, span.start)),
                None => name.to_owned(),
            };
            SettingsError::Invalid { location, message: with_suggestion(error.message()) }
        })?;
        settings.validated(name)
    }

    /// Returns a copy with changes, each given as `section.key=value`.
    ///
    /// # Errors
    /// If a key is unknown, or a value has the wrong type or is out of range.
    pub fn with(&self, changes: &[String]) -> Result<Settings, SettingsError> {
        changes.iter().try_fold(self.clone(), |settings, change| settings.with_change(change))
    }

    fn with_change(&self, change: &str) -> Result<Settings, SettingsError> {
        let location = format!("--set {change}");
        let invalid = |message: String| SettingsError::Invalid { location: location.clone(), message };
        let (key, value) =
            change.split_once('=').ok_or_else(|| invalid("expected `section.key=value`".into()))?;
        let (section, key) =
            key.trim().split_once('.').ok_or_else(|| invalid("expected `section.key=value`".into()))?;
        let parsed: Result<toml::Table, _> = format!("value = {value}").parse();
        let value = match parsed {
            Ok(mut table) => table.remove("value").unwrap_or_else(|| value.into()),
            Err(_) => value.into(),
        };
        let mut table = toml::Table::try_from(self).map_err(|error| invalid(error.to_string()))?;
        let entry = table.entry(section).or_insert_with(|| toml::Table::new().into());
        entry
            .as_table_mut()
            .ok_or_else(|| invalid(format!("`{section}` is not a section")))?
            .insert(key.into(), value);
        let changed: Settings =
            table.try_into().map_err(|error: toml::de::Error| invalid(with_suggestion(error.message())))?;
        changed.validated(&location)
    }

    fn validated(self, location: &str) -> Result<Settings, SettingsError> {
        let (train, limits) = (&self.train, &self.limits);
        let checks = [
            (train.micro_batch == 0, "train.micro_batch must be at least 1"),
            (train.save_every == 0, "train.save_every must be at least 1"),
            (train.keep == 0, "train.keep must be at least 1"),
            (train.heartbeat_s == 0, "train.heartbeat_s must be at least 1"),
            (train.max_crashes == 0, "train.max_crashes must be at least 1"),
            (self.device.patience_s == 0, "device.patience_s must be at least 1"),
            (self.device.health_every_ms == 0, "device.health_every_ms must be at least 1"),
            (!(16..=1 << 30).contains(&limits.line_bytes), "limits.line_bytes must be from 16 to 1073741824"),
            (!(1..=1000).contains(&limits.nesting), "limits.nesting must be from 1 to 1000"),
            (limits.number_chars == 0, "limits.number_chars must be at least 1"),
        ];
        let mut messages: Vec<String> = checks
            .iter()
            .filter(|(is_wrong, _)| *is_wrong)
            .map(|(_, message)| (*message).to_owned())
            .collect();
        messages.extend(self.recipe.invalid_fields().iter().map(|field| format!("recipe.{field}")));
        if messages.is_empty() {
            return Ok(self);
        }
        Err(SettingsError::Invalid { location: location.into(), message: messages.join("; ") })
    }
}

fn line_and_column(text: &str, offset: usize) -> String {
    let before = &text[..offset.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("{line}:{column}")
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a message that suggests the nearest key.
fn with_suggestion(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((unknown, known)) = quoted.split_first().filter(|_| message.starts_with("unknown")) else {
        return message.trim().to_owned();
    };
    let nearest = known.iter().min_by_key(|key| strsim::damerau_levenshtein(key, unknown));
    let nearest = nearest.map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default();
    format!("unknown key `{unknown}`{nearest}")
}
