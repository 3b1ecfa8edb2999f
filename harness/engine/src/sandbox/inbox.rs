//! What init sends to the harness: replies to requests, and exits of processes. Whoever waits for something
//! receives, also for the others; there is no thread for it. Knows no request.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, poll};

use super::packet::{Packet, receive_message};
use super::process_pipes::time_until;
use super::protocol::{ControlReply, ProcessExit};
use crate::locks::LockExt;

/// The longest wait: a year. Longer ones are cut to it.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The harness's end of the socket to init, with what was received and not yet taken.
pub(super) struct Inbox {
    socket: OwnedFd,
    received: Mutex<Received>,
    /// Something was received, or nobody receives any more.
    changed: Condvar,
}

#[derive(Default)]
struct Received {
    replies: VecDeque<ControlReply>,
    /// Exits of spawned processes, by spawn id.
    exits: HashMap<u64, ProcessExit>,
    /// Some thread waits for the socket.
    is_receiving: bool,
    /// Init has ended, or has sent something that is no message.
    is_closed: bool,
}

/// What one wait for the socket gave.
enum Arrival {
    Message(ControlReply),
    Nothing,
    Closed,
}

impl Inbox {
    pub(super) fn new(socket: OwnedFd) -> Inbox {
        Inbox { socket, received: Mutex::default(), changed: Condvar::new() }
    }

    /// The socket, to send requests.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits for the next reply. Returns `None` if there is none after `wait`, or init has ended.
    pub(super) fn next_reply(&self, wait: Duration) -> Option<ControlReply> {
        let deadline = Instant::now() + wait.min(MAX_WAIT);
        self.wait_for(deadline, |received| received.replies.pop_front())
    }

    /// Waits for the exit of a process. Returns `None` if it is still running after `wait`. When init has ended,
    /// the kernel has killed every process whose exit was not received.
    pub(super) fn exit_of(&self, spawn_id: u64, wait: Duration) -> Option<ProcessExit> {
        let deadline = Instant::now() + wait.min(MAX_WAIT);
        let exit = self.wait_for(deadline, |received| received.exits.get(&spawn_id).copied());
        exit.or_else(|| self.received.locked().is_closed.then_some(ProcessExit::Signalled(SIGKILL)))
    }

    fn wait_for<T>(&self, deadline: Instant, mut take: impl FnMut(&mut Received) -> Option<T>) -> Option<T> {
        let mut received = self.received.locked();
        let mut has_looked = false;
        loop {
            if let Some(taken) = take(&mut received) {
                return Some(taken);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Even a wait of no time takes what has already arrived.
            if received.is_closed || (left.is_zero() && (has_looked || received.is_receiving)) {
                return None;
            }
            if received.is_receiving {
                let waited = self.changed.wait_timeout(received, left);
                received = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            received.is_receiving = true;
            drop(received);
            let arrival = self.receive_until(deadline);
            received = self.received.locked();
            received.is_receiving = false;
            has_looked = !matches!(arrival, Arrival::Message(_));
            received.add(arrival);
            self.changed.notify_all();
        }
    }

    fn receive_until(&self, deadline: Instant) -> Arrival {
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, time_until(deadline)) {
            Err(Errno::EINTR) | Ok(0) => return Arrival::Nothing,
            Err(_) => return Arrival::Closed,
            Ok(_) => {}
        }
        match receive_message(self.socket.as_fd()) {
            Ok(Some(Packet { message, .. })) => Arrival::Message(message),
            Ok(None) | Err(_) => Arrival::Closed,
        }
    }
}

impl Received {
    fn add(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Message(ControlReply::ProcessExited { id, exit }) => drop(self.exits.insert(id, exit)),
            Arrival::Message(reply) => self.replies.push_back(reply),
            Arrival::Nothing => {}
            Arrival::Closed => self.is_closed = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{PacketSocketPair, send_message};
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn connect() -> (Inbox, OwnedFd) {
        let sockets = PacketSocketPair::new().expect("a socket");
        (Inbox::new(sockets.ours), sockets.theirs)
    }

    fn send(init: &OwnedFd, message: ControlReply) {
        send_message(init.as_fd(), &message, &[]).expect("the message is sent");
    }

    fn exit_message(id: u64) -> ControlReply {
        ControlReply::ProcessExited { id, exit: ProcessExit::Exited(3) }
    }

    #[test]
    fn a_wait_ends_with_the_exit_of_the_process_or_after_its_time() {
        let (inbox, init) = connect();
        assert_eq!(inbox.exit_of(2, Duration::ZERO), None);
        send(&init, exit_message(1));
        send(&init, exit_message(2));
        assert_eq!(inbox.exit_of(2, Duration::ZERO), Some(ProcessExit::Exited(3)), "it has already arrived");
        assert_eq!(inbox.exit_of(1, LONG), Some(ProcessExit::Exited(3)));
        assert_eq!(inbox.exit_of(3, Duration::from_millis(1)), None);
        drop(init);
        assert!(inbox.next_reply(LONG).is_none(), "init has ended");
    }

    #[test]
    fn the_end_of_init_ends_every_wait() {
        let (inbox, init) = connect();
        send(&init, exit_message(1));
        std::thread::scope(|scope| {
            let waits = [1, 2, 3].map(|id| {
                let inbox = &inbox;
                scope.spawn(move || inbox.exit_of(id, LONG))
            });
            drop(init);
            let exits = waits.map(|wait| wait.join().expect("no panic"));
            let killed = Some(ProcessExit::Signalled(SIGKILL));
            assert_eq!(exits, [Some(ProcessExit::Exited(3)), killed, killed]);
        });
        assert!(inbox.next_reply(LONG).is_none());
    }

    #[test]
    fn one_thread_receives_for_all_that_wait() {
        let (inbox, init) = connect();
        std::thread::scope(|scope| {
            let waits: Vec<_> = (1..=4)
                .map(|id| {
                    scope.spawn({
                        let inbox = &inbox;
                        move || inbox.exit_of(id, LONG)
                    })
                })
                .collect();
            let reply = scope.spawn(|| inbox.next_reply(LONG));
            for id in [3, 1] {
                send(&init, exit_message(id));
            }
            send(&init, ControlReply::Done { note: "note".into() });
            for id in [4, 2] {
                send(&init, exit_message(id));
            }
            for wait in waits {
                assert_eq!(wait.join().expect("no panic"), Some(ProcessExit::Exited(3)));
            }
            let reply = reply.join().expect("no panic");
            assert!(matches!(reply, Some(ControlReply::Done { note }) if note == "note"));
        });
    }
}
