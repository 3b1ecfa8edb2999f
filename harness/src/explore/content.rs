//! Contents of files as pieces of what was recorded, so that a state costs no bytes until it is laid out. Pure.

use std::fs::File;
use std::io::{Error, Read, Seek, SeekFrom, Write};

use super::recording::{NodeId, Recording};

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// From here on the tape.
    Tape(u64),
    /// From here in a file that was there before the recording.
    Initial(NodeId, u64),
    Zeroes,
    /// What a block held before it was allocated: bytes of no meaning.
    Garbage,
}

/// Bytes in a row from one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Piece {
    pub bytes: u64,
    pub source: Source,
}

/// A file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Content {
    pieces: Vec<Piece>,
}

impl Source {
    fn advanced(self, by: u64) -> Source {
        match self {
            Source::Tape(at) => Source::Tape(at + by),
            Source::Initial(node, at) => Source::Initial(node, at + by),
            same => same,
        }
    }
}

impl Content {
    pub fn initial(node: NodeId, bytes: u64) -> Content {
        let mut content = Content::default();
        content.push(Piece { bytes, source: Source::Initial(node, 0) });
        content
    }

    pub fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    fn push(&mut self, piece: Piece) {
        if piece.bytes == 0 {
            return;
        }
        if let Some(last) = self.pieces.last_mut()
            && last.source.advanced(last.bytes) == piece.source
        {
            last.bytes += piece.bytes;
            return;
        }
        self.pieces.push(piece);
    }

    /// Puts bytes at an offset; what lies between the end and there reads as zeroes.
    pub fn put(&mut self, offset: u64, bytes: u64, source: Source) {
        let length = self.len();
        let piece = Piece { bytes, source };
        if offset >= length {
            self.push(Piece { bytes: offset - length, source: Source::Zeroes });
            self.push(piece);
            return;
        }
        let old = std::mem::take(&mut self.pieces);
        let (mut at, mut placed) = (0, false);
        for one in old {
            let end = at + one.bytes;
            if at < offset {
                self.push(Piece { bytes: one.bytes.min(offset - at), source: one.source });
            }
            if end > offset && !placed {
                self.push(piece);
                placed = true;
            }
            let after = (offset + bytes).max(at);
            if end > after {
                self.push(Piece { bytes: end - after, source: one.source.advanced(after - at) });
            }
            at = end;
        }
    }

    pub fn resize(&mut self, size: u64) {
        let length = self.len();
        if size > length {
            self.push(Piece { bytes: size - length, source: Source::Zeroes });
            return;
        }
        let mut left = size;
        self.pieces.retain_mut(|piece| {
            piece.bytes = piece.bytes.min(left);
            left -= piece.bytes;
            piece.bytes > 0
        });
    }

    /// Writes it out.
    pub fn write(&self, reader: &mut Reader<'_>, to: &mut impl Write) -> Result<(), Error> {
        self.pieces.iter().try_for_each(|piece| reader.copy(*piece, to))
    }

    /// The first `most` bytes.
    pub fn head(&self, reader: &mut Reader<'_>, most: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut left = most;
        for piece in &self.pieces {
            let part = Piece { bytes: piece.bytes.min(left), ..*piece };
            reader.copy(part, &mut bytes)?;
            left -= part.bytes;
        }
        Ok(bytes)
    }
}

/// Reads pieces; keeps the tape open.
pub struct Reader<'a> {
    recording: &'a Recording,
    tape: File,
}

impl<'a> Reader<'a> {
    pub fn new(recording: &'a Recording) -> Result<Reader<'a>, Error> {
        Ok(Reader { recording, tape: File::open(&recording.tape)? })
    }

    fn copy(&mut self, piece: Piece, to: &mut impl Write) -> Result<(), Error> {
        let copied = match piece.source {
            Source::Tape(at) => {
                self.tape.seek(SeekFrom::Start(at))?;
                std::io::copy(&mut (&self.tape).take(piece.bytes), to)?
            }
            Source::Initial(node, at) => {
                let path = self.recording.sources.get(&node).ok_or_else(|| Error::other("no such file"))?;
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(at))?;
                std::io::copy(&mut file.take(piece.bytes), to)?
            }
            Source::Zeroes => std::io::copy(&mut std::io::repeat(0).take(piece.bytes), to)?,
            Source::Garbage => std::io::copy(&mut std::io::repeat(0xA5).take(piece.bytes), to)?,
        };
        if copied == piece.bytes { Ok(()) } else { Err(Error::other("a recorded file has become shorter")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(content: &Content, tape: &[u8]) -> Vec<u8> {
        let byte = |piece: &Piece, at: u64| match piece.source {
            Source::Tape(from) => tape[(from + at) as usize],
            _ => 0,
        };
        content.pieces().iter().flat_map(|piece| (0..piece.bytes).map(move |at| byte(piece, at))).collect()
    }

    proptest::proptest! {
        #[test]
        fn pieces_are_the_bytes_that_a_file_would_hold(
            steps in proptest::collection::vec((0u64..40, 0u64..20, proptest::bool::ANY), 0..20)
        ) {
            let tape: Vec<u8> = (1..=255).cycle().take(1000).collect();
            let (mut file, mut content, mut at) = (Vec::new(), Content::default(), 0u64);
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
                    content.put(offset, length, Source::Tape(at));
                }
                at += length;
            }
            proptest::prop_assert_eq!(bytes_of(&content, &tape), file);
        }
    }
}
