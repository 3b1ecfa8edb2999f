//! The supervisor: a thread that receives notifications of intercepted calls and responds to them.
//!
//! For each call it connects decoding, resolving, the handler's decision and performing.

use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::calls::{self, CallRequest, opens_for_writing};
use super::handler::{CallDecision, CallEffect, CallHandler, InterceptedCall};
use super::perform::{CallContext, CallResponse};
use super::resolve_call::{CallResolver, ResolvedCall};
use super::stat::WatchedMounts;
use super::sys::{self, Notification, NotificationResponse};
use super::target_thread::{ResolvedPath, TargetThread, ThreadCache};
use crate::locks::LockExt;

/// The supervisor's thread. It ends when all processes behind the filter have ended.
pub struct SupervisorThread {
    thread: Option<JoinHandle<()>>,
}

impl SupervisorThread {
    /// Waits until all processes behind the filter have ended.
    pub fn join(mut self) {
        // The result is an error only if the handler panicked. Then the sandbox has been torn down with the
        // target.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Starts a thread that responds to all calls reported by `listener`. It ends when the last process behind
/// the filter has ended.
pub fn serve_notifications<O: CallHandler + 'static>(
    listener: OwnedFd,
    watched: WatchedMounts,
    handler: Arc<Mutex<O>>,
) -> SupervisorThread {
    let thread = std::thread::spawn(move || {
        sys::set_synchronous_wakeup(listener.as_fd());
        // The target's umask is applied to modes already, so this thread's own is cleared. Unsharing keeps
        // that from the rest of the harness. It fails only inside a container that forbids it.
        let _ = sys::unshare_fs();
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let supervisor = Supervisor {
            listener,
            watched,
            handler,
            threads: ThreadCache::default(),
            delayed: BinaryHeap::new(),
        };
        supervisor.serve();
    });
    SupervisorThread { thread: Some(thread) }
}

/// A call that continues later. In the order of this type, the one that is due first is the greatest.
#[derive(PartialEq, Eq)]
struct DelayedResponse {
    due: Instant,
    notification_id: u64,
}

impl Ord for DelayedResponse {
    fn cmp(&self, other: &DelayedResponse) -> std::cmp::Ordering {
        other.due.cmp(&self.due).then(other.notification_id.cmp(&self.notification_id))
    }
}

impl PartialOrd for DelayedResponse {
    fn partial_cmp(&self, other: &DelayedResponse) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct Supervisor<O> {
    listener: OwnedFd,
    watched: WatchedMounts,
    handler: Arc<Mutex<O>>,
    threads: ThreadCache,
    delayed: BinaryHeap<DelayedResponse>,
}

impl<O: CallHandler> Supervisor<O> {
    fn serve(mut self) {
        loop {
            let mut ready = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, self.poll_timeout()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            let events = ready[0].revents().unwrap_or(PollFlags::empty());
            self.continue_due_calls();
            if events.contains(PollFlags::POLLIN) {
                match sys::receive_notification(self.listener.as_fd()) {
                    Ok(notification) => self.handle_notification(&notification),
                    // The notification was withdrawn after poll, because the target was killed or
                    // interrupted.
                    Err(Errno::ENOENT | Errno::EINTR) => {}
                    Err(_) => return,
                }
            } else if events.contains(PollFlags::POLLHUP) {
                return;
            }
        }
    }

