//! What damage does to one file that is open: a bit, a cut, zeros. Says whether anything changed. Knows not which
//! file it is.

use std::fs::File;
use std::io::Error;
use std::os::unix::fs::FileExt;

use scenarios::{FileDamage, FilePart};

/// Bytes that `zero` fills: a page.
const ZEROED_BYTES: u64 = 4096;
/// The bit that `flip` flips: neither the lowest nor the highest of the byte.
const FLIPPED_BIT: u32 = 4;

/// Damages the content of a file. Returns what was done, and `None` if the file is as before: an empty one has no
/// bit to flip.
///
/// # Errors
/// If the file cannot be read or written.
pub(super) fn damage_content(
    file: &File,
    damage: FileDamage,
    part: FilePart,
) -> Result<Option<String>, Error> {
    let len_bytes = file.metadata()?.len();
    if len_bytes == 0 {
        return Ok(None);
    }
    let offset = part.offset(len_bytes);
    match damage {
        FileDamage::Flip => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset)?;
            file.write_all_at(&[byte[0] ^ (1 << FLIPPED_BIT)], offset)?;
            Ok(Some(format!("flipped bit {FLIPPED_BIT} of byte {offset}")))
        }
        FileDamage::Truncate => truncate(file, offset.max(1), len_bytes),
        FileDamage::Empty => truncate(file, 0, len_bytes),
        FileDamage::Zero => zero(file, offset, len_bytes),
        FileDamage::Remove | FileDamage::Swap | FileDamage::Mix | FileDamage::Rename | FileDamage::Age => {
            Ok(None)
        }
    }
}

fn truncate(file: &File, left_bytes: u64, len_bytes: u64) -> Result<Option<String>, Error> {
    if left_bytes >= len_bytes {
        return Ok(None);
    }
    file.set_len(left_bytes)?;
    Ok(Some(format!("cut off after {left_bytes} of {len_bytes} bytes")))
}

/// Fills a page with zeros, which ends at the end of the file if less is left.
fn zero(file: &File, offset: u64, len_bytes: u64) -> Result<Option<String>, Error> {
    let count = ZEROED_BYTES.min(len_bytes);
    let offset = offset.min(len_bytes - count);
    let mut bytes = vec![0; count as usize];
    file.read_exact_at(&mut bytes, offset)?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    bytes.fill(0);
    file.write_all_at(&bytes, offset)?;
    Ok(Some(format!("{count} bytes from byte {offset} on set to 0")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn damaged(content: &[u8], damage: FileDamage, part: FilePart) -> (Option<String>, Vec<u8>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let opened = std::fs::OpenOptions::new().read(true).write(true).open(file.path()).unwrap();
        let said = damage_content(&opened, damage, part).unwrap();
        (said, std::fs::read(file.path()).unwrap())
    }

    proptest! {
        #[test]
        fn what_is_said_to_be_damaged_differs_and_nothing_else(
            content in prop::collection::vec(prop::sample::select(vec![0_u8, 7]), 0..9000),
            damage in prop::sample::select(vec![FileDamage::Flip, FileDamage::Truncate, FileDamage::Empty,
                FileDamage::Zero]),
            part in prop::sample::select(vec![FilePart::Start, FilePart::Middle, FilePart::End]),
        ) {
            let (said, left) = damaged(&content, damage, part);
            prop_assert_eq!(said.is_some(), left != content);
            let common = left.len().min(content.len());
            let changed: Vec<usize> = (0..common).filter(|at| left[*at] != content[*at]).collect();
            match damage {
                FileDamage::Flip => prop_assert!(changed.len() <= 1 && left.len() == content.len()),
                FileDamage::Zero => {
                    prop_assert!(left.len() == content.len() && changed.iter().all(|at| left[*at] == 0));
                }
                _ => prop_assert!(changed.is_empty() && left.len() <= content.len()),
            }
        }
    }

    #[test]
    fn the_part_decides_where() {
        let content = [9_u8; 10_000];
        let at = |damage, part| damaged(&content, damage, part).1;
        assert_eq!(at(FileDamage::Flip, FilePart::Start)[0], 9 ^ 16);
        assert_eq!(at(FileDamage::Flip, FilePart::End)[9_999], 9 ^ 16);
        assert_eq!(at(FileDamage::Truncate, FilePart::Middle).len(), 5_000);
        assert_eq!(at(FileDamage::Truncate, FilePart::Start).len(), 1);
        assert_eq!(at(FileDamage::Zero, FilePart::End)[10_000 - 4096..], [0; 4096]);
    }
}
