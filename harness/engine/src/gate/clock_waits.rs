//! Waits until a time of the target's wall clock. The kernel would end them by the machine's, so they are held here
//! and answered in time. A change of the clock meanwhile counts, as it does in the kernel.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::answering::respond;
use super::clock_shift::ClockShift;
use super::follow_error::GateFailure;
use super::sys::{self, NotificationResponse};
use super::thread_status::pending_signal;

/// How long a wait for a futex is held. It then returns as if it had been woken, which a program must expect, and the
/// program looks at the word again.
const FUTEX_HOLD: Duration = Duration::from_millis(2);
/// How often a sleep is looked after: whether a signal has come. A held call is not interrupted by one.
const SLEEP_CHECK: Duration = Duration::from_millis(10);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitKind {
    /// Only the time.
    Sleep,
    /// The time, or a change of a word.
    Futex,
}

/// A call that waits until a time of the target's wall clock.
#[derive(Debug)]
pub(super) struct HeldWait {
    pub(super) notification_id: u64,
    pub(super) tid: i32,
    pub(super) kind: WaitKind,
    /// Nanoseconds since 1970.
    pub(super) until: i128,
    pub(super) held_since: Instant,
}

impl HeldWait {
    /// The answer, if it is time for one.
    fn answer(&self, shift: ClockShift) -> Option<NotificationResponse> {
        let is_over = shift.now() >= self.until;
        match self.kind {
            WaitKind::Sleep if is_over => Some(NotificationResponse::Value(0)),
            WaitKind::Sleep => pending_signal(self.tid).map(|pending| match pending.is_certain {
                true => NotificationResponse::Interrupted,
                false => NotificationResponse::Fail(Errno::EINTR),
            }),
            WaitKind::Futex if is_over => Some(NotificationResponse::Fail(Errno::ETIMEDOUT)),
            WaitKind::Futex => {
                (self.held_since.elapsed() >= FUTEX_HOLD).then_some(NotificationResponse::Value(0))
            }
        }
    }

    fn next_check(&self, shift: ClockShift) -> Duration {
        let left = u64::try_from((self.until - shift.now()).max(0)).unwrap_or(u64::MAX);
        Duration::from_nanos(left).min(match self.kind {
            WaitKind::Sleep => SLEEP_CHECK,
            WaitKind::Futex => FUTEX_HOLD,
        })
    }
}

/// The waits that are held now.
#[derive(Default)]
pub(super) struct ClockWaits {
    held: Vec<HeldWait>,
}

impl ClockWaits {
    /// Answers a wait at once if it is over already, else holds it.
    pub(super) fn begin(&mut self, wait: HeldWait, shift: ClockShift) -> Option<NotificationResponse> {
        let answer = wait.answer(shift);
        if answer.is_none() {
            self.held.push(wait);
        }
        answer
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// How long nothing is to be done.
    pub(super) fn next_check(&self, shift: ClockShift) -> Option<Duration> {
        self.held.iter().map(|wait| wait.next_check(shift)).min()
    }

    /// Answers those that are over, and forgets those whose thread has been killed.
    ///
    /// # Errors
    /// If the calls can't be answered.
    pub(super) fn answer_due(
        &mut self,
        listener: BorrowedFd<'_>,
        shift: ClockShift,
    ) -> Result<(), GateFailure> {
        let mut failed = Ok(());
        self.held.retain(|wait| match sys::is_notification_valid(listener, wait.notification_id) {
            Ok(true) => match wait.answer(shift) {
                None => true,
                Some(answer) => {
                    failed = failed.clone().and(respond(listener, wait.notification_id, answer));
                    false
                }
            },
            Ok(false) => false,
            Err(source) => {
                failed = Err(GateFailure::System { doing: "look after a call", source });
                false
            }
        });
        failed
    }
}
