//! Stands at the gate of a run: counts the calls that a scenario's triggers speak of, and strikes at the one aimed at.
//!
//! Exact: the target waits in the call until the fault has been made. Phases begin and end with the target's words,
//! which are heard where they are first said, in order with the calls of whoever says them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use regex::Regex;
use scenarios::{CallTrigger, Operation, Swapped, TargetFile};

use crate::gate::{Call, Decision, Done, Interest, Key, Kind, Overseer, Rule, Rules, Swap};
use crate::plan::{Moment, Planned, SeenCall, Way};
use crate::sandbox::Striker;

/// How long a call waits for the harness to do something.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a line that are looked at.
const LINE_MAX: usize = 4096;
/// Calls that are remembered of one turn of a phase.
const SEEN_MAX: usize = 100_000;

/// What the sentry tells the run.
pub(super) enum Hit {
    /// Everything is dead.
    Killed { fault: String, evidence: String },
    /// The call got what was meant for it.
    Landed { fault: String, evidence: String },
    /// The fault is to strike now; the call waits until `done` is used or dropped.
    Wanted { fault: String, evidence: String, done: SyncSender<()> },
}

/// A fault that strikes at a call.
struct Post {
    fault: String,
    /// Which turn of the phase, 1-based; none: the whole run.
    turn: Option<u64>,
    rules: Rules,
    way: Way,
    struck: bool,
}

/// The calls that are counted: those of the first trigger that speaks of calls.
struct Watch {
    kinds: Vec<Kind>,
    on: Option<globset::GlobMatcher>,
    /// Counted turn by turn of the phase, and only within it.
    turns: bool,
    begins_ends: Option<(Regex, Regex)>,
}

/// Where the target is in its phase.
#[derive(Default)]
struct Turns {
    begun: u64,
    inside: bool,
}

/// The overseer of a run.
pub(super) struct Sentry {
    base: PathBuf,
    watch: Watch,
    posts: Vec<Post>,
    turns: Turns,
    /// Of each turn of the phase, or of the whole run; only where nothing is struck.
    seen: Option<Vec<Vec<SeenCall>>>,
    at_end: Box<dyn FnMut() + Send>,
    hits: Sender<Hit>,
    striker: Striker,
    /// Evidence of the strike that is under way.
    under_way: Option<(String, String)>,
    /// Bytes of the call that is being overheard, and lines that have no end yet.
    said: Vec<u8>,
    partial: HashMap<Key, Vec<u8>>,
    /// The main process's own outputs, and whether somebody else of the target has words of the phase: a worker, whose
    /// supervisor tells of them only later.
    own: Vec<Key>,
    others_speak: bool,
    /// Lines that somebody may pass on, and in which pipe they were said first.
    echoes: HashMap<String, Key>,
}

/// A sentry, and where it reports.
pub(super) struct Guardroom {
    pub(super) sentry: Arc<Mutex<Sentry>>,
    pub(super) hits: Receiver<Hit>,
    interest: Interest,
}

impl Guardroom {
    /// For a trial. None: none of its faults strikes at a call.
    pub(super) fn for_trial(
        target: &TargetFile,
        base: PathBuf,
        striker: Striker,
        faults: &[Planned],
    ) -> Option<Guardroom> {
        let trigger = faults.iter().find_map(Planned::call)?;
        let mut room = Guardroom::new(target, base.clone(), striker, Some(trigger), None);
        let posts: Vec<Post> = faults.iter().filter_map(|planned| post(planned, &base)).collect();
        let kinds = faults.iter().filter_map(Planned::call).flat_map(|trigger| kinds(&trigger.to));
        room.interest.also = kinds.collect();
        let sentry = Arc::get_mut(&mut room.sentry)?.get_mut().unwrap_or_else(PoisonError::into_inner);
        (sentry.posts, sentry.seen) = (posts, None);
        Some(room)
    }

