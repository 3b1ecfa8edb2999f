//! The token that proves that a request comes from somebody who can read the root. Knows nothing of HTTP.

use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::bounded_read::read_regular;
use crate::durable::{self, DurableError};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Longest token that people may choose themselves.
const MAX_TOKEN_BYTES: u64 = 4096;
/// Shortest one.
const MIN_TOKEN_CHARS: usize = 16;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    /// The file, or the source of random numbers, can't be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// A new token can't be written.
    #[error(transparent)]
    Write(#[from] DurableError),
    /// The file has something else.
    #[error("a token has at least {MIN_TOKEN_CHARS} characters; remove the file to get a new one")]
    TooShort,
}

/// A token. Only its hash is kept, and compared in constant time.
#[derive(Debug, Clone)]
pub(super) struct Token(blake3::Hash);

impl Token {
    /// Reads the token of a root, or makes one that only the owner of the file can read.
    pub(super) fn read_or_make(path: &Path) -> Result<Token, TokenError> {
        let bytes = match read_regular(path, MAX_TOKEN_BYTES) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let mut random = [0; TOKEN_BYTES];
                std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
                let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
                durable::write_secret(path, format!("{text}\n").as_bytes())?;
                text.into_bytes()
            }
            bytes => bytes?,
        };
        let token = bytes.trim_ascii();
        if token.len() < MIN_TOKEN_CHARS { Err(TokenError::TooShort) } else { Ok(Token(blake3::hash(token))) }
    }

    /// Whether this text is the token.
    pub(super) fn is(&self, text: &[u8]) -> bool {
        self.0 == blake3::hash(text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_is_private_and_differs_between_roots() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("token"), dir.path().join("other"));
        let token = Token::read_or_make(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() == 65 && token.is(text.trim().as_bytes()) && !token.is(b"") && !token.is(b"0"));
        assert!(Token::read_or_make(&path).unwrap().is(text.trim().as_bytes()));
        assert!(!Token::read_or_make(&other).unwrap().is(text.trim().as_bytes()));
        std::fs::write(&path, "short\n").unwrap();
        assert!(Token::read_or_make(&path).is_err());
    }
}
