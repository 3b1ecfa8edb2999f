//! A Python command taken apart, so that an interpreter that has imported already can run it. Pure but for a script's first line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The server: see its own first lines.
const SERVER_SOURCE: &str = include_str!("warm.py");

/// What a Python command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PythonCommand {
    /// Interpreter and its options.
    interpreter: Vec<OsString>,
    /// `script`, `module` or `code`; then which; then its arguments.
    pub(super) request: Vec<OsString>,
}

impl PythonCommand {
    /// None: not a Python command, or one in a form that is not known.
    pub(super) fn parse(argv: &[OsString], path: Option<&OsStr>) -> Option<PythonCommand> {
        let (first, rest) = argv.split_first()?;
        if is_python(first) {
            return parse_interpreter_args(first, rest);
        }
        let script = find_program(first, path)?;
        let interpreter = shebang_command(&script)?;
        let (first, options) = interpreter.split_first()?;
        if !is_python(first) {
            return None;
        }
        let words: Vec<OsString> =
            options.iter().cloned().chain([script.into()]).chain(rest.iter().cloned()).collect();
        parse_interpreter_args(first, &words)
    }

    /// The command that starts the server; `{control}` is for the number of its socket.
    pub(super) fn server_command(&self, modules: &[String]) -> Vec<OsString> {
        let words = ["-c".into(), SERVER_SOURCE.into(), "{control}".into()];
        self.interpreter.iter().cloned().chain(words).chain(modules.iter().map(OsString::from)).collect()
    }
}

fn is_python(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let version = name.strip_prefix("python").unwrap_or("no");
    version.chars().all(|letter| letter.is_ascii_digit() || letter == '.')
}

fn parse_interpreter_args(first: &OsStr, words: &[OsString]) -> Option<PythonCommand> {
    let mut interpreter = vec![first.to_owned()];
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        let kind = match text.as_ref() {
            "-c" => "code",
            "-m" => "module",
            "-W" | "-X" => {
                interpreter.extend([word.clone(), words.next()?.clone()]);
                continue;
            }
            option if option.starts_with('-') && option.len() > 1 => {
                interpreter.push(word.clone());
                continue;
            }
            _ => "script",
        };
        let value = if kind == "script" { word } else { words.next()? };
        let run = [kind.into(), value.clone()].into_iter().chain(words.cloned()).collect();
        return Some(PythonCommand { interpreter, request: run });
    }
    None
}

fn find_program(program: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into());
    }
    std::env::split_paths(path?).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// What stands behind `#!`.
fn shebang_command(script: &Path) -> Option<Vec<OsString>> {
    use std::io::Read;
    let mut head = Vec::new();
    std::fs::File::open(script).ok()?.take(512).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let words: Vec<OsString> = line
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty())
        .map(|word| OsStr::from_bytes(word).to_owned())
        .collect();
    let env = words.first().is_some_and(|first| first.as_bytes().ends_with(b"/env"));
    Some(if env { words[1..].to_vec() } else { words })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<(&str, &str)>) {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let expected = expected
            .map(|(interpreter, run)| PythonCommand { interpreter: words(interpreter), request: words(run) });
        assert_eq!(PythonCommand::parse(&words(line), None), expected, "{line}");
    }

    #[test]
    fn python_commands_are_taken_apart_as_the_interpreter_would() {
        check("python train.py --lr 1", Some(("python", "script train.py --lr 1")));
        check(
            "/v/bin/python3.12 -u -X dev train.py",
            Some(("/v/bin/python3.12 -u -X dev", "script train.py")),
        );
        check("python3 -m pkg.train -c x", Some(("python3", "module pkg.train -c x")));
        check("python3 -c pass 1", Some(("python3", "code pass 1")));
        check("./train", None);
        check("python3", None);
        check("pythonista train.py", None);
    }
}
