//! File contents as references to recorded bytes, so that a crash state needs no bytes until it is
//! materialized. Pure, except for reading those bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::copy_file::{FileRange, copy_data, next_data};
use super::recording::{NodeId, Recording};

/// Written where nobody knows what was there.
const GARBAGE: u8 = 0xA5;

/// Where the bytes of a piece come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ByteSource {
    /// The payload log, from this offset.
    PayloadLog(u64),
    /// A file as it was before the recording, from this offset.
    Initial(NodeId, u64),
    Zeroes,
    /// Whatever a block held before it was allocated: meaningless bytes, written as [`GARBAGE`].
    Garbage,
}

/// Consecutive bytes from one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentPiece {
    /// How many there are.
    pub len_bytes: u64,
    /// Where the first of them is.
    pub source: ByteSource,
}

/// The content of a file: its pieces in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FileContent {
    pieces: Vec<ContentPiece>,
    /// Of all pieces together.
    len_bytes: u64,
}

impl ByteSource {
    pub(super) fn advanced(self, by: u64) -> ByteSource {
        match self {
            ByteSource::PayloadLog(offset) => ByteSource::PayloadLog(offset + by),
            ByteSource::Initial(node, offset) => ByteSource::Initial(node, offset + by),
            unchanged => unchanged,
        }
    }
}

impl FileContent {
    /// The content of a file that existed before the recording.
    pub fn initial(node: NodeId, len_bytes: u64) -> FileContent {
        let mut content = FileContent::default();
        content.push(ContentPiece { len_bytes, source: ByteSource::Initial(node, 0) });
        content
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len_bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The pieces in order; none is empty.
    pub fn pieces(&self) -> &[ContentPiece] {
        &self.pieces
    }

    fn push(&mut self, piece: ContentPiece) {
        if piece.len_bytes == 0 {
            return;
        }
        self.len_bytes += piece.len_bytes;
        if let Some(last) = self.pieces.last_mut()
            && last.source.advanced(last.len_bytes) == piece.source
        {
            last.len_bytes += piece.len_bytes;
            return;
        }
        self.pieces.push(piece);
    }

    /// Writes `len_bytes` bytes at an offset. A gap between the old end and the offset reads as zeroes.
    pub fn put(&mut self, offset: u64, len_bytes: u64, source: ByteSource) {
        let length = self.len();
        let piece = ContentPiece { len_bytes, source };
        if offset >= length {
            self.push(ContentPiece { len_bytes: offset - length, source: ByteSource::Zeroes });
            self.push(piece);
            return;
        }
        let old = std::mem::take(self).pieces;
        let (mut start, mut written) = (0, false);
        for old_piece in old {
            let end = start + old_piece.len_bytes;
            if start < offset {
                let len_before = old_piece.len_bytes.min(offset - start);
                self.push(ContentPiece { len_bytes: len_before, source: old_piece.source });
            }
            if end > offset && !written {
                self.push(piece);
                written = true;
            }
            let rest_start = (offset + len_bytes).max(start);
            if end > rest_start {
                let source = old_piece.source.advanced(rest_start - start);
                self.push(ContentPiece { len_bytes: end - rest_start, source });
            }
            start = end;
        }
    }

    /// Extends the content with zeroes to at least this length.
    pub fn extend_to(&mut self, size_bytes: u64) {
        self.resize(self.len().max(size_bytes));
    }

    /// Truncates the content, or extends it with zeroes.
    pub fn resize(&mut self, size_bytes: u64) {
        let length = self.len();
        if size_bytes > length {
            self.push(ContentPiece { len_bytes: size_bytes - length, source: ByteSource::Zeroes });
            return;
        }
        self.len_bytes = size_bytes;
        let mut left = size_bytes;
        self.pieces.retain_mut(|piece| {
            piece.len_bytes = piece.len_bytes.min(left);
            left -= piece.len_bytes;
            piece.len_bytes > 0
        });
    }

    /// Writes the bytes to `to`.
    ///
    /// # Errors
    /// A source cannot be read or has become shorter, or `to` cannot be written.
    pub fn write_to(&self, reader: &mut ContentReader<'_>, to: &mut impl Write) -> Result<(), Error> {
        self.pieces.iter().try_for_each(|piece| reader.copy(*piece, to))
    }

    /// Writes the bytes to a new, empty file. Zeroes become holes, and so do the holes of a source.
    ///
    /// # Errors
    /// A source cannot be read or has become shorter, or the file cannot be written.
    pub fn write_to_file(&self, reader: &mut ContentReader<'_>, file: &File) -> Result<(), Error> {
        let mut offset = 0;
        for piece in &self.pieces {
            reader.copy_to_file(*piece, file, offset)?;
            offset += piece.len_bytes;
        }
        file.set_len(offset)
    }

    /// The first `max_bytes` bytes.
    ///
    /// # Errors
    /// A source cannot be read or has become shorter.
    pub fn head(&self, reader: &mut ContentReader<'_>, max_bytes: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut left = max_bytes;
        for piece in &self.pieces {
            let part = ContentPiece { len_bytes: piece.len_bytes.min(left), ..*piece };
            reader.copy(part, &mut bytes)?;
            left -= part.len_bytes;
        }
        Ok(bytes)
    }

    /// A digest of the structure. Equal digests mean equal bytes; contents with different digests may also be
    /// equal.
    pub fn digest(&self) -> [u8; 16] {
        let mut digest = [0; 16];
        let mut structure = Vec::new();
        self.append_structure(&mut structure);
        digest.copy_from_slice(&blake3::hash(&structure).as_bytes()[..16]);
        digest
    }

    /// Appends the pieces as bytes, without the contents that they refer to.
    pub fn append_structure(&self, bytes: &mut Vec<u8>) {
        for piece in self.pieces() {
            let (kind, a, b) = match piece.source {
                ByteSource::PayloadLog(offset) => (0u8, offset, 0),
                ByteSource::Initial(node, offset) => (1, offset, u64::from(node)),
                ByteSource::Zeroes => (2, 0, 0),
                ByteSource::Garbage => (3, 0, 0),
            };
            bytes.push(kind);
            [a, b, piece.len_bytes].iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        }
    }
}

/// Reads the bytes of pieces. Keeps the payload log open.
pub struct ContentReader<'a> {
    /// Where the files of the initial tree are.
    initial_paths: &'a BTreeMap<NodeId, PathBuf>,
    payload_log: File,
}

