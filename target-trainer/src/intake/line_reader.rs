//! Reads a stream line by line, with a limit on the bytes of one line in memory.

use std::io::{BufRead, BufReader, Read};

use super::error::{DataError, LineError, LineProblem, LineReadError};

/// Reads lines from a stream and counts them.
pub struct LineReader<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    line_number: u64,
    max_line_bytes: usize,
}

/// The result of reading a line.
pub enum NextLine<'a> {
    /// A line with its line end, which only the last line may lack.
    Line(&'a [u8]),
    /// The end of the stream.
    End,
}

impl<R: Read> LineReader<R> {
    /// Reads from `input`. A line may have `max_line_bytes` bytes, line end included.
    pub fn new(input: R, max_line_bytes: usize) -> LineReader<R> {
        LineReader {
            reader: BufReader::with_capacity(64 * 1024, input),
            line: Vec::new(),
            line_number: 0,
            max_line_bytes,
        }
    }

    /// The number of the line that was read last, counted from 1; 0 before the first.
    pub fn line_number(&self) -> u64 {
        self.line_number
    }

    /// An error behind the first `len_bytes` bytes of the line that was read last.
    fn error(&self, len_bytes: usize, problem: LineProblem) -> DataError {
        LineError { column: len_bytes as u64 + 1, problem }.in_line(self.line_number)
    }

    /// Reads the next line.
    ///
    /// # Errors
    /// If the stream can't be read, or the line is too long. A long line is not read to its end.
    pub fn next_line(&mut self) -> Result<NextLine<'_>, LineReadError> {
        self.line.clear();
        self.line_number += 1;
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LineReadError::Input(error)),
            };
            if buffer.is_empty() {
                return Ok(if self.line.is_empty() { NextLine::End } else { NextLine::Line(&self.line) });
            }
            let end = buffer.iter().position(|byte| *byte == b'\n').map(|index| index + 1);
            let len = end.unwrap_or(buffer.len());
            if self.line.len() + len > self.max_line_bytes {
                return Err(self
                    .error(self.max_line_bytes, LineProblem::TooLong(self.max_line_bytes))
                    .into());
            }
            self.line.extend_from_slice(&buffer[..len]);
            self.reader.consume(len);
            if end.is_some() {
                return Ok(NextLine::Line(&self.line));
            }
        }
    }
}
