//! The supervisor: a thread that receives notifications of intercepted calls and responds to them.
//!
//! For each call it connects decoding, resolving, the handler's decision and performing.

use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::answering::{respond, still_waits};
use super::calls::{self, CallRequest};
use super::clock_call::{ClockCall, decode_clock_call};
use super::clock_waits::ClockWaits;
use super::connection_call::{ConnectionCall, attempt_of, decode_connection_call};
use super::filter::{FIRST_X32_NUMBER, NATIVE_ARCHITECTURE};
use super::follow_error::{FollowError, GateFailure};
use super::handler::{CallDecision, CallEffect, CallHandler, CarriedOut, InterceptedCall};
use super::path_walk::ResolvedPath;
use super::perform::{CallContext, CallResponse, Performed, Scratch};
use super::resolve_call::{CallResolver, ResolvedCall};
use super::stat::WatchedMounts;
use super::sys::{self, Notification, NotificationResponse};
use super::target_thread::TargetThread;
use super::thread_cache::ThreadCache;
use super::wall_clock::ClockContext;
use crate::landlock::LandlockRules;
use crate::locks::LockExt;

/// So many notifications may be withdrawn in a row before that counts as a failure.
const MAX_WITHDRAWN: u32 = 100_000;

/// The supervisor's thread. It ends when all processes behind the filter have ended.
pub struct SupervisorThread {
    thread: Option<JoinHandle<()>>,
}

impl SupervisorThread {
    /// Whether it has ended, because all processes behind the filter have, or because it failed.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until all processes behind the filter have ended.
    ///
    /// # Errors
    /// The supervisor ended before them.
    pub fn join(mut self) -> Result<(), GateFailure> {
        // The result is an error only if the handler panicked.
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(GateFailure::Ended),
            _ => Ok(()),
        }
    }
}

/// Starts a thread that responds to all calls reported by `listener`. It ends when the last process behind
/// the filter has ended. `rules`: those that the target is under.
pub fn serve_notifications<O: CallHandler + 'static>(
    listener: OwnedFd,
    watched: WatchedMounts,
    handler: Arc<Mutex<O>>,
    rules: Option<LandlockRules>,
) -> SupervisorThread {
    let thread = std::thread::spawn(move || {
        sys::set_synchronous_wakeup(listener.as_fd());
        // Calls are made with the target's umask, and this thread's own is cleared. Unsharing keeps that from
        // the rest of the harness. It fails only inside a container that forbids it.
        let _ = sys::unshare_fs();
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        // The target does not have this capability outside of its user namespace: the kernel clears setuid and
        // setgid of a file that it writes to. Without it, a call that is made for the target does that too.
        let _ = sys::drop_fsetid();
        let supervisor = Supervisor {
            listener,
            watched,
            handler,
            threads: ThreadCache::default(),
            delayed: BinaryHeap::new(),
            clock_waits: ClockWaits::default(),
            held: Vec::new(),
            scratch: Scratch::default(),
            rules,
        };
        supervisor.serve();
    });
    SupervisorThread { thread: Some(thread) }
}

/// How often the handler is asked whether a call still has to wait.
const HOLD_CHECK_INTERVAL: std::time::Duration = std::time::Duration::from_millis(1);

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
    clock_waits: ClockWaits,
    /// Calls that the handler lets wait, in the order in which they were made.
    held: Vec<Notification>,
    scratch: Scratch,
    rules: Option<LandlockRules>,
}

impl<O: CallHandler> Supervisor<O> {
    /// Serves until all processes behind the filter have ended, or until it fails. Calls that wait then go on
    /// waiting, because init holds the listener too: whoever gets the failure ends the sandbox.
    fn serve(mut self) {
        let handler = Arc::clone(&self.handler);
        // A panic of the handler must not leave the target waiting for ever.
        let served = std::panic::catch_unwind(AssertUnwindSafe(move || self.serve_until_end()));
        if let Err(failure) = served.unwrap_or(Err(GateFailure::Ended)) {
            handler.locked().on_failure(failure);
        }
    }