    /// For a steady state: counts what the trigger speaks of. `at_end`: done at each end of the phase, while the target
    /// waits.
    pub(super) fn counting(
        target: &TargetFile,
        base: PathBuf,
        striker: Striker,
        trigger: Option<&CallTrigger>,
        phase: Option<&str>,
        at_end: Box<dyn FnMut() + Send>,
    ) -> Guardroom {
        let mut room = Guardroom::new(target, base, striker, trigger, phase);
        if let Some(sentry) = Arc::get_mut(&mut room.sentry) {
            sentry.get_mut().unwrap_or_else(PoisonError::into_inner).at_end = at_end;
        }
        room
    }

    fn new(
        target: &TargetFile,
        base: PathBuf,
        striker: Striker,
        trigger: Option<&CallTrigger>,
        phase: Option<&str>,
    ) -> Guardroom {
        let during = trigger.and_then(|trigger| trigger.during.as_deref());
        let bounds = |phase: Option<&str>| {
            let phase = target.phases().get(phase?)?;
            Some((phase.begins().clone(), phase.ends().clone()))
        };
        let watch = Watch {
            kinds: trigger.map(|trigger| kinds(&trigger.to)).unwrap_or_default(),
            on: trigger.and_then(|trigger| trigger.on.clone()),
            turns: during.is_some(),
            begins_ends: bounds(during.or(phase)),
        };
        let interest = Interest { also: watch.kinds.clone(), words: watch.begins_ends.is_some() };
        let (sender, hits) = channel();
        let sentry = Sentry {
            base,
            watch,
            posts: Vec::new(),
            turns: Turns::default(),
            seen: Some(Vec::new()),
            hits: sender,
            striker,
            under_way: None,
            said: Vec::new(),
            partial: HashMap::new(),
            at_end: Box::new(|| ()),
            own: Vec::new(),
            others_speak: false,
            echoes: HashMap::new(),
        };
        Guardroom { sentry: Arc::new(Mutex::new(sentry)), hits, interest }
    }

    pub(super) fn interest(&self) -> &Interest {
        &self.interest
    }

    /// Whether something may still happen at a call. Without it the target runs free.
    pub(super) fn is_needed(&self) -> bool {
        let sentry = self.sentry.lock().unwrap_or_else(PoisonError::into_inner);
        sentry.seen.is_some() || sentry.posts.iter().any(|post| !post.struck || post.rules.waiting())
    }

    /// The outputs with which the target's main process is about to be started.
    pub(super) fn expect_words_in(&self, outputs: Vec<Key>) {
        let mut sentry = self.sentry.lock().unwrap_or_else(PoisonError::into_inner);
        (sentry.own, sentry.others_speak) = (outputs, false);
    }

    /// A fault that goes on is over.
    pub(super) fn lift(&self, fault: &str) {
        let mut sentry = self.sentry.lock().unwrap_or_else(PoisonError::into_inner);
        for post in sentry.posts.iter_mut().filter(|post| post.fault == fault) {
            post.rules.end(0);
        }
    }

    /// What was counted.
    pub(super) fn seen(&self) -> Vec<Vec<SeenCall>> {
        self.sentry.lock().unwrap_or_else(PoisonError::into_inner).seen.clone().unwrap_or_default()
    }
}

fn post(planned: &Planned, base: &std::path::Path) -> Option<Post> {
    let (trigger, Moment::Call { turn, nth, way, .. }) = (planned.call()?, &planned.moment) else {
        return None;
    };
    let rule = Rule {
        kinds: kinds(&trigger.to),
        paths: trigger.on.clone(),
        nth: *nth,
        from_then_on: planned.goes_on(),
        decision: decision(way),
    };
    let rules = Rules::new(base.into(), vec![rule]);
    Some(Post { fault: planned.name(), turn: *turn, rules, way: way.clone(), struck: false })
}

