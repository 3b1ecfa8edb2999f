//! What the command is asked to do with which target: habits of the target, verbs, signals that end an
//! invocation early, and random sequences of all that. Starts nothing.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::seeded_random::SeededRandom;

/// Habits of `targets/careless.sh`, apart from those that need a second process or end with the rest.
pub(crate) const SHELL_HABITS: [&str; 13] = [
    "logs",
    "home",
    "temporary",
    "modes",
    "rename",
    "truncate",
    "hardlink",
    "through_link",
    "dates",
    "special",
    "daemon",
    "rename_itself",
    "wipe",
];

/// Habits of `targets/careless.py`.
pub(crate) const PYTHON_HABITS: [&str; 11] = [
    "mapping",
    "attributes",
    "owners",
    "times",
    "copy_range",
    "hardlink",
    "exchange",
    "descriptor",
    "allocate",
    "process_root",
    "wipe",
];

/// What the command is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// `run`, with a kill in the middle, and without `--out`.
    Run,
    /// `run`, with a kill at each call of a save, in the target's own root.
    RunAtCalls,
    Ablate,
    ExploreProcess,
    ExplorePower,
    ExploreTwice,
    ExploreWarm,
    ExploreTarget,
    /// A watched directory that is not there yet.
    ExploreMissing,
    Check,
    Analyze,
    List,
    Doctor,
    Recover,
    Schema,
}

/// All of them: those that run a target come first.
const VERBS: [Verb; 15] = [
    Verb::Run,
    Verb::RunAtCalls,
    Verb::Ablate,
    Verb::ExploreProcess,
    Verb::ExplorePower,
    Verb::ExploreTwice,
    Verb::ExploreWarm,
    Verb::ExploreTarget,
    Verb::ExploreMissing,
    Verb::Check,
    Verb::Analyze,
    Verb::List,
    Verb::Doctor,
    Verb::Recover,
    Verb::Schema,
];

/// How many of `VERBS` run a target.
const RUNNING_VERBS: usize = 9;

/// The signal that ends an invocation early, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EarlyEnd {
    pub(crate) signal: Signal,
    pub(crate) after: Duration,
    pub(crate) to_group: bool,
}

/// One invocation of the command.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) number: usize,
    pub(crate) verb: Verb,
    /// The target's script: `sh` or `py`.
    pub(crate) language: &'static str,
    /// What the target does apart from training, separated by commas.
    pub(crate) habits: String,
    pub(crate) end: Option<EarlyEnd>,
}

/// A number from the environment.
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Invocations with random habits of the target. Of five, one is killed and one is interrupted. Each verb
/// comes before any comes again.
pub(crate) fn invocations(seed: u64) -> Vec<Invocation> {
    let count = setting("TRAINWRECK_INVOCATIONS", 8);
    let mut random = SeededRandom::new(seed ^ u64::try_from(setting("TRAINWRECK_SEED", 1)).unwrap() << 8);
    let (mut any, mut running) = (Vec::new(), Vec::new());
    (1..=count)
        .map(|number| {
            let end = early_end(number, &mut random);
            // What reads only is over before a signal comes.
            let deck = if end.is_some() { &mut running } else { &mut any };
            if deck.is_empty() {
                let size = if end.is_some() { RUNNING_VERBS } else { VERBS.len() };
                deck.extend_from_slice(&VERBS[..size]);
                random.shuffle(deck);
            }
            let verb = deck.pop().unwrap();
            let is_python = verb == Verb::ExploreWarm || random.below(2) == 0;
            let mut habits = if is_python { PYTHON_HABITS.to_vec() } else { SHELL_HABITS.to_vec() };
            random.shuffle(&mut habits);
            habits.truncate(1 + random.below(4));
            let language = if is_python { "py" } else { "sh" };
            Invocation { number, verb, language, habits: habits.join(","), end }
        })
        .collect()
}

fn early_end(number: usize, random: &mut SeededRandom) -> Option<EarlyEnd> {
    let signal = match number % 5 {
        1 => Signal::SIGKILL,
        3 if random.below(2) == 0 => Signal::SIGINT,
        3 => Signal::SIGTERM,
        _ => return None,
    };
    let after = Duration::from_millis(u64::try_from(random.below(1500)).unwrap());
    Some(EarlyEnd { signal, after, to_group: random.below(2) == 0 })
}
