//! All settings of a root: read from TOML, changed one by one, and checked as a whole.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::former_keys::{CurrentText, line_and_column, name_of_today, with_current_keys};
use super::sections::{
    ConsolidationSettings, DeviceSettings, Guards, HealthSettings, Limits, MaintenanceSettings,
    MonitorSettings, TrainSettings,
};
use crate::bounded_read::read_text;
use crate::file_error::{FileError, chain, file_error};
use crate::names::check_path;
use crate::state::{MAX_BATCH, Recipe};

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
    /// What is done once a day.
    pub maintenance: MaintenanceSettings,
    /// Whether finished adapters are merged.
    pub consolidation: ConsolidationSettings,
    /// The daemon's HTTP server.
    pub monitor: MonitorSettings,
    /// When the daemon warns of the machine's state.
    pub health: HealthSettings,
    /// Protections.
    pub guards: Guards,
}

/// Largest settings file.
const MAX_SETTINGS_BYTES: u64 = 1 << 20;
/// Seconds of a year.
const YEAR_S: u64 = 365 * 86_400;

/// A number of the settings, with what it may be.
struct NumberRange {
    key: &'static str,
    value: u64,
    min: u64,
    max: u64,
}

/// Why settings are invalid.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("{}{}", chain(.0), advice(.0))]
    File(#[from] FileError),
    /// A key is unknown or a value is invalid. `location` is `file:line:column` or the `--set` option.
    #[error("{location}: {message}")]
    Invalid { location: String, message: String },
}

/// What to do if there are no settings.
fn advice(error: &FileError) -> &'static str {
    match error.source.kind() {
        ErrorKind::NotFound => "; `target-trainer init` creates a root",
        _ => "",
    }
}

impl Settings {
    /// Reads a root's settings file.
    ///
    /// # Errors
    /// If the file can't be read, or is not valid.
    pub fn read(path: &Path) -> Result<Settings, SettingsError> {
        Settings::read_with_notes(path).map(|(settings, _)| settings)
    }

    /// The same, with a line for each key of an earlier version that was read under its name of today.
    ///
    /// # Errors
    /// As for [`read`](Settings::read).
    pub fn read_with_notes(path: &Path) -> Result<(Settings, Vec<String>), SettingsError> {
        let text = read_text(path, MAX_SETTINGS_BYTES).map_err(file_error("read", path))?;
        let name = path.display().to_string();
        let CurrentText { text, notes } = with_current_keys(&text, &name);
        Ok((Settings::parse_current(&text, &name)?, notes))
    }

    /// Reads settings from text. `name` is the file name for errors.
    ///
    /// # Errors
    /// If a key is unknown, or a value has the wrong type or is out of range.
    pub fn parse(text: &str, name: &str) -> Result<Settings, SettingsError> {
        Settings::parse_current(&with_current_keys(text, name).text, name)
    }

