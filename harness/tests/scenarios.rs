//! One test for each shipped scenario, and one for each shipped scenario that has guards: it must be violated
//! without them. One command runs them all. Tests that this machine cannot run are listed as ignored, with the reason.
//!
//! `cargo test -p trainwreck --test scenarios -- fs-01` runs one scenario.

#![expect(clippy::unwrap_used, reason = "a failed expectation must stop the test")]

#[expect(dead_code, unused_macros, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, OnceLock};

use engine::run::{missing_file, needed_mechanisms};
use libtest_mimic::{Arguments, Failed, Trial};
use scenarios::{Event, Record, Scenario, Verdict};
use support::command::{TRAINWRECK, output_text, run_trainwreck, workspace};
use support::machine::{Need, missing};
use support::trial::trial;
use tempfile::TempDir;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let library = Arc::new(LibraryRun::default());
    let mut trials = Vec::new();
    for scenario in shipped_scenarios() {
        let needs: Vec<Need> = needed_mechanisms(&scenario).into_iter().map(Need::Mechanism).collect();
        let missing = missing(&needs).or_else(|| missing_file(&scenario));
        let id = scenario.id();
        let name = format!("{id}_is_survived");
        trials.push(library.trial(&arguments, name, id, Expected::SURVIVED, missing.as_deref()));
        if !scenario.guards().is_empty() {
            let name = format!("{id}_is_violated_without_its_guards");
            let expected = Expected { guards: Guards::OneRemoved, verdicts: scenario.guards().len() };
            trials.push(library.trial(&arguments, name, id, expected, missing.as_deref()));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Space in memory that the trials of the command may need.
const NEEDED_BYTES_IN_MEMORY: u64 = 8 << 30;

/// Whether a scenario ran as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guards {
    All,
    /// Once for each guard, without it.
    OneRemoved,
}

/// What there must be of a scenario.
#[derive(Clone, Copy)]
struct Expected {
    guards: Guards,
    verdicts: usize,
}

impl Expected {
    const SURVIVED: Expected = Expected { guards: Guards::All, verdicts: 1 };
}

/// One invocation of the command for all scenarios of which a trial is selected. It runs them side by side, and
/// they share baselines. The first trial starts it, and the others read what it found.
#[derive(Default)]
struct LibraryRun {
    /// The scenarios that it runs.
    ids: Mutex<BTreeSet<String>>,
    outcome: OnceLock<LibraryOutcome>,
}

/// What the command did.
struct LibraryOutcome {
    is_success: bool,
    /// The verdicts, by the scenario's name in the record: its ID, then ` without ` and the guard.
    verdicts: Vec<NamedVerdict>,
    /// What it printed, after its exit.
    text: String,
}

struct NamedVerdict {
    name: String,
    verdict: Verdict,
}

impl LibraryRun {
    /// The trial of one scenario. If the arguments select it, the command runs the scenario.
    fn trial(
        self: &Arc<Self>,
        arguments: &Arguments,
        name: String,
        id: &str,
        expected: Expected,
        missing: Option<&str>,
    ) -> Trial {
        let (library, own_id) = (Arc::clone(self), id.to_owned());
        let trial = trial(name, missing, move || library.check(&own_id, expected));
        let is_run = missing.is_none() || arguments.ignored || arguments.include_ignored;
        if is_run && !arguments.is_filtered_out(&trial) {
            self.ids.lock().unwrap().insert(id.to_owned());
        }
        trial
    }

    fn run(&self) -> LibraryOutcome {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let ids = self.ids.lock().unwrap();
        // Nothing else runs meanwhile.
        let jobs = (3 * std::thread::available_parallelism().map_or(1, usize::from)).to_string();
        let mut arguments = vec!["ablate", "--with-guards", "--jobs", &jobs, "--out", out.to_str().unwrap()];
        arguments.extend(ids.iter().map(String::as_str));
        let in_memory = dir_in_memory();
        let mut command = Command::new(TRAINWRECK);
        command.args(&arguments).envs(in_memory.as_ref().map(|dir| ("TMPDIR", dir.path())));
        let output = command.output().unwrap();
        let text = format!("{}\n{}", output.status, output_text(&output));
        let record = std::fs::read_to_string(out.join("record.jsonl")).unwrap_or_default();
        let entries = Record::parse(&record).map_or_else(|_| Vec::new(), |record| record.entries);
        let verdict =
            |event: Event| if let Event::Judged { verdict, .. } = event { Some(verdict) } else { None };
        let named = entries
            .into_iter()
            .filter_map(|entry| Some(NamedVerdict { name: entry.scenario?, verdict: verdict(entry.event)? }));
        LibraryOutcome { is_success: output.status.success(), verdicts: named.collect(), text }
    }

    fn check(&self, id: &str, expected: Expected) -> Result<(), Failed> {
        let LibraryOutcome { is_success, verdicts, text } = self.outcome.get_or_init(|| self.run());
        let Expected { guards, verdicts: count } = expected;
        let verb = if guards == Guards::All { "run" } else { "ablate" };
        let own: Vec<_> =
            verdicts.iter().filter(|named| named.id() == id && named.guards() == guards).collect();
        if own.len() != count {
            return Err(format!("{} verdicts on {id} instead of {count}: {text}", own.len()).into());
        }
        if let Some(first) = own.iter().find(|named| !named.is_expected()) {
            let NamedVerdict { name, verdict } = first;
            return Err(format!("{name}: {verdict:?}\nrepeat: trainwreck {verb} {id}").into());
        }
        // The exit is that of the worst scenario: it tells something only if no verdict explains it.
        if !is_success && verdicts.iter().all(NamedVerdict::is_expected) {
            return Err(format!("every verdict is right, but the exit: {text}").into());
        }
        Ok(())
    }
}

impl NamedVerdict {
    fn id(&self) -> &str {
        self.name.split(' ').next().unwrap_or_default()
    }

    fn guards(&self) -> Guards {
        if self.name.contains(' ') { Guards::OneRemoved } else { Guards::All }
    }

    fn is_expected(&self) -> bool {
        match &self.verdict {
            Verdict::Survived => self.guards() == Guards::All,
            Verdict::Violated { .. } => self.guards() == Guards::OneRemoved,
            Verdict::Inconclusive { .. } | Verdict::Skipped { .. } => false,
        }
    }
}

/// A directory in memory, if there is room. Trials make and remove so many small files that they need about a third
/// less processor time there than on ext4. By hand, `trainwreck run` has them where `TMPDIR` says.
fn dir_in_memory() -> Option<TempDir> {
    let space = nix::sys::statvfs::statvfs("/dev/shm").ok()?;
    let free_bytes = space.fragment_size() * space.blocks_available();
    (free_bytes >= NEEDED_BYTES_IN_MEMORY).then(|| tempfile::tempdir_in("/dev/shm").ok())?
}

/// All scenarios of the library, by their IDs. The command must list the same: otherwise a scenario would not
/// be shipped, and nobody would notice.
fn shipped_scenarios() -> Vec<Scenario> {
    let entries = |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let domains = entries(workspace().join("scenarios/library")).filter(|path| path.is_dir());
    let is_yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml");
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        Scenario::parse(&text, "library").unwrap_or_else(|error| panic!("{error}"))
    };
    let mut scenarios: Vec<Scenario> = domains.flat_map(entries).filter(is_yaml).map(read).collect();
    scenarios.sort_by(|a, b| a.id().cmp(b.id()));
    let list = output_text(&run_trainwreck(&["list"]));
    let words: BTreeSet<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let unlisted: Vec<&str> = scenarios.iter().map(Scenario::id).filter(|id| !words.contains(id)).collect();
    assert!(scenarios.len() > 40 && unlisted.is_empty(), "not listed: {unlisted:?}\n{list}");
    scenarios
}
