//! Quotes arguments for a POSIX shell, so that a command that is printed is the same command when it is pasted. Knows no
//! command.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// This program as it was called, because it need not be in the PATH.
pub(crate) fn own_program() -> String {
    shell_quote(&std::env::args_os().next().unwrap_or_else(|| "trainwreck".into()))
}

/// A part of an argument.
enum Piece {
    /// Between single quotes nothing has a meaning but their end.
    Text(String),
    /// Bytes that would not be printed as they are: what is no text, and what a terminal or a page would change.
    Escaped(Vec<u8>),
}

/// Quotes an argument for a POSIX shell, if it needs quotes. The result is one line more than the argument has line
/// breaks, and otherwise only characters that can be seen.
pub(crate) fn shell_quote(argument: &OsStr) -> String {
    let needs_no_quotes = |letter: char| letter.is_ascii_alphanumeric() || "-_./=,:@%+".contains(letter);
    if let Some(text) = argument.to_str()
        && !text.is_empty()
        && text.chars().all(needs_no_quotes)
    {
        return text.into();
    }
    let pieces = pieces_of(argument.as_bytes());
    if pieces.is_empty() {
        return "''".into();
    }
    let quoted = pieces.iter().map(|piece| match piece {
        Piece::Text(text) => format!("'{}'", text.replace('\'', "'\\''")),
        // The shell takes line breaks at the end away from the output of a command; none of these bytes is one.
        Piece::Escaped(bytes) => {
            let octal: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
            format!("\"$(printf '{octal}')\"")
        }
    });
    quoted.collect()
}

fn pieces_of(bytes: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            let mut encoded = [0; 4];
            let encoded = letter.encode_utf8(&mut encoded);
            match (is_printed_as_it_is(letter), pieces.last_mut()) {
                (true, Some(Piece::Text(text))) => text.push(letter),
                (true, _) => pieces.push(Piece::Text(letter.into())),
                (false, Some(Piece::Escaped(escaped))) => escaped.extend(encoded.bytes()),
                (false, _) => pieces.push(Piece::Escaped(encoded.as_bytes().to_vec())),
            }
        }
        match pieces.last_mut() {
            _ if chunk.invalid().is_empty() => {}
            Some(Piece::Escaped(escaped)) => escaped.extend(chunk.invalid()),
            _ => pieces.push(Piece::Escaped(chunk.invalid().to_vec())),
        }
    }
    pieces
}

/// Whether a character stays what it is on a terminal and in a page.
fn is_printed_as_it_is(letter: char) -> bool {
    let text = letter.to_string();
    reports::clean_block(&text) == text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_each_quoted_argument_as_it_was() {
        let texts: [&[u8]; 12] = [
            b"",
            b"plain-1.2/x=y,z:@%+",
            b"two words",
            b"it's",
            b"\"$HOME\" `id` $(id) \\ * ? [a] {a,b} ~ # ! | & ; < > ( )",
            b"line\nbreak\n",
            b"\ttab\x1b[31m\x07bell\x7f",
            b"-n",
            "\u{e4}\u{202e}\u{200b}\u{85}end".as_bytes(),
            b"not text: \xff\xfe\x80 and on",
            b"\xff",
            b"~root",
        ];
        for text in texts {
            let quoted = shell_quote(OsStr::from_bytes(text));
            for shell in ["sh", "bash"] {
                let script = format!("printf '%s.' {quoted}");
                let output = Command::new(shell).args(["-c", &script]).output().unwrap();
                assert_eq!(output.stdout, [text, b"."].concat(), "{shell}: {quoted}");
            }
            assert_eq!(reports::clean_block(&quoted), quoted, "what is shown is what has to be pasted");
        }
    }
}
