//! Copies a directory tree. Knows nothing of recordings.

use std::io::Error;
use std::path::Path;

/// Copies files, directories and symbolic links. Leaves out sockets, pipes and devices: they have no content
/// on the disk.
///
/// # Errors
/// Something cannot be read or written.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, &to)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &to)?;
            let modified = entry.metadata()?.modified()?;
            std::fs::File::options().append(true).open(&to)?.set_modified(modified)?;
        }
    }
    Ok(())
}
