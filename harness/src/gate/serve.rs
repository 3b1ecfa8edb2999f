//! The loop that answers stopped calls, in a thread of its own, and the lines between decoding, deciding and doing.

use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::calls::{self, Asked, opens_for_writing};
use super::perform::{Hands, Outcome};
use super::place::{Threads, Watched};
use super::sys::{self, Answer, Stopped};
use super::{Call, Decision, Done, Overseer};

/// A thread that answers until all who make calls are gone.
pub struct Attendance {
    thread: Option<JoinHandle<()>>,
}

impl Attendance {
    /// Waits until everybody behind the filter is gone.
    pub fn join(mut self) {
        // A panic in the overseer has ended the answering; the target was killed with its room.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Answers all calls that come through `listener`. Ends by itself when the last program behind the filter has ended.
pub fn attend<O: Overseer + 'static>(
    listener: OwnedFd,
    watched: Watched,
    overseer: Arc<Mutex<O>>,
) -> Attendance {
    let thread = std::thread::spawn(move || {
        sys::wake_synchronously(listener.as_fd());
        // Without a umask of its own, modes would be masked twice. Refused only where a sandbox forbids it.
        let _ = sys::own_umask();
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let desk =
            Desk { listener, watched, overseer, threads: Threads::default(), delayed: BinaryHeap::new() };
        desk.serve();
    });
    Attendance { thread: Some(thread) }
}

/// A call that is let through later; the earliest is the greatest.
#[derive(PartialEq, Eq)]
struct Delayed {
    due: Instant,
    id: u64,
}

impl Ord for Delayed {
    fn cmp(&self, other: &Delayed) -> std::cmp::Ordering {
        other.due.cmp(&self.due).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Delayed) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct Desk<O> {
    listener: OwnedFd,
    watched: Watched,
    overseer: Arc<Mutex<O>>,
    threads: Threads,
    delayed: BinaryHeap<Delayed>,
}

impl<O: Overseer> Desk<O> {
    fn serve(mut self) {
        loop {
            let mut ready = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, self.until_next_due()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            let events = ready[0].revents().unwrap_or(PollFlags::empty());
            self.let_through_what_is_due();
            if events.contains(PollFlags::POLLIN) {
                match sys::receive(self.listener.as_fd()) {
                    Ok(stopped) => self.meet(&stopped),
                    // Withdrawn between the two calls.
                    Err(Errno::ENOENT | Errno::EINTR) => {}
                    Err(_) => return,
                }
            } else if events.contains(PollFlags::POLLHUP) {
                return;
            }
        }
    }

    fn until_next_due(&self) -> PollTimeout {
        match self.delayed.peek() {
            None => PollTimeout::NONE,
            Some(next) => {
                let left = next.due.saturating_duration_since(Instant::now());
                // Rounded up, so that it is due when the time is over.
                PollTimeout::try_from(left + std::time::Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        }
    }

    fn let_through_what_is_due(&mut self) {
        while self.delayed.peek().is_some_and(|next| next.due <= Instant::now()) {
            if let Some(next) = self.delayed.pop() {
                let _ = sys::answer(self.listener.as_fd(), next.id, Answer::Continue);
            }
        }
    }

    fn meet(&mut self, stopped: &Stopped) {
        let mut overseer = self.overseer.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match calls::decode(stopped.number, stopped.args) {
            None => Some(Answer::Continue),
            Some(Asked::Refused { what }) => {
                overseer.done(Done::Refused { what });
                Some(Answer::Fail(Errno::ENOSYS))
            }
            Some(asked) => match self.threads.get(stopped.tid) {
                // It is gone, or somebody we may not look at: the kernel answers.
                Err(_) => Some(Answer::Continue),
                Ok(thread) => {
                    let mut hands = Hands {
                        listener: self.listener.as_fd(),
                        id: stopped.id,
                        tid: stopped.tid,
                        thread,
                        watched: &self.watched,
                        overseer: &mut *overseer,
                    };
                    match settle(&mut hands, asked) {
                        Outcome::Answer(answer) => Some(answer),
                        Outcome::Answered => None,
                        Outcome::Later(wait) => {
                            self.delayed.push(Delayed { due: Instant::now() + wait, id: stopped.id });
                            None
                        }
                    }
                }
            },
        };
        drop(overseer);
        if let Some(answer) = answer {
            // ENOENT: killed meanwhile.
            let _ = sys::answer(self.listener.as_fd(), stopped.id, answer);
        }
    }
}

/// Finds out what the call is about, asks, and does what is said.
fn settle(hands: &mut Hands<'_>, asked: Asked) -> Outcome {
    let asked = hands.read_how(asked);
    let subject = match hands.subject(&asked) {
        Ok(Some(subject)) if sys::is_waiting(hands.listener, hands.id) => subject,
        _ => return Outcome::Answer(Answer::Continue),
    };
    if let Asked::Open { flags, .. } = asked
        && !subject.watched
    {
        // Told so that a report can say what lies outside of every crash state.
        if opens_for_writing(flags) {
            hands.overseer.done(Done::WroteOutside { path: subject.path });
        }
        return Outcome::Answer(Answer::Continue);
    }
    if !subject.watched {
        return hands.overhear(&asked, &subject);
    }
    let call = Call {
        kind: subject.kind,
        tid: hands.tid,
        path: subject.path.clone(),
        to: subject.to.as_ref().map(super::place::Spot::path),
        bytes: subject.bytes,
    };
    match hands.overseer.decide(&call) {
        Decision::Let => Outcome::Answer(Answer::Continue),
        Decision::Perform => hands.perform(asked, subject, u64::MAX),
        Decision::Fail(errno) => Outcome::Answer(Answer::Fail(errno)),
        Decision::Short(bytes) => hands.perform(asked, subject, bytes),
        Decision::PerformThenFail(errno) => {
            hands.perform_quietly(asked, subject, u64::MAX);
            Outcome::Answer(Answer::Fail(errno))
        }
        Decision::StrikeBefore => struck(hands),
        Decision::StrikeInside(bytes) => {
            hands.perform_quietly(asked, subject, bytes);
            struck(hands)
        }
        Decision::StrikeAfter => {
            hands.perform_quietly(asked, subject, u64::MAX);
            struck(hands)
        }
        Decision::Delay(wait) => Outcome::Later(wait),
        Decision::Swap(with) => {
            // Where nothing can be swapped nothing has happened, and the overseer is not told otherwise.
            let _ = hands.swap(&subject, with);
            Outcome::Answer(Answer::Continue)
        }
    }
}

/// Nobody is left to answer.
fn struck(hands: &mut Hands<'_>) -> Outcome {
    hands.overseer.strike();
    Outcome::Answered
}
