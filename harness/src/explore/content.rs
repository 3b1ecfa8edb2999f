//! Contents of files as pieces of what was recorded, so that a state costs no bytes until it is laid out. Pure.

use std::fs::File;
use std::io::{Error, Read, Seek, SeekFrom, Write};

use super::recording::{NodeId, Recording};

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ByteSource {
    /// From here on the tape.
    PayloadLog(u64),
    /// From here in a file that was there before the recording.
    Initial(NodeId, u64),
    Zeroes,
    /// What a block held before it was allocated: bytes of no meaning.
    Garbage,
}

/// Bytes in a row from one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentPiece {
    pub len_bytes: u64,
    pub source: ByteSource,
}

/// A file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct FileContent {
    pieces: Vec<ContentPiece>,
}

impl ByteSource {
    fn advanced(self, by: u64) -> ByteSource {
        match self {
            ByteSource::PayloadLog(at) => ByteSource::PayloadLog(at + by),
            ByteSource::Initial(node, at) => ByteSource::Initial(node, at + by),
            same => same,
        }
    }
}

impl FileContent {
    pub fn initial(node: NodeId, bytes: u64) -> FileContent {
        let mut content = FileContent::default();
        content.push(ContentPiece { len_bytes: bytes, source: ByteSource::Initial(node, 0) });
        content
    }

    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len_bytes).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn pieces(&self) -> &[ContentPiece] {
        &self.pieces
    }

    fn push(&mut self, piece: ContentPiece) {
        if piece.len_bytes == 0 {
            return;
        }
        if let Some(last) = self.pieces.last_mut()
            && last.source.advanced(last.len_bytes) == piece.source
        {
            last.len_bytes += piece.len_bytes;
            return;
        }
        self.pieces.push(piece);
    }

    /// Puts bytes at an offset; what lies between the end and there reads as zeroes.
    pub fn put(&mut self, offset: u64, bytes: u64, source: ByteSource) {
        let length = self.len();
        let piece = ContentPiece { len_bytes: bytes, source };
        if offset >= length {
            self.push(ContentPiece { len_bytes: offset - length, source: ByteSource::Zeroes });
            self.push(piece);
            return;
        }
        let old = std::mem::take(&mut self.pieces);
        let (mut at, mut placed) = (0, false);
        for one in old {
            let end = at + one.len_bytes;
            if at < offset {
                self.push(ContentPiece { len_bytes: one.len_bytes.min(offset - at), source: one.source });
            }
            if end > offset && !placed {
                self.push(piece);
                placed = true;
            }
            let after = (offset + bytes).max(at);
            if end > after {
                self.push(ContentPiece { len_bytes: end - after, source: one.source.advanced(after - at) });
            }
            at = end;
        }
    }

    pub fn resize(&mut self, size: u64) {
        let length = self.len();
        if size > length {
            self.push(ContentPiece { len_bytes: size - length, source: ByteSource::Zeroes });
            return;
        }
        let mut left = size;
        self.pieces.retain_mut(|piece| {
            piece.len_bytes = piece.len_bytes.min(left);
            left -= piece.len_bytes;
            piece.len_bytes > 0
        });
    }

    /// Writes it out.
    pub fn write_to(&self, reader: &mut ContentReader<'_>, to: &mut impl Write) -> Result<(), Error> {
        self.pieces.iter().try_for_each(|piece| reader.copy(*piece, to))
    }

    /// The first `most` bytes.
    pub fn head(&self, reader: &mut ContentReader<'_>, most: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut left = most;
        for piece in &self.pieces {
            let part = ContentPiece { len_bytes: piece.len_bytes.min(left), ..*piece };
            reader.copy(part, &mut bytes)?;
            left -= part.len_bytes;
        }
        Ok(bytes)
    }
}

/// Reads pieces; keeps the tape open.
pub struct ContentReader<'a> {
    recording: &'a Recording,
    payload_log: File,
}

impl<'a> ContentReader<'a> {
    pub fn new(recording: &'a Recording) -> Result<ContentReader<'a>, Error> {
        Ok(ContentReader { recording, payload_log: File::open(&recording.payload_log)? })
    }

    fn copy(&mut self, piece: ContentPiece, to: &mut impl Write) -> Result<(), Error> {
        let copied = match piece.source {
            ByteSource::PayloadLog(at) => {
                self.payload_log.seek(SeekFrom::Start(at))?;
                std::io::copy(&mut (&self.payload_log).take(piece.len_bytes), to)?
            }
            ByteSource::Initial(node, at) => {
                let path =
                    self.recording.initial_paths.get(&node).ok_or_else(|| Error::other("no such file"))?;
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(at))?;
                std::io::copy(&mut file.take(piece.len_bytes), to)?
            }
            ByteSource::Zeroes => std::io::copy(&mut std::io::repeat(0).take(piece.len_bytes), to)?,
            ByteSource::Garbage => std::io::copy(&mut std::io::repeat(0xA5).take(piece.len_bytes), to)?,
        };
        if copied == piece.len_bytes {
            Ok(())
        } else {
            Err(Error::other("a recorded file has become shorter"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content_bytes(content: &FileContent, tape: &[u8]) -> Vec<u8> {
        let byte = |piece: &ContentPiece, at: u64| match piece.source {
            ByteSource::PayloadLog(from) => tape[(from + at) as usize],
            _ => 0,
        };
        content
            .pieces()
            .iter()
            .flat_map(|piece| (0..piece.len_bytes).map(move |at| byte(piece, at)))
            .collect()
    }

    proptest::proptest! {
        #[test]
        fn pieces_are_the_bytes_that_a_file_would_hold(
            steps in proptest::collection::vec((0u64..40, 0u64..20, proptest::bool::ANY), 0..20)
        ) {
            let tape: Vec<u8> = (1..=255).cycle().take(1000).collect();
            let (mut file, mut content, mut at) = (Vec::new(), FileContent::default(), 0u64);
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
                    file[(offset + i) as usize] = tape[(at + i) as usize];
                }
                if length > 0 {
                    content.put(offset, length, ByteSource::PayloadLog(at));
                }
                at += length;
            }
            proptest::prop_assert_eq!(content_bytes(&content, &tape), file);
        }
    }
}