impl<'a> ContentReader<'a> {
    /// Opens the payload log of a recording.
    ///
    /// # Errors
    /// The payload log cannot be opened.
    pub fn new(recording: &'a Recording) -> Result<ContentReader<'a>, Error> {
        ContentReader::of(&recording.initial_paths, &recording.payload_log)
    }

    /// Opens a payload log.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn of(
        initial_paths: &'a BTreeMap<NodeId, PathBuf>,
        payload_log: &Path,
    ) -> Result<ContentReader<'a>, Error> {
        Ok(ContentReader { initial_paths, payload_log: File::open(payload_log)? })
    }

    fn open_initial(&self, node: NodeId) -> Result<File, Error> {
        let path = self.initial_paths.get(&node);
        File::open(path.ok_or_else(|| Error::other("the recording does not know this file"))?)
    }

    /// The first byte of a piece from here on that may be no zero.
    ///
    /// # Errors
    /// Its source cannot be read.
    pub(super) fn next_data(&self, piece: ContentPiece, from: u64) -> Result<Option<u64>, Error> {
        let ByteSource::Initial(node, start) = piece.source else {
            return Ok((piece.source != ByteSource::Zeroes).then_some(from));
        };
        let data = next_data(&self.open_initial(node)?, start + from)?;
        Ok(data.map(|data| data - start).filter(|data| *data < piece.len_bytes))
    }

    /// Reads bytes of a piece, from this one on.
    ///
    /// # Errors
    /// Its source cannot be read or has become shorter.
    pub(super) fn read_at(&self, piece: ContentPiece, from: u64, bytes: &mut [u8]) -> Result<(), Error> {
        let read = match piece.source {
            ByteSource::PayloadLog(start) => self.payload_log.read_exact_at(bytes, start + from),
            ByteSource::Initial(node, start) => self.open_initial(node)?.read_exact_at(bytes, start + from),
            ByteSource::Zeroes => return Ok(()),
            ByteSource::Garbage => {
                bytes.fill(GARBAGE);
                return Ok(());
            }
        };
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => has_become_shorter(),
            _ => error,
        })
    }

    /// Writes a piece to a file that has a hole there, or ends. Zeroes and the holes of a source are left out.
    pub(super) fn copy_to_file(
        &mut self,
        piece: ContentPiece,
        file: &File,
        offset: u64,
    ) -> Result<(), Error> {
        match piece.source {
            ByteSource::Zeroes => Ok(()),
            ByteSource::Initial(node, start) => {
                let source = self.open_initial(node)?;
                if source.metadata()?.len() < start + piece.len_bytes {
                    return Err(has_become_shorter());
                }
                let range = FileRange { offset: start, len_bytes: piece.len_bytes };
                copy_data(&source, range, file, offset, &mut |_| ())
            }
            ByteSource::PayloadLog(_) | ByteSource::Garbage => {
                let mut file = file;
                file.seek(SeekFrom::Start(offset))?;
                self.copy(piece, &mut file)
            }
        }
    }

    fn copy(&mut self, piece: ContentPiece, to: &mut impl Write) -> Result<(), Error> {
        let copied = match piece.source {
            ByteSource::PayloadLog(offset) => {
                self.payload_log.seek(SeekFrom::Start(offset))?;
                std::io::copy(&mut (&self.payload_log).take(piece.len_bytes), to)?
            }
            ByteSource::Initial(node, offset) => {
                let mut file = self.open_initial(node)?;
                file.seek(SeekFrom::Start(offset))?;
                std::io::copy(&mut file.take(piece.len_bytes), to)?
            }
            ByteSource::Zeroes => std::io::copy(&mut std::io::repeat(0).take(piece.len_bytes), to)?,
            ByteSource::Garbage => std::io::copy(&mut std::io::repeat(GARBAGE).take(piece.len_bytes), to)?,
        };
        if copied == piece.len_bytes { Ok(()) } else { Err(has_become_shorter()) }
    }
}

