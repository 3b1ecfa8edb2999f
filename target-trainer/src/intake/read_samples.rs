//! Reads all samples of a stream: splits it into lines, checks each against the limits, and parses it.

use std::io::Read;

use super::error::{LineError, LineProblem, ReadError};
use super::line_reader::{LineReader, NextLine};
use super::parse::parse_line;
use super::sample::Sample;
use super::scan::check_line_limits;
use crate::settings::{Guards, Limits};

/// Reads all samples of a file. `on_line` gets the bytes of every line, line end included.
///
/// # Errors
/// If the file is not valid, or `on_line` fails.
pub fn read_samples<E>(
    input: impl Read,
    limits: &Limits,
    guards: &Guards,
    mut on_line: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Vec<Sample>, ReadError<E>> {
    let line_bytes = if guards.line_limit { limits.line_bytes } else { usize::MAX };
    let mut lines = LineReader::new(input, line_bytes);
    let mut samples = Vec::new();
    loop {
        let line = match lines.next_line()? {
            NextLine::End if samples.is_empty() => {
                let error = LineError { column: 1, problem: LineProblem::NoSamples };
                return Err(error.in_line(lines.line_number()).into());
            }
            NextLine::End => return Ok(samples),
            NextLine::Line(line) => line,
        };
        on_line(line).map_err(ReadError::Sink)?;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed = if samples.len() as u64 >= limits.lines {
            Err(LineError { column: 1, problem: LineProblem::TooManyLines(limits.lines) })
        } else {
            check_and_parse(text, limits, guards)
        };
        samples.push(parsed.map_err(|error| error.in_line(lines.line_number()))?);
    }
}

fn check_and_parse(text: &[u8], limits: &Limits, guards: &Guards) -> Result<Sample, LineError> {
    if guards.nesting_limit {
        check_line_limits(text, limits)?;
    }
    parse_line(text)
}
