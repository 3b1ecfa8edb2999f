//! JUnit XML for CI systems: one test case per scenario.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Property, Report, TestCase, TestCaseStatus, TestSuite};
use scenarios::Verdict;

use crate::clean::{clean, clean_block};
use crate::summary;
use crate::view::{RunView, ScenarioStatus, ScenarioView};

pub(crate) fn report(run: &RunView<'_>) -> Report {
    let mut report = Report::new("trainwreck");
    // The names are the same for each run, so that a CI system can compare them.
    let mut suite = TestSuite::new("trainwreck");
    suite.timestamp = run.started.started.parse().ok();
    report.timestamp = suite.timestamp;
    let seconds = run
        .ended
        .map_or_else(|| run.scenarios.iter().map(|scenario| scenario.seconds).sum(), |ended| ended.seconds);
    suite.set_time(duration(seconds));
    report.set_time(duration(seconds));
    suite.add_property(Property::new("run", clean(&run.started.run)));
    suite.add_property(Property::new("trials", summary::summarize(run).trials.to_string()));
    let machine = &run.started.machine;
    suite.add_property(Property::new("seed", run.started.seed.to_string()));
    suite.add_property(Property::new("version", clean(&run.started.version)));
    suite.add_property(Property::new(
        "machine",
        format!("Linux {}, {} cores, {}", clean(&machine.kernel), machine.cores, clean(&machine.user)),
    ));
    suite.add_test_cases(run.scenarios.iter().map(test_case));
    report.add_test_suite(suite);
    report
}

fn test_case(scenario: &ScenarioView<'_>) -> TestCase {
    let mut case =
        TestCase::new(format!("{} {}", clean(scenario.id), clean(&scenario.started.title)), status(scenario));
    case.set_classname(clean(&scenario.started.domain));
    case.set_time(duration(scenario.seconds));
    if !scenario.counts.is_empty() {
        case.add_property(Property::new("tried", scenario.counts.to_string()));
        case.add_property(Property::new("trials-tried", scenario.counts.tried().to_string()));
        case.add_property(Property::new("trials-left-out", scenario.counts.left_out().to_string()));
        let starts = scenario.starts.map(|starts| format!("\n{}", clean(&starts.to_string())));
        case.set_system_out(format!("tried: {}{}", scenario.counts, starts.unwrap_or_default()));
    }
    if scenario.status() == ScenarioStatus::Caught {
        case.add_property(Property::new("result", scenario.label()));
    }
    case
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

fn status(scenario: &ScenarioView<'_>) -> TestCaseStatus {
    let mut status = match scenario.status() {
        ScenarioStatus::Survived | ScenarioStatus::Caught => return TestCaseStatus::success(),
        ScenarioStatus::Skipped => TestCaseStatus::skipped(),
        ScenarioStatus::Violated | ScenarioStatus::Missed => {
            TestCaseStatus::non_success(NonSuccessKind::Failure)
        }
        ScenarioStatus::Inconclusive | ScenarioStatus::Unfinished => {
            TestCaseStatus::non_success(NonSuccessKind::Error)
        }
    };
    status.set_message(message(scenario));
    let failed = scenario.failed_runs.iter().flat_map(|failed| failed.details());
    let lines = std::iter::once(details(scenario)).chain(failed.map(|line| clean(&line)));
    let lines = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    status.set_description(format!("{lines}\nrepeat: {}", clean_block(&scenario.started.repeat)));
    status
}

fn message(scenario: &ScenarioView<'_>) -> String {
    match (scenario.why(), scenario.started.guard_removed.as_ref()) {
        (Some(why), _) => clean(why),
        (None, Some(guard)) => format!("{} without {}", scenario.status().label(), clean(guard)),
        (None, None) => scenario.status().label().to_owned(),
    }
}

fn details(scenario: &ScenarioView<'_>) -> String {
    let Some(Verdict::Violated { reasons }) = scenario.verdict else { return String::new() };
    let line = |reason: &scenarios::Reason| {
        let trial = reason.trial.map(|trial| format!(" (trial {trial})")).unwrap_or_default();
        format!("{}{trial}: {}", clean(&reason.expectation), clean(&reason.found))
    };
    reasons.iter().take(50).map(line).collect::<Vec<_>>().join("\n")
}
