//! The commands of a Python fork server, and what a recovery notes for it. Does not start the server.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::python_command::PythonCommand;
use crate::sandbox::{CompletedCommand, LaunchSpec};

/// The program of the fork server. The first lines of its second part describe it.
const SERVER_SOURCE: &str =
    concat!(include_str!("python_imports.py"), "\n\n", include_str!("python_fork_server.py"));

/// How the line begins in which a recovery reports what it has imported.
const NOTES_TOKEN: &str = "trainwreck-notes-c41b0d5e";

/// The most bytes of a request that its libraries see. As digits they are as large as the kernel allows one argument.
const MAX_SHOWN_BYTES: usize = 32 * 1024;

/// What a Python recovery has imported, in the words of the fork server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportNotes {
    items: Vec<String>,
}

impl ImportNotes {
    /// Removes the notes of a recovery from its output. `None`: it has left none.
    pub fn take_from(completed: &mut CompletedCommand) -> Option<ImportNotes> {
        let is_notes = |line: &str| line.starts_with(NOTES_TOKEN);
        completed.watched_lines.retain(|line| !is_notes(line));
        // On a line of their own, between two line ends that are a part of them.
        let (before, rest) = completed.stderr.split_once(&format!("\n{NOTES_TOKEN} "))?;
        let (line, after) = rest.split_once('\n')?;
        let items = line.split(' ').map(str::to_owned).collect();
        completed.stderr = format!("{before}{after}");
        Some(ImportNotes { items })
    }

    /// How many modules of libraries were imported.
    pub fn module_count(&self) -> usize {
        self.items.iter().filter(|item| item.starts_with("m:")).count()
    }
}

/// What a fork server imports before it forks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerImports {
    /// These modules, whatever they do.
    Named(Vec<String>),
    /// Nothing. Each fork reports what it imports.
    Noting,
    /// What a recovery has noted, but no module that a fork would not share well.
    Noted(ImportNotes),
}

/// A Python command that a fork server runs.
#[derive(Debug, Clone)]
pub struct ForkedPython {
    /// Starts the server. The sandbox replaces `{control}` by the number of the control socket.
    pub server: LaunchSpec,
    /// What the server is asked to run.
    pub request: LaunchSpec,
}

impl ForkedPython {
    /// How to run a command by forking. `None`: it is not a Python command, or its program is itself one of the
    /// files in the watched directories.
    pub fn of(
        launch: &LaunchSpec,
        imports: &ServerImports,
        watched_dirs: &[PathBuf],
    ) -> Option<ForkedPython> {
        let path = launch.env.iter().rev().find(|(name, _)| name == "PATH");
        let cwd = launch.cwd.clone().unwrap_or_else(|| "/".into());
        let command = PythonCommand::parse(&launch.argv, path.map(|(_, value)| value.as_os_str()), &cwd)?;
        let PythonCommand { interpreter, request } = command;
        let is_watched = |word: &OsStr| watched_dirs.iter().any(|dir| Path::new(word).starts_with(dir));
        let is_script = !launch.argv.first().is_some_and(|program| interpreter.contains(program));
        let has_watched_script = is_script && is_watched(cwd.join(&request[1]).as_os_str());
        if has_watched_script || interpreter.iter().any(|word| is_watched(word)) {
            return None;
        }
        let argv = [interpreter, vec!["-c".into(), SERVER_SOURCE.into(), "{control}".into()]].concat();
        let arguments = import_arguments(imports, &request, watched_dirs);
        let server = LaunchSpec { argv: [argv, arguments].concat(), ..launch.clone() };
        Some(ForkedPython { server, request: LaunchSpec { argv: request, env: Vec::new(), cwd: None } })
    }
}

/// The arguments of the server after its control socket. Its first lines describe them.
fn import_arguments(
    imports: &ServerImports,
    request: &[OsString],
    watched_dirs: &[PathBuf],
) -> Vec<OsString> {
    let items: Vec<OsString> = match imports {
        ServerImports::Named(modules) => {
            let named = modules.iter().map(|name| format!("n:{name}").into());
            [OsString::from("--named")].into_iter().chain(named).collect()
        }
        ServerImports::Noting => vec!["--note".into(), NOTES_TOKEN.into()],
        ServerImports::Noted(notes) => {
            let items = notes.items.iter().map(OsString::from);
            [OsString::from("--noted")].into_iter().chain(items).collect()
        }
    };
    let watched = watched_dirs.iter().map(|dir| item("w:", dir.as_os_str()));
    items.into_iter().chain(shown_words(request)).chain(watched).collect()
}

/// The request as the libraries see it while they are imported. Of long ones, only the beginning: a server has less
/// room for them than a new process, because it gets each byte as two digits.
fn shown_words(request: &[OsString]) -> Vec<OsString> {
    let mut room_bytes = MAX_SHOWN_BYTES;
    let words = request.iter().map_while(|word| {
        let bytes = word.as_bytes();
        let shown = &bytes[..bytes.len().min(room_bytes)];
        let is_shown = room_bytes > 0;
        room_bytes -= shown.len();
        is_shown.then(|| item("q:", OsStr::from_bytes(shown)))
    });
    words.collect()
}

/// An item with a text that may contain anything.
fn item(prefix: &str, text: &OsStr) -> OsString {
    let digits = text.as_bytes().iter().map(|byte| format!("{byte:02x}"));
    format!("{prefix}{}", digits.collect::<String>()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_request_libraries_see_the_beginning() {
        let request = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<OsString>>();
        assert_eq!(shown_words(&request(&["script", "a", ""])), request(&["q:736372697074", "q:61", "q:"]));
        for long in [MAX_SHOWN_BYTES - 7, MAX_SHOWN_BYTES, 128 * 1024] {
            let words = shown_words(&request(&["script", &"x".repeat(long), "last"]));
            assert!(words.len() >= 2, "the script is needed");
            let bytes: usize = words.iter().map(|word| word.len() - 2).sum();
            assert!(bytes <= 2 * MAX_SHOWN_BYTES, "{bytes}");
        }
    }
}