fn decision(way: &Way) -> Decision {
    let errno = |errno: &scenarios::Errno| nix::errno::Errno::from_raw(errno.number);
    match way {
        Way::KillBefore => Decision::StrikeBefore,
        Way::KillInside { bytes } => Decision::StrikeInside(*bytes),
        Way::KillAfter => Decision::StrikeAfter,
        Way::Fail { errno: with, performed: false, .. } => Decision::Fail(errno(with)),
        Way::Fail { errno: with, performed: true, .. } => Decision::PerformThenFail(errno(with)),
        Way::Short { bytes } => Decision::Short(u64::from(*bytes)),
        Way::Delay { time } => Decision::Delay(*time),
        Way::Swap { by: Swapped::Nothing } => Decision::Swap(Swap::Nothing),
        Way::Swap { by: Swapped::EmptyFile } => Decision::Swap(Swap::EmptyFile),
        Way::Swap { by: Swapped::DanglingLink } => Decision::Swap(Swap::DanglingLink),
        Way::Strike => Decision::Let,
    }
}

fn kinds(operations: &[Operation]) -> Vec<Kind> {
    operations
        .iter()
        .map(|operation| match operation {
            Operation::Open => Kind::Open,
            Operation::OpenToRead => Kind::OpenRead,
            Operation::Read => Kind::Read,
            Operation::Write => Kind::Write,
            Operation::Truncate => Kind::Truncate,
            Operation::Allocate => Kind::Allocate,
            Operation::Rename => Kind::Rename,
            Operation::Link => Kind::Link,
            Operation::Symlink => Kind::Symlink,
            Operation::Unlink => Kind::Unlink,
            Operation::Mkdir => Kind::Mkdir,
            Operation::Rmdir => Kind::Rmdir,
            Operation::Chmod => Kind::Chmod,
            Operation::Fsync => Kind::Fsync,
            Operation::Fdatasync => Kind::Fdatasync,
            Operation::Close => Kind::Close,
            Operation::Stat => Kind::Stat,
            Operation::Access => Kind::Access,
        })
        .collect()
}

fn operation(kind: Kind) -> Option<Operation> {
    Operation::ALL.into_iter().find(|one| kinds(&[*one]) == [kind])
}

impl Sentry {
    fn shown(&self, call: &Call) -> String {
        let below =
            |path: &std::path::Path| path.strip_prefix(&self.base).unwrap_or(path).display().to_string();
        let to = call.to.as_ref().map(|to| format!(" -> {}", below(to))).unwrap_or_default();
        let bytes = call.bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
        format!("{}({}{to}{bytes})", call.kind.name(), below(&call.path))
    }

    /// Remembers the call, where calls are only counted.
    fn note(&mut self, call: &Call) {
        let in_phase = !self.watch.turns || self.turns.inside;
        let below = call.path.strip_prefix(&self.base).ok();
        let to_below = call.to.as_ref().and_then(|to| to.strip_prefix(&self.base).ok());
        let is_meant = |path: &std::path::Path| self.watch.on.as_ref().is_none_or(|on| on.is_match(path));
        let meant = below.into_iter().chain(to_below).any(is_meant);
        if !in_phase || !meant || !self.watch.kinds.contains(&call.kind) {
            return;
        }
        let turn = if self.watch.turns { self.turns.begun.max(1) as usize } else { 1 };
        let Some(operation) = operation(call.kind) else { return };
        let path = below.unwrap_or(&call.path).display().to_string();
        if let Some(seen) = &mut self.seen {
            if seen.len() < turn {
                seen.resize_with(turn, Vec::new);
            }
            if seen[turn - 1].len() < SEEN_MAX {
                seen[turn - 1].push(SeenCall { operation, path, bytes: call.bytes.unwrap_or(0) });
            }
        }
    }

    fn tell(&self, hit: Hit) {
        // A run that is over listens no more.
        let _ = self.hits.send(hit);
    }

    /// Waits until the run has struck.
    fn want(&self, fault: String, evidence: String) {
        let (done, is_done) = sync_channel(1);
        self.tell(Hit::Wanted { fault, evidence, done });
        // Late or never: the evidence that the fault gives by itself decides whether it landed.
        let _ = is_done.recv_timeout(PATIENCE);
    }

    fn meet(&mut self, call: &Call) -> Option<(usize, Decision, String)> {
        let (turns, shown) = (&self.turns, self.shown(call));
        for (number, post) in self.posts.iter_mut().enumerate() {
            let here = post.struck || post.turn.is_none_or(|turn| turns.inside && turns.begun == turn);
            let Some(hit) = here.then(|| post.rules.meet(call)).flatten() else { continue };
            let turn = post.turn.map(|turn| format!(" of turn {turn}")).unwrap_or_default();
            let evidence = format!("{shown}, call {}{turn}", hit.nth);
            return Some((number, hit.decision, evidence));
        }
        None
    }

