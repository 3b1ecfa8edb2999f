//! The lines of a record file as text. Each line has its number and a digest of all lines up to it, so that a
//! line that is missing, repeated, out of order or changed shows. Knows nothing of what a line says.

/// What a line begins with: its number follows.
const BEFORE_NUMBER: &str = "{\"line\":";
/// Between the number and the digest.
const BEFORE_DIGEST: &str = ",\"digest\":\"";
/// Between the digest and the rest of the entry.
const AFTER_DIGEST: &str = "\",";
/// The digest of no line, and the factor: FNV-1a with 64 bits (draft-eastlake-fnv). It finds damage; it is no
/// protection from somebody who computes it anew.
const FNV_OFFSET_BASIS: u64 = 0xCBF2_9CE4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01B3;

/// The lines of one record so far: gives the next one its number and digest, or checks those that it has.
#[derive(Debug, Clone)]
pub struct RecordLines {
    count: u64,
    digest: u64,
}

/// Why a line cannot be the next one of its record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordLineFault {
    /// It has no number or no digest.
    #[error("the line has no number and no digest, so that it is not as trainwreck wrote it")]
    NotNumbered,
    /// Lines before it are not there.
    #[error("this is line {found} of the record: {} missing before it", lines_text(*.expected, *.found - 1))]
    LinesMissing {
        /// The number of the line that should be here.
        expected: u64,
        /// The number of the line.
        found: u64,
    },
    /// A line before it has the same number or a larger one.
    #[error(
        "this is line {found} of the record, but line {expected} should be here: lines are repeated or out of order"
    )]
    OutOfOrder {
        /// The number of the line that should be here.
        expected: u64,
        /// The number of the line.
        found: u64,
    },
    /// Its digest is not that of the lines up to it.
    #[error("the line is not as trainwreck wrote it: its digest is another one")]
    Changed,
}

fn lines_text(first: u64, last: u64) -> String {
    if first == last { format!("line {first} is") } else { format!("lines {first} to {last} are") }
}

impl Default for RecordLines {
    fn default() -> RecordLines {
        RecordLines { count: 0, digest: FNV_OFFSET_BASIS }
    }
}

impl RecordLines {
    /// The next line of the record, without its newline. `entry`: a JSON object with at least one field.
    pub fn next_line(&mut self, entry: &str) -> String {
        self.count += 1;
        self.digest = digest_with(self.digest, entry);
        let (number, digest) = (self.count, self.digest);
        let rest = entry.strip_prefix('{').unwrap_or(entry);
        format!("{BEFORE_NUMBER}{number}{BEFORE_DIGEST}{digest:016x}{AFTER_DIGEST}{rest}")
    }

    /// Checks that this is the next line of the record.
    ///
    /// # Errors
    /// If lines are missing before it, or it is repeated, out of order or changed.
    pub fn check_next(&mut self, line: &str) -> Result<(), RecordLineFault> {
        let expected = self.count + 1;
        let parts = line.strip_prefix(BEFORE_NUMBER).and_then(|rest| {
            let (number, rest) = rest.split_once(BEFORE_DIGEST)?;
            let (digest, rest) = rest.split_once(AFTER_DIGEST)?;
            Some((number.parse::<u64>().ok()?, digest, rest))
        });
        let Some((found, digest, rest)) = parts else { return Err(RecordLineFault::NotNumbered) };
        match found.cmp(&expected) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => return Err(RecordLineFault::LinesMissing { expected, found }),
            std::cmp::Ordering::Less => return Err(RecordLineFault::OutOfOrder { expected, found }),
        }
        self.count = expected;
        self.digest = digest_with(self.digest, &format!("{{{rest}"));
        if format!("{:016x}", self.digest) == digest { Ok(()) } else { Err(RecordLineFault::Changed) }
    }
}

/// The digest of the lines so far and this one.
fn digest_with(digest: u64, entry: &str) -> u64 {
    let bytes = entry.bytes().chain([b'\n']);
    bytes.fold(digest, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&String]) -> Result<(), RecordLineFault> {
        let mut checked = RecordLines::default();
        lines.iter().try_for_each(|line| checked.check_next(line))
    }

    #[test]
    fn a_line_that_is_missing_repeated_out_of_order_or_changed_shows() {
        let mut written = RecordLines::default();
        let lines: Vec<String> =
            ["{\"a\":1}", "{\"b\":2}", "{\"b\":2}", "{\"c\":3}"].map(|entry| written.next_line(entry)).into();
        let [a, b, same, c] = [0, 1, 2, 3].map(|index| &lines[index]);
        assert_eq!(check(&[a, b, same, c]), Ok(()));
        assert_eq!(check(&[a, b]), Ok(()));
        let missing = RecordLineFault::LinesMissing { expected: 2, found: 4 };
        assert_eq!(missing.to_string(), "this is line 4 of the record: lines 2 to 3 are missing before it");
        assert_eq!(check(&[a, c]), Err(missing));
        assert_eq!(check(&[a, a, b]), Err(RecordLineFault::OutOfOrder { expected: 2, found: 1 }));
        assert_eq!(check(&[a, same, b]), Err(RecordLineFault::LinesMissing { expected: 2, found: 3 }));
        assert_eq!(check(&[a, &b.replace("2}", "7}")]), Err(RecordLineFault::Changed));
        // Another record's line in the place of this one.
        let other = RecordLines { count: 1, digest: 7 }.next_line("{\"b\":2}");
        assert_eq!(check(&[a, &other]), Err(RecordLineFault::Changed));
        assert_eq!(check(&[&"{\"a\":1}".to_owned()]), Err(RecordLineFault::NotNumbered));
    }
}
