//! Golden files of each report of a made-up record. Hostile text in a record must stay text.

#![expect(clippy::unwrap_used, reason = "a test stops at the first failure")]

mod support;

use proptest::prelude::*;
use scenarios::*;
use support::{HOSTILE, entry, explored, facts, fault_id, judged, record, record_of, scenario, started};

fn html_of(record: &Record) -> String {
    let mut bytes = Vec::new();
    reports::html(record, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn junit_of(record: &Record) -> String {
    let mut bytes = Vec::new();
    reports::junit(record, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn markdown_of(record: &Record) -> String {
    let mut bytes = Vec::new();
    reports::markdown(record, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Every tag that is opened is closed, in order.
fn is_balanced(html: &str) -> bool {
    const VOID: [&str; 2] = ["meta", "br"];
    let body = html.split_once("</style>").map_or(html, |(_, body)| body);
    let mut open = vec!["head", "html"];
    open.reverse();
    for tag in body.split('<').skip(1) {
        let name = tag.split(['>', ' ']).next().unwrap_or_default();
        if let Some(closing) = name.strip_prefix('/') {
            if open.pop() != Some(closing) {
                return false;
            }
        } else if !VOID.contains(&name) {
            open.push(name);
        }
    }
    open.is_empty()
}

#[test]
fn the_html_page_matches_its_snapshot() {
    let html = html_of(&record());
    insta::assert_snapshot!(html.split_once("</style>").unwrap().1);
}

#[test]
fn junit_distinguishes_skipped_failed_and_unknown() {
    insta::assert_snapshot!(junit_of(&record()));
}

#[test]
fn the_markdown_summary_has_details_of_what_did_not_pass() {
    insta::assert_snapshot!(markdown_of(&record()));
}

#[test]
fn output_of_a_target_is_never_markup() {
    let record = record();
    let html = html_of(&record);
    assert!(is_balanced(&html));
    for text in [&html, &junit_of(&record), &markdown_of(&record)] {
        assert!(
            !text.contains("<script")
                && !text.contains('\u{1b}')
                && !text.contains('\u{0}')
                && !text.contains('\u{202e}')
        );
    }
}

#[test]
fn each_report_says_what_was_tried_of_how_many() {
    let whole = TrialsPlanned { total: 3, possible: 3, ..TrialsPlanned::default() };
    let unit = TrialUnit::CrashStates;
    let cut = TrialsPlanned { possible: 402, unit, bound: Some(TrialBound::Scenario), ..whole };
    let only = TrialsPlanned { only: Some(2), ..whole };
    for (planned, trials, case, run) in [
        (whole, 3, "3 trials", "3 trials tried, none left out"),
        (whole, 2, "2 of 3 trials (1 not run)", "2 trials tried, 1 planned but not run"),
        (only, 1, "1 of 3 trials (only --trial 2)", "1 trial tried, 2 left out by --trial"),
        (
            cut,
            3,
            "3 of 402 crash states (max-trials)",
            "3 trials tried, 399 left out by bounds; --max-trials all tries them",
        ),
    ] {
        let record = record_of(planned, trials, Verdict::Survived);
        for report in [html_of(&record), junit_of(&record), markdown_of(&record)] {
            assert!(report.contains(case), "{case}: {report}");
            assert!(report.contains(run), "{run}: {report}");
        }
    }
}

/// The classes of the cells in the strip of trials.
fn cells(html: &str) -> Vec<&str> {
    html.split("<a class=\"cell ").skip(1).map(|cell| cell.split('"').next().unwrap()).collect()
}

#[test]
fn a_cell_shows_whether_an_expectation_failed_and_not_the_outcome() {
    let planned = TrialsPlanned { total: 3, possible: 3, ..TrialsPlanned::default() };
    let reason = |trial| Reason {
        expectation: "always: verifies".into(),
        trial,
        found: "2 files".into(),
        kind: ViolationKind::Harm,
    };
    let inconclusive = Verdict::Inconclusive { why: "the harness failed".into() };
    for (verdict, expected) in [
        (Verdict::Survived, ["good", "good", "good"]),
        (Verdict::Violated { reasons: vec![reason(Some(2))] }, ["good", "bad", "good"]),
        (Verdict::Violated { reasons: vec![reason(None)] }, ["bad", "bad", "bad"]),
        (inconclusive, ["none", "none", "none"]),
    ] {
        let html = html_of(&record_of(planned, 3, verdict.clone()));
        assert_eq!(cells(&html), expected, "{verdict:?}");
    }
    // A trial whose fault was not effective shows nothing.
    let mut record = record_of(planned, 3, Verdict::Survived);
    for entry in record.entries.iter_mut().filter(|entry| entry.trial == Some(3)) {
        if let Event::TrialEnded(facts) = &mut entry.event {
            facts.evidence.clear();
        }
    }
    assert_eq!(cells(&html_of(&record)), ["good", "good", "unsure"]);
}

#[test]
fn of_many_trials_those_with_a_failed_expectation_are_shown() {
    let planned = TrialsPlanned { total: 1000, possible: 1000, ..TrialsPlanned::default() };
    let reason = Reason {
        expectation: "always: verifies".into(),
        trial: Some(999),
        found: "no".into(),
        kind: ViolationKind::Harm,
    };
    let html = html_of(&record_of(planned, 1000, Verdict::Violated { reasons: vec![reason] }));
    assert_eq!(cells(&html).len(), 200);
    assert_eq!(cells(&html).last(), Some(&"bad"));
    assert!(html.contains("800 of the trials are not shown"), "the others are counted");
}

#[test]
fn each_link_of_the_page_leads_to_one_place_on_it() {
    let html = html_of(&record());
    let values = |attribute: &str| -> Vec<String> {
        html.split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    };
    let ids = values(" id=\"");
    let links = values("href=\"#");
    assert!(links.len() > 8, "{links:?}");
    for link in links {
        assert_eq!(ids.iter().filter(|id| **id == link).count(), 1, "{link} in {ids:?}");
    }
}

#[test]
fn the_names_in_junit_are_the_same_for_each_run() {
    let names = |record: &Record| {
        let junit = junit_of(record);
        let names: Vec<String> =
            junit.split(" name=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
        let suites: Vec<&str> = junit.lines().filter(|line| line.contains("<testsuite")).collect();
        assert!(suites.iter().all(|suite| suite.contains("timestamp=") && suite.contains("time=")));
        names
    };
    let first = record();
    let mut second = record();
    second.entries.retain(|entry| !matches!(entry.event, Event::TrialsPlanned(_)));
    if let Event::RunStarted(started) = &mut second.entries[0].event {
        started.run = "2027-01-01T00-00-00Z-seed-8".into();
    }
    let cases = |names: Vec<String>| -> Vec<String> {
        names.into_iter().filter(|name| name.contains("-01 ") || name == "trainwreck").collect()
    };
    assert_eq!(cases(names(&first)), cases(names(&second)));
    assert_eq!(cases(names(&first)).len(), 7, "report, suite and five cases");
}

#[test]
fn the_page_of_an_exploration_says_what_was_tried_of_how_many() {
    let html = reports::exploration(&explored());
    assert!(html.contains("Process killed: 13 of 13 states tried, of 18 candidates"), "{html}");
    assert!(!html.contains("left out") && !html.contains("not tried") && !html.contains("not enumerated"));
    let mut cut = Exploration { states_left_out: 104, max_states: Some(20), untried: 5, ..explored() };
    cut.outcomes.insert(CrashCategory::Power, [(Outcome::Recovered, 15)].into());
    cut.not_enumerated.insert(CrashCategory::Power, 7);
    cut.not_enumerated_by_rule.insert(EnumerationRule::Budget, NotEnumerated { count: 7, at_least: true });
    cut.recovered_kills = 10;
    let html = reports::exploration(&cut);
    for expected in [
        "Power lost: 15 of 124 states tried, of 2,622 candidates",
        "104 of 124 states left out by --max-states 20",
        "5 states were not tried",
        "7 candidates not enumerated: at least 7 beyond the bound on time and memory",
        "Second crashes were tried in 0 of 10 recoveries",
    ] {
        assert!(html.contains(expected), "{expected}: {html}");
    }
    let only = Exploration { only_state: Some("2-1".into()), ..explored() };
    assert!(reports::exploration(&only).contains("only state 2-1 was tried"));
}

#[test]
fn the_page_of_an_exploration_shows_the_controls_and_the_different_messages() {
    let mut explored = explored();
    explored.controls = vec![Control {
        files: ControlFiles::Saved { step: 3 },
        outcome: Outcome::Corrupt,
        state: "4".into(),
    }];
    explored.controls_left_out = 1200;
    explored.findings = vec![Finding {
        cause: Cause::ResumeDiffers,
        outcome: Outcome::Corrupt,
        outcomes: [(Outcome::Corrupt, 20), (Outcome::EndedEarly, 10)]
            .map(|(outcome, states)| OutcomeCount { outcome, states })
            .into(),
        under: vec![],
        states: 30,
        confirmation: Some(Confirmation { failed: 2, tried: 2, other: None }),
        between: ["write(a)".into(), "rename(a, b)".into()],
        operations: vec![],
        difference: vec![],
        error: HOSTILE.into(),
        messages: [("step 4 consumed", 20), (HOSTILE, 10)]
            .map(|(line, states)| MessageCount { line: line.into(), states })
            .into(),
        controls: Some(FailingControls { failing: 1, tried: 2, first: ControlFiles::Saved { step: 3 } }),
        advice: "save the position".into(),
        state: "4".into(),
        repeat: "trainwreck explore --state 4".into(),
    }];
    let html = reports::exploration(&explored);
    for expected in [
        "1 finding: the command does not recover even without a crash",
        "1 corrupt; the files after 1,200 other saves were left out",
        "It fails without any crash, in 1 of 2 recoveries from undamaged files, the first from the files when step 3",
        "30 states (20 corrupt, 10 ended-early)",
        "2 different messages",
        "20  step 4 consumed",
    ] {
        assert!(html.contains(expected), "{expected}: {html}");
    }
    assert!(!html.contains(HOSTILE) && !html.contains("It breaks"), "{html}");
}

#[test]
fn the_page_of_an_exploration_shows_what_limits_its_result() {
    let notes = vec![ExplorationNote::BufferedOutput { lines: 3 }];
    let weak = Exploration { notes: notes.clone(), ..explored() };
    let html = reports::exploration(&weak);
    assert!(html.contains("output is buffered: 3 lines") && html.contains("has limits"), "{html}");
    let second = Exploration { notes, ..explored() };
    let html = reports::exploration(&Exploration { second: vec![second], ..explored() });
    assert!(html.contains("output is buffered: 3 lines") && html.contains("has limits"), "{html}");
    assert!(!reports::exploration(&explored()).contains("has limits"));
}

#[test]
fn a_violation_without_a_guard_is_caught_and_a_survival_is_missed() {
    let mut entries = vec![entry(0, None, None, started())];
    entries.push(entry(0, Some("aa-01"), None, scenario("killed", Some("atomic-save"))));
    entries.push(judged("aa-01", Verdict::Violated { reasons: vec![] }));
    entries.push(entry(0, Some("bb-01"), None, scenario("killed", Some("atomic-save"))));
    entries.push(judged("bb-01", Verdict::Survived));
    let summary = reports::summary(&Record { entries: entries.clone(), truncated: false }).unwrap();
    let words = Reason {
        expectation: "reached: {output: x}".into(),
        trial: None,
        found: "no line matched".into(),
        kind: ViolationKind::Words,
    };
    let caught_by_words = [
        entry(0, Some("cc-01"), None, scenario("killed", Some("atomic-save"))),
        judged("cc-01", Verdict::Violated { reasons: vec![words] }),
    ];
    let record = Record { entries: [&entries[..], &caught_by_words].concat(), truncated: false };
    for text in [html_of(&record), markdown_of(&record), junit_of(&record)] {
        assert!(text.contains("caught by harm") && text.contains("caught by words only"), "{text}");
    }
    let counts: Vec<(&str, usize)> =
        summary.counts.iter().map(|count| (count.label, count.scenarios)).collect();
    assert_eq!(counts, [("missed", 1), ("caught", 1)]);
}

#[test]
fn thousands_of_trials_and_steps_make_a_page_of_limited_size() {
    let mut entries =
        vec![entry(0, None, None, started()), entry(0, Some("aa-01"), None, scenario("many", None))];
    (1..3000).for_each(|number| {
        entries.push(entry(
            0,
            Some("aa-01"),
            Some(number),
            Event::TrialEnded(Box::new(facts(Outcome::Recovered))),
        ))
    });
    entries.extend(
        (0..50_000).map(|step| {
            entry(step * 1000, Some("aa-01"), Some(1), Event::Step { step, loss: None, job: None })
        }),
    );
    assert!(html_of(&Record { entries, truncated: false }).len() < 2 << 20);
}

#[test]
fn a_record_without_its_start_is_an_error() {
    let error = reports::html(&Record::default(), &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("run-started"), "{error}");
}

proptest! {
    #[test]
    fn no_text_of_a_target_breaks_a_report(
        text in "\\PC{0,80}|[<>&'\"\\x00-\\x1f]{0,40}",
        step in any::<u64>(),
        at_us in any::<u64>(),
    ) {
        let id = Some("aa-01");
        let output = Event::Output { stream: OutputStream::Stderr, line: text.clone() };
        let effective = Event::FaultEffective { fault: fault_id(&text), evidence: text.clone() };
        let mut entries = vec![entry(0, None, None, started()), entry(0, id, None, scenario(&text, None))];
        entries.push(entry(at_us, id, Some(1), Event::Step { step, loss: Some(f64::NAN), job: None }));
        entries.push(entry(0, id, Some(1), output));
        entries.push(entry(at_us / 2, id, Some(1), effective));
        entries.push(judged("aa-01", Verdict::Inconclusive { why: text.clone() }));
        let record = Record { entries, truncated: false };
        prop_assert!(is_balanced(&html_of(&record)));
        let junit = junit_of(&record);
        prop_assert!(!junit.chars().any(|c| c.is_control() && c != '\n'), "{junit}");
        markdown_of(&record);
    }
}
