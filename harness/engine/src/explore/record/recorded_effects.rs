//! Makes operations of what the target's calls did: what each effect changes in a recording. Knows neither crash
//! states nor recoveries.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::attribute_changes::PendingCall;
use super::copy_file::open_to_read;
use super::op_recorder::OpRecorder;
use super::recording::{FileNodeKind, NodeId, OpEffect, OpKind};
use super::unseen_writes::{KnownWrite, UnseenWrite, WrittenBytes};
use crate::gate::{CallEffect, CallHandler, DirectoryEntry, FileId, WriteSync};

/// At most this many paths outside the watched directories are listed.
const MAX_OUTSIDE_PATHS: usize = 50;

impl OpRecorder {
    /// Records what a call did.
    pub(super) fn record_effect(&mut self, effect: CallEffect) {
        match effect {
            CallEffect::Opened { entry, file_id, created: Some(file), .. } => {
                self.record_created(&entry, file_id, &file);
            }
            CallEffect::Opened { file_id, truncated: true, .. } => self.record_truncation(file_id, 0),
            // Always a new node: if the inode number is known, it belonged to a file that no longer exists.
            CallEffect::CreatedUnnamed { file_id, file } => {
                self.add_node(file_id, &file, FileNodeKind::File { initial_len_bytes: 0 });
            }
            CallEffect::ChangingAttributes { kind, tid, file_id, file } => {
                if let Some(node) = self.known_node(file_id) {
                    self.expect_attribute_change(PendingCall::new(kind, tid, node, file));
                }
            }
            CallEffect::Wrote { file_id, offset, len_bytes, sync } => {
                if let Some(node) = self.known_node(file_id) {
                    self.record_write(OpKind::Write, node, offset, len_bytes);
                }
                self.record_write_sync(file_id, sync);
            }
            CallEffect::Writing { tid, file_id, file, offset, len_bytes } => {
                if let Some(node) = self.known_node(file_id) {
                    self.unseen_writes.expect(UnseenWrite { tid, node, file, offset, len_bytes });
                }
            }
            CallEffect::WroteUntold { file_id, file } => self.record_untold_write(file_id, &file),
            CallEffect::CreatedSpecial { file_id, entry, file } => {
                self.record_special(file_id, &entry, &file);
            }
            CallEffect::Truncated { file_id, size_bytes } => self.record_truncation(file_id, size_bytes),
            CallEffect::Allocated { file_id, size_bytes, zeroed } => {
                if let Some(node) = self.known_node(file_id) {
                    let zeroes = zeroed.into_iter();
                    zeroes.for_each(|(offset, len_bytes)| self.record_zeroes(node, offset, len_bytes));
                    self.record_allocated_size(node, size_bytes);
                }
            }
            CallEffect::Renamed { from, to, exchanged } => self.record_rename(&from, &to, exchanged),
            CallEffect::Linked { file_id, entry, new_id } => self.record_link(file_id, &entry, new_id),
            CallEffect::Symlinked { file_id, entry, link_text, link } => {
                let node = self.add_node(file_id, &link, FileNodeKind::Symlink { target: link_text });
                self.set_name(OpKind::Symlink, &entry, node);
            }
            CallEffect::Unlinked { entry } => self.remove_name(OpKind::Unlink, &entry),
            CallEffect::CreatedDir { file_id, entry, dir } => {
                let node = self.add_node(file_id, &dir, FileNodeKind::Directory);
                self.names.add_directory(node);
                self.set_name(OpKind::Mkdir, &entry, node);
            }
            CallEffect::RemovedDir { entry } => self.remove_name(OpKind::Rmdir, &entry),
            CallEffect::Synced { file_id, data_only } => self.record_sync(file_id, data_only),
            CallEffect::SyncedMapping { file_id } => self.record_mapping_sync(file_id),
            CallEffect::SyncedAll => self.push_op(OpKind::Sync, OpEffect::SyncAll, ""),
            CallEffect::Mapped { file_id, file } => self.record_mapping(file_id, file),
            CallEffect::OutputWritten { pipe, tid } => self.record_output(pipe, tid),
            CallEffect::Refused { feature } => self.recording.gaps.refused_calls.push(feature.into()),
            CallEffect::OpenedOutside { path } => self.record_outside_write(path),
            CallEffect::RenamesOutside { path } => self.record_outside_rename(path),
            CallEffect::RenameRefused { path } => self.record_refused_rename(path),
            CallEffect::Connects(attempt) => self.recording.gaps.connections.add(attempt),
            // The recorder never decides to swap a file, and shifts no clock.
            CallEffect::ToldTime
            | CallEffect::ClockTimerSet
            | CallEffect::ClockChangeRefused { .. }
            | CallEffect::ClockNotFollowed { .. }
            | CallEffect::Swapped { .. }
            | CallEffect::Opened { .. } => {}
        }
    }

