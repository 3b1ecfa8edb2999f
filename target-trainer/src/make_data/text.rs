//! Any folder of texts, cut into samples.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// A file larger than this is no text for us.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Why there are no texts.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("`{path}`: {error}", path = .path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("`{path}` has no file of UTF-8 text below it", path = .path.display())]
    Empty { path: PathBuf },
    #[error("a chunk has at least 16 bytes")]
    ChunkTooSmall,
}

/// JSON lines of `text`, each of at most `chunk` bytes, from all files of UTF-8 text below `folder`, in the order of
/// their paths. What is not text is passed over; links are not followed.
pub fn text(folder: &Path, chunk: usize) -> Result<impl Iterator<Item = String> + use<>, TextError> {
    if chunk < 16 {
        return Err(TextError::ChunkTooSmall);
    }
    let files = text_files_below(folder)?;
    if files.is_empty() {
        return Err(TextError::Empty { path: folder.into() });
    }
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let lines = files.into_iter().filter_map(read).flat_map(move |text| chunks(&text, chunk));
    Ok(lines.map(|text| serde_json::json!({ "text": text }).to_string()))
}

fn text_files_below(folder: &Path) -> Result<Vec<PathBuf>, TextError> {
    let (mut files, mut folders) = (Vec::new(), VecDeque::from([folder.to_path_buf()]));
    while let Some(next) = folders.pop_front() {
        let entries =
            std::fs::read_dir(&next).map_err(|error| TextError::Read { path: next.clone(), error })?;
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(facts) if facts.is_dir() => folders.push_back(entry.path()),
                Ok(facts) if facts.is_file() && facts.len() <= MAX_FILE_BYTES && is_text(&entry.path()) => {
                    files.push(entry.path())
                }
                _ => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The first bytes tell.
fn is_text(path: &Path) -> bool {
    use std::io::Read;
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    let valid = match std::str::from_utf8(&start) {
        Ok(_) => true,
        // A character may be cut at the end of what was read.
        Err(error) => error.error_len().is_none(),
    };
    read.is_ok() && !start.is_empty() && valid && !start.contains(&0)
}

/// At most `most` bytes each, cut after a line end where there is one, never within a character.
fn chunks(text: &str, most: usize) -> Vec<String> {
    let mut rest = text;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let limit =
            (0..=most.min(rest.len())).rev().find(|at| rest.is_char_boundary(*at)).unwrap_or(rest.len());
        let cut =
            if limit == rest.len() { limit } else { rest[..limit].rfind('\n').map_or(limit, |at| at + 1) };
        let (chunk, after) = rest.split_at(cut);
        if !chunk.trim().is_empty() {
            chunks.push(chunk.to_owned());
        }
        rest = after;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::chunks;

    #[test]
    fn texts_are_cut_at_line_ends_and_never_within_a_character() {
        assert_eq!(chunks("ab\ncd\nef", 6), ["ab\ncd\n", "ef"]);
        assert!(chunks(&"ä".repeat(50), 17).iter().all(|chunk| chunk.len() <= 17));
        assert_eq!(chunks(&"ä".repeat(50), 17).concat().chars().count(), 50);
    }
}
