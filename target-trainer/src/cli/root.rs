//! The commands `init`, `submit` and `status`, and the writer of `make-data`.

use std::path::Path;

use super::{CommandResult, exit_with, print};
use crate::durable::{self, AppendFile, SyncPolicy};
use crate::exit::Exit;
use crate::model::{self, Preset};
use crate::settings::{Settings, documented_toml};
use crate::store::RootLayout;

/// `init`: creates a root.
pub(super) fn init(root: &Path, preset: Preset, seed: u64, set: &[String]) -> CommandResult {
    let layout = RootLayout::new(root);
    if layout.settings().exists() {
        return Err((
            Exit::Usage,
            format!("`{}` is already a trainer root; choose another directory", root.display()),
        ));
    }
    let mut settings = Settings::default();
    settings.recipe.seed = seed;
    let settings = settings.with(set).map_err(exit_with(Exit::Usage))?;
    for dir in layout.dirs() {
        durable::create_dir(&dir).map_err(exit_with(Exit::Disk))?;
    }
    let (config, weights) = model::preset_files(preset, seed).map_err(exit_with(Exit::BaseModel))?;
    let files = [("config.json", config.into_bytes()), ("model.safetensors", weights)];
    for (name, bytes) in files {
        durable::replace(&layout.base().join(name), &bytes, SyncPolicy::Full)
            .map_err(exit_with(Exit::Disk))?;
    }
    // The settings are written last: a directory without them is not a root.
    durable::replace(&layout.settings(), documented_toml(&settings).as_bytes(), SyncPolicy::Full)
        .map_err(exit_with(Exit::Disk))?;
    print::line(&format!("created {} with base model `{preset:?}`, seed {seed}", root.display()));
    Ok(Exit::Done)
}

/// `submit`: copies a file into the inbox under a name that is free.
pub(super) fn submit(root: &Path, file: &Path) -> CommandResult {
    let layout = RootLayout::new(root);
    let failed = |error: &dyn std::fmt::Display| (Exit::Usage, format!("`{}`: {error}", file.display()));
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| failed(&"the file's name is not UTF-8"))?;
    let mut from = std::fs::File::open(file).map_err(|error| failed(&error))?;
    let temporary =
        layout.inbox().join(format!("{}-{}-{name}", durable::TEMPORARY_MARKER, std::process::id()));
    let target = (0..)
        .map(|n| layout.inbox().join(if n == 0 { name.to_owned() } else { format!("{n}-{name}") }))
        .find(|path| !path.exists());
    let target = target
        .ok_or_else(|| failed(&"the inbox has a file for every name that was tried; empty the inbox"))?;
    let copied = copy_file(&mut from, &temporary)
        .and_then(|()| durable::rename(&temporary, &target).map_err(exit_with(Exit::Disk)));
    if copied.is_err() {
        // The first error is the one that is reported.
        let _ = durable::remove_file(&temporary);
    }
    copied?;
    durable::sync_dir(&layout.inbox(), SyncPolicy::Full).map_err(exit_with(Exit::Disk))?;
    print::line(&format!("submitted {}", target.display()));
    Ok(Exit::Done)
}

fn copy_file(from: &mut std::fs::File, to: &Path) -> Result<(), (Exit, String)> {
    use std::io::Read;
    let mut copy = AppendFile::create(to).map_err(exit_with(Exit::Disk))?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match from.read(&mut chunk).map_err(exit_with(Exit::Failed))? {
            0 => return copy.finish(SyncPolicy::Full).map_err(exit_with(Exit::Disk)),
            read => copy.write_all(&chunk[..read]).map_err(exit_with(Exit::Disk))?,
        }
    }
}

/// `status`: prints `status.json`.
pub(super) fn status(root: &Path) -> CommandResult {
    let path = RootLayout::new(root).status();
    let text = std::fs::read_to_string(&path).map_err(|error| {
        (Exit::Failed, format!("`{}`: {error}; `target-trainer daemon` writes it", path.display()))
    })?;
    print::line(text.trim_end());
    Ok(Exit::Done)
}

/// Writes lines to a file that must not exist. Returns the number of lines.
pub(super) fn write_lines(out: &Path, lines: impl Iterator<Item = String>) -> Result<u64, (Exit, String)> {
    let mut file = AppendFile::create(out).map_err(exit_with(Exit::Disk))?;
    let mut count = 0;
    let mut chunk = String::new();
    for line in lines {
        chunk.push_str(&line);
        chunk.push('\n');
        count += 1;
        if chunk.len() > 1 << 16 {
            file.write_all(chunk.as_bytes()).map_err(exit_with(Exit::Disk))?;
            chunk.clear();
        }
    }
    file.write_all(chunk.as_bytes()).map_err(exit_with(Exit::Disk))?;
    file.finish(SyncPolicy::Full).map_err(exit_with(Exit::Disk))?;
    Ok(count)
}
