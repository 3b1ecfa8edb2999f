//! The list of cases: each scenario of the library belongs to one, and `docs/cases.md` shows all of them.
//!
//! The page is made here. `UPDATE_CASES=1 cargo test -p trainwreck --test cases` writes it anew; with the path of a
//! `record.jsonl` instead of `1`, outcomes, trials and seconds are taken from that run of the whole library.

#![expect(clippy::unwrap_used, reason = "a failed expectation must stop the test")]

#[expect(dead_code, unused_macros, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::collections::BTreeMap;
use std::fmt::Write;

use scenarios::{Event, Record, Scenario, TrialsPlanned, Verdict, counted, grouped};
use support::command::workspace;

/// A row of `scenarios/catalogue.yaml`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    id: String,
    severity: String,
    fault: String,
}

/// What a run of the library has shown of a scenario, as the page prints it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Measured {
    outcome: String,
    tried: String,
    left_out: String,
    seconds: String,
}

/// The columns of a row that a run fills.
const NOT_RUN: &str = "-";

fn catalogue() -> BTreeMap<String, Vec<Case>> {
    let text = std::fs::read_to_string(workspace().join("scenarios/catalogue.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

/// The scenarios of the library with their directories, ordered by id.
fn library() -> Vec<(String, Scenario)> {
    let mut found = Vec::new();
    for domain in std::fs::read_dir(workspace().join("scenarios/library")).unwrap() {
        let domain = domain.unwrap();
        for file in std::fs::read_dir(domain.path()).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let scenario = Scenario::parse(&text, &path.display().to_string()).unwrap();
            found.push((domain.file_name().to_string_lossy().into_owned(), scenario));
        }
    }
    found.sort_by(|(_, a), (_, b)| a.id().cmp(b.id()));
    found
}

/// The case that a scenario belongs to: its id without the letter at the end.
fn case_of(scenario: &Scenario) -> &str {
    scenario.id().trim_end_matches(|c: char| c.is_ascii_lowercase())
}

/// What a record shows of each scenario.
fn measured_in(record: &str) -> BTreeMap<String, Measured> {
    let mut planned: BTreeMap<String, TrialsPlanned> = BTreeMap::new();
    let mut measured = BTreeMap::new();
    for entry in Record::parse(record).unwrap().entries {
        let Some(id) = entry.scenario else { continue };
        match entry.event {
            Event::TrialsPlanned(trials) => drop(planned.insert(id, trials)),
            Event::Judged { verdict, seconds } => {
                let trials = planned.get(&id).copied().unwrap_or_default();
                let outcome = match verdict {
                    Verdict::Survived => "survived".to_owned(),
                    Verdict::Violated { .. } => "violated".into(),
                    Verdict::Inconclusive { .. } => "inconclusive".into(),
                    Verdict::Skipped { .. } => "skipped".into(),
                };
                let mut left_out = grouped(trials.possible() - u64::from(trials.to_run()));
                if trials.not_enumerated > 0 {
                    write!(left_out, ", {} candidates", counted(trials.not_enumerated)).unwrap();
                }
                let row = Measured {
                    outcome,
                    tried: grouped(trials.to_run().into()),
                    left_out,
                    seconds: format!("{seconds:.1}"),
                };
                measured.insert(id, row);
            }
            _ => {}
        }
    }
    measured
}

/// What the page says of each scenario now.
fn measured_on(page: &str) -> BTreeMap<String, Measured> {
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, _, _, id, _, _, outcome, tried, left_out, seconds, _] = cells[..] else { return None };
        let [outcome, tried, left_out, seconds] = [outcome, tried, left_out, seconds].map(str::to_owned);
        Some((id.trim_matches('`').to_owned(), Measured { outcome, tried, left_out, seconds }))
    });
    rows.collect()
}

