//! Parses the command line of a Python program, so that a fork server can run it. Reads nothing but the first line
//! of a script; does not know the server.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The longest `#!` line that the kernel reads.
const MAX_SHEBANG_BYTES: u64 = 256;

/// A Python command in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PythonCommand {
    /// The interpreter and its options, with `env` and its variables before it if they were given.
    pub(super) interpreter: Vec<OsString>,
    /// What to run: `script`, `module` or `code`; then its path, name or text; then its arguments.
    pub(super) request: Vec<OsString>,
}

impl PythonCommand {
    /// Parses a command. `path` is the value of `PATH` with which a script is looked up, from the directory `cwd`.
    /// Returns `None` if this is not a Python command, or one that a fork of an interpreter could not stand for.
    pub(super) fn parse(argv: &[OsString], path: Option<&OsStr>, cwd: &Path) -> Option<PythonCommand> {
        let (program, arguments) = argv.split_first()?;
        if let Some(words) = shell_words(argv) {
            let mut command = PythonCommand::parse(&words, path, cwd)?;
            // The shell may set variables for the program.
            command
                .interpreter
                .splice(0..0, [program.clone(), "-c".into(), "exec \"$@\"".into(), "sh".into()]);
            return Some(command);
        }
        if is_env(program) {
            let variables = arguments.iter().take_while(|word| word.as_bytes().contains(&b'=')).count();
            // Another `PATH` would find another interpreter.
            if arguments[..variables].iter().any(|word| word.as_bytes().starts_with(b"PATH=")) {
                return None;
            }
            let mut command = PythonCommand::parse(&arguments[variables..], path, cwd)?;
            command.interpreter.splice(0..0, argv[..=variables].iter().cloned());
            return Some(command);
        }
        if is_python(program) {
            return parse_interpreter_args(std::slice::from_ref(program), arguments);
        }
        let script = find_program(program, path, cwd)?;
        let interpreter = shebang_command(&cwd.join(&script))?;
        let name = interpreter.iter().find(|word| !is_env(word))?;
        if !is_python(name) {
            return None;
        }
        let options = interpreter.iter().position(|word| word == name)? + 1;
        let (prefix, options) = interpreter.split_at(options);
        let arguments: Vec<OsString> =
            options.iter().cloned().chain([script.into()]).chain(arguments.iter().cloned()).collect();
        parse_interpreter_args(prefix, &arguments)
    }
}

fn file_name(program: &OsStr) -> &OsStr {
    Path::new(program).file_name().unwrap_or_default()
}

fn is_env(program: &OsStr) -> bool {
    file_name(program) == "env"
}

fn is_python(program: &OsStr) -> bool {
    let name = file_name(program).to_string_lossy();
    let version = name.strip_prefix("python").unwrap_or("no");
    version.chars().all(|character| character.is_ascii_digit() || character == '.')
}

/// The words of `sh -c TEXT`, if the text is one command in which the shell replaces nothing.
fn shell_words(argv: &[OsString]) -> Option<Vec<OsString>> {
    let [program, option, text] = argv else { return None };
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b" _./:,@%+-=^".contains(byte);
    let text = text.to_str().filter(|text| text.bytes().all(|byte| is_plain(&byte)))?;
    let words: Vec<OsString> = text.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect();
    // A first word with `=` sets a variable; one without a file of its own may be a command of the shell.
    let is_program = |word: &OsString| is_env(word) || is_python(word) || word.as_bytes().contains(&b'/');
    let is_shell = file_name(program) == "sh" && option == "-c";
    (is_shell && words.first().is_some_and(|word| is_program(word) && !word.as_bytes().contains(&b'=')))
        .then_some(words)
}

/// Parses the arguments of an interpreter as it does itself.
fn parse_interpreter_args(program: &[OsString], arguments: &[OsString]) -> Option<PythonCommand> {
    let mut interpreter = program.to_vec();
    let mut arguments = arguments.iter();
    let request = |kind: &str, value: OsString, rest: std::slice::Iter<'_, OsString>| {
        [kind.into(), value].into_iter().chain(rest.cloned()).collect::<Vec<_>>()
    };
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        let Some(letters) = bytes.strip_prefix(b"-").filter(|letters| !letters.is_empty()) else {
            // A program that is read from the standard input, or that is compiled.
            let is_special = bytes.is_empty() || bytes == b"-" || bytes.ends_with(b".pyc");
            let request = request("script", argument.clone(), arguments);
            return (!is_special).then_some(PythonCommand { interpreter, request });
        };
        let flags = letters.iter().take_while(|letter| b"bBdEIOPqRsSu".contains(letter)).count();
        let (flags, rest) = letters.split_at(flags);
        let option = rest.first();
        let attached = rest.get(1..).filter(|value| !value.is_empty()).map(OsStr::from_bytes);
        match option {
            None => interpreter.push(argument.clone()),
            Some(b'W' | b'X') => {
                interpreter.push(argument.clone());
                if attached.is_none() {
                    interpreter.push(arguments.next()?.clone());
                }
            }
            Some(option @ (b'c' | b'm')) => {
                if !flags.is_empty() {
                    interpreter.push(OsString::from_vec([b"-", flags].concat()));
                }
                let value =
                    attached.map_or_else(|| arguments.next().cloned(), |value| Some(value.to_owned()))?;
                let kind = if *option == b'c' { "code" } else { "module" };
                return Some(PythonCommand { interpreter, request: request(kind, value, arguments) });
            }
            // Such as `-i`, `-v`, `-V`, `--help` or `--`.
            _ => return None,
        }
    }
    None
}

