//! Tests of a shifted wall clock on real programs: whatever way they ask, and only they see it.

#![expect(clippy::unwrap_used, reason = "a test panics at the first unexpected result")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engine::gate::{
    CallDecision, CallEffect, CallHandler, ClockShift, FilterOptions, GateFailure, InterceptedCall,
};
use engine::sandbox::ProcessExit;
use libtest_mimic::Trial;
use nix::libc;

use support::c_target;
use support::machine::{GATE, Need, missing};
use support::watched_sandbox::WatchedSandbox;

/// Six minutes back, and ten years ahead.
const SHIFTS_S: [i64; 2] = [-360, 315_360_000];
/// Lines of the program that name a clock.
const CLOCK_LINES: usize = 4 * 8;
/// How far apart two readings of one clock may be.
const TOLERANCE_S: i64 = 30;

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    support::trial::run(tests())
}

fn tests() -> Vec<Trial> {
    let mut trials = trials![missing(&GATE);
        a_program_of_c_sees_the_shifted_clock,
        waits_that_are_not_followed_are_told,
        a_sleep_until_a_time_ends_when_the_clock_is_set_ahead,
    ];
    let with = |need| missing(GATE.iter().chain([&need]));
    trials.extend(trials![with(Need::StaticLibc); a_static_program_sees_the_shifted_clock]);
    trials.extend(trials![with(Need::Program("python3")); python_sees_the_shifted_clock]);
    trials
}

/// Shifts the clock, and counts.
#[derive(Default)]
struct Shifter {
    /// So many seconds. `later`: from so long after the start on.
    shift_s: i64,
    later: Option<(Instant, Duration)>,
    told: usize,
    timers: usize,
    refused: Vec<&'static str>,
    not_followed: Vec<String>,
}

impl CallHandler for Shifter {
    fn decide(&mut self, _call: &InterceptedCall) -> CallDecision {
        CallDecision::Continue
    }

    fn clock_shift(&self) -> ClockShift {
        let is_due = self.later.is_none_or(|(start, time)| start.elapsed() > time);
        ClockShift { nanos: if is_due { self.shift_s * 1_000_000_000 } else { 0 } }
    }

    fn on_effect(&mut self, effect: CallEffect) {
        match effect {
            CallEffect::ToldTime => self.told += 1,
            CallEffect::ClockTimerSet => self.timers += 1,
            CallEffect::ClockChangeRefused { call } => self.refused.push(call),
            CallEffect::ClockNotFollowed { what } => self.not_followed.push(what),
            _ => {}
        }
    }

    fn on_failure(&mut self, failure: GateFailure) {
        panic!("{failure}");
    }
}

fn run_with(argv: &[&str], handler: Shifter) -> (String, Shifter) {
    let handler = Arc::new(Mutex::new(handler));
    let options = FilterOptions { wall_clock: true, ..FilterOptions::default() };
    let (exit, output) = WatchedSandbox::new().run(argv, &options, &handler);
    assert_eq!(exit, ProcessExit::Exited(0), "{output}");
    (output, Arc::into_inner(handler).unwrap().into_inner().unwrap())
}

fn run_shifted(argv: &[&str], shift_s: i64) -> (String, Shifter) {
    let (output, handler) = run_with(argv, Shifter { shift_s, ..Shifter::default() });
    assert_eq!(handler.not_followed, [""; 0]);
    (output, handler)
}