    fn record_truncation(&mut self, file_id: FileId, size_bytes: u64) {
        if let Some(node) = self.known_node(file_id) {
            self.record_resize(OpKind::Truncate, node, size_bytes);
        }
    }

    /// Records a write that told less than it did.
    fn record_untold_write(&mut self, file_id: FileId, file: &OwnedFd) {
        let Some(node) = self.known_node(file_id) else { return };
        let payload = self.payload_log.take_payload();
        let recorded = open_to_read(file.as_fd())
            .and_then(|file| self.record_differences(OpKind::Write, node, &File::from(file)));
        if let Err(error) = recorded {
            self.failure.get_or_insert(error);
        }
        self.payload_log.resume_payload(payload);
    }

    /// Records the sync of a mapping. Only what was mapped shared, by a descriptor that allows writing, is synced.
    fn record_mapping_sync(&mut self, file_id: FileId) {
        let node = self.node_by_file_id.get(&file_id);
        if node.is_some_and(|node| self.mapped_files.contains_key(node)) {
            self.record_sync(file_id, true);
        }
    }

    fn record_write_sync(&mut self, file_id: FileId, sync: WriteSync) {
        match sync {
            WriteSync::No => {}
            WriteSync::Data => self.record_sync(file_id, true),
            WriteSync::All => self.record_sync(file_id, false),
        }
    }

    fn record_allocated_size(&mut self, node: NodeId, size_bytes: u64) {
        if self.contents.entry(node).or_default().len() != size_bytes {
            self.record_resize(OpKind::Allocate, node, size_bytes);
        }
    }

    /// Records a new pipe. Sockets are in no crash state.
    fn record_special(&mut self, file_id: FileId, entry: &DirectoryEntry, file: &OwnedFd) {
        let is_pipe = nix::sys::stat::fstat(file)
            .is_ok_and(|stat| stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFIFO);
        if is_pipe {
            let node = self.add_node(file_id, file, FileNodeKind::Pipe);
            self.set_name(OpKind::Create, entry, node);
        } else {
            self.recording.gaps.files_left_out.add(|| entry.path.clone());
        }
    }

    /// What an effect tells of the bytes of a file.
    pub(super) fn known_write(&self, effect: &CallEffect) -> Option<KnownWrite> {
        match *effect {
            CallEffect::Wrote { file_id, offset, len_bytes, .. } => {
                let node = *self.node_by_file_id.get(&file_id)?;
                Some(KnownWrite { node, offset, len_bytes })
            }
            _ => None,
        }
    }

    /// Records what the kernel has written by itself until now. `tid`: the thread that makes a call now. `known`: what
    /// is recorded anyway.
    pub(super) fn record_unseen_writes(&mut self, tid: Option<i32>, known: Option<KnownWrite>) {
        match self.unseen_writes.take_written(tid, known) {
            Ok(writes) => {
                for WrittenBytes { node, offset, bytes } in writes {
                    self.payload_log.begin_payload();
                    self.on_payload(&bytes);
                    self.record_write(OpKind::Write, node, offset, bytes.len() as u64);
                }
            }
            Err(error) => drop(self.failure.get_or_insert(error)),
        }
    }

    fn record_mapping(&mut self, file_id: FileId, file: OwnedFd) {
        if let Some(node) = self.known_node(file_id)
            && !self.mapped_files.contains_key(&node)
        {
            self.recording.gaps.mapped_paths.push(self.names.path_of(node));
            // It is read in parts that a direct read (O_DIRECT) does not allow.
            let file = open_to_read(file.as_fd()).unwrap_or(file);
            self.mapped_files.insert(node, file);
        }
    }

    /// Notes a directory of the host that the target renames. The sandbox shows it through an overlay, which
    /// refuses that.
    fn record_outside_rename(&mut self, path: PathBuf) {
        let renamed_dirs = &mut self.recording.gaps.renamed_dirs;
        let is_dir = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        if is_dir && renamed_dirs.len() < MAX_OUTSIDE_PATHS && !renamed_dirs.contains(&path) {
            renamed_dirs.push(path);
        }
    }

    fn record_refused_rename(&mut self, path: PathBuf) {
        let refused_renames = &mut self.recording.gaps.refused_renames;
        if refused_renames.len() < MAX_OUTSIDE_PATHS && !refused_renames.contains(&path) {
            refused_renames.push(path);
        }
    }

    fn record_outside_write(&mut self, path: PathBuf) {
        let is_ignored = path.starts_with("/dev") || path.starts_with("/proc");
        let outside_paths = &mut self.recording.gaps.outside_paths;
        if !is_ignored
            && outside_paths.len() < MAX_OUTSIDE_PATHS
            && !outside_paths.contains(&path)
            && !path.as_os_str().as_bytes().is_empty()
        {
            outside_paths.push(path);
        }
    }
}
