//! Lines of a stream, with a bound on what one line may take in memory.

use std::io::{BufRead, BufReader, Read};

use super::DataError;

/// A stream's lines.
pub struct LineReader<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    line_number: u64,
    max_line_bytes: usize,
}

/// What comes next.
pub enum NextLine<'a> {
    /// With its line end, unless it is the last one and has none.
    Line(&'a [u8]),
    End,
}

impl<R: Read> LineReader<R> {
    pub fn new(input: R, max_line_bytes: usize) -> LineReader<R> {
        LineReader {
            reader: BufReader::with_capacity(64 * 1024, input),
            line: Vec::new(),
            line_number: 0,
            max_line_bytes,
        }
    }

    /// An error in the line that was read last.
    pub fn error(&self, column: u64, message: &str) -> DataError {
        DataError { line: self.line_number.max(1), column, message: message.to_owned() }
    }

    /// The next line. A longer one than allowed is refused as soon as that is known.
    pub fn next_line(&mut self) -> Result<NextLine<'_>, DataError> {
        self.line.clear();
        self.line_number += 1;
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
            if self.line.len() + taken > self.max_line_bytes {
                let message = format!("the line is longer than {} bytes", self.max_line_bytes);
                return Err(self.error(self.max_line_bytes as u64 + 1, &message));
            }
            self.line.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if end.is_some() {
                return Ok(NextLine::Line(&self.line));
            }
        }
    }
}
