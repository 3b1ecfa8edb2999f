//! Verbs that make a root and put things into it.

use std::path::Path;

use super::{Ending, print, with};
use crate::durable::{self, Care, Growing};
use crate::exit::Exit;
use crate::model::{self, Preset};
use crate::settings::{Settings, documented};
use crate::store::Layout;

pub(super) fn init(root: &Path, preset: Preset, seed: u64, set: &[String]) -> Ending {
    let layout = Layout::new(root);
    if layout.settings().exists() {
        return Err((
            Exit::Usage,
            format!("`{}` is a trainer root already; take another folder", root.display()),
        ));
    }
    let mut settings = Settings::default();
    settings.recipe.seed = seed;
    let settings = settings.with(set).map_err(with(Exit::Usage))?;
    for folder in layout.folders() {
        durable::create_dir(&folder).map_err(with(Exit::Disk))?;
    }
    let (config, weights) = model::preset(preset, seed).map_err(with(Exit::Base))?;
    let files = [("config.json", config.into_bytes()), ("model.safetensors", weights)];
    for (name, bytes) in files {
        durable::replace(&layout.base().join(name), &bytes, Care::Full).map_err(with(Exit::Disk))?;
    }
    // Last: a root is one that has settings.
    durable::replace(&layout.settings(), documented(&settings).as_bytes(), Care::Full)
        .map_err(with(Exit::Disk))?;
    print::line(&format!("made {} with base `{preset:?}`, seed {seed}", root.display()));
    Ok(Exit::Done)
}

pub(super) fn submit(root: &Path, file: &Path) -> Ending {
    let layout = Layout::new(root);
    let failed = |error: &dyn std::fmt::Display| (Exit::Usage, format!("`{}`: {error}", file.display()));
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| failed(&"the file's name is not UTF-8"))?;
    let mut from = std::fs::File::open(file).map_err(|error| failed(&error))?;
    let aside = layout.inbox().join(format!("{}-{}-{name}", durable::TEMPORARY, std::process::id()));
    let target = (0..)
        .map(|n| layout.inbox().join(if n == 0 { name.to_owned() } else { format!("{n}-{name}") }))
        .find(|path| !path.exists());
    let target = target.ok_or_else(|| failed(&"every name is taken"))?;
    let copied =
        copy(&mut from, &aside).and_then(|()| durable::rename(&aside, &target).map_err(with(Exit::Disk)));
    if copied.is_err() {
        // The error that is told is the first one.
        let _ = durable::remove_file(&aside);
    }
    copied?;
    durable::sync_dir(&layout.inbox(), Care::Full).map_err(with(Exit::Disk))?;
    print::line(&format!("submitted {}", target.display()));
    Ok(Exit::Done)
}

fn copy(from: &mut std::fs::File, to: &Path) -> Result<(), (Exit, String)> {
    use std::io::Read;
    let mut copy = Growing::create(to).map_err(with(Exit::Disk))?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match from.read(&mut chunk).map_err(with(Exit::Failed))? {
            0 => return copy.finish(Care::Full).map_err(with(Exit::Disk)),
            read => copy.add(&chunk[..read]).map_err(with(Exit::Disk))?,
        }
    }
}

pub(super) fn status(root: &Path) -> Ending {
    let path = Layout::new(root).status();
    let text = std::fs::read_to_string(&path)
        .map_err(|error| (Exit::Failed, format!("`{}`: {error}; has a daemon run here?", path.display())))?;
    print::line(text.trim_end());
    Ok(Exit::Done)
}

/// Writes a data file that must not exist yet; the number of lines.
pub(super) fn write_lines(out: &Path, lines: impl Iterator<Item = String>) -> Result<u64, (Exit, String)> {
    let mut file = Growing::create(out).map_err(with(Exit::Disk))?;
    let mut count = 0;
    let mut chunk = String::new();
    for line in lines {
        chunk.push_str(&line);
        chunk.push('\n');
        count += 1;
        if chunk.len() > 1 << 16 {
            file.add(chunk.as_bytes()).map_err(with(Exit::Disk))?;
            chunk.clear();
        }
    }
    file.add(chunk.as_bytes()).map_err(with(Exit::Disk))?;
    file.finish(Care::Full).map_err(with(Exit::Disk))?;
    Ok(count)
}
