//! Reads the samples of a stream one by one: splits it into lines, checks each against the limits, and parses
//! it.

use std::io::Read;

use super::error::{LineError, LineProblem, ReadError};
use super::line_reader::{LineReader, NextLine};
use super::parse::parse_line;
use super::sample::Sample;
use super::scan::check_line_limits;
use crate::settings::{Guards, Limits};

/// The mark that some editors put at the begin of a UTF-8 file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// First bytes of files that people take for JSON lines, and what they are.
const OTHER_FORMATS: [(&[u8], &str); 8] = [
    (b"\x1f\x8b", "compressed with gzip; decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; decompress it"),
    (b"\xfd7zXZ", "compressed with xz; decompress it"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"PAR1", "in the format Parquet; convert it to JSON lines"),
    (b"\xff\xfe", "UTF-16; convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16; convert it to UTF-8"),
    (b"[", "a JSON array; write each of its objects on a line of its own"),
];

/// Reads samples from a stream.
pub struct SampleReader<R> {
    lines: LineReader<R>,
    limits: Limits,
    guards: Guards,
    samples: u64,
}

/// What a line holds.
#[derive(Debug)]
pub enum NextSample {
    Sample(Sample),
    /// Nothing but white space.
    Blank,
    /// There are no more lines.
    End,
}

impl<R: Read> SampleReader<R> {
    /// Reads the samples of `input`.
    pub fn new(input: R, limits: &Limits, guards: &Guards) -> SampleReader<R> {
        let line_bytes = if guards.line_limit { limits.line_bytes } else { usize::MAX };
        let lines = LineReader::new(input, line_bytes);
        SampleReader { lines, limits: limits.clone(), guards: guards.clone(), samples: 0 }
    }

    /// Reads one line. `on_line` gets its bytes, line end included.
    ///
    /// # Errors
    /// If the line is not valid, the stream can't be read, or `on_line` fails.
    pub fn next_sample<E>(
        &mut self,
        on_line: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<NextSample, ReadError<E>> {
        let number = self.lines.line_number() + 1;
        let line = match self.lines.next_line()? {
            NextLine::End if self.samples == 0 => {
                let error = LineError { column: 1, problem: LineProblem::NoSamples };
                return Err(error.in_line(number).into());
            }
            NextLine::End => return Ok(NextSample::End),
            NextLine::Line(line) => line,
        };
        on_line(line).map_err(ReadError::Sink)?;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let text = if number == 1 { text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text) } else { text };
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(NextSample::Blank);
        }
        let parsed = if self.samples >= self.limits.lines {
            Err(LineError { column: 1, problem: LineProblem::TooManyLines(self.limits.lines) })
        } else {
            check_and_parse(text, &self.limits, &self.guards)
        };
        let parsed = parsed.map_err(|error| if number == 1 { name_format(error, text) } else { error });
        self.samples += 1;
        Ok(NextSample::Sample(parsed.map_err(|error| error.in_line(number))?))
    }
}

/// Reads all samples of a file. `on_line` gets the bytes of every line, line end included.
///
/// # Errors
/// If the file is not valid, it can't be read, or `on_line` fails.
pub fn read_samples<E>(
    input: impl Read,
    limits: &Limits,
    guards: &Guards,
    mut on_line: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Vec<Sample>, ReadError<E>> {
    let mut reader = SampleReader::new(input, limits, guards);
    let mut samples = Vec::new();
    loop {
        match reader.next_sample(&mut on_line)? {
            NextSample::Sample(sample) => samples.push(sample),
            NextSample::Blank => {}
            NextSample::End => return Ok(samples),
        }
    }
}

fn check_and_parse(text: &[u8], limits: &Limits, guards: &Guards) -> Result<Sample, LineError> {
    if guards.nesting_limit {
        check_line_limits(text, limits)?;
    }
    parse_line(text)
}

/// Says what the file is, if its first line shows that it has another format. Limits are reported as they
/// are.
fn name_format(error: LineError, first_line: &[u8]) -> LineError {
    if !matches!(error.problem, LineProblem::NotUtf8 | LineProblem::Json(_)) {
        return error;
    }
    let text = first_line.trim_ascii();
    let known = OTHER_FORMATS.iter().find(|(bytes, _)| text.starts_with(bytes)).map(|(_, format)| *format);
    let is_begin_of_object = text == b"{";
    let format = known.or(is_begin_of_object.then_some("pretty-printed JSON; write each object on one line"));
    format.map_or(error, |format| LineError { column: 1, problem: LineProblem::OtherFormat(format) })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn message(bytes: &[u8]) -> String {
        let (limits, guards) = (Limits::default(), Guards::default());
        match read_samples::<Infallible>(bytes, &limits, &guards, |_| Ok(())) {
            Ok(samples) => format!("{} samples", samples.len()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_file_of_another_format_is_named() {
        for (bytes, name) in [
            (&b"\x1f\x8b\x08\0\0\n{}"[..], "gzip"),
            (b"\x28\xb5\x2f\xfd\0", "zstd"),
            (b"\xff\xfe{\0", "UTF-16"),
            (b"[{\"text\":\"a\"}]\n", "a JSON array"),
            (b"[\n{\"text\":\"a\"}]\n", "a JSON array"),
            (b"{\n  \"text\": \"a\"\n}\n", "pretty-printed"),
        ] {
            assert!(message(bytes).contains(name), "{name}: {}", message(bytes));
        }
        assert!(message(b"{\"text\":\"a\"}\n[1]\n").contains("line 2, column 1: invalid type"));
    }

    #[test]
    fn a_byte_order_mark_is_skipped_at_the_begin_only() {
        assert_eq!(message("\u{feff}{\"text\":\"a\"}\n{\"text\":\"b\"}".as_bytes()), "2 samples");
        assert!(message("{\"text\":\"a\"}\n\u{feff}{\"text\":\"b\"}".as_bytes()).contains("line 2"));
    }

    /// A stream that fails after its first bytes.
    struct FailingStream<'a>(&'a [u8]);

    impl Read for FailingStream<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0.is_empty() {
                return Err(std::io::Error::from_raw_os_error(nix::libc::EIO));
            }
            self.0.read(buffer)
        }
    }

    #[test]
    fn a_stream_that_fails_is_no_fault_of_the_data() {
        let result = read_samples::<Infallible>(
            FailingStream(b"{\"text\":\"a\"}\n{\"te"),
            &Limits::default(),
            &Guards::default(),
            |_| Ok(()),
        );
        assert!(matches!(result, Err(ReadError::Input(_))));
    }
}
