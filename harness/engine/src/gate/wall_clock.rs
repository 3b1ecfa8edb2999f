//! Another wall clock for the target: answers its calls for the time with a shifted one, and its waits until a time.
//! Monotonic and boot time stay. Knows no trigger.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;

use super::answering::still_waits;
use super::clock_call::{ClockCall, WALL_CLOCKS};
use super::clock_shift::ClockShift;
use super::clock_waits::{ClockWaits, HeldWait, WaitKind};
use super::follow_error::FollowError;
use super::handler::{CallEffect, CallHandler};
use super::sys::{self, Notification, NotificationResponse};
use super::target_thread::TargetThread;
use super::vdso::replace_clock_functions;

const NANOS_PER_SECOND: i128 = 1_000_000_000;
const NANOS_PER_MICRO: i64 = 1_000;
/// Bytes of a `timespec`, and of each of the two in an `itimerspec`.
const TIME_BYTES: usize = 16;

/// A call that has to do with the clock.
pub(super) struct ClockContext<'a> {
    pub(super) listener: BorrowedFd<'a>,
    pub(super) notification: &'a Notification,
    pub(super) thread: &'a TargetThread,
    pub(super) handler: &'a mut dyn CallHandler,
    pub(super) waits: &'a mut ClockWaits,
}

impl ClockContext<'_> {
    /// Answers the call. `None`: it is held.
    ///
    /// # Errors
    /// If the target can't be reached.
    pub(super) fn answer(&mut self, call: ClockCall) -> Result<Option<NotificationResponse>, FollowError> {
        let kernel = Ok(Some(NotificationResponse::Continue));
        // What is written to the target belongs to this call only if the call still waits.
        if !self.still_waits()? {
            return kernel;
        }
        match call {
            ClockCall::Early => self.replace_functions()?,
            ClockCall::Set { call } => {
                self.handler.on_effect(CallEffect::ClockChangeRefused { call });
                return Ok(Some(NotificationResponse::Fail(Errno::EPERM)));
            }
            ClockCall::Sleep { until_address } => return self.hold(WaitKind::Sleep, until_address),
            ClockCall::FutexWait { word_address, expected, until_address } => {
                let mut word = [0; 4];
                if self.thread.read_memory(word_address, &mut word)? < word.len() {
                    return kernel;
                }
                if u32::from_ne_bytes(word) != expected {
                    return Ok(Some(NotificationResponse::Fail(Errno::EAGAIN)));
                }
                return self.hold(WaitKind::Futex, until_address);
            }
            ClockCall::SetTimerFd { fd, flags, value_address, old_address } => {
                if !self.thread.timer_fd_clock(fd).is_some_and(is_wall_clock) {
                    return kernel;
                }
                return self.set_timer(TimerFdCall { fd, flags, value_address, old_address });
            }
            ClockCall::SetProcessTimer { id } => {
                if self.thread.process_timer_clock(id).is_none_or(is_wall_clock) {
                    self.not_followed("timer_settime to a time of the wall clock".into());
                }
            }
            ClockCall::OtherWait { call } => self.not_followed(format!("a wait until a time: {call}")),
            ClockCall::Gettime { .. } | ClockCall::TimeOfDay { .. } | ClockCall::Seconds { .. } => {
                return self.tell_time(call).map(Some);
            }
        }
        kernel
    }

    fn still_waits(&self) -> Result<bool, FollowError> {
        still_waits(self.listener, self.notification.id)
    }

    fn not_followed(&mut self, what: String) {
        self.handler.on_effect(CallEffect::ClockNotFollowed { what });
    }

    fn replace_functions(&mut self) -> Result<(), FollowError> {
        if let Err(reason) = replace_clock_functions(self.notification.tid)
            && self.still_waits()?
        {
            let program = self.thread.program_name();
            self.not_followed(format!(
                "{program} may read the machine's clock without a system call: its vDSO could not be changed \
                 ({reason})"
            ));
        }
        Ok(())
    }

    /// Holds a wait until the time at an address.
    fn hold(
        &mut self,
        kind: WaitKind,
        until_address: u64,
    ) -> Result<Option<NotificationResponse>, FollowError> {
        let mut bytes = [0; TIME_BYTES];
        let read = self.thread.read_memory(until_address, &mut bytes)?;
        // What is no time the kernel refuses.
        let Some(until) = (read == bytes.len()).then(|| time_in(&bytes)).flatten() else {
            return Ok(Some(NotificationResponse::Continue));
        };
        let Notification { id: notification_id, tid, .. } = *self.notification;
        let wait = HeldWait { notification_id, tid, kind, until, held_since: Instant::now() };
        Ok(self.waits.begin(wait, self.handler.clock_shift()))
    }

    /// Sets a timer to the time of the machine's clock that belongs to a time of the target's.
    fn set_timer(&mut self, call: TimerFdCall) -> Result<Option<NotificationResponse>, FollowError> {
        let kernel = Ok(Some(NotificationResponse::Continue));
        let shift = self.handler.clock_shift();
        let mut bytes = [0; 2 * TIME_BYTES];
        if self.thread.read_memory(call.value_address, &mut bytes)? < bytes.len() {
            return kernel;
        }
        let (interval, value) = bytes.split_at_mut(TIME_BYTES);
        let (Some(_), Some(until)) = (time_in(interval), time_in(value)) else { return kernel };
        // Without a time it is disarmed.
        if until == 0 {
            return kernel;
        }
        self.handler.on_effect(CallEffect::ClockTimerSet);
        if shift == ClockShift::default() {
            return kernel;
        }
        // A time before 1970 has passed, as has the first moment of it.
        value.copy_from_slice(&time_bytes((until - i128::from(shift.nanos)).max(1)));
        let timer = self.thread.duplicate_fd(call.fd)?;
        let old = match sys::set_timer(timer.as_fd(), call.flags, &bytes) {
            Ok(old) => old,
            Err(errno) => return Ok(Some(NotificationResponse::Fail(errno))),
        };
        let is_written = call.old_address == 0 || write_all(self.thread, call.old_address, &old)?;
        Ok(Some(value_or_fault(is_written, 0)))
    }

    /// Answers a call for the time.
    fn tell_time(&mut self, call: ClockCall) -> Result<NotificationResponse, FollowError> {
        let shift = self.handler.clock_shift();
        let response = response_with_time(self.thread, call, shift.now())?;
        if shift != ClockShift::default() && matches!(response, NotificationResponse::Value(_)) {
            self.handler.on_effect(CallEffect::ToldTime);
        }
        Ok(response)
    }
}