    /// The same for a text whose keys have the names of today.
    fn parse_current(text: &str, name: &str) -> Result<Settings, SettingsError> {
        if let Ok(mut table) = text.parse::<toml::Table>()
            && guard_is_off(&table, "strict_settings")
            && let Ok(known) = toml::Table::try_from(Settings::default())
        {
            remove_unknown(&mut table, &known);
            let parsed: Result<Settings, toml::de::Error> = table.try_into();
            let invalid = |error: toml::de::Error| SettingsError::Invalid {
                location: name.to_owned(),
                message: error.message().to_owned(),
            };
            return parsed.map_err(invalid)?.validated(name);
        }
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

    /// Every number outside of the recipe, with what it may be. The upper bounds keep sums of times and sizes
    /// within their types, and are beyond any use.
    fn ranges(&self) -> Vec<NumberRange> {
        let Settings { train, device, limits, maintenance, monitor, health, .. } = self;
        let range = |key, value: u64, min, max| NumberRange { key, value, min, max };
        let (count, seconds, milliseconds) = (1_000_000_000, YEAR_S, 3_600_000);
        vec![
            range("train.micro_batch", train.micro_batch as u64, 1, MAX_BATCH as u64),
            range("train.threads", train.threads as u64, 0, 1024),
            range("train.sample_memory_bytes", train.sample_memory_bytes, 0, 1 << 50),
            range("train.save_every", train.save_every, 1, count),
            range("train.keep", train.keep as u64, 1, count),
            range("train.non_finite_budget", train.non_finite_budget as u64, 0, count),
            range("train.save_patience_s", train.save_patience_s, 0, seconds),
            range("train.heartbeat_s", train.heartbeat_s, 1, seconds),
            range("train.max_crashes", train.max_crashes.into(), 1, count),
            range("train.backoff_ms", train.backoff_ms, 0, milliseconds),
            range("device.lost_patience_s", device.lost_patience_s, 0, seconds),
            range("device.patience_s", device.patience_s, 1, seconds),
            range("device.recheck_every", device.recheck_every, 0, count),
            range("device.health_every_ms", device.health_every_ms, 1, milliseconds),
            range("limits.line_bytes", limits.line_bytes as u64, 16, 1 << 30),
            range("limits.nesting", limits.nesting as u64, 1, 1000),
            range("limits.number_chars", limits.number_chars as u64, 1, 1 << 30),
            range("limits.lines", limits.lines, 1, count),
            range("limits.file_bytes", limits.file_bytes, 1, 1 << 50),
            range("limits.settle_s", limits.settle_s, 0, 86_400),
            range("maintenance.after_saves", maintenance.after_saves, 0, count),
            range("maintenance.snapshots", maintenance.snapshots as u64, 1, count),
            range("maintenance.log_days", maintenance.log_days as u64, 1, 100_000),
            range("maintenance.log_bytes", maintenance.log_bytes, 4096, 1 << 50),
            range("monitor.connections", monitor.connections as u64, 1, 1024),
            range("monitor.upload_bytes", monitor.upload_bytes, 1, 1 << 40),
            range("health.interval_s", health.interval_s, 1, 86_400),
            range("health.free_bytes", health.free_bytes, 0, 1 << 50),
            range("health.free_inodes", health.free_inodes, 0, 1_000_000_000),
            range("monitor.history_bytes", monitor.history_bytes, 4096, 1 << 30),
        ]
    }

    /// Every path, with its key.
    fn paths(&self) -> [(&'static str, &str); 3] {
        [
            ("train.checkpoint_dir", &self.train.checkpoint_dir),
            ("maintenance.log_dir", &self.maintenance.log_dir),
            ("maintenance.snapshot_dir", &self.maintenance.snapshot_dir),
        ]
    }

    fn validated(self, location: &str) -> Result<Settings, SettingsError> {
        let mut messages: Vec<String> = self
            .ranges()
            .into_iter()
            .filter(|range| !(range.min..=range.max).contains(&range.value))
            .map(|NumberRange { key, min, max, .. }| format!("{key} must be from {min} to {max}"))
            .collect();
        let paths = self.paths().into_iter();
        messages.extend(
            paths.filter_map(|(key, path)| Some(format!("{key} {}", check_path(Path::new(path)).err()?))),
        );
        messages.extend(self.recipe.invalid_fields().iter().map(|field| format!("recipe.{field}")));
        if messages.is_empty() || !self.guards.setting_ranges {
            return Ok(self);
        }
        Err(SettingsError::Invalid { location: location.into(), message: messages.join("; ") })
    }
}

/// Whether the text of the settings switches this guard off.
fn guard_is_off(table: &toml::Table, guard: &str) -> bool {
    table.get("guards").and_then(|guards| guards.get(guard)).and_then(toml::Value::as_bool) == Some(false)
}

/// Removes the keys that no setting has. Only for the guard `strict_settings`.
fn remove_unknown(table: &mut toml::Table, known: &toml::Table) {
    table.retain(|key, _| known.contains_key(key));
    for (key, value) in table.iter_mut() {
        if let (Some(section), Some(known)) =
            (value.as_table_mut(), known.get(key).and_then(|k| k.as_table()))
        {
            section.retain(|key, _| known.contains_key(key));
        }
    }
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a message that suggests the nearest key.
fn with_suggestion(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((unknown, known)) = quoted.split_first().filter(|_| message.starts_with("unknown")) else {
        return message.trim().to_owned();
    };
    if let Some(now) = name_of_today(unknown) {
        return format!("unknown key `{unknown}`; it is called `{now}` now");
    }
    let nearest = known.iter().min_by_key(|key| strsim::damerau_levenshtein(key, unknown));
    let nearest = nearest.map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default();
    format!("unknown key `{unknown}`{nearest}")
}
