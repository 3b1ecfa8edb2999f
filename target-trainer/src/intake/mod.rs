//! From a data file to samples: streaming, limited, every error with line and column. Writes nothing.

mod lines;
mod parse;
mod sample;
mod scan;

pub use lines::{Lines, NextLine};
pub use parse::parse_line;
pub use sample::{Sample, Segment};
pub use scan::scan;

use std::io::Read;

use crate::settings::{Guards, Limits};

/// Why a data file is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct DataError {
    /// 1-based.
    pub line: u64,
    /// 1-based, in bytes.
    pub column: u64,
    pub message: String,
}

/// Reads a whole file of samples; `each` sees every line's bytes as they are, its end included.
pub fn read_samples<E>(
    input: impl Read,
    limits: &Limits,
    guards: &Guards,
    mut each: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Result<Vec<Sample>, DataError>, E> {
    let line_bytes = if guards.line_limit { limits.line_bytes } else { usize::MAX };
    let mut lines = Lines::new(input, line_bytes);
    let mut samples = Vec::new();
    loop {
        let line = match lines.next_line() {
            Ok(NextLine::End) if samples.is_empty() => {
                return Ok(Err(lines.error(1, "the file holds no sample")));
            }
            Ok(NextLine::End) => return Ok(Ok(samples)),
            Ok(NextLine::Line(line)) => line,
            Err(error) => return Ok(Err(error)),
        };
        each(line)?;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let number = samples.len() as u64;
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let parsed = if number >= limits.lines {
            Err((1, format!("more than {} lines", limits.lines)))
        } else {
            sample_of(text, limits, guards)
        };
        match parsed {
            Ok(sample) => samples.push(sample),
            Err((column, message)) => return Ok(Err(lines.error(column, &message))),
        }
    }
}

fn sample_of(text: &[u8], limits: &Limits, guards: &Guards) -> Result<Sample, (u64, String)> {
    if guards.nesting_limit {
        scan(text, limits)?;
    }
    parse_line(text)
}
