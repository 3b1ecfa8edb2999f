//! Who may read and write the files that a process creates. Creates none.

use nix::sys::stat::{Mode, umask};

use crate::settings::Guards;

/// Takes from others every right to the files that this process creates, whatever the umask.
pub(super) fn keep_files_private(guards: &Guards) {
    if guards.private_files {
        let others = Mode::S_IRWXO;
        // The only way to read it is to set it. No other thread runs yet.
        let before = umask(others);
        umask(before | others);
    }
}
