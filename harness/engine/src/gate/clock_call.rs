//! The calls that have to do with the wall clock: their numbers and arguments. Pure.

use nix::libc;

/// Calls that a program makes before it asks for the time, and only a few times.
#[cfg(target_arch = "x86_64")]
pub(super) const EARLY_CALLS: &[i64] = &[libc::SYS_arch_prctl, libc::SYS_set_tid_address];
#[cfg(not(target_arch = "x86_64"))]
pub(super) const EARLY_CALLS: &[i64] = &[libc::SYS_set_tid_address];

/// `CLOCK_REALTIME_ALARM` of linux/time.h.
const REALTIME_ALARM: i32 = 8;
/// The clocks that are shifted.
pub(super) const WALL_CLOCKS: [i32; 4] =
    [libc::CLOCK_REALTIME, libc::CLOCK_REALTIME_COARSE, libc::CLOCK_TAI, REALTIME_ALARM];

/// `FUTEX_CMD_MASK` of linux/futex.h.
const FUTEX_COMMAND_BITS: i32 = !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
/// What a futex call does whose time limit is one of the wall clock without `FUTEX_CLOCK_REALTIME`.
pub(super) const WALL_CLOCK_FUTEX_CALLS: [i32; 2] =
    [libc::FUTEX_LOCK_PI, libc::FUTEX_LOCK_PI | libc::FUTEX_PRIVATE_FLAG];

/// What a call has to do with the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClockCall {
    /// A program has begun.
    Early,
    /// clock_gettime of a wall clock.
    Gettime { address: u64 },
    /// gettimeofday.
    TimeOfDay { address: u64, zone_address: u64 },
    /// time.
    Seconds { address: u64 },
    /// A call that sets the clock, or that also reads it in this way.
    Set { call: &'static str },
    /// clock_nanosleep until a time.
    Sleep { until_address: u64 },
    /// futex: waits until a time while a word has a value.
    FutexWait { word_address: u64, expected: u32, until_address: u64 },
    /// timerfd_settime to a time.
    SetTimerFd { fd: i32, flags: i32, value_address: u64, old_address: u64 },
    /// timer_settime to a time.
    SetProcessTimer { id: i32 },
    /// Another wait until a time.
    OtherWait { call: &'static str },
}

/// `None`: the call has nothing to do with the clock.
pub(super) fn decode_clock_call(number: i64, args: [u64; 6]) -> Option<ClockCall> {
    let is_wall_clock = |clock: u64| WALL_CLOCKS.contains(&(clock as i32));
    match number {
        number if EARLY_CALLS.contains(&number) => Some(ClockCall::Early),
        libc::SYS_clock_gettime => Some(ClockCall::Gettime { address: args[1] }),
        libc::SYS_gettimeofday => Some(ClockCall::TimeOfDay { address: args[0], zone_address: args[1] }),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_time => Some(ClockCall::Seconds { address: args[0] }),
        libc::SYS_clock_settime => Some(ClockCall::Set { call: "clock_settime" }),
        libc::SYS_settimeofday => Some(ClockCall::Set { call: "settimeofday" }),
        libc::SYS_adjtimex => Some(ClockCall::Set { call: "adjtimex" }),
        libc::SYS_clock_adjtime => Some(ClockCall::Set { call: "clock_adjtime" }),
        libc::SYS_clock_nanosleep => {
            is_wall_clock(args[0]).then_some(ClockCall::Sleep { until_address: args[2] })
        }
        // glibc also waits without an end in this way, as in pthread_join.
        libc::SYS_futex => (args[3] != 0).then(|| decode_futex(args)).flatten(),
        libc::SYS_futex_waitv => (args[3] != 0).then_some(ClockCall::OtherWait { call: "futex_waitv" }),
        libc::SYS_mq_timedsend => Some(ClockCall::OtherWait { call: "mq_timedsend" }),
        libc::SYS_mq_timedreceive => Some(ClockCall::OtherWait { call: "mq_timedreceive" }),
        libc::SYS_timerfd_settime => Some(ClockCall::SetTimerFd {
            fd: args[0] as i32,
            flags: args[1] as i32,
            value_address: args[2],
            old_address: args[3],
        }),
        libc::SYS_timer_settime => Some(ClockCall::SetProcessTimer { id: args[0] as i32 }),
        _ => None,
    }
}

fn decode_futex(args: [u64; 6]) -> Option<ClockCall> {
    match args[1] as i32 & FUTEX_COMMAND_BITS {
        // Its time limit is how long to wait.
        libc::FUTEX_WAIT => None,
        libc::FUTEX_WAIT_BITSET => Some(ClockCall::FutexWait {
            word_address: args[0],
            expected: args[2] as u32,
            until_address: args[3],
        }),
        _ => Some(ClockCall::OtherWait { call: "futex with priority inheritance" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waits_until_a_time_of_the_wall_clock_are_decoded() {
        let futex = |operation: i32, until| {
            decode_clock_call(libc::SYS_futex, [16, operation as u64, 7, until, 0, u64::MAX])
        };
        let realtime = libc::FUTEX_CLOCK_REALTIME | libc::FUTEX_PRIVATE_FLAG;
        assert_eq!(
            futex(libc::FUTEX_WAIT_BITSET | realtime, 32),
            Some(ClockCall::FutexWait { word_address: 16, expected: 7, until_address: 32 })
        );
        assert_eq!(futex(libc::FUTEX_WAIT_BITSET | realtime, 0), None);
        assert_eq!(futex(libc::FUTEX_WAIT | realtime, 32), None);
        for operation in [libc::FUTEX_LOCK_PI, libc::FUTEX_WAIT_REQUEUE_PI | realtime] {
            assert!(matches!(futex(operation, 32), Some(ClockCall::OtherWait { .. })));
        }
        let sleep = |clock: i32| decode_clock_call(libc::SYS_clock_nanosleep, [clock as u64, 1, 64, 0, 0, 0]);
        assert_eq!(sleep(libc::CLOCK_REALTIME), Some(ClockCall::Sleep { until_address: 64 }));
        assert_eq!(sleep(libc::CLOCK_MONOTONIC), None);
    }
}
