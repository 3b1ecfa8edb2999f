//! Checks the nesting and the length of numbers in a line before it is parsed. Does not recurse or allocate.

use super::error::{LineError, LineProblem};
use crate::settings::Limits;

/// Checks a line of JSON against the limits. Does not check that it is valid JSON.
///
/// # Errors
/// If the line is nested too deeply, or a number is too long.
pub fn check_line_limits(line: &[u8], limits: &Limits) -> Result<(), LineError> {
    let (mut depth, mut number_chars, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for (index, byte) in line.iter().enumerate() {
        let column = index as u64 + 1;
        if in_string {
            (in_string, escaped) = match byte {
                _ if escaped => (true, false),
                b'\\' => (true, true),
                b'"' => (false, false),
                _ => (true, false),
            };
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        let in_number = matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+' | b'e' | b'E');
        number_chars = if in_number { number_chars + 1 } else { 0 };
        if depth > limits.nesting {
            return Err(LineError { column, problem: LineProblem::TooDeep(limits.nesting) });
        }
        if number_chars > limits.number_chars {
            return Err(LineError { column, problem: LineProblem::LongNumber(limits.number_chars) });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_line_limits;
    use crate::settings::Limits;

    fn check(line: &str, expected: Result<(), u64>) {
        let limits = Limits { nesting: 3, number_chars: 4, ..Limits::default() };
        assert_eq!(
            check_line_limits(line.as_bytes(), &limits).map_err(|error| error.column),
            expected,
            "{line}"
        );
    }

    #[test]
    fn depth_and_numbers_are_only_measured_outside_strings() {
        check("[[[]]]", Ok(()));
        check("[[[[]]]]", Err(4));
        check(r#"{"a":"[[[[[[12345678"}"#, Ok(()));
        check(r#"{"a":"\"[[[[","b":1234}"#, Ok(()));
        check(r#"{"a":12345}"#, Err(10));
    }
}
