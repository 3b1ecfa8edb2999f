//! Every decision at every kind of call: the call, the files and the target are as the decision says, and what the
//! gate reports is what was done. Where only the kernel can perform a call, the gate says so, and the call goes on
//! as if there were no decision.
//!
//! `cargo test -p trainwreck --test call_decisions`.

#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test panics at the first unexpected result, and prints what it has tried"
)]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod call_rows;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::gate::{
    CallDecision, CallHandler, CallKind, CarriedOut, FilterOptions, GateFailure, InterceptedCall, Swap,
};
use libtest_mimic::Trial;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use call_rows::{CallRow, SHORT_BYTES, all_rows};
use support::call_programs::{
    InterpreterRun, Program, ProgramResult, program_of, run_programs, run_programs_bare,
};
use support::machine::{GATE, missing};
use support::watched_sandbox::WatchedOn;

/// The directory that a program makes before the call on which a decision is tried.
const MARK: &str = "mkdir :mark 0755";
const FAIL_ERRNO: Errno = Errno::EDQUOT;

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    support::trial::run(trials![
        missing(&GATE);
        every_decision_does_at_every_kind_of_call_what_it_says,
    ] as Vec<Trial>)
}

/// All decisions. A new one does not compile here.
fn all_decisions() -> Vec<CallDecision> {
    let decisions = vec![
        CallDecision::Continue,
        CallDecision::Perform,
        CallDecision::Observe,
        CallDecision::Fail(FAIL_ERRNO),
        CallDecision::PerformThenFail(FAIL_ERRNO),
        CallDecision::Short(SHORT_BYTES),
        CallDecision::Short(1 << 40),
        CallDecision::KillBefore,
        CallDecision::KillDuring(SHORT_BYTES),
        CallDecision::KillDuring(1 << 40),
        CallDecision::KillAfter,
        CallDecision::Delay(Duration::from_millis(1)),
        CallDecision::Swap(Swap::Nothing),
        CallDecision::Swap(Swap::EmptyFile),
        CallDecision::Swap(Swap::DanglingLink),
    ];
    for decision in &decisions {
        match decision {
            CallDecision::Continue
            | CallDecision::Perform
            | CallDecision::Observe
            | CallDecision::Fail(_)
            | CallDecision::PerformThenFail(_)
            | CallDecision::Short(_)
            | CallDecision::KillBefore
            | CallDecision::KillDuring(_)
            | CallDecision::KillAfter
            | CallDecision::Delay(_)
            | CallDecision::Swap(Swap::Nothing | Swap::EmptyFile | Swap::DanglingLink) => {}
        }
    }
    decisions
}

/// What the gate did at the marked call of one program.
#[derive(Debug, Default, Clone)]
struct MarkedCall {
    /// The kind of the call after the mark, if it is the expected one.
    is_next: bool,
    decided: bool,
    carried_out: Vec<CarriedOut>,
}

/// Decides at the first call of the expected kind after the mark of each program. All others continue.
struct DecidingHandler {
    watched: PathBuf,
    decision: CallDecision,
    kinds: Vec<CallKind>,
    calls: HashMap<usize, MarkedCall>,
    /// The program and the thread whose mark came last: programs run one after the other.
    current: Option<(usize, i32)>,
}

impl DecidingHandler {
    fn marked_call(&mut self) -> Option<&mut MarkedCall> {
        self.calls.get_mut(&self.current?.0)
    }
}

impl CallHandler for DecidingHandler {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        if call.kind == CallKind::Mkdir && call.path.ends_with("mark") {
            let program = program_of(&call.path, &self.watched).unwrap();
            self.current = Some((program, call.tid));
            self.calls.insert(program, MarkedCall { is_next: true, ..MarkedCall::default() });
            return CallDecision::Perform;
        }
        let (kinds, decision) = (self.kinds.clone(), self.decision);
        let Some((program, tid)) = self.current else { return CallDecision::Continue };
        match self.marked_call() {
            Some(marked) if marked.is_next && tid == call.tid && call.kind == kinds[program] => {
                (marked.is_next, marked.decided) = (false, true);
                decision
            }
            _ => CallDecision::Continue,
        }
    }

    fn on_carried_out(&mut self, carried_out: CarriedOut) {
        self.marked_call().unwrap().carried_out.push(carried_out);
    }

    /// Kills the program only: the next one runs in the same sandbox.
    fn kill_target(&mut self) {
        let (_, tid) = self.current.unwrap();
        kill(Pid::from_raw(tid), Signal::SIGKILL).unwrap();
        while Path::new(&format!("/proc/{tid}/fd/0")).exists() {
            std::thread::yield_now();
        }
    }

    fn on_failure(&mut self, failure: GateFailure) {
        panic!("{failure}");
    }
}

