//! The id of a data file, made from its bytes.

/// Hexadecimal digits of a job's id.
const ID_CHARS: usize = 32;

/// Computes the id of a data file: the first half of the BLAKE3 of its bytes, in hexadecimal.
#[derive(Default)]
pub struct ContentId(blake3::Hasher);

impl ContentId {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id of the bytes so far.
    pub fn finish(&self) -> String {
        self.0.finalize().to_hex().as_str()[..ID_CHARS].to_owned()
    }

    /// The id of a stream.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn of_reader(reader: impl std::io::Read) -> std::io::Result<String> {
        let mut id = ContentId::default();
        id.0.update_reader(reader)?;
        Ok(id.finish())
    }
}