/// What a program outside of the sandbox reads.
fn outside_s() -> i64 {
    let output = Command::new("date").arg("+%s").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

fn assert_shifted(name: &str, seconds: i64, shift_s: i64) {
    let own = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((outside_s() - own).abs() < TOLERANCE_S, "the clock outside is another one");
    assert!(
        (seconds - own - shift_s).abs() < TOLERANCE_S,
        "{name}: {seconds}, {own} outside, shift {shift_s}"
    );
}

/// How a wait of the program must end: its name, its result, and after how long at least and at most.
const WAITS: [(&str, i32, [i64; 2]); 10] = [
    ("sleep", 0, [299, 5_000]),
    ("past", 0, [0, 200]),
    ("cond", libc::ETIMEDOUT, [299, 5_000]),
    ("cond-woken", 1, [199, 5_000]),
    ("sem-woken", 0, [0, 5_000]),
    ("sem", libc::ETIMEDOUT, [299, 5_000]),
    ("timerfd", 1, [299, 5_000]),
    ("timerfd-monotonic", 1, [299, 5_000]),
    ("interrupted", libc::EINTR, [199, 5_000]),
    ("stopped", 0, [499, 5_000]),
];
const SETTINGS: [&str; 3] = ["clock_settime", "settimeofday", "adjtimex"];

fn every_clock(flags: &[&str]) {
    let program = c_target::compile("clock.c", flags).unwrap();
    for shift_s in SHIFTS_S {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime_s: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let (output, handler) = run_shifted(&[program.to_str().unwrap()], shift_s);
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines.len(), CLOCK_LINES + WAITS.len() + SETTINGS.len(), "{output}");
        for line in &lines[..CLOCK_LINES] {
            let (name, seconds) = line.rsplit_once(' ').unwrap();
            let seconds: i64 = seconds.parse().unwrap();
            if name.ends_with("boottime") {
                assert!((seconds - uptime_s as i64).abs() < TOLERANCE_S, "{line}, {uptime}");
            } else if !name.ends_with("monotonic") {
                assert_shifted(name, seconds, shift_s);
            }
        }
        let settings = SETTINGS.map(|name| (name, libc::EPERM, [0, 5_000]));
        for (line, (name, result, [least, most])) in
            lines[CLOCK_LINES..].iter().zip(WAITS.into_iter().chain(settings))
        {
            let (ended, millis) = line.rsplit_once(' ').unwrap();
            assert_eq!(ended, format!("{name} {result}"), "{output}");
            let millis: i64 = millis.parse().unwrap();
            assert!((least..=most).contains(&millis), "{line}: {output}");
        }
        assert!(handler.told >= 4 * 6, "{}", handler.told);
        assert_eq!((handler.timers, &handler.refused[..]), (1, &SETTINGS[..]));
    }
}

fn waits_that_are_not_followed_are_told() {
    let program = c_target::compile("clock.c", &[]).unwrap();
    let handler = Shifter { shift_s: SHIFTS_S[0], ..Shifter::default() };
    let (_, handler) = run_with(&[program.to_str().unwrap(), "other"], handler);
    let expected = [
        "timer_settime to a time of the wall clock",
        "a wait until a time: mq_timedreceive",
        "a wait until a time: futex with priority inheritance",
    ];
    assert_eq!(handler.not_followed, expected);
}

fn a_sleep_until_a_time_ends_when_the_clock_is_set_ahead() {
    let program = c_target::compile("clock.c", &[]).unwrap();
    let hour_s = 3_600;
    let later = Some((Instant::now(), Duration::from_secs(2)));
    let handler = Shifter { shift_s: hour_s, later, ..Shifter::default() };
    let (output, _) = run_with(&[program.to_str().unwrap(), "until", "3600"], handler);
    let seconds = |line: &str| line.rsplit_once(' ').unwrap().1.parse::<i64>().unwrap();
    let lines: Vec<i64> = output.lines().map(seconds).collect();
    assert!(lines[1] >= lines[0] + hour_s, "{output}");
    assert_shifted("after the sleep", lines[1], hour_s);
}

fn a_program_of_c_sees_the_shifted_clock() {
    every_clock(&[]);
}

fn a_static_program_sees_the_shifted_clock() {
    every_clock(&["-static"]);
}

fn python_sees_the_shifted_clock() {
    for shift_s in SHIFTS_S {
        let script = "
import ctypes, datetime, threading, time
print(int(time.time()))
print(int(datetime.datetime.now().timestamp()))
try:
    time.clock_settime(time.CLOCK_REALTIME, time.time())
except PermissionError:
    pass
else:
    raise SystemExit('the clock was set')
def sleep():
    until = (ctypes.c_long * 2)(int(time.time()) + 1, 0)
    assert ctypes.CDLL(None).clock_nanosleep(time.CLOCK_REALTIME, 1, ctypes.byref(until), None) == 0
    print(int(time.time()), flush=True)
thread = threading.Thread(target=sleep)
thread.start()
thread.join(20)
";
        let (output, handler) = run_shifted(&["python3", "-c", script], shift_s);
        assert_eq!(output.lines().count(), 3, "{output}");
        assert_eq!(handler.refused, ["clock_settime"]);
        output.lines().for_each(|line| assert_shifted("python", line.parse().unwrap(), shift_s));
    }
}