    /// A line, where it is first said.
    fn hear(&mut self, pipe: Key, line: &str) {
        let Some((begins, ends)) = &self.watch.begins_ends else { return };
        let (begins, ends) = (begins.is_match(line), ends.is_match(line));
        if !begins && !ends {
            return;
        }
        let own = self.own.contains(&pipe);
        self.others_speak |= !own;
        if own && self.others_speak {
            return;
        }
        match self.echoes.get(line) {
            // Passed on by somebody else, as a supervisor does with its worker's words.
            Some(first) if *first != pipe => {
                self.echoes.remove(line);
                return;
            }
            _ => drop(self.echoes.insert(line.to_owned(), pipe)),
        }
        if begins {
            // A turn that was begun and never ended is begun again.
            self.turns.begun += u64::from(!self.turns.inside);
            self.turns.inside = true;
        } else {
            self.turns.inside = false;
            (self.at_end)();
            self.strike_at_the_end();
        }
    }

    /// A turn that had fewer calls than the undisturbed one: the kill comes now, and the evidence says so.
    fn strike_at_the_end(&mut self) {
        let turn = self.turns.begun;
        let is_kill = |way: &Way| matches!(way, Way::KillBefore | Way::KillInside { .. } | Way::KillAfter);
        let due = |post: &&mut Post| post.turn == Some(turn) && !post.struck && is_kill(&post.way);
        if let Some(post) = self.posts.iter_mut().find(due) {
            post.struck = true;
            let evidence = format!("killed at the end of turn {turn}, which had fewer calls this time");
            self.under_way = Some((post.fault.clone(), evidence));
            Overseer::strike(self);
        }
    }
}

impl Overseer for Sentry {
    fn decide(&mut self, call: &Call) -> Decision {
        self.said.clear();
        if self.seen.is_some() {
            self.note(call);
            return Decision::Let;
        }
        let Some((number, decision, evidence)) = self.meet(call) else { return Decision::Let };
        let first = !std::mem::replace(&mut self.posts[number].struck, true);
        let (fault, way) = (self.posts[number].fault.clone(), self.posts[number].way.clone());
        match way {
            Way::KillBefore | Way::KillInside { .. } | Way::KillAfter => {
                self.under_way = Some((fault, format!("{} {evidence}", way.words())));
            }
            Way::Strike if first => self.want(fault, format!("at {evidence}")),
            Way::Swap { .. } => self.under_way = Some((fault, format!("{} before {evidence}", way.words()))),
            Way::Strike => {}
            way if first => {
                self.tell(Hit::Landed { fault, evidence: format!("{evidence}: {}", way.words()) })
            }
            _ => {}
        }
        decision
    }

    fn payload(&mut self, bytes: &[u8]) {
        let room = LINE_MAX.saturating_sub(self.said.len()).min(bytes.len());
        self.said.extend_from_slice(&bytes[..room]);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Said { pipe } => {
                let mut text = self.partial.remove(&pipe).unwrap_or_default();
                text.append(&mut self.said);
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    self.hear(pipe, String::from_utf8_lossy(&line).trim_end());
                }
                text.truncate(LINE_MAX);
                self.partial.insert(pipe, text);
            }
            Done::Swapped { .. } => {
                if let Some((fault, evidence)) = self.under_way.take() {
                    self.tell(Hit::Landed { fault, evidence });
                }
            }
            _ => {}
        }
        self.said.clear();
    }

    fn strike(&mut self) {
        let struck = self.striker.strike();
        let (fault, evidence) = self.under_way.take().unwrap_or_default();
        let evidence = match struck {
            Ok(()) => format!("every process was {evidence}"),
            Err(error) => format!("the kill failed ({error}): {evidence}"),
        };
        self.tell(Hit::Killed { fault, evidence });
    }

    fn hears(&self, _pipe: Key) -> bool {
        true
    }
}
