//! Quotes arguments for a POSIX shell. Knows no command.

/// Quotes an argument for a POSIX shell, if it needs quotes.
pub(crate) fn shell_quote(argument: &str) -> String {
    let needs_no_quotes = |letter: char| letter.is_ascii_alphanumeric() || "-_./=,:@%+".contains(letter);
    if !argument.is_empty() && argument.chars().all(needs_no_quotes) {
        argument.into()
    } else {
        format!("'{}'", argument.replace('\'', "'\\''"))
    }
}
