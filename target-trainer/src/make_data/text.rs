//! Cuts the text files below a directory into samples.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

/// Larger files are skipped.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Why no samples can be made.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A directory can't be read.
    #[error("`{path}`", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// There is no text file.
    #[error("`{path}` has no UTF-8 text files below it; choose another directory", path = .path.display())]
    Empty { path: PathBuf },
    /// The chunk size is below the minimum.
    #[error("`--chunk` must be at least 16 bytes")]
    ChunkTooSmall,
}

/// JSON lines of `text`, each of at most `chunk_bytes` bytes, from all UTF-8 text files below `dir`, in the
/// order of their paths. Other files are skipped; symbolic links are not followed.
///
/// # Errors
/// If a directory can't be read, there is no text file, or `chunk_bytes` is below 16.
pub fn text(dir: &Path, chunk_bytes: usize) -> Result<impl Iterator<Item = String> + use<>, TextError> {
    if chunk_bytes < 16 {
        return Err(TextError::ChunkTooSmall);
    }
    let files = text_files_below(dir)?;
    if files.is_empty() {
        return Err(TextError::Empty { path: dir.into() });
    }
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let lines = files.into_iter().filter_map(read).flat_map(move |text| chunks(&text, chunk_bytes));
    Ok(lines.map(|text| serde_json::json!({ "text": text }).to_string()))
}

fn text_files_below(dir: &Path) -> Result<Vec<PathBuf>, TextError> {
    let (mut files, mut dirs) = (Vec::new(), VecDeque::from([dir.to_path_buf()]));
    while let Some(dir) = dirs.pop_front() {
        let entries =
            std::fs::read_dir(&dir).map_err(|source| TextError::Read { path: dir.clone(), source })?;
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => dirs.push_back(entry.path()),
                Ok(metadata)
                    if metadata.is_file() && metadata.len() <= MAX_FILE_BYTES && is_text(&entry.path()) =>
                {
                    files.push(entry.path())
                }
                _ => {}
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Decides by the first 4,096 bytes.
fn is_text(path: &Path) -> bool {
    use std::io::Read;
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    let valid = match std::str::from_utf8(&start) {
        Ok(_) => true,
        // The last character may be cut off.
        Err(error) => error.error_len().is_none(),
    };
    read.is_ok() && !start.is_empty() && valid && !start.contains(&0)
}

/// Parts of at most `max_bytes` bytes, cut after a line end if there is one, never inside a character.
fn chunks(text: &str, max_bytes: usize) -> Vec<String> {
    let mut rest = text;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let limit = (0..=max_bytes.min(rest.len()))
            .rev()
            .find(|index| rest.is_char_boundary(*index))
            .unwrap_or(rest.len());
        let cut = if limit == rest.len() {
            limit
        } else {
            rest[..limit].rfind('\n').map_or(limit, |index| index + 1)
        };
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
    fn texts_are_cut_at_line_ends_and_never_inside_a_character() {
        assert_eq!(chunks("ab\ncd\nef", 6), ["ab\ncd\n", "ef"]);
        assert!(chunks(&"ä".repeat(50), 17).iter().all(|chunk| chunk.len() <= 17));
        assert_eq!(chunks(&"ä".repeat(50), 17).concat().chars().count(), 50);
    }
}
