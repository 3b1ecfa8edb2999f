//! Reads a data file into samples, as a stream and within limits. Errors carry line and column. Writes
//! nothing.

mod line_reader;
mod parse;
mod sample;
mod scan;

pub use line_reader::{LineReader, NextLine};
pub use parse::parse_line;
pub use sample::{Sample, Segment};
pub use scan::check_line_limits;

use std::io::Read;

use crate::settings::{Guards, Limits};

/// Why a data file is rejected, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct DataError {
    /// Line, counted from 1.
    pub line: u64,
    /// Column in bytes, counted from 1.
    pub column: u64,
    /// What is wrong.
    pub message: String,
}

/// Hexadecimal digits of a job's id.
const ID_CHARS: usize = 32;

/// Computes the id of a data file: the first half of the BLAKE3 of its bytes, in hexadecimal.
#[derive(Default)]
pub struct ContentId(blake3::Hasher);

impl ContentId {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id of the bytes so far.
    pub fn finish(&self) -> String {
        self.0.finalize().to_hex().as_str()[..ID_CHARS].to_owned()
    }

    /// The id of a file.
    ///
    /// # Errors
    /// If the file can't be read.
    pub fn of_file(path: &std::path::Path) -> std::io::Result<String> {
        let mut id = ContentId::default();
        id.0.update_reader(std::fs::File::open(path)?)?;
        Ok(id.finish())
    }
}

/// Reads all samples of a file. `on_line` gets the bytes of every line, line end included.
///
/// # Errors
/// `Err(error)` if `on_line` fails. `Ok(Err(error))` if the file is not valid.
pub fn read_samples<E>(
    input: impl Read,
    limits: &Limits,
    guards: &Guards,
    mut on_line: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Result<Vec<Sample>, DataError>, E> {
    let line_bytes = if guards.line_limit { limits.line_bytes } else { usize::MAX };
    let mut lines = LineReader::new(input, line_bytes);
    let mut samples = Vec::new();
    loop {
        let line = match lines.next_line() {
            Ok(NextLine::End) if samples.is_empty() => {
                return Ok(Err(lines.error(1, "the file has no samples")));
            }
            Ok(NextLine::End) => return Ok(Ok(samples)),
            Ok(NextLine::Line(line)) => line,
            Err(error) => return Ok(Err(error)),
        };
        on_line(line)?;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let index = samples.len() as u64;
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed = if index >= limits.lines {
            Err((1, format!("more than {} lines", limits.lines)))
        } else {
            check_and_parse(text, limits, guards)
        };
        match parsed {
            Ok(sample) => samples.push(sample),
            Err((column, message)) => return Ok(Err(lines.error(column, &message))),
        }
    }
}

fn check_and_parse(text: &[u8], limits: &Limits, guards: &Guards) -> Result<Sample, (u64, String)> {
    if guards.nesting_limit {
        check_line_limits(text, limits)?;
    }
    parse_line(text)
}
