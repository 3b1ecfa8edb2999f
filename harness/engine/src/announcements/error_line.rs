//! The line of an output that best explains a failure. Pure.

/// At most this many characters of a line are kept.
const MAX_LINE_CHARS: usize = 300;
/// The corners of a frame.
const FRAME_TOP: char = '\u{256d}';
const FRAME_BOTTOM: char = '\u{2570}';
/// What a Python traceback begins with.
const TRACEBACK: &str = "Traceback (most recent call last)";

/// The line that best explains a failure: the message of a Rust panic or of a Python exception, a line that
/// begins with `Error:`, else the last line; of standard error, else of standard output.
pub fn error_line(stdout: &str, stderr: &str) -> String {
    let outputs = [stderr, stdout];
    let line = outputs
        .into_iter()
        .find_map(raised_line)
        .or_else(|| outputs.into_iter().find_map(last_line))
        .unwrap_or_default();
    line.chars().take(MAX_LINE_CHARS).collect()
}

fn raised_line(output: &str) -> Option<String> {
    let line =
        || panic_message(output).or_else(|| exception_line(output)).or_else(|| error_prefix_line(output));
    framed_exception(output).or_else(|| line().map(str::to_owned))
}

fn last_line(output: &str) -> Option<String> {
    output.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// The exception below the last traceback around which the package `rich` has drawn a frame. It breaks long lines after
/// a space.
fn framed_exception(output: &str) -> Option<String> {
    let lines: Vec<&str> = output.lines().collect();
    let top = lines.iter().rposition(|line| line.starts_with(FRAME_TOP) && line.contains(TRACEBACK))?;
    let bottom = top + lines[top..].iter().position(|line| line.starts_with(FRAME_BOTTOM))?;
    let mut exception = String::new();
    for line in lines[bottom + 1..].iter().take_while(|line| !line.trim().is_empty()) {
        exception.push_str(line);
        if !line.ends_with(' ') {
            break;
        }
    }
    (!exception.is_empty()).then(|| exception.trim_end().to_owned())
}

/// The message of the last Rust panic. Since Rust 1.73 it is on the line after the place.
fn panic_message(output: &str) -> Option<&str> {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let panic = lines.iter().rposition(|line| line.contains("panicked at"))?;
    let next = lines.get(panic + 1).filter(|next| !next.starts_with("note: ") && lines[panic].ends_with(':'));
    Some(next.unwrap_or(&lines[panic]))
}

/// The exception of the last Python traceback: the first line after its indented ones. A prefix such as
/// `[rank0]: ` is not part of it.
fn exception_line(output: &str) -> Option<&str> {
    let lines: Vec<&str> = output.lines().collect();
    let start = lines.iter().rposition(|line| line.contains(TRACEBACK))?;
    let prefix = &lines[start][..lines[start].find(TRACEBACK)?];
    let lines = lines[start + 1..].iter().filter_map(|line| line.strip_prefix(prefix));
    lines.filter(|line| !line.trim().is_empty()).find(|line| !line.starts_with(char::is_whitespace))
}

/// The last line that begins as one that reports why a program ends.
fn error_prefix_line(output: &str) -> Option<&str> {
    let is_error = |line: &&str| {
        let lower = line.to_ascii_lowercase();
        ["error:", "fatal:", "fatal error:", "uncaught exception"]
            .iter()
            .any(|known| lower.starts_with(known))
    };
    output.lines().rev().map(str::trim).find(is_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_the_one_that_was_raised() {
        let traceback = "Traceback (most recent call last):\n  File \"a.py\", line 1, in <module>\n    f()\n";
        let chained =
            format!("{traceback}KeyError: 1\n\nDuring handling ..:\n\n{traceback}ValueError: two\n");
        let ranks = "[rank0]: Traceback (most recent call last):\n[rank0]:   File \"a.py\"\nINFO other\n\
                     [rank0]: OSError: gone\n[rank0]: more\nwarning: leaked semaphore\n";
        let framed = "\u{256d}\u{2500} Traceback (most recent call last) \u{2500}\u{256e}\n\u{2502} a.py:3 in f\n\
                      \u{2570}\u{2500}\u{256f}\nFileNotFoundError: no such file: \n'a/b'\n";
        for (stdout, stderr, expected) in [
            ("step 3\n", "", "step 3"),
            ("step 3\n", "one\ntwo\n\n", "two"),
            (
                "",
                &format!("{traceback}EOFError: Ran out of input\nsys:1: ResourceWarning: x\n"),
                "EOFError: Ran out of input",
            ),
            ("", &chained, "ValueError: two"),
            ("", ranks, "OSError: gone"),
            ("", framed, "FileNotFoundError: no such file: 'a/b'"),
            (&format!("{traceback}RuntimeError: in a log\n"), "a warning\n", "RuntimeError: in a log"),
            (
                "",
                "thread 'main' panicked at a.rs:1:2:\nno checkpoint\nnote: run with `RUST_BACKTRACE=1`\n",
                "no checkpoint",
            ),
            (
                "",
                "thread 'main' panicked at 'old form', a.rs:1:2\nnote: run with\n",
                "thread 'main' panicked at 'old form', a.rs:1:2",
            ),
            ("", "Error: could not load `x`\n\nCaused by:\n    No such file\n", "Error: could not load `x`"),
            ("", "", ""),
        ] {
            assert_eq!(error_line(stdout, stderr), expected, "{stdout} / {stderr}");
        }
        assert_eq!(error_line(&"x".repeat(1000), "").len(), MAX_LINE_CHARS);
    }
}