/// The program that makes a call of a row. `lines`: what it does directly before the call.
fn program_of_row(row: &CallRow, lines: &[String], call: &str) -> Program {
    let before = row.before.iter().map(|line| (*line).to_owned());
    before.chain([MARK.to_owned()]).chain(lines.iter().cloned()).chain([call.to_owned()]).collect()
}

/// What the supervisor does to the file of a row before the call.
fn swap_lines(row: &CallRow, swap: Swap) -> Vec<String> {
    let Some(path) = row.path else { return Vec::new() };
    let put = match swap {
        Swap::Nothing => None,
        Swap::EmptyFile => Some(format!("mknod {path} S_IFREG|0644")),
        Swap::DanglingLink => Some(format!("symlink :swapped-away {path}")),
    };
    std::iter::once(format!("unlink {path}")).chain(put).collect()
}

/// What a row and a decision must lead to.
struct Expectation {
    /// The program that does the same without the gate.
    program: Program,
    /// What the gate reports. `Performed` has the result of the call without the gate, which is filled in later.
    reported: Reported,
    /// What the target sees of the call.
    seen: Seen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reported {
    Nothing,
    Prevented,
    Prepared,
    NotPossible,
    /// The result that the call has in the program without the gate.
    Performed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// What the program without the gate sees.
    Result,
    /// This errno; if `unless_failed`, only if the call itself does not fail.
    Errno { unless_failed: bool },
    /// Nothing: it is dead.
    Dead,
}

fn expectation(row: &CallRow, decision: CallDecision) -> Expectation {
    let whole = || program_of_row(row, &[], &row.call);
    let without = || {
        let mut program = whole();
        program.pop();
        program
    };
    let limited = |bytes: u64| match &row.shortened {
        Some(call) if bytes == SHORT_BYTES => program_of_row(row, &[], call),
        _ => whole(),
    };
    let expect = |program, reported, seen| Expectation { program, reported, seen };
    let performs = !row.only_kernel;
    match decision {
        CallDecision::Continue | CallDecision::Perform => expect(whole(), Reported::Nothing, Seen::Result),
        CallDecision::Fail(_) => expect(without(), Reported::Prevented, Seen::Errno { unless_failed: false }),
        CallDecision::KillBefore => expect(without(), Reported::Prevented, Seen::Dead),
        CallDecision::Delay(_) => expect(whole(), Reported::Prepared, Seen::Result),
        CallDecision::Swap(swap) if row.path.is_some() => {
            let lines = swap_lines(row, swap);
            expect(program_of_row(row, &lines, &row.call), Reported::Prepared, Seen::Result)
        }
        CallDecision::Swap(_) => expect(whole(), Reported::NotPossible, Seen::Result),
        _ if !performs => expect(whole(), Reported::NotPossible, Seen::Result),
        CallDecision::PerformThenFail(_) => {
            expect(whole(), Reported::Performed, Seen::Errno { unless_failed: true })
        }
        CallDecision::Observe => expect(whole(), Reported::Performed, Seen::Result),
        CallDecision::Short(bytes) => expect(limited(bytes), Reported::Performed, Seen::Result),
        CallDecision::KillDuring(bytes) => expect(limited(bytes), Reported::Performed, Seen::Dead),
        CallDecision::KillAfter => expect(whole(), Reported::Performed, Seen::Dead),
    }
}

/// The result of the last call of a program, as `random_calls` prints it.
struct LastCall<'a> {
    value: i64,
    errno: i32,
    /// Bytes that were read, and the state of the descriptors afterwards.
    rest: &'a str,
    bytes: &'a str,
}

impl LastCall<'_> {
    fn of(result: &ProgramResult) -> LastCall<'_> {
        let line = result.output.lines().last().unwrap();
        let (before, after) = line.split_once(" = ").unwrap_or_else(|| panic!("{}", result.output));
        let mut words = after.splitn(3, ' ');
        let mut number = || words.next().unwrap().parse::<i64>().unwrap();
        let (value, errno) = (number(), number() as i32);
        let bytes = before.splitn(3, ' ').nth(2).unwrap_or_default();
        LastCall { value, errno, rest: words.next().unwrap_or_default(), bytes }
    }
}