    fn serve_until_end(&mut self) -> Result<(), GateFailure> {
        let failed = |doing, source| Err(GateFailure::System { doing, source });
        let mut withdrawn = 0;
        loop {
            let mut ready = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, self.poll_timeout()) {
                Ok(_) => {}
                Err(errno) if errno != Errno::EINTR || withdrawn > MAX_WITHDRAWN => {
                    return failed("wait for calls", errno);
                }
                Err(_) => withdrawn += 1,
            }
            let events = ready[0].revents().unwrap_or(PollFlags::empty());
            self.continue_due_calls()?;
            self.answer_clock_waits()?;
            std::mem::take(&mut self.held).iter().try_for_each(|call| self.handle_notification(call))?;
            if events.contains(PollFlags::POLLIN) {
                match sys::receive_notification(self.listener.as_fd()) {
                    Ok(notification) => {
                        withdrawn = 0;
                        self.handle_notification(&notification)?;
                    }
                    // The notification was withdrawn after poll, because the target was killed or
                    // interrupted.
                    Err(Errno::ENOENT | Errno::EINTR) if withdrawn <= MAX_WITHDRAWN => withdrawn += 1,
                    Err(errno) => return failed("receive a call", errno),
                }
            } else if events.contains(PollFlags::POLLHUP) {
                return Ok(());
            }
        }
    }

    fn poll_timeout(&self) -> PollTimeout {
        let now = Instant::now();
        let delayed = self.delayed.peek().map(|next| next.due.saturating_duration_since(now));
        let clock_wait = match self.clock_waits.is_empty() {
            true => None,
            false => self.clock_waits.next_check(self.handler.locked().clock_shift()),
        };
        let held = (!self.held.is_empty()).then_some(HOLD_CHECK_INTERVAL);
        match delayed.into_iter().chain(clock_wait).chain(held).min() {
            None => PollTimeout::NONE,
            // The timeout is rounded up, so that what it waits for is due when poll returns.
            Some(left) => {
                PollTimeout::try_from(left + std::time::Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        }
    }

    fn continue_due_calls(&mut self) -> Result<(), GateFailure> {
        let now = Instant::now();
        while let Some(next) = self.delayed.peek()
            && next.due <= now
            && self.handler.locked().may_end_delay(next.due)
        {
            respond(self.listener.as_fd(), next.notification_id, NotificationResponse::Continue)?;
            self.delayed.pop();
        }
        Ok(())
    }

    fn handle_notification(&mut self, notification: &Notification) -> Result<(), GateFailure> {
        let handler = Arc::clone(&self.handler);
        let mut handler = handler.locked();
        if handler.holds(notification.tid) {
            self.held.push(*notification);
            return Ok(());
        }
        let response = match self.response_to(notification, &mut *handler) {
            Ok(CallResponse::Now(response)) => response,
            Ok(CallResponse::AlreadySent | CallResponse::Held) => return Ok(()),
            Ok(CallResponse::After(wait)) => {
                let due = Instant::now() + wait;
                self.delayed.push(DelayedResponse { due, notification_id: notification.id });
                return Ok(());
            }
            // The kernel finds the same error, or the thread has been killed.
            Err(FollowError::Target(_)) => NotificationResponse::Continue,
            Err(FollowError::Gate(failure)) => {
                // Of a call that no longer waits nothing is lost.
                if still_waits(self.listener.as_fd(), notification.id).unwrap_or(true) {
                    handler.on_failure(failure);
                }
                NotificationResponse::Fail(Errno::EIO)
            }
        };
        respond(self.listener.as_fd(), notification.id, response)
    }

    fn response_to(
        &mut self,
        notification: &Notification,
        handler: &mut O,
    ) -> Result<CallResponse, FollowError> {
        if let Some(feature) = foreign_abi(notification) {
            handler.on_effect(CallEffect::Refused { feature });
            return Ok(CallResponse::Now(NotificationResponse::Fail(Errno::ENOSYS)));
        }
        if let Some(call) = decode_connection_call(notification.number, notification.args) {
            return self.note_connection(notification, call, handler);
        }
        if let Some(call) = decode_clock_call(notification.number, notification.args) {
            return self.tell_time(notification, call, handler);
        }
        let request = match calls::decode(notification.number, notification.args) {
            None => return Ok(CallResponse::Now(NotificationResponse::Continue)),
            Some(CallRequest::Refused { feature }) => {
                handler.on_effect(CallEffect::Refused { feature });
                return Ok(CallResponse::Now(NotificationResponse::Fail(Errno::ENOSYS)));
            }
            Some(request) => request,
        };
        let listener = self.listener.as_fd();
        let lookup = CallLookup { watched: &self.watched, needs_fd_paths: handler.needs_paths() };
        let found = self.threads.get(notification.tid).and_then(|thread| lookup.find(thread, request));
        let FoundCall { thread, request, resolved } = match found {
            // Nothing has been done for it yet.
            Err(FollowError::Gate(failure))
                if still_waits(listener, notification.id)? && handler.lets_through(&failure) =>
            {
                return Ok(CallResponse::Now(NotificationResponse::Continue));
            }
            found => found?,
        };
        // What was read from the target belongs to this call only if the call still waits.
        let is_valid = still_waits(listener, notification.id)?;
        let Some(resolved) = resolved.filter(|_| is_valid) else {
            return Ok(CallResponse::Now(NotificationResponse::Continue));
        };
        let mut context = CallContext {
            listener: self.listener.as_fd(),
            notification_id: notification.id,
            tid: notification.tid,
            thread,
            handler,
            scratch: &mut self.scratch,
            rules: self.rules.as_ref(),
        };
        decide_and_perform(&mut context, request, resolved)
    }
}

impl<O: CallHandler> Supervisor<O> {
    /// Tells the handler about a connection, and lets the kernel make it.
    fn note_connection(
        &mut self,
        notification: &Notification,
        call: ConnectionCall,
        handler: &mut O,
    ) -> Result<CallResponse, FollowError> {
        let attempt = attempt_of(self.threads.get(notification.tid)?, call);
        // What was read from the target belongs to this call only if the call still waits.
        if let Some(attempt) = attempt
            && still_waits(self.listener.as_fd(), notification.id)?
        {
            handler.on_effect(CallEffect::Connects(attempt));
        }
        Ok(CallResponse::Now(NotificationResponse::Continue))
    }
}

impl<O: CallHandler> Supervisor<O> {
    /// Answers a call that has to do with the wall clock, or holds it.
    fn tell_time(
        &mut self,
        notification: &Notification,
        call: ClockCall,
        handler: &mut O,
    ) -> Result<CallResponse, FollowError> {
        let thread = self.threads.get(notification.tid)?;
        let listener = self.listener.as_fd();
        let mut context =
            ClockContext { listener, notification, thread, handler, waits: &mut self.clock_waits };
        Ok(context.answer(call)?.map_or(CallResponse::Held, CallResponse::Now))
    }

    /// Answers the waits until a time of the wall clock that are over.
    fn answer_clock_waits(&mut self) -> Result<(), GateFailure> {
        if self.clock_waits.is_empty() {
            return Ok(());
        }
        let shift = self.handler.locked().clock_shift();
        self.clock_waits.answer_due(self.listener.as_fd(), shift)
    }
}

/// What finds out what a call acts on.
struct CallLookup<'a> {
    watched: &'a WatchedMounts,
    needs_fd_paths: bool,
}

