//! Performs a call on behalf of the target and reports its effect to the handler.
//!
//! It works on duplicates of the target's descriptors, which share file offset and status flags, and relative
//! to directories that were opened in the target's own mounts. It passes on the arguments of the target, so that
//! the kernel gives the results that it would give the target.

mod bytes;
mod context;
mod names;
mod open;
mod sizes;
mod transfer;

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::libc;

use super::calls::{BufferArgument, CallRequest};
use super::follow_error::{FollowError, GateFailure};
use super::group_membership::GroupMembership;
use super::handler::{CallEffect, CarriedOut};
use super::open_file::OpenFile;
use super::resolve_call::ResolvedCall;
use super::sys::{self, NotificationResponse};
use super::target_thread::MemorySegment;

use context::{ByteRequest, CHUNK_BYTES, PerformResult};
pub(super) use context::{CallContext, CallResponse, Performed, Scratch};

impl CallContext<'_> {
    /// Lets an unwatched call continue. First tells the handler what it wants to know about such calls.
    pub(super) fn continue_unwatched(&mut self, request: &CallRequest, call: &ResolvedCall) -> CallResponse {
        match (request, &call.file) {
            // A report lists the files that no crash state covers.
            (CallRequest::Open { how, .. }, _) if super::calls::opens_for_writing(how.flags) => {
                self.handler.on_effect(CallEffect::OpenedOutside { path: call.path.clone() });
            }
            // An overlay refuses to rename a directory.
            (CallRequest::Rename { .. }, _) => {
                self.handler.on_effect(CallEffect::RenamesOutside { path: call.path.clone() });
            }
            (CallRequest::Write { buffer, .. }, Some(OpenFile { stat, .. }))
                if stat.file_type() == libc::S_IFIFO && self.handler.observes_pipe(stat.file_id) =>
            {
                self.pass_on_payload(*buffer);
                self.handler.on_effect(CallEffect::OutputWritten { pipe: stat.file_id, tid: self.tid });
            }
            _ => {}
        }
        CallResponse::Now(NotificationResponse::Continue)
    }

    /// Passes the content of a buffer to the handler, as far as it can be read.
    fn pass_on_payload(&mut self, buffer: BufferArgument) {
        for MemorySegment { address, len_bytes } in self.thread.segments(buffer).unwrap_or_default() {
            let mut chunk = vec![0; usize::try_from(len_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
            if let Ok(read_bytes) = self.thread.read_memory(address, &mut chunk) {
                self.handler.on_payload(&chunk[..read_bytes]);
            }
        }
    }

    /// Performs the call and responds with its result.
    ///
    /// # Errors
    /// The supervisor failed.
    pub(super) fn perform(
        &mut self,
        request: CallRequest,
        call: ResolvedCall,
    ) -> Result<CallResponse, FollowError> {
        let _membership = GroupMembership::for_call(self.tid, &request, &call)?;
        match self.dispatch(request, call, u64::MAX)? {
            Some(performed) => self.answer(performed),
            None => Ok(CallResponse::Now(NotificationResponse::Continue)),
        }
    }

    /// Performs the call, moving at most so many bytes, and tells the handler what was done. Returns `None` if
    /// only the kernel can perform the call. The caller responds.
    ///
    /// # Errors
    /// The supervisor failed.
    pub(super) fn perform_for_decision(
        &mut self,
        request: CallRequest,
        call: ResolvedCall,
        max_bytes: u64,
    ) -> PerformResult {
        let membership = GroupMembership::for_call(self.tid, &request, &call)?;
        let performed = match (request, &call.file) {
            (CallRequest::SetAttributes(attributes), Some(file)) => self.change_mode(attributes, file)?,
            _ => self.dispatch(request, call, max_bytes)?,
        };
        drop(membership);
        self.handler.on_carried_out(match &performed {
            Some(performed) => CarriedOut::Performed(performed.result()),
            None => CarriedOut::NotPossible,
        });
        Ok(performed)
    }

    /// Responds with the result of a performed call.
    ///
    /// # Errors
    /// The supervisor cannot pass a file to the target.
    pub(super) fn answer(&mut self, performed: Performed) -> Result<CallResponse, FollowError> {
        let (file, close_on_exec) = match performed {
            Performed::Value(value) => return Ok(CallResponse::Now(NotificationResponse::Value(value))),
            Performed::Failed(errno) => return Ok(CallResponse::Now(NotificationResponse::Fail(errno))),
            Performed::File { file, close_on_exec } => (file, close_on_exec),
        };
        match sys::send_fd_response(self.listener, self.notification_id, file.as_fd(), close_on_exec) {
            // ENOENT: the target was killed or interrupted in the meantime.
            Ok(()) | Err(Errno::ENOENT) => Ok(CallResponse::AlreadySent),
            // Another thread of the target took its last descriptor.
            Err(Errno::EMFILE) => Ok(CallResponse::Now(NotificationResponse::Fail(Errno::EMFILE))),
            Err(source) => {
                Err(FollowError::Gate(GateFailure::System { doing: "pass a file to the target", source }))
            }
        }
    }

    fn dispatch(&mut self, request: CallRequest, call: ResolvedCall, max_bytes: u64) -> PerformResult {
        match self.dispatch_call(request, call, max_bytes) {
            Err(FollowError::Target(errno)) => Ok(Some(Performed::Failed(errno))),
            performed => performed,
        }
    }

    fn dispatch_call(&mut self, request: CallRequest, call: ResolvedCall, max_bytes: u64) -> PerformResult {
        let ResolvedCall { resolved_path, resolved_to, file, refused, .. } = call;
        if let Some(errno) = refused {
            return Ok(Some(Performed::Failed(errno)));
        }
        match (request, resolved_path, resolved_to, file) {
            (CallRequest::Open { how, strict, .. }, Some(path), ..) => self.open_entry(&path, how, strict),
            (CallRequest::Open { how, strict, .. }, None, _, Some(file)) => {
                self.open_object(&file, how, strict)
            }
            (CallRequest::Write { buffer, position, .. }, _, _, Some(file)) => {
                self.write(&file, ByteRequest { buffer, position, max_bytes })
            }
            (CallRequest::Read { buffer, position, .. }, _, _, Some(file)) => {
                self.read(&file, ByteRequest { buffer, position, max_bytes })
            }
            (CallRequest::Transfer { .. }, _, _, Some(file)) => self.transfer(request, &file, max_bytes),
            (CallRequest::Clone { source, .. }, _, _, Some(file)) => self.clone_blocks(source, &file),
            (CallRequest::Truncate { size_bytes, .. }, _, _, Some(file)) => self.truncate(&file, size_bytes),
            (CallRequest::TruncatePath { size_bytes, .. }, Some(path), ..) => {
                self.truncate_path(&path, size_bytes)
            }
            (CallRequest::TruncatePath { size_bytes, .. }, None, _, Some(file)) => {
                self.truncate_object(&file, size_bytes)
            }
            (CallRequest::Allocate { mode, offset, len_bytes, .. }, _, _, Some(file)) => {
                self.allocate(&file, mode, offset, len_bytes)
            }
            (CallRequest::Rename { flags, .. }, Some(from), Some(to), _) => self.rename(&from, &to, flags),
            (CallRequest::Link { .. }, Some(from), Some(to), _) => self.hard_link(&from, &to),
            (CallRequest::Link { .. }, None, Some(to), Some(file)) => self.link_object(&file, &to),
            (CallRequest::Symlink { text_address, .. }, Some(path), ..) => self.symlink(text_address, &path),
            (CallRequest::Unlink { is_dir, .. }, Some(path), ..) => self.unlink(&path, is_dir),
            (CallRequest::Mkdir { mode, .. }, Some(path), ..) => self.mkdir(&path, mode),
            (CallRequest::Mknod { mode, device, .. }, Some(path), ..) => self.mknod(&path, mode, device),
            (CallRequest::Sync { data_only, .. }, _, _, Some(file)) => self.sync(&file, data_only),
            (CallRequest::SyncAll { fd }, ..) => self.sync_all(fd),
            (CallRequest::Msync { address, len_bytes, wait: true }, ..) => {
                self.announce_msync(address, len_bytes)
            }
            (CallRequest::SetAttributes(attributes), _, _, Some(file)) => {
                self.announce_attributes(attributes.kind, &file)
            }
            (CallRequest::Map { .. }, _, _, Some(file)) => self.announce_mapping(file),
            _ => Ok(None),
        }
    }
}