fn page(
    catalogue: &BTreeMap<String, Vec<Case>>,
    library: &[(String, Scenario)],
    measured: &BTreeMap<String, Measured>,
) -> String {
    let cases: Vec<(&str, &Case)> = catalogue
        .iter()
        .flat_map(|(domain, cases)| cases.iter().map(move |case| (domain.as_str(), case)))
        .collect();
    let is_done = |case: &Case| scenarios_of(case, library).next().is_some();
    let mut text = String::from(
        "# Cases\n\n\
         This page lists the faults that Trainwreck is to cover, and the scenarios that cover them. After it you can\n\
         tell which of them the reference trainer survives, and run one: `trainwreck run fs-01`. It is made from\n\
         `scenarios/catalogue.yaml` and the library by the test `cases`, whose first lines say how to write it anew.\n\n\
         A case counts as covered if its fault is really injected, the reference trainer recovers from it, and the\n\
         scenario fails if one of the guards is switched off, which `trainwreck ablate` shows.\n\n\
         | severity | cases | covered |\n|---|---|---|\n",
    );
    for severity in ["critical", "medium", "low", "extra"] {
        let of = cases.iter().filter(|(_, case)| case.severity == severity);
        let done = of.clone().filter(|(_, case)| is_done(case)).count();
        writeln!(text, "| {severity} | {} | {done} |", of.count()).unwrap();
    }
    let done = cases.iter().filter(|(_, case)| is_done(case)).count();
    writeln!(text, "| all | {} | {done} |\n", cases.len()).unwrap();
    text.push_str(
        "Outcome, trials and seconds are those of the last measured run on two cores. *Left out* counts trials\n\
         beyond the bounds of a scenario, which `--max-trials all` tries, and candidates for crash states that were\n\
         not enumerated.\n",
    );
    for severity in ["critical", "medium", "low", "extra"] {
        writeln!(text, "\n## {}\n", title_case(severity)).unwrap();
        text.push_str(
            "| case | fault | scenario | injected | guards | outcome | tried | left out | s |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        let of_severity = cases.iter().filter(|(_, case)| case.severity == severity);
        for (_, case) in of_severity.clone().filter(|(_, case)| is_done(case)) {
            for (_, scenario) in scenarios_of(case, library) {
                text.push_str(&row(case, scenario, measured.get(scenario.id())));
            }
        }
        let open: Vec<String> = of_severity
            .filter(|(_, case)| !is_done(case))
            .map(|(_, case)| format!("| {} | {} |\n", case.id, case.fault))
            .collect();
        if !open.is_empty() {
            write!(text, "\nNot covered yet:\n\n| case | fault |\n|---|---|\n{}", open.concat()).unwrap();
        }
    }
    text
}

/// The scenarios of a case.
fn scenarios_of<'a>(
    case: &'a Case,
    library: &'a [(String, Scenario)],
) -> impl Iterator<Item = &'a (String, Scenario)> {
    library.iter().filter(|(_, scenario)| case_of(scenario) == case.id)
}

fn title_case(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

fn row(case: &Case, scenario: &Scenario, measured: Option<&Measured>) -> String {
    let mut injected: Vec<&str> = scenario.method().iter().map(|fault| fault.effect.name()).collect();
    injected.dedup();
    let not_run = || Measured {
        outcome: NOT_RUN.into(),
        tried: NOT_RUN.into(),
        left_out: NOT_RUN.into(),
        seconds: NOT_RUN.into(),
    };
    let Measured { outcome, tried, left_out, seconds } = measured.cloned().unwrap_or_else(not_run);
    format!(
        "| {} | {} | `{}` | {} | {} | {outcome} | {tried} | {left_out} | {seconds} |\n",
        case.id,
        case.fault,
        scenario.id(),
        injected.join(", "),
        scenario.guards().join(", "),
    )
}

#[test]
fn each_scenario_belongs_to_a_case_of_its_severity_and_domain() {
    let catalogue = catalogue();
    let mut wrong = Vec::new();
    for (domain, scenario) in library() {
        let cases = catalogue.get(&domain).map(Vec::as_slice).unwrap_or_default();
        match cases.iter().find(|case| case.id == case_of(&scenario)) {
            None => wrong.push(format!("{}: `{domain}` has no such case", scenario.id())),
            Some(case) if case.severity != scenario.severity().to_string() => {
                wrong.push(format!("{}: its case is {}", scenario.id(), case.severity));
            }
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_page_of_cases_is_current() {
    let path = workspace().join("docs/cases.md");
    let shown = std::fs::read_to_string(&path).unwrap_or_default();
    let update = std::env::var("UPDATE_CASES").ok();
    let measured = match update.as_deref() {
        None | Some("1") => measured_on(&shown),
        Some(record) => measured_in(&std::fs::read_to_string(record).unwrap()),
    };
    let current = page(&catalogue(), &library(), &measured);
    if update.is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let shown = if update.is_some() { &current } else { &shown };
    assert!(*shown == current, "docs/cases.md is not current; run this test with UPDATE_CASES=1");
    // What is read from the page is what was written to it.
    assert_eq!(page(&catalogue(), &library(), &measured_on(&current)), current);
}
