//! Reads the samples of a stream one by one: splits it into lines, checks each against the limits, and parses
//! it.

use std::io::Read;

use super::diagnosis::{BYTE_ORDER_MARK, name_format};
use super::error::{LineError, LineProblem, LineReadError, ReadError, SampleProblem};
use super::line_reader::{LineReader, NextLine};
use super::parse::parse_line;
use super::sample::Sample;
use super::scan::check_line_limits;
use crate::settings::{Guards, Limits};

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
    /// If the line is not valid, the stream can't be read, or `on_line` fails. After a line that is not
    /// valid, the next one can be read, unless the error says that it ends the check.
    pub fn next_sample<E>(
        &mut self,
        on_line: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<NextSample, ReadError<E>> {
        let number = self.lines.line_number() + 1;
        let line = match self.lines.next_line()? {
            NextLine::End if self.samples == 0 && self.guards.learned_check => {
                let error = LineError { column: 1, problem: LineProblem::NoSamples };
                return Err(error.in_line(number).into());
            }
            NextLine::End => return Ok(NextSample::End),
            NextLine::Line(line) => line,
        };
        if number > self.limits.lines {
            let problem = LineProblem::TooManyLines(self.limits.lines);
            return Err(LineError { column: 1, problem }.in_line(number).into());
        }
        on_line(line).map_err(ReadError::Sink)?;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let text = if number == 1 { text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text) } else { text };
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(NextSample::Blank);
        }
        let parsed = check_and_parse(text, &self.limits, &self.guards);
        let parsed = parsed.map_err(|error| if number == 1 { name_format(error, text) } else { error });
        let parsed = parsed.and_then(|mut sample| match sample.unknown_keys.pop() {
            Some(key) if self.limits.strict => {
                Err(LineError { column: 1, problem: SampleProblem::UnknownKey(key).into() })
            }
            key => {
                sample.unknown_keys.extend(key);
                Ok(sample)
            }
        });
        self.samples += 1;
        Ok(NextSample::Sample(parsed.map_err(|error| error.in_line(number))?))
    }
}

impl<R: Read> SampleReader<R> {
    /// Passes over lines with samples, and over blank ones before and between them, without looking at them.
    ///
    /// # Errors
    /// If a line is too long, or the stream can't be read or ends.
    pub fn skip_samples(&mut self, mut count: usize) -> Result<(), LineReadError> {
        while count > 0 {
            let number = self.lines.line_number() + 1;
            match self.lines.next_line()? {
                NextLine::Line(line) => {
                    let is_first = number == 1;
                    let text =
                        if is_first { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
                    let is_blank = text.iter().all(u8::is_ascii_whitespace);
                    count -= usize::from(!is_blank);
                    self.samples += u64::from(!is_blank);
                }
                NextLine::End => {
                    let error = LineError { column: 1, problem: LineProblem::NoSamples };
                    return Err(error.in_line(number).into());
                }
            }
        }
        Ok(())
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
    if guards.valid_text { parse_line(text) } else { parse_line(String::from_utf8_lossy(text).as_bytes()) }
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
            (b"{\"messages\": [\n{}]}\n", "pretty-printed"),
            (b"{\0\"\0t\0", "UTF-16"),
            (b"\0{\0\"", "UTF-16"),
            (b"\xff\xfe\0\0{\0\0\0", "UTF-32"),
            (b"BZh9", "bzip2"),
            (b"\x80\x04\x95", "pickle"),
            (b"<!DOCTYPE html>", "HTML"),
            (b"prompt,completion\na,b\n", "CSV"),
            (b"PAR1\x15", "Parquet"),
        ] {
            assert!(message(bytes).contains(name), "{name}: {}", message(bytes));
        }
        assert!(message(b"{\"text\":\"a\"}\n[1]\n").contains("line 2, column 1: invalid type"));
        assert!(message(b"{\"text\":\"a\"}\n{\"text\":\"a\"}\0\0\0\n").contains("line 2"));
    }

    #[test]
    fn a_byte_order_mark_is_skipped_at_the_begin_only() {
        assert_eq!(message("\u{feff}{\"text\":\"a\"}\n{\"text\":\"b\"}".as_bytes()), "2 samples");
        assert!(
            message("{\"text\":\"a\"}\n\u{feff}{\"text\":\"b\"}".as_bytes())
                .contains("line 2, column 1: a byte order")
        );
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

    #[test]
    fn unknown_keys_are_refused_only_if_the_settings_are_strict() {
        let line = &b"{\"text\":\"a\",\"id\":1}"[..];
        assert_eq!(message(line), "1 samples");
        let limits = Limits { strict: true, ..Limits::default() };
        let error = read_samples::<Infallible>(line, &limits, &Guards::default(), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("unknown key `id`"), "{error}");
    }

    #[test]
    fn the_limit_of_lines_counts_all_lines() {
        let limits = Limits { lines: 3, ..Limits::default() };
        let read = |text: &str| {
            read_samples::<Infallible>(text.as_bytes(), &limits, &Guards::default(), |_| Ok(())).is_ok()
        };
        assert!(read("{\"text\":\"a\"}\n\n{\"text\":\"a\"}\n"));
        assert!(!read("{\"text\":\"a\"}\n\n\n{\"text\":\"a\"}\n"));
        assert!(!read("{\"text\":\"a\"}\n\n\n\n"));
    }
}
