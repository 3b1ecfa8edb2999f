//! Lines of a stream, with a bound on what one line may take in memory.

use std::io::{BufRead, BufReader, Read};

use super::DataError;

/// A stream's lines.
pub struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    number: u64,
    line_bytes: usize,
}

/// What comes next.
pub enum NextLine<'a> {
    /// With its line end, unless it is the last one and has none.
    Line(&'a [u8]),
    End,
}

impl<R: Read> Lines<R> {
    pub fn new(input: R, line_bytes: usize) -> Lines<R> {
        Lines { reader: BufReader::with_capacity(64 * 1024, input), line: Vec::new(), number: 0, line_bytes }
    }

    /// An error in the line that was read last.
    pub fn error(&self, column: u64, message: &str) -> DataError {
        DataError { line: self.number.max(1), column, message: message.to_owned() }
    }

    /// The next line. A longer one than allowed is refused as soon as that is known.
    pub fn next_line(&mut self) -> Result<NextLine<'_>, DataError> {
        self.line.clear();
        self.number += 1;
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(
                        self.error(self.line.len() as u64 + 1, &format!("could not be read: {error}"))
                    );
                }
            };
            if buffer.is_empty() {
                return Ok(if self.line.is_empty() { NextLine::End } else { NextLine::Line(&self.line) });
            }
            let end = buffer.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let taken = end.unwrap_or(buffer.len());
            if self.line.len() + taken > self.line_bytes {
                let message = format!("the line is longer than {} bytes", self.line_bytes);
                return Err(self.error(self.line_bytes as u64 + 1, &message));
            }
            self.line.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if end.is_some() {
                return Ok(NextLine::Line(&self.line));
            }
        }
    }
}
