//! Compares recorded contents with real files. What is a hole in both is not read, so that the size of a file costs
//! nothing. Changes nothing.

use std::fs::File;
use std::io::Error;
use std::os::unix::fs::FileExt;

use super::content::{ContentPiece, ContentReader, FileContent};
use super::copy_file::next_data;

/// Bytes that are compared at a time. Places are multiples of it.
const CHUNK_BYTES: u64 = 64 * 1024;

/// A part of a file that has other bytes than were recorded.
pub(super) struct DifferingChunk<'a> {
    /// Where it is in the file.
    pub(super) offset: u64,
    pub(super) expected: &'a [u8],
    /// As many bytes.
    pub(super) found: &'a [u8],
}

impl DifferingChunk<'_> {
    /// The offset of the first byte that differs.
    pub(super) fn first_difference(&self) -> u64 {
        let different = self.expected.iter().zip(self.found).position(|(expected, found)| expected != found);
        self.offset + different.unwrap_or(0) as u64
    }
}

/// A content, and where its pieces begin.
struct PlacedPieces<'a> {
    pieces: &'a [ContentPiece],
    starts: Vec<u64>,
}

impl<'a> PlacedPieces<'a> {
    fn of(content: &'a FileContent) -> PlacedPieces<'a> {
        let pieces = content.pieces();
        let starts = pieces.iter().scan(0, |end, piece| {
            let start = *end;
            *end += piece.len_bytes;
            Some(start)
        });
        PlacedPieces { pieces, starts: starts.collect() }
    }

    /// The pieces from the one at this offset on, each with its start.
    fn from(&self, offset: u64) -> impl Iterator<Item = (u64, ContentPiece)> {
        let first = self.starts.partition_point(|start| *start <= offset).saturating_sub(1);
        self.starts[first..].iter().copied().zip(self.pieces[first..].iter().copied())
    }

    /// The first place from here on that may be no zero. `None`: there are only zeroes up to the end.
    fn next_data(&self, reader: &ContentReader<'_>, offset: u64) -> Result<Option<u64>, Error> {
        for (start, piece) in self.from(offset) {
            let skipped = offset.saturating_sub(start);
            if skipped < piece.len_bytes
                && let Some(data) = reader.next_data(piece, skipped)?
            {
                return Ok(Some(start + data));
            }
        }
        Ok(None)
    }

    /// Reads the bytes from an offset on. Beyond the end there are zeroes.
    fn read_at(&self, reader: &ContentReader<'_>, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.fill(0);
        let wanted_end = offset + bytes.len() as u64;
        for (start, piece) in self.from(offset).take_while(|(start, _)| *start < wanted_end) {
            let (from, to) = (offset.max(start), wanted_end.min(start + piece.len_bytes));
            if from < to {
                let part = &mut bytes[(from - offset) as usize..(to - offset) as usize];
                reader.read_at(piece, from - start, part)?;
            }
        }
        Ok(())
    }
}

/// Calls `on_difference` for each part of the file that differs from the content, in order. A content that is shorter
/// than the file counts as if zeroes followed.
///
/// # Errors
/// The file or a source of the content cannot be read, or `on_difference` fails.
pub(super) fn for_each_difference(
    content: &FileContent,
    reader: &ContentReader<'_>,
    file: &File,
    on_difference: &mut dyn FnMut(&DifferingChunk<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let len_bytes = file.metadata()?.len();
    let pieces = PlacedPieces::of(content);
    let mut expected = vec![0; CHUNK_BYTES as usize];
    let mut found = vec![0; CHUNK_BYTES as usize];
    let mut position = 0;
    while position < len_bytes {
        let places = [next_data(file, position)?, pieces.next_data(reader, position)?];
        let Some(next) = places.into_iter().flatten().min().filter(|next| *next < len_bytes) else { break };
        let offset = next - next % CHUNK_BYTES;
        let chunk_bytes = CHUNK_BYTES.min(len_bytes - offset);
        let (expected, found) = (&mut expected[..chunk_bytes as usize], &mut found[..chunk_bytes as usize]);
        file.read_exact_at(found, offset)?;
        pieces.read_at(reader, offset, expected)?;
        if expected != found {
            on_difference(&DifferingChunk { offset, expected, found })?;
        }
        position = offset + chunk_bytes;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::explore::record::content::ByteSource;

    /// The offsets of the differences between a content and a file.
    fn differences(content: &FileContent, reader: &ContentReader<'_>, file: &File) -> Vec<u64> {
        let mut found = Vec::new();
        for_each_difference(content, reader, file, &mut |chunk| {
            found.push(chunk.first_difference());
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn only_what_is_no_hole_is_read_and_each_chunk_with_another_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (log, initial) = (dir.path().join("log"), dir.path().join("initial"));
        std::fs::write(&log, [7; 100]).unwrap();
        // Reading 1 EiB would take years.
        let exbibyte = 1 << 60;
        let original = File::create(&initial).unwrap();
        // Not every file system has files of this size.
        let size = original.set_len(exbibyte).map_or(1 << 40, |()| exbibyte);
        original.set_len(size).unwrap();
        original.write_all_at(b"here", size / 2).unwrap();
        let initial_paths = BTreeMap::from([(1, initial)]);
        let reader = ContentReader::of(&initial_paths, &log).unwrap();
        let mut content = FileContent::initial(1, size);
        content.put(500, 100, ByteSource::PayloadLog(0));
        content.put(CHUNK_BYTES * 9, CHUNK_BYTES, ByteSource::Zeroes);
        content.resize(size + 10);

        let path = dir.path().join("found");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(size).unwrap();
        assert_eq!(differences(&content, &reader, &file), [500, size / 2]);
        file.write_all_at(&[7; 100], 500).unwrap();
        file.write_all_at(b"here", size / 2).unwrap();
        assert_eq!(differences(&content, &reader, &file), [0; 0]);
        for offset in [0, 499, 555, 600, CHUNK_BYTES * 9 + 5, size / 2 + 3, size - 1] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
            assert_eq!(differences(&content, &reader, &file), [offset], "{offset}");
            file.write_all_at(&byte, offset).unwrap();
        }
    }
}
