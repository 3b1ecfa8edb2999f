//! A made-up record and a made-up exploration, from which the tests make reports. Knows no report.

use std::collections::BTreeMap;

use scenarios::*;

/// Text that would be markup, a colour, or the end of a part, if it were not escaped.
pub(crate) const HOSTILE: &str =
    "<script>alert(1)</script> \u{1b}[31m \u{0} \u{202e}evil | `code` ]]> --> &amp; \u{ffff}";

pub(crate) fn entry(at_us: u64, scenario: Option<&str>, trial: Option<u32>, event: Event) -> RecordEntry {
    RecordEntry { at_us, scenario: scenario.map(str::to_owned), trial, event }
}

pub(crate) fn started() -> Event {
    let mechanisms = vec![
        Mechanism {
            name: "user-namespace".into(),
            granted: true,
            detail: "user, mount, pid and IPC namespaces".into(),
        },
        Mechanism { name: "memory-cgroup".into(), granted: false, detail: HOSTILE.into() },
    ];
    Event::RunStarted(RunStarted {
        format: RECORD_FORMAT,
        version: "0.1.0".into(),
        run: "2026-11-23T19-06-31Z-seed-7".into(),
        started: "2026-11-23T19:06:31Z".into(),
        seed: 7,
        command: vec!["trainwreck".into(), HOSTILE.into()],
        machine: MachineFacts {
            kernel: "6.18".into(),
            cores: 4,
            memory_bytes: 24 << 30,
            user: "root".into(),
            mechanisms,
        },
        scenarios: 5,
    })
}

pub(crate) fn scenario(title: &str, guard_removed: Option<&str>) -> Event {
    Event::ScenarioStarted(Box::new(ScenarioStarted {
        title: title.into(),
        severity: "critical".into(),
        domain: "filesystem".into(),
        file: "scenarios/library/filesystem/fs-01-kill-mid-save.yaml".into(),
        source: include_str!("../../../scenarios/library/filesystem/fs-01-kill-mid-save.yaml").into(),
        target_source: "id: x".into(),
        target_file: "targets/x.yaml".into(),
        guards: vec!["atomic-save".into()],
        guard_removed: guard_removed.map(str::to_owned),
        repeat: "trainwreck run fs-01 --seed 7".into(),
        inherited: Vec::new(),
    }))
}

/// The first fault of a method.
pub(crate) fn fault_id(key: &str) -> FaultId {
    FaultId { number: 1, key: key.into() }
}

pub(crate) fn facts(outcome: Outcome) -> TrialFacts {
    TrialFacts {
        what: "SIGKILL of the whole tree at file event 7 of checkpoint-save 2".into(),
        outcome,
        because: format!("because {HOSTILE}"),
        said: None,
        evidence: vec!["every process was killed".into()],
        not_effective: Vec::new(),
        step_at_fault: Some(9),
        acknowledged: Some(5),
        resumed_from: Some(5),
        lost_steps: Some(4),
        recovery_seconds: Some(0.25),
        restarts: 0,
        same: vec!["blake3:aa".into()],
        same_as_baseline: Some(true),
        final_step: Some(12),
        final_loss: None,
        gpu_defects: vec![],
        peak_memory_bytes: Some(9 << 20),
        resource_use: None,
        probes: vec![],
        seconds: 1.0,
    }
}

/// Steps 1 to 9, a kill, a resume from 5, steps to 12.
fn trial(id: &str, number: u32, outcome: Outcome) -> Vec<RecordEntry> {
    let entry_at = |ms: u64, event| entry(ms * 1000, Some(id), Some(number), event);
    let target_started =
        |attempt| Event::TargetStarted(TargetStarted { attempt, command: vec!["trainer".into()] });
    let mut entries = vec![
        entry_at(0, Event::TrialStarted { of: 2, what: "kill".into() }),
        entry_at(1, target_started(1)),
        entry_at(2, Event::Resumed { step: 0, job: None }),
    ];
    entries.extend(
        (1..10)
            .map(|step| entry_at(step * 10, Event::Step { step, loss: Some(1.0 / step as f64), job: None })),
    );
    entries.push(entry_at(55, Event::Saved { step: 5, job: None }));
    entries.push(entry_at(95, Event::FaultEffective { fault: fault_id("crash"), evidence: HOSTILE.into() }));
    entries.push(entry_at(
        96,
        Event::TargetEnded { attempt: 1, ending: Ending::KilledByFault, exit_code: None },
    ));
    entries.push(entry_at(97, target_started(2)));
    entries.push(entry_at(98, Event::Resumed { step: 5, job: None }));
    entries
        .extend((6..13).map(|step| entry_at(100 + step * 10, Event::Step { step, loss: None, job: None })));
    entries.push(entry_at(231, Event::Output { stream: OutputStream::Stderr, line: HOSTILE.repeat(40) }));
    entries.push(entry_at(
        232,
        Event::TargetEnded {
            attempt: 2,
            ending: Ending::Exited(if outcome == Outcome::Recovered { 0 } else { 3 }),
            exit_code: None,
        },
    ));
    entries.push(entry_at(233, Event::TrialEnded(Box::new(facts(outcome)))));
    entries
}