    fn poll_timeout(&self) -> PollTimeout {
        match self.delayed.peek() {
            None => PollTimeout::NONE,
            Some(next) => {
                let left = next.due.saturating_duration_since(Instant::now());
                // The timeout is rounded up, so that the call is due when poll returns.
                PollTimeout::try_from(left + std::time::Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        }
    }

    fn continue_due_calls(&mut self) {
        while self.delayed.peek().is_some_and(|next| next.due <= Instant::now()) {
            if let Some(next) = self.delayed.pop() {
                let _ = sys::send_response(
                    self.listener.as_fd(),
                    next.notification_id,
                    NotificationResponse::Continue,
                );
            }
        }
    }

    fn handle_notification(&mut self, notification: &Notification) {
        let mut handler = self.handler.locked();
        let response = match calls::decode(notification.number, notification.args) {
            None => Some(NotificationResponse::Continue),
            Some(CallRequest::Refused { feature }) => {
                handler.on_effect(CallEffect::Refused { feature });
                Some(NotificationResponse::Fail(Errno::ENOSYS))
            }
            Some(request) => match self.threads.get(notification.tid) {
                // The thread has ended, or we are not permitted to access it.
                Err(_) => Some(NotificationResponse::Continue),
                Ok(thread) => {
                    let resolver = CallResolver {
                        thread,
                        watched: &self.watched,
                        needs_fd_paths: handler.needs_paths(),
                    };
                    let mut context = CallContext {
                        listener: self.listener.as_fd(),
                        notification_id: notification.id,
                        tid: notification.tid,
                        thread,
                        handler: &mut *handler,
                    };
                    let request = complete_request(thread, request);
                    let resolved = resolver.resolve(&request);
                    match decide_and_perform(&mut context, request, resolved) {
                        CallResponse::Now(response) => Some(response),
                        CallResponse::AlreadySent => None,
                        CallResponse::After(wait) => {
                            self.delayed.push(DelayedResponse {
                                due: Instant::now() + wait,
                                notification_id: notification.id,
                            });
                            None
                        }
                    }
                }
            },
        };
        drop(handler);
        if let Some(response) = response {
            // Fails with ENOENT if the target was killed in the meantime.
            let _ = sys::send_response(self.listener.as_fd(), notification.id, response);
        }
    }
}

/// Turns an `Openat2` into an `Open` by reading its `open_how` from the target's memory.
fn complete_request(thread: &TargetThread, request: CallRequest) -> CallRequest {
    let CallRequest::Openat2 { path, how_address } = request else { return request };
    match thread.read_open_how(how_address) {
        Some(how) => CallRequest::Open { path, flags: how.flags, mode: how.mode },
        None => request,
    }
}

/// Asks the handler for a decision about a resolved call, and carries the decision out.
fn decide_and_perform(
    context: &mut CallContext<'_>,
    request: CallRequest,
    resolved: Result<Option<ResolvedCall>, Errno>,
) -> CallResponse {
    let resolved = match resolved {
        // What was read from the target belongs to this call only if the call still waits.
        Ok(Some(resolved)) if sys::is_notification_valid(context.listener, context.notification_id) => {
            resolved
        }
        _ => return CallResponse::Now(NotificationResponse::Continue),
    };
    if let CallRequest::Open { flags, .. } = request
        && !resolved.watched
    {
        // The handler needs this, so that a report can list the files that no crash state covers.
        if opens_for_writing(flags) {
            context.handler.on_effect(CallEffect::OpenedOutside { path: resolved.path });
        }
        return CallResponse::Now(NotificationResponse::Continue);
    }
    if !resolved.watched && matches!(request, CallRequest::Rename { .. }) {
        // The handler needs this, because an overlay refuses to rename a directory.
        context.handler.on_effect(CallEffect::RenamesOutside { path: resolved.path.clone() });
    }
    if !resolved.watched {
        return context.continue_unwatched(&request, &resolved);
    }
    let call = InterceptedCall {
        kind: resolved.kind,
        tid: context.tid,
        path: resolved.path.clone(),
        to: resolved.resolved_to.as_ref().map(ResolvedPath::path),
        requested_bytes: resolved.requested_bytes,
    };
    match context.handler.decide(&call) {
        CallDecision::Continue => CallResponse::Now(NotificationResponse::Continue),
        CallDecision::Perform => context.perform(request, resolved, u64::MAX),
        CallDecision::Fail(errno) => CallResponse::Now(NotificationResponse::Fail(errno)),
        CallDecision::Short(bytes) => context.perform(request, resolved, bytes),
        CallDecision::PerformThenFail(errno) => {
            context.perform_without_response(request, resolved, u64::MAX);
            CallResponse::Now(NotificationResponse::Fail(errno))
        }
        CallDecision::KillBefore => kill_target(context),
        CallDecision::KillDuring(bytes) => {
            context.perform_without_response(request, resolved, bytes);
            kill_target(context)
        }
        CallDecision::KillAfter => {
            context.perform_without_response(request, resolved, u64::MAX);
            kill_target(context)
        }
        CallDecision::Delay(wait) => CallResponse::After(wait),
        CallDecision::Swap(with) => {
            // If there is no file to swap, no effect is reported and the call continues.
            let _ = context.swap(&resolved, with);
            CallResponse::Now(NotificationResponse::Continue)
        }
    }
}

/// Kills the target. Nothing is left to respond to afterwards.
fn kill_target(context: &mut CallContext<'_>) -> CallResponse {
    context.handler.kill_target();
    CallResponse::AlreadySent
}
