//! The commands `init`, `submit` and `status`, and the writer of `make-data`.

use std::path::Path;

use super::error::CliError;
use super::print;
use crate::durable::{self, AppendFile, SyncPolicy};
use crate::exit::Exit;
use crate::model::{self, Preset};
use crate::settings::{Settings, documented_toml};
use crate::store::RootLayout;

/// `init`: creates a root.
pub(super) fn init(root: &Path, preset: Preset, seed: u64, set: &[String]) -> Result<Exit, CliError> {
    let layout = RootLayout::new(root);
    if layout.settings().exists() {
        return Err(CliError::AlreadyRoot { root: root.to_owned() });
    }
    let mut settings = Settings::default();
    settings.recipe.seed = seed;
    let settings = settings.with(set)?;
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

/// `submit`: copies a file into the inbox under a name that is free.
pub(super) fn submit(root: &Path, file: &Path) -> Result<Exit, CliError> {
    let layout = RootLayout::new(root);
    let path = || file.to_owned();
    let name = file.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| CliError::NameNotUtf8 { path: path() })?;
    let mut from =
        std::fs::File::open(file).map_err(|source| CliError::OpenSubmitted { path: path(), source })?;
    let temporary =
        layout.inbox().join(format!("{}-{}-{name}", durable::TEMPORARY_MARKER, std::process::id()));
    let target = (0..)
        .map(|n| layout.inbox().join(if n == 0 { name.to_owned() } else { format!("{n}-{name}") }))
        .find(|path| !path.exists());
    let target = target.ok_or_else(|| CliError::InboxNames { path: path() })?;
    let copied = copy_file(&mut from, &temporary).and_then(|()| Ok(durable::rename(&temporary, &target)?));
    if copied.is_err() {
        // The first error is the one that is reported.
        let _ = durable::remove_file(&temporary);
    }
    copied?;
    durable::sync_dir(&layout.inbox(), SyncPolicy::Full)?;
    print::line(&format!("submitted {}", target.display()));
    Ok(Exit::Done)
}

fn copy_file(from: &mut std::fs::File, to: &Path) -> Result<(), CliError> {
    use std::io::Read;
    let mut copy = AppendFile::create(to)?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match from.read(&mut chunk).map_err(CliError::ReadSubmitted)? {
            0 => return Ok(copy.finish(SyncPolicy::Full)?),
            read => copy.write_all(&chunk[..read])?,
        }
    }
}

/// `status`: prints `status.json`.
pub(super) fn status(root: &Path) -> Result<Exit, CliError> {
    let path = RootLayout::new(root).status();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(CliError::Status { path, source }),
    };
    print::line(text.trim_end());
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