fn baseline(id: &str) -> RecordEntry {
    let facts = BaselineFacts {
        ended_well: true,
        ending: Some(Ending::Exited(0)),
        steps: 12,
        saves: vec![5, 10],
        same: vec!["blake3:aa".into()],
        seconds: 0.2,
        peak_memory_bytes: Some(8 << 20),
        counted: BTreeMap::from([("file events of save 1".into(), 23)]),
        final_loss: None,
        gpu_defects: vec![],
        sandbox_hints: vec![SandboxHint::WroteOutside { path: HOSTILE.into(), count: 2 }],
        progress: BaselineProgress::default(),
        unmatched: Vec::new(),
        cached: false,
    };
    entry(0, Some(id), None, Event::Baseline(Box::new(facts)))
}

pub(crate) fn judged(id: &str, verdict: Verdict) -> RecordEntry {
    entry(400_000, Some(id), None, Event::Judged { verdict, seconds: 0.4 })
}

/// The plans of the scenarios in [`record`]. One that was skipped has none.
fn planned(id: &str, trials: usize) -> Option<RecordEntry> {
    let total = u32::try_from(trials).unwrap();
    let whole = TrialsPlanned { total, possible: total.into(), ..TrialsPlanned::default() };
    let planned = match id {
        "aa-01" => TrialsPlanned {
            possible: 1402,
            unit: TrialUnit::CrashStates,
            bound: Some(TrialBound::Scenario),
            not_enumerated: 12,
            ..whole
        },
        "cc-01" => TrialsPlanned { total: 41, possible: 41, only: Some(1), ..whole },
        "dd-01" => return None,
        "ee-01" => TrialsPlanned { total: 41, possible: 41, unit: TrialUnit::SystemCalls, ..whole },
        _ => whole,
    };
    Some(entry(0, Some(id), None, Event::TrialsPlanned(planned)))
}

/// A record with one scenario for each status.
pub(crate) fn record() -> Record {
    let mut entries = vec![entry(0, None, None, started())];
    let mut add = |id: &str, title: &str, trials: &[Outcome], verdict: Option<Verdict>| {
        entries.push(entry(0, Some(id), None, scenario(title, None)));
        entries.push(baseline(id));
        entries.extend(planned(id, trials.len()));
        for (number, outcome) in (1..).zip(trials) {
            entries.extend(trial(id, number, *outcome));
        }
        entries.extend(verdict.map(|verdict| judged(id, verdict)));
    };
    let reasons = vec![Reason {
        expectation: "always: {outcome: [recovered]}".into(),
        trial: Some(2),
        found: HOSTILE.into(),
        kind: ViolationKind::Harm,
    }];
    add("aa-01", "all is well", &[Outcome::Recovered, Outcome::Recovered], Some(Verdict::Survived));
    add("bb-01", HOSTILE, &[Outcome::Recovered, Outcome::Crashed], Some(Verdict::Violated { reasons }));
    add(
        "cc-01",
        "nothing was effective",
        &[Outcome::Recovered],
        Some(Verdict::Inconclusive { why: "the fault was not effective".into() }),
    );
    add("dd-01", "not possible here", &[], Some(Verdict::Skipped { why: "no loop device".into() }));
    add("ee-01", "unfinished", &[Outcome::Hung], None);
    Record { entries, truncated: true }
}

/// A record of one scenario with trials that all recovered.
pub(crate) fn record_of(planned: TrialsPlanned, trials: u32, verdict: Verdict) -> Record {
    let id = Some("aa-01");
    let mut entries = vec![
        entry(0, None, None, started()),
        entry(0, id, None, scenario("power is lost", None)),
        entry(0, id, None, Event::TrialsPlanned(planned)),
    ];
    entries.extend((1..=trials).flat_map(|number| trial("aa-01", number, Outcome::Recovered)));
    entries.push(judged("aa-01", verdict));
    Record { entries, truncated: false }
}

/// An exploration without findings.
pub(crate) fn explored() -> Exploration {
    let recovered = |count| [(Outcome::Recovered, count)].into();
    Exploration {
        version: EXPLORATION_FORMAT,
        operations: [("write".into(), 12)].into(),
        candidates: [(CrashCategory::Process, 18), (CrashCategory::Power, 2622)].into(),
        distinct: [(CrashCategory::Process, 13), (CrashCategory::Power, 124)].into(),
        left_out: BTreeMap::new(),
        not_enumerated: BTreeMap::new(),
        not_enumerated_by_rule: BTreeMap::new(),
        states: 124,
        states_left_out: 0,
        max_states: Some(20_000),
        only_state: None,
        outcomes: [(CrashCategory::Process, recovered(13)), (CrashCategory::Power, recovered(124))].into(),
        controls: vec![],
        controls_left_out: 0,
        findings: vec![],
        never_synced: vec![],
        outside: vec![],
        notes: vec![],
        forked: None,
        refused_calls: vec![],
        tried: 124,
        untried: 0,
        max_time_s: None,
        jobs: 2,
        seconds: 1.0,
        recording_seconds: 1.0,
        states_per_second: 124.0,
        after: None,
        checks: vec![],
        sandbox_hints: vec![],
        untried_recoveries: 0,
        unrecorded_recoveries: 0,
        recovered_kills: 0,
        second: vec![],
    }
}
