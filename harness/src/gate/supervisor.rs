//! The loop that answers stopped calls, in a thread of its own, and the lines between decoding, deciding and doing.

use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::calls::{self, CallRequest, opens_for_writing};
use super::perform::{CallContext, CallResponse};
use super::sys::{self, Notification, NotificationResponse};
use super::target_thread::{ThreadCache, WatchedMounts};
use super::{CallDecision, CallEffect, CallHandler, InterceptedCall};

/// A thread that answers until all who make calls are gone.
pub struct SupervisorThread {
    thread: Option<JoinHandle<()>>,
}

impl SupervisorThread {
    /// Waits until everybody behind the filter is gone.
    pub fn join(mut self) {
        // A panic in the overseer has ended the answering; the target was killed with its room.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Answers all calls that come through `listener`. Ends by itself when the last program behind the filter has ended.
pub fn serve_notifications<O: CallHandler + 'static>(
    listener: OwnedFd,
    watched: WatchedMounts,
    overseer: Arc<Mutex<O>>,
) -> SupervisorThread {
    let thread = std::thread::spawn(move || {
        sys::set_synchronous_wakeup(listener.as_fd());
        // Without a umask of its own, modes would be masked twice. Refused only where a sandbox forbids it.
        let _ = sys::unshare_fs();
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let desk = Supervisor {
            listener,
            watched,
            handler: overseer,
            threads: ThreadCache::default(),
            delayed: BinaryHeap::new(),
        };
        desk.serve();
    });
    SupervisorThread { thread: Some(thread) }
}

/// A call that is let through later; the earliest is the greatest.
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
                    Ok(stopped) => self.handle_notification(&stopped),
                    // Withdrawn between the two calls.
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
                // Rounded up, so that it is due when the time is over.
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

    fn handle_notification(&mut self, stopped: &Notification) {
        let mut overseer = self.handler.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match calls::decode(stopped.number, stopped.args) {
            None => Some(NotificationResponse::Continue),
            Some(CallRequest::Refused { feature: what }) => {
                overseer.on_effect(CallEffect::Refused { feature: what });
                Some(NotificationResponse::Fail(Errno::ENOSYS))
            }
            Some(asked) => match self.threads.get(stopped.tid) {
                // It is gone, or somebody we may not look at: the kernel answers.
                Err(_) => Some(NotificationResponse::Continue),
                Ok(thread) => {
                    let mut hands = CallContext {
                        listener: self.listener.as_fd(),
                        notification_id: stopped.id,
                        tid: stopped.tid,
                        thread,
                        watched: &self.watched,
                        handler: &mut *overseer,
                    };
                    match decide_and_perform(&mut hands, asked) {
                        CallResponse::Now(answer) => Some(answer),
                        CallResponse::AlreadySent => None,
                        CallResponse::After(wait) => {
                            self.delayed.push(DelayedResponse {
                                due: Instant::now() + wait,
                                notification_id: stopped.id,
                            });
                            None
                        }
                    }
                }
            },
        };
        drop(overseer);
        if let Some(answer) = answer {
            // ENOENT: killed meanwhile.
            let _ = sys::send_response(self.listener.as_fd(), stopped.id, answer);
        }
    }
}

/// Finds out what the call is about, asks, and does what is said.
fn decide_and_perform(hands: &mut CallContext<'_>, asked: CallRequest) -> CallResponse {
    let asked = hands.read_open_how(asked);
    let subject = match hands.resolve_call(&asked) {
        Ok(Some(subject)) if sys::is_notification_valid(hands.listener, hands.notification_id) => subject,
        _ => return CallResponse::Now(NotificationResponse::Continue),
    };
    if let CallRequest::Open { flags, .. } = asked
        && !subject.watched
    {
        // Told so that a report can say what lies outside of every crash state.
        if opens_for_writing(flags) {
            hands.handler.on_effect(CallEffect::OpenedOutside { path: subject.path });
        }
        return CallResponse::Now(NotificationResponse::Continue);
    }
    if !subject.watched {
        return hands.continue_unwatched(&asked, &subject);
    }
    let call = InterceptedCall {
        kind: subject.kind,
        tid: hands.tid,
        path: subject.path.clone(),
        to: subject.resolved_to.as_ref().map(super::target_thread::ResolvedPath::path),
        requested_bytes: subject.requested_bytes,
    };
    match hands.handler.decide(&call) {
        CallDecision::Continue => CallResponse::Now(NotificationResponse::Continue),
        CallDecision::Perform => hands.perform(asked, subject, u64::MAX),
        CallDecision::Fail(errno) => CallResponse::Now(NotificationResponse::Fail(errno)),
        CallDecision::Short(bytes) => hands.perform(asked, subject, bytes),
        CallDecision::PerformThenFail(errno) => {
            hands.perform_without_response(asked, subject, u64::MAX);
            CallResponse::Now(NotificationResponse::Fail(errno))
        }
        CallDecision::KillBefore => kill_target(hands),
        CallDecision::KillDuring(bytes) => {
            hands.perform_without_response(asked, subject, bytes);
            kill_target(hands)
        }
        CallDecision::KillAfter => {
            hands.perform_without_response(asked, subject, u64::MAX);
            kill_target(hands)
        }
        CallDecision::Delay(wait) => CallResponse::After(wait),
        CallDecision::Swap(with) => {
            // Where nothing can be swapped nothing has happened, and the overseer is not told otherwise.
            let _ = hands.swap(&subject, with);
            CallResponse::Now(NotificationResponse::Continue)
        }
    }
}

/// Nobody is left to answer.
fn kill_target(hands: &mut CallContext<'_>) -> CallResponse {
    hands.handler.kill_target();
    CallResponse::AlreadySent
}
