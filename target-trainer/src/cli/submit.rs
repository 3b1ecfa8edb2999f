//! The command `submit`: copies a data file that nobody writes into the inbox.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;

use super::error::CliError;
use super::file_rights::keep_files_private;
use super::print;
use crate::daemon::has_open_writer;
use crate::denial::{Access, explained};
use crate::exit::Exit;
use crate::names::{NameKeys, shown_name};
use crate::plain_text::shown;
use crate::settings::Settings;
use crate::store::RootLayout;
use crate::submission::Submission;

/// The name of the file that is found under `name`, if no file has exactly that name.
fn name_in_other_case(inbox: &Path, name: &str) -> Option<OsString> {
    inbox.join(name).symlink_metadata().ok()?;
    let names = std::fs::read_dir(inbox).ok()?.flatten().map(|entry| entry.file_name());
    let names: Vec<OsString> = names.collect();
    let keys = NameKeys::of(OsStr::new(name));
    match names.iter().any(|other| other == name) {
        true => None,
        false => names.into_iter().find(|other| NameKeys::of(other).is_same_in_other_case(&keys)),
    }
}

/// Copies a file into the inbox and prints the name that it has there.
pub(super) fn submit(root: &Path, file: &Path, other_name: Option<&str>) -> Result<Exit, CliError> {
    let layout = RootLayout::new(root);
    let path = || file.to_owned();
    let name = other_name.or_else(|| file.file_name().and_then(OsStr::to_str));
    let name = name.ok_or_else(|| CliError::NameNotUtf8 { path: path() })?;
    // Without settings, the root is not one, and the copy fails.
    let guards = Settings::read(&layout.settings()).unwrap_or_default().guards;
    keep_files_private(&guards);
    let opened = File::open(file).map_err(|error| explained(error, file, Access::Read));
    let mut from = opened.map_err(|source| CliError::OpenSubmitted { path: path(), source })?;
    let metadata = |from: &File| from.metadata().map_err(CliError::ReadSubmitted);
    let before = metadata(&from)?;
    let submission = Submission::copy(&layout, name, &guards, &mut from)?;
    let after = metadata(&from)?;
    let is_same = (before.len(), before.modified().ok()) == (after.len(), after.modified().ok());
    // What is not a regular file, such as a pipe, ends by itself.
    if before.is_file() && (!is_same || has_open_writer(&from)) {
        return Err(CliError::StillWritten { path: path() });
    }
    let submitted = submission.finish()?;
    print::line(&format!("submitted {}", layout.inbox().join(shown_name(&submitted.name)).display()));
    if submitted.name != name
        && let Some(twin) = name_in_other_case(&layout.inbox(), name)
    {
        let (name, twin) = (shown(name), shown_name(&twin));
        print::line(&format!(
            "`{name}` is the name of `{twin}` on this file system, which ignores case; both files stay"
        ));
    } else if let Some(twins) = submitted.twins {
        print::line(&twins.to_string());
    }
    Ok(Exit::Done)
}