/// Everything that is wrong with what came of a decision at a row.
fn faults_of(
    expected: &Expectation,
    bare: &ProgramResult,
    gated: &ProgramResult,
    marked: &MarkedCall,
    opens: bool,
) -> Vec<String> {
    let mut faults = Vec::new();
    if !marked.decided {
        faults.push("no decision was asked for".to_owned());
    }
    let trees = ProgramResult { output: String::new(), tree: bare.tree.clone() }
        .differences(&ProgramResult { output: String::new(), tree: gated.tree.clone() });
    faults.extend(trees);
    let own = LastCall::of(bare);
    let performed = match own.errno {
        // The number of a new descriptor is not known before the target has it.
        0 => Ok(if opens { 0 } else { own.value }),
        errno => Err(Errno::from_raw(errno)),
    };
    let reported = match expected.reported {
        Reported::Nothing => vec![],
        Reported::Prevented => vec![CarriedOut::Prevented],
        Reported::Prepared => vec![CarriedOut::Prepared],
        Reported::NotPossible => vec![CarriedOut::NotPossible],
        Reported::Performed => vec![CarriedOut::Performed(performed)],
    };
    if marked.carried_out != reported {
        faults.push(format!("reported {:?} instead of {reported:?}", marked.carried_out));
    }
    let has_died = gated.output.lines().last().is_some_and(|line| line == "status 9");
    if has_died != (expected.seen == Seen::Dead) {
        faults.push(format!("unexpected end: {}", gated.output));
    }
    if has_died || expected.seen == Seen::Dead {
        return faults;
    }
    let seen = LastCall::of(gated);
    match expected.seen {
        Seen::Errno { unless_failed } if !(unless_failed && own.errno != 0) => {
            if (seen.value, seen.errno) != (-1, FAIL_ERRNO as i32) {
                faults.push(format!("the target sees {} {}", seen.value, seen.errno));
            }
        }
        _ => {
            if (seen.value, seen.errno, seen.rest, seen.bytes) != (own.value, own.errno, own.rest, own.bytes)
            {
                faults.push(format!("bare {}, gated {}", bare.output, gated.output));
            }
        }
    }
    faults
}

fn every_decision_does_at_every_kind_of_call_what_it_says() {
    let rows = all_rows();
    let kinds: Vec<CallKind> = rows.iter().map(|row| row.kind).collect();
    let mut faults = Vec::new();
    for decision in all_decisions() {
        let expected: Vec<Expectation> = rows.iter().map(|row| expectation(row, decision)).collect();
        let references: Vec<Program> = expected.iter().map(|expected| expected.program.clone()).collect();
        let bare = run_programs_bare(&references, WatchedOn::Memory);
        let programs: Vec<Program> = rows.iter().map(|row| program_of_row(row, &[], &row.call)).collect();
        let gated = run_programs(&programs, WatchedOn::Memory, |setup, argv| {
            let handler = DecidingHandler {
                watched: setup.watched.clone(),
                decision,
                kinds: kinds.clone(),
                calls: HashMap::new(),
                current: None,
            };
            let handler = Arc::new(Mutex::new(handler));
            let extra_kinds =
                vec![CallKind::Read, CallKind::OpenToRead, CallKind::Close, CallKind::Stat, CallKind::Access];
            let (exit, output) = setup.run(
                argv,
                &FilterOptions { extra_kinds, connections: false, ..FilterOptions::default() },
                &handler,
            );
            let calls = handler.lock().unwrap().calls.clone();
            InterpreterRun { exit, output, noted: calls }
        });
        for (index, row) in rows.iter().enumerate() {
            let marked = gated.noted.get(&index).cloned().unwrap_or_default();
            let opens = matches!(row.kind, CallKind::Open | CallKind::OpenToRead);
            let found = faults_of(&expected[index], &bare[index], &gated.results[index], &marked, opens);
            let title = |fault| format!("{decision:?} at `{}`: {fault}", row.call);
            faults.extend(found.into_iter().map(title));
        }
    }
    let count = rows.len() * all_decisions().len();
    assert!(faults.is_empty(), "{} faults in {count} cells:\n{}", faults.len(), faults.join("\n"));
    eprintln!("{count} cells: {} calls, {} decisions", rows.len(), all_decisions().len());
}
