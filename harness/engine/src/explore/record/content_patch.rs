//! What has to be written to make one content of another that a file has already. Decides nothing about
//! files.

use std::fs::File;
use std::io::Error;

use nix::fcntl::{FallocateFlags, fallocate};

use super::content::{ByteSource, ContentPiece, ContentReader, FileContent};

/// Blocks of a file begin at multiples of it, in bytes.
const BLOCK_BYTES: u64 = 4096;

/// The differences between what a file has and what it shall have.
pub(in crate::explore) struct ContentPatch<'c> {
    target: &'c FileContent,
    /// In order. Each has one source.
    changes: Vec<ContentChange>,
    /// So many bytes of other sources than zeroes are written.
    written_bytes: u64,
    /// So many such bytes get lost.
    removed_bytes: u64,
}

/// Consecutive bytes that change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentChange {
    offset: u64,
    /// What will be there.
    piece: ContentPiece,
    /// Whether something else than zeroes is there.
    had_data: bool,
    /// Where zeroes begin and end, if that is what will be there.
    zeroes: Option<ZeroRange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ZeroRange {
    start: u64,
    end: u64,
}

/// The pieces of a content from an offset on.
struct PieceCursor<'c> {
    pieces: std::slice::Iter<'c, ContentPiece>,
    /// What is left of the current piece.
    current: Option<ContentPiece>,
    offset: u64,
}