/// A call timerfd_settime.
struct TimerFdCall {
    fd: i32,
    flags: i32,
    value_address: u64,
    old_address: u64,
}

fn is_wall_clock(clock: i32) -> bool {
    WALL_CLOCKS.contains(&clock)
}

/// Gives the target the time. `now`: nanoseconds since 1970.
fn response_with_time(
    thread: &TargetThread,
    call: ClockCall,
    now: i128,
) -> Result<NotificationResponse, FollowError> {
    let seconds = now.div_euclid(NANOS_PER_SECOND) as i64;
    Ok(match call {
        ClockCall::Gettime { address } => value_or_fault(write_all(thread, address, &time_bytes(now))?, 0),
        ClockCall::TimeOfDay { address, zone_address } => {
            let micros = now.rem_euclid(NANOS_PER_SECOND) as i64 / NANOS_PER_MICRO;
            // The kernel's own zone is UTC; that of a program is a variable.
            let is_written = (address == 0 || write_all(thread, address, &pair(seconds, micros))?)
                && (zone_address == 0 || write_all(thread, zone_address, &[0; 8])?);
            value_or_fault(is_written, 0)
        }
        ClockCall::Seconds { address } => {
            let is_written = address == 0 || write_all(thread, address, &seconds.to_ne_bytes())?;
            value_or_fault(is_written, seconds)
        }
        _ => NotificationResponse::Continue,
    })
}

fn value_or_fault(is_written: bool, value: i64) -> NotificationResponse {
    match is_written {
        true => NotificationResponse::Value(value),
        false => NotificationResponse::Fail(Errno::EFAULT),
    }
}

fn write_all(thread: &TargetThread, address: u64, bytes: &[u8]) -> Result<bool, FollowError> {
    Ok(thread.write_memory(address, bytes)? == bytes.len())
}

fn pair(first: i64, second: i64) -> [u8; TIME_BYTES] {
    let mut bytes = [0; TIME_BYTES];
    bytes[..8].copy_from_slice(&first.to_ne_bytes());
    bytes[8..].copy_from_slice(&second.to_ne_bytes());
    bytes
}

/// A `timespec` with this time.
fn time_bytes(nanos: i128) -> [u8; TIME_BYTES] {
    pair(nanos.div_euclid(NANOS_PER_SECOND) as i64, nanos.rem_euclid(NANOS_PER_SECOND) as i64)
}

/// The time in a `timespec`, in nanoseconds. `None`: the kernel does not take it as one.
fn time_in(bytes: &[u8]) -> Option<i128> {
    let word = |range: std::ops::Range<usize>| Some(i64::from_ne_bytes(bytes.get(range)?.try_into().ok()?));
    let (seconds, nanos) = (i128::from(word(0..8)?), i128::from(word(8..TIME_BYTES)?));
    (seconds >= 0 && (0..NANOS_PER_SECOND).contains(&nanos)).then_some(seconds * NANOS_PER_SECOND + nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_it_was_written_and_what_the_kernel_refuses_is_none() {
        for nanos in [0, 1, 999_999_999, 1_000_000_000, 4_000_000_000_123_456_789] {
            assert_eq!(time_in(&time_bytes(nanos)), Some(nanos));
        }
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000)] {
            assert_eq!(time_in(&pair(seconds, nanos)), None);
        }
        assert_eq!(time_bytes(-1), pair(-1, 999_999_999));
    }
}
