//! The commands `init` and `status`, and the writer of `make-data`.

use std::path::Path;

use super::error::CliError;
use super::print;
use crate::bounded_read::read_text;
use crate::durable::{self, AppendFile, SyncPolicy};
use crate::exit::Exit;
use crate::model::{self, Preset};
use crate::settings::{Settings, documented_toml};
use crate::store::RootLayout;

/// Largest status file.
const MAX_STATUS_BYTES: u64 = 1 << 20;

/// `init`: creates a root.
pub(super) fn init(root: &Path, preset: Preset, seed: u64, set: &[String]) -> Result<Exit, CliError> {
    let layout = RootLayout::new(root);
    if layout.settings().exists() {
        return Err(CliError::AlreadyRoot { root: root.to_owned() });
    }
    let mut settings = Settings::default();
    settings.recipe.seed = seed;
    let settings = settings.with(set)?;
    let layout = layout.with_settings(&settings);
    for dir in layout.dirs() {
        durable::create_dir(&dir)?;
    }
    let (config, weights) = model::preset_files(preset, seed).map_err(CliError::Preset)?;
    let files = [("config.json", config.into_bytes()), ("model.safetensors", weights)];
    for (name, bytes) in files {
        durable::replace(&layout.base().join(name), &bytes, SyncPolicy::Full)?;
    }
    // The settings are written last: a directory without them is not a root.
    durable::replace(&layout.settings(), documented_toml(&settings).as_bytes(), SyncPolicy::Full)?;
    print::line(&format!("created {} with base model `{preset:?}`, seed {seed}", root.display()));
    Ok(Exit::Done)
}

/// `status`: prints `status.json`.
pub(super) fn status(root: &Path) -> Result<Exit, CliError> {
    let path = RootLayout::new(root).status();
    let text = match read_text(&path, MAX_STATUS_BYTES) {
        Ok(text) => text,
        Err(source) => return Err(CliError::Status { path, source }),
    };
    // A text in JSON has no line breaks within a value, so that no value looks like a line of its own.
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(status) => print::lines(&format!("{status:#}")),
        Err(_) => print::line(text.trim_end()),
    }
    Ok(Exit::Done)
}

/// Writes lines to a file that must not exist. Returns the number of lines.
pub(super) fn write_lines(out: &Path, lines: impl Iterator<Item = String>) -> Result<u64, CliError> {
    let mut file = AppendFile::create(out)?;
    let mut count = 0;
    let mut chunk = String::new();
    for line in lines {
        chunk.push_str(&line);
        chunk.push('\n');
        count += 1;
        if chunk.len() > 1 << 16 {
            file.write_all(chunk.as_bytes())?;
            chunk.clear();
        }
    }
    file.write_all(chunk.as_bytes())?;
    file.finish(SyncPolicy::Full)?;
    Ok(count)
}
