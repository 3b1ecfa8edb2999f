//! How much room the saves of the running job need, so that no data file takes it. Saves and copies nothing.

use std::path::Path;

/// The save that is being made, and the one before it, which is removed only afterwards.
const SAVES_AT_ONCE: u64 = 2;

/// The bytes that the next saves into this directory need, as far as the checkpoints there tell.
pub(super) fn bytes_of_next_saves(checkpoints: &Path) -> u64 {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = |dir: &Path| {
        let sizes = entries(dir).filter_map(|entry| entry.metadata().ok());
        sizes.filter(|metadata| metadata.is_file()).map(|metadata| metadata.len()).sum::<u64>()
    };
    let largest = entries(checkpoints).map(|entry| bytes(&entry.path())).max();
    largest.unwrap_or(0).saturating_mul(SAVES_AT_ONCE)
}

#[cfg(test)]
mod tests {
    use super::bytes_of_next_saves;

    #[test]
    fn the_largest_checkpoint_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(bytes_of_next_saves(&dir.path().join("none")), 0);
        for (name, sizes) in [("step-1", [10, 20]), ("step-2", [100, 1])] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            for (number, size) in sizes.into_iter().enumerate() {
                std::fs::write(dir.path().join(name).join(number.to_string()), vec![0; size]).unwrap();
            }
        }
        assert_eq!(bytes_of_next_saves(dir.path()), 202);
    }
}