fn has_become_shorter() -> Error {
    Error::other("a file of the recording has become shorter since it was recorded")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content_bytes(content: &FileContent, payload_log: &[u8]) -> Vec<u8> {
        let byte = |piece: &ContentPiece, index: u64| match piece.source {
            ByteSource::PayloadLog(offset) => payload_log[(offset + index) as usize],
            _ => 0,
        };
        content
            .pieces()
            .iter()
            .flat_map(|piece| (0..piece.len_bytes).map(move |index| byte(piece, index)))
            .collect()
    }

    proptest::proptest! {
        #[test]
        fn the_pieces_equal_the_bytes_of_a_real_file(
            steps in proptest::collection::vec((0u64..40, 0u64..20, proptest::bool::ANY), 0..20)
        ) {
            let payload_log: Vec<u8> = (1..=255).cycle().take(1000).collect();
            let (mut file, mut content, mut payload_offset) = (Vec::new(), FileContent::default(), 0u64);
            for (offset, length, resize) in steps {
                if resize {
                    file.resize(offset as usize, 0);
                    content.resize(offset);
                    continue;
                }
                if length > 0 && file.len() < (offset + length) as usize {
                    file.resize((offset + length) as usize, 0);
                }
                for i in 0..length {
                    file[(offset + i) as usize] = payload_log[(payload_offset + i) as usize];
                }
                if length > 0 {
                    content.put(offset, length, ByteSource::PayloadLog(payload_offset));
                }
                payload_offset += length;
            }
            proptest::prop_assert_eq!(content_bytes(&content, &payload_log), file);
        }
    }
}