/// A call, and what it acts on. `None`: nothing that could be watched.
struct FoundCall<'t> {
    thread: &'t TargetThread,
    request: CallRequest,
    resolved: Option<ResolvedCall>,
}

impl CallLookup<'_> {
    fn find<'t>(&self, thread: &'t TargetThread, request: CallRequest) -> Result<FoundCall<'t>, FollowError> {
        let request = complete_request(thread, request)?;
        let CallLookup { watched, needs_fd_paths } = *self;
        let resolved = CallResolver { thread, watched, needs_fd_paths }.resolve(&request)?;
        Ok(FoundCall { thread, request, resolved })
    }
}

/// The ABI of a call that is not one of this machine's own: its numbers and arguments mean something else.
fn foreign_abi(notification: &Notification) -> Option<&'static str> {
    if notification.architecture != NATIVE_ARCHITECTURE {
        return Some("system calls of a 32-bit program");
    }
    (notification.number as u32 >= FIRST_X32_NUMBER).then_some("system calls of the x32 ABI")
}

/// Turns an `Openat2` into an `Open` by reading its `open_how` from the target's memory.
fn complete_request(thread: &TargetThread, request: CallRequest) -> Result<CallRequest, FollowError> {
    let CallRequest::Openat2 { path, how_address, how_bytes } = request else { return Ok(request) };
    let how = thread.read_open_how(how_address, how_bytes)?;
    Ok(CallRequest::Open { path, how, strict: true })
}

