//! Watches what the target's processes use while they run, if an expectation asks for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use scenarios::{Event, Fact, ResourceUse, Scenario};

use crate::observe::Reporter;
use crate::sandbox::{ProcessUse, Sandbox};

/// Time between two looks at the processes.
const INTERVAL: Duration = Duration::from_millis(40);

/// The most that was seen so far.
pub(super) struct ResourceWatch {
    is_needed: bool,
    most: ResourceUse,
    looked_at: Instant,
    /// The zombies of the last look, with the time at which each was seen first.
    zombies: BTreeMap<i32, Instant>,
}

impl ResourceWatch {
    /// Nothing is seen yet.
    pub(super) fn for_scenario(scenario: &Scenario) -> ResourceWatch {
        let asks = |fact: &Fact| {
            matches!(fact, Fact::OpenFiles { .. } | Fact::Threads { .. } | Fact::ZombieTime { .. })
        };
        ResourceWatch {
            is_needed: scenario.expect().iter().any(|expectation| asks(&expectation.fact)),
            most: ResourceUse::default(),
            looked_at: Instant::now(),
            zombies: BTreeMap::new(),
        }
    }

    /// Looks again if the last look was long enough ago, and emits what is more than before.
    pub(super) fn tick(&mut self, sandbox: &Sandbox, reporter: &Reporter) {
        if !self.is_needed || self.looked_at.elapsed() < INTERVAL {
            return;
        }
        self.looked_at = Instant::now();
        let most = self.most.max(self.seen(&sandbox.process_use()));
        if most != self.most {
            self.most = most;
            reporter.emit(Event::Resources(most));
        }
    }

    fn seen(&mut self, processes: &[ProcessUse]) -> ResourceUse {
        let now = self.looked_at;
        let zombies = processes.iter().filter(|process| process.is_zombie).map(|process| process.pid_inside);
        let first_seen = |pid: i32| (pid, self.zombies.get(&pid).copied().unwrap_or(now));
        self.zombies = zombies.map(first_seen).collect();
        let longest = self.zombies.values().map(|first| now.duration_since(*first)).max().unwrap_or_default();
        ResourceUse {
            open_files: processes.iter().map(|process| process.open_files).max().unwrap_or(0),
            threads: processes.iter().map(|process| process.threads).sum(),
            zombie_ms: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
