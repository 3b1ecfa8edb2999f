//! Parses a Python command, so that a fork server with the modules already imported can run it. Reads nothing
//! but the first line of a script; does not start the server.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The program of the fork server. Its first lines describe it.
const SERVER_SOURCE: &str = include_str!("python_fork_server.py");

/// A Python command in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PythonCommand {
    /// The interpreter and its options.
    interpreter: Vec<OsString>,
    /// What to run: `script`, `module` or `code`; then its path, name or text; then its arguments.
    pub(super) request: Vec<OsString>,
}

impl PythonCommand {
    /// Parses a command. `path` is the value of `PATH` with which a script is looked up. Returns `None` if
    /// this is not a Python command, or not one of the supported forms.
    pub(super) fn parse(argv: &[OsString], path: Option<&OsStr>) -> Option<PythonCommand> {
        let (program, arguments) = argv.split_first()?;
        if is_python(program) {
            return parse_interpreter_args(program, arguments);
        }
        let script = find_program(program, path)?;
        let shebang = shebang_command(&script)?;
        let (interpreter, options) = shebang.split_first()?;
        if !is_python(interpreter) {
            return None;
        }
        let arguments: Vec<OsString> =
            options.iter().cloned().chain([script.into()]).chain(arguments.iter().cloned()).collect();
        parse_interpreter_args(interpreter, &arguments)
    }

    /// The command that starts the fork server. The sandbox replaces `{control}` by the number of the control
    /// socket.
    pub(super) fn server_command(&self, modules: &[String]) -> Vec<OsString> {
        let server_args = ["-c".into(), SERVER_SOURCE.into(), "{control}".into()];
        self.interpreter
            .iter()
            .cloned()
            .chain(server_args)
            .chain(modules.iter().map(OsString::from))
            .collect()
    }
}

fn is_python(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
    let version = name.strip_prefix("python").unwrap_or("no");
    version.chars().all(|character| character.is_ascii_digit() || character == '.')
}

fn parse_interpreter_args(program: &OsStr, arguments: &[OsString]) -> Option<PythonCommand> {
    let mut interpreter = vec![program.to_owned()];
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        let kind = match text.as_ref() {
            "-c" => "code",
            "-m" => "module",
            "-W" | "-X" => {
                interpreter.extend([argument.clone(), arguments.next()?.clone()]);
                continue;
            }
            option if option.starts_with('-') && option.len() > 1 => {
                interpreter.push(argument.clone());
                continue;
            }
            _ => "script",
        };
        let value = if kind == "script" { argument } else { arguments.next()? };
        let request = [kind.into(), value.clone()].into_iter().chain(arguments.cloned()).collect();
        return Some(PythonCommand { interpreter, request });
    }
    None
}

fn find_program(program: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into());
    }
    std::env::split_paths(path?).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The interpreter and its options in the `#!` line of a script, without `env`.
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
    let is_env = words.first().is_some_and(|first| first.as_bytes().ends_with(b"/env"));
    Some(if is_env { words[1..].to_vec() } else { words })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Option<(&str, &str)>) {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let expected = expected.map(|(interpreter, request)| PythonCommand {
            interpreter: words(interpreter),
            request: words(request),
        });
        assert_eq!(PythonCommand::parse(&words(line), None), expected, "{line}");
    }

    #[test]
    fn python_commands_are_parsed_as_the_interpreter_does() {
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