/// Asks the handler for a decision about a resolved call, and carries the decision out.
fn decide_and_perform(
    context: &mut CallContext<'_>,
    request: CallRequest,
    resolved: ResolvedCall,
) -> Result<CallResponse, FollowError> {
    if !resolved.watched {
        return Ok(context.continue_unwatched(&request, &resolved));
    }
    let call = InterceptedCall {
        kind: resolved.kind,
        tid: context.tid,
        path: resolved.path.clone(),
        to: resolved.resolved_to.as_ref().map(ResolvedPath::path),
        requested_bytes: resolved.requested_bytes,
    };
    let continues = Ok(CallResponse::Now(NotificationResponse::Continue));
    match context.handler.decide(&call) {
        CallDecision::Continue => continues,
        CallDecision::Perform => context.perform(request, resolved),
        CallDecision::Fail(errno) => {
            context.handler.on_carried_out(CarriedOut::Prevented);
            Ok(CallResponse::Now(NotificationResponse::Fail(errno)))
        }
        CallDecision::Observe => match context.perform_for_decision(request, resolved, u64::MAX)? {
            Some(performed) => context.answer(performed),
            None => continues,
        },
        CallDecision::Short(bytes) => match context.perform_for_decision(request, resolved, bytes)? {
            Some(performed) => context.answer(performed),
            None => continues,
        },
        CallDecision::PerformThenFail(errno) => {
            match context.perform_for_decision(request, resolved, u64::MAX)? {
                Some(Performed::Failed(own)) => Ok(CallResponse::Now(NotificationResponse::Fail(own))),
                Some(_) => Ok(CallResponse::Now(NotificationResponse::Fail(errno))),
                None => continues,
            }
        }
        CallDecision::KillBefore => {
            context.handler.on_carried_out(CarriedOut::Prevented);
            Ok(kill_target(context))
        }
        CallDecision::KillDuring(bytes) => kill_after_performing(context, request, resolved, bytes),
        CallDecision::KillAfter => kill_after_performing(context, request, resolved, u64::MAX),
        CallDecision::Delay(wait) => {
            context.handler.on_carried_out(CarriedOut::Prepared);
            Ok(CallResponse::After(wait))
        }
        CallDecision::Swap(with) => {
            let swapped = context.swap(&resolved, with).is_ok();
            let done = if swapped { CarriedOut::Prepared } else { CarriedOut::NotPossible };
            context.handler.on_carried_out(done);
            continues
        }
    }
}

fn kill_after_performing(
    context: &mut CallContext<'_>,
    request: CallRequest,
    resolved: ResolvedCall,
    max_bytes: u64,
) -> Result<CallResponse, FollowError> {
    match context.perform_for_decision(request, resolved, max_bytes)? {
        Some(_) => Ok(kill_target(context)),
        None => Ok(CallResponse::Now(NotificationResponse::Continue)),
    }
}

/// Kills the target. Nothing is left to respond to afterwards.
fn kill_target(context: &mut CallContext<'_>) -> CallResponse {
    context.handler.kill_target();
    CallResponse::AlreadySent
}