/// The path by which the kernel finds the program.
fn find_program(program: &OsStr, path: Option<&OsStr>, cwd: &Path) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into());
    }
    std::env::split_paths(path?).map(|dir| dir.join(program)).find(|file| cwd.join(file).is_file())
}

/// The interpreter in the `#!` line of a script and its argument, or arguments where `env -S` splits them.
fn shebang_command(script: &Path) -> Option<Vec<OsString>> {
    use std::io::Read;
    let mut head = Vec::new();
    std::fs::File::open(script).ok()?.take(MAX_SHEBANG_BYTES).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.trim_ascii();
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    let (interpreter, argument) = (OsStr::from_bytes(&line[..end]), line[end..].trim_ascii());
    let words = |text: &[u8]| -> Vec<OsString> {
        let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.map(|word| OsStr::from_bytes(word).to_owned()).collect()
    };
    let has_quotes = |text: &[u8]| text.iter().any(|byte| b"'\"\\$#".contains(byte));
    let arguments = match argument.strip_prefix(b"-S") {
        Some(split) if is_env(interpreter) && !has_quotes(split) => words(split),
        // The kernel passes all that follows as one argument.
        _ if argument.is_empty() => Vec::new(),
        _ => vec![OsStr::from_bytes(argument).to_owned()],
    };
    Some([vec![interpreter.to_owned()], arguments].concat())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    fn check(line: &str, expected: Option<(&str, &str)>) {
        let expected = expected.map(|(interpreter, request)| PythonCommand {
            interpreter: words(interpreter),
            request: words(request),
        });
        assert_eq!(PythonCommand::parse(&words(line), None, Path::new("/")), expected, "{line}");
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
        check("python3 -uBm pkg.train -c x", Some(("python3 -uB", "module pkg.train -c x")));
        check("python3 -mpkg -Wx", Some(("python3", "module pkg -Wx")));
        check("python3 -Ic1+1", Some(("python3 -I", "code 1+1")));
        check("python3 -Xdev -Wignore t.py", Some(("python3 -Xdev -Wignore", "script t.py")));
        check("python3 -uXdev -sSE t.py -u", Some(("python3 -uXdev -sSE", "script t.py -u")));
        check("/bin/sh -c", None);
        let resumed = |text: &str| {
            let argv = ["/bin/sh".into(), "-c".into(), text.into()];
            PythonCommand::parse(&argv, None, Path::new("/")).map(|command| command.request)
        };
        assert_eq!(resumed("python3 -u t.py --lr=1  runs"), Some(words("script t.py --lr=1 runs")));
        for text in
            ["A=1 python3 t.py", "python3 t.py > log", "python3 $T", "cd x && python3 t.py", "exec x", ""]
        {
            assert_eq!(resumed(text), None, "{text}");
        }
        check("env python3 t.py", Some(("env python3", "script t.py")));
        check("/usr/bin/env A=1 B= python3 -u t.py", Some(("/usr/bin/env A=1 B= python3 -u", "script t.py")));
    }

    #[test]
    fn what_a_fork_cannot_stand_for_is_no_python_command() {
        for line in [
            "./train",
            "python3",
            "python3 -u",
            "python3 -",
            "python3 - x",
            "python3 -i t.py",
            "python3 -vm x",
            "python3 -u -- -odd.py -m",
            "python3 --help t.py",
            "python3 -c",
            "python3 -W",
            "python3 t.pyc",
            "pythonista train.py",
            "python3-config t.py",
            "env -i python3 t.py",
            "env PATH=/v/bin python3 t.py",
            "env",
            "/bin/sh train.sh",
            "nice python3 t.py",
        ] {
            check(line, None);
        }
    }

    #[test]
    fn the_first_line_of_a_script_is_read_as_the_kernel_and_env_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("train");
        let parsed = |line: &str| {
            std::fs::write(&file, format!("{line}\npass\n")).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            let path = std::env::join_paths([dir.path()]).unwrap();
            let command = PythonCommand::parse(&words("train 1 -m"), Some(&path), Path::new("/"))?;
            assert_eq!(
                command.request,
                [&["script".into(), file.clone().into()], &words("1 -m")[..]].concat()
            );
            Some(
                command
                    .interpreter
                    .iter()
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect::<Vec<_>>(),
            )
        };
        let cases = [
            ("#!/v/bin/python3.11", Some("/v/bin/python3.11")),
            ("#! /v/bin/python -u ", Some("/v/bin/python -u")),
            ("#!/usr/bin/env python3", Some("/usr/bin/env python3")),
            ("#!/usr/bin/env -S python3 -u  -Xdev", Some("/usr/bin/env python3 -u -Xdev")),
            ("#!/bin/sh", None),
            ("#!/usr/bin/env bash", None),
            // One argument: there is no program of this name, and no such option.
            ("#!/usr/bin/env python3 -u", None),
            ("#!/usr/bin/env -S 'python3' -u", None),
            ("#!", None),
            ("import os", None),
        ];
        for (line, expected) in cases {
            assert_eq!(parsed(line).map(|words| words.join(" ")).as_deref(), expected, "{line}");
        }
    }
}