impl<'c> PieceCursor<'c> {
    fn new(content: &'c FileContent) -> PieceCursor<'c> {
        let mut pieces = content.pieces().iter();
        PieceCursor { current: pieces.next().copied(), pieces, offset: 0 }
    }

    fn advance(&mut self, by: u64) {
        self.offset += by;
        let Some(piece) = &mut self.current else { return };
        piece.source = piece.source.advanced(by);
        piece.len_bytes -= by;
        if piece.len_bytes == 0 {
            self.current = self.pieces.next().copied();
        }
    }

    fn is_data(&self) -> bool {
        self.current.is_some_and(|piece| piece.source != ByteSource::Zeroes)
    }
}

impl<'c> ContentPatch<'c> {
    /// Compares two contents by their structure.
    pub(in crate::explore) fn between(old: &FileContent, target: &'c FileContent) -> ContentPatch<'c> {
        let mut patch = ContentPatch { target, changes: Vec::new(), written_bytes: 0, removed_bytes: 0 };
        let (mut before, mut after) = (PieceCursor::new(old), PieceCursor::new(target));
        let mut zeroes = None;
        loop {
            let lens = [before.current, after.current].map(|piece| piece.map(|piece| piece.len_bytes));
            let Some(len_bytes) = lens.into_iter().flatten().min() else { return patch };
            let (had_data, has_data) = (before.is_data(), after.is_data());
            let source = after.current.map(|piece| piece.source);
            if source != Some(ByteSource::Zeroes) {
                zeroes = None;
            } else if zeroes.is_none() {
                let rest = after.current.map_or(0, |piece| piece.len_bytes);
                zeroes = Some(ZeroRange { start: after.offset, end: after.offset + rest });
            }
            let is_same = before.current.map(|piece| piece.source) == source;
            if !is_same && (had_data || has_data) {
                patch.removed_bytes += if had_data { len_bytes } else { 0 };
                patch.written_bytes += if has_data { len_bytes } else { 0 };
                // What lies beyond the end is cut off.
                patch.changes.extend(source.map(|source| ContentChange {
                    offset: after.offset,
                    piece: ContentPiece { len_bytes, source },
                    had_data,
                    zeroes,
                }));
            }
            before.advance(len_bytes);
            after.advance(len_bytes);
        }
    }

    /// How many bytes are written.
    pub(in crate::explore) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// How many bytes are written or get lost.
    pub(in crate::explore) fn changed_bytes(&self) -> u64 {
        self.written_bytes.max(self.removed_bytes)
    }

    /// Changes a file with the old content. What is zero then is a hole, as far as whole blocks are.
    ///
    /// # Errors
    /// A source cannot be read or has become shorter, or the file cannot be written.
    pub(in crate::explore) fn write_to_file(
        &self,
        reader: &mut ContentReader<'_>,
        file: &File,
    ) -> Result<(), Error> {
        file.set_len(self.target.len())?;
        for change in &self.changes {
            let ContentChange { offset, piece, had_data, zeroes } = *change;
            if had_data && let Some(zeroes) = zeroes {
                self.punch(file, offset, offset + piece.len_bytes, zeroes)?;
            } else if had_data && matches!(piece.source, ByteSource::Initial(..)) {
                // It may have holes, which are left out when it is copied.
                self.punch(file, offset, offset + piece.len_bytes, ZeroRange { start: offset, end: offset })?;
            }
            reader.copy_to_file(piece, file, offset)?;
        }
        Ok(())
    }

    /// Makes a hole. The blocks around it become holes too if the zeroes cover them.
    fn punch(&self, file: &File, from: u64, to: u64, zeroes: ZeroRange) -> Result<(), Error> {
        let start = (from - from % BLOCK_BYTES).max(zeroes.start.min(from));
        let is_last = zeroes.end == self.target.len() || to == self.target.len();
        let limit = if is_last { u64::MAX } else { zeroes.end.max(to) };
        let end = to.next_multiple_of(BLOCK_BYTES).min(limit);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let as_offset = |bytes: u64| i64::try_from(bytes).map_err(Error::other);
        Ok(fallocate(file, flags, as_offset(start)?, as_offset(end - start)?)?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const MAX_BYTES: u64 = 10 * BLOCK_BYTES;

    fn source() -> impl Strategy<Value = ByteSource> {
        prop_oneof![
            Just(ByteSource::Zeroes),
            Just(ByteSource::Garbage),
            (0u64..3).prop_map(|nth| ByteSource::PayloadLog(nth * 1000)),
            (0u64..3).prop_map(|nth| ByteSource::Initial(1, nth * 5000)),
        ]
    }

    /// Places at and next to the borders of blocks, and others.
    fn place() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..MAX_BYTES,
            (0u64..10).prop_map(|block| block * BLOCK_BYTES),
            (0u64..10).prop_map(|block| block * BLOCK_BYTES + 1)
        ]
    }

    fn content() -> impl Strategy<Value = FileContent> {
        let puts = proptest::collection::vec((place(), 1..3 * BLOCK_BYTES, source()), 0..6);
        (puts, proptest::option::of(place())).prop_map(|(puts, len_bytes)| {
            let mut content = FileContent::initial(1, 3 * BLOCK_BYTES);
            puts.into_iter().for_each(|(offset, len_bytes, source)| content.put(offset, len_bytes, source));
            len_bytes.into_iter().for_each(|len_bytes| content.resize(len_bytes));
            content
        })
    }

    struct Sources {
        initial_paths: BTreeMap<u32, std::path::PathBuf>,
        log: std::path::PathBuf,
    }

    /// A payload log, and a file with a hole in it.
    fn sources(dir: &Path) -> Sources {
        let (log, initial) = (dir.join("log"), dir.join("initial"));
        std::fs::write(&log, (0..=250u8).cycle().take(1 << 20).collect::<Vec<u8>>()).unwrap();
        let file = File::create(&initial).unwrap();
        file.set_len(1 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 2 * BLOCK_BYTES as usize], 2 * BLOCK_BYTES)
            .unwrap();
        Sources { initial_paths: BTreeMap::from([(1, initial)]), log }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// Its bytes are the same, and without sources that have holes themselves its holes are.
        #[test]
        fn a_patched_file_is_like_one_that_is_written_anew(
            contents in proptest::collection::vec(content(), 2..5)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let Sources { initial_paths, log } = sources(dir.path());
            let mut reader = ContentReader::of(&initial_paths, &log).unwrap();
            let (patched, anew) = (dir.path().join("patched"), dir.path().join("anew"));
            let file = File::create(&patched).unwrap();
            contents[0].write_to_file(&mut reader, &file).unwrap();
            for pair in contents.windows(2) {
                ContentPatch::between(&pair[0], &pair[1]).write_to_file(&mut reader, &file).unwrap();
                let new_file = File::create(&anew).unwrap();
                pair[1].write_to_file(&mut reader, &new_file).unwrap();
                prop_assert_eq!(std::fs::read(&patched).unwrap(), std::fs::read(&anew).unwrap());
                let mut pieces = contents.iter().flat_map(FileContent::pieces);
                let has_initial = pieces.any(|piece| matches!(piece.source, ByteSource::Initial(..)));
                if !has_initial {
                    prop_assert_eq!(file.metadata().unwrap().blocks(), new_file.metadata().unwrap().blocks());
                }
            }
        }
    }

    #[test]
    fn only_what_differs_is_written() {
        let whole = |len_bytes| {
            let mut content = FileContent::default();
            content.put(0, len_bytes, ByteSource::PayloadLog(0));
            content
        };
        let full = whole(1 << 22);
        let mut gap = full.clone();
        gap.put(1 << 21, BLOCK_BYTES, ByteSource::Zeroes);
        let bytes = |old: &FileContent, new: &FileContent| {
            let patch = ContentPatch::between(old, new);
            (patch.written_bytes(), patch.changed_bytes())
        };
        assert_eq!(bytes(&full, &full), (0, 0));
        assert_eq!(bytes(&full, &gap), (0, BLOCK_BYTES));
        assert_eq!(bytes(&gap, &full), (BLOCK_BYTES, BLOCK_BYTES));
        assert_eq!(bytes(&full, &whole(1 << 20)), (0, 3 << 20));
        assert_eq!(bytes(&FileContent::default(), &full), (1 << 22, 1 << 22));
    }
}
