//! The errors of target files, and of scenarios that do not fit their target: each mistake that can be known
//! without running anything is reported at its place.

use scenarios::{InvalidFile, Scenario, TargetFile, TargetNetwork};

const TARGET: &str = r"version: 1
id: mine
title: a target
program: ./train.sh
places: {checkpoints: ckpt, logs: out/logs}
environment: {A: '1'}
inherit: [HF_HOME]
writable: [cache]
network: host
prepare: [[mkdir, -p, '{checkpoints}']]
setting-args: ['--set', '{key}={value}']
generate: {text: ['{program}', make, '{file}', '{samples}', '{length}', '{seed}']}
submit: ['{program}', submit, '{root}', '{file}']
start: ['{program}', '{root}', '{settings}']
resume: ['{program}', '{root}', --resume]
verify: ['{program}', verify, '{checkpoints}']
announces: {step: '^step (?<step>\d+) (?<loss>\S+)', saved: 'saved (?<step>\d+)', resumed: 'from (?<step>\d+)'}
phases: {save: {begins: a, ends: b, place: checkpoints}}
same: '(?<value>x)'
refused-exits: [3]
guards: {sync: {sync: 'no'}}
";

const SCENARIO: &str = r"version: 1
id: own-01
title: a scenario
severity: low
target: {use: mine.yaml, settings: {a: 1}, submit: [{generate: {kind: text, samples: 4}}]}
method:
  - signal: {which: [TERM], when: {step: 3}}
expect:
  - always: {outcome: [refused]}
  - always: {lost-steps: {max: 3}}
  - always: {ends-with: [0]}
  - always: verifies
  - always: same-as-baseline
";

fn target(text: &str) -> Result<TargetFile, InvalidFile> {
    TargetFile::parse(text, "t")
}

/// The file with one text replaced.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

fn target_error_after(from: &str, to: &str) -> String {
    format!("{from} -> {to}\n    {}\n", target(&replaced(TARGET, from, to)).expect_err(to))
}

#[test]
fn a_sound_target_and_a_scenario_that_uses_all_of_it_are_valid() {
    let file = target(TARGET).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(file.inherit(), ["HF_HOME"]);
    assert_eq!(file.writable(), [std::path::Path::new("cache")]);
    assert_eq!(file.network(), Some(TargetNetwork::Host));
    Scenario::parse(SCENARIO, "s").unwrap().check_against(&file).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_word_in_braces_without_a_value_is_an_error_in_every_text() {
    let errors = [
        target_error_after("-p, '{checkpoints}'", "-p, '{checkpoint}'"),
        target_error_after("{root}', --resume", "{Root}', --resume"),
        target_error_after("'{root}', '{settings}'", "'{root}', '{file}'"),
        target_error_after("'{root}', '{settings}'", "'{root}', '{key}'"),
        target_error_after("'{root}', '{settings}'", "'{root}', '--{settings}'"),
        target_error_after("'{root}', '{settings}'", "'{root}', '{something-else}'"),
        target_error_after("verify, '{checkpoints}'", "verify, '{samples}'"),
        target_error_after("submit, '{root}'", "submit, '{length}'"),
        target_error_after("make, '{file}'", "make, '{file}{fiel}'"),
        target_error_after("{key}={value}", "{key}={vaule}"),
        target_error_after("{key}={value}", "{key}={value} {root}"),
        target_error_after("{A: '1'}", "{A: '{checkpoint}/x'}"),
        target_error_after("{A: '1'}", "{A: '{settings}'}"),
        target_error_after("./train.sh", "'{root}/train.sh'"),
        target_error_after("out/logs", "'out/{seed}'"),
        target_error_after("[cache]", "['{checkpoints}']"),
        target_error_after("'{root}', --resume", "'{program}', 'a {b} c {d}'"),
    ];
    insta::assert_snapshot!(errors.concat());
}

#[test]
fn braces_of_other_languages_are_texts() {
    for text in [
        "${HOME}/x",
        "{print $1}",
        "{{print}}",
        "{\"a\": 1, \"b\": {}}",
        "a{3}",
        "{}",
        "{a,b}",
        "{{epoch}}-{{step}}",
        "%{http_code",
    ] {
        let quoted = format!("'{text}'");
        let file = target(&replaced(TARGET, "--resume", &quoted)).unwrap_or_else(|error| panic!("{error}"));
        let last = file.resume().last().unwrap();
        let literal = text.replace("{{", "{").replace("}}", "}");
        let expected = if text.contains("{{") { literal.as_str() } else { text };
        assert_eq!(last.literal(), Some(expected), "{text}");
    }
}

#[test]
fn the_caret_stands_below_the_word_itself() {
    for argument in [
        "'{program}{rot}'",
        "'{{rot}} {rot}'",
        "\"é {rot}\"",
        "'a\n     é {root} {rot}'",
        "'{{rot}}\n\n  {rot}'",
    ] {
        let text = replaced(TARGET, "--resume", argument);
        let problems = target(&text).expect_err(argument).problems;
        let [problem] = problems.as_slice() else { panic!("{argument}: {problems:?}") };
        let offset = text.rfind("{rot}").unwrap();
        let before = &text[..offset];
        let line = before.lines().count();
        let column = 1 + before.lines().last().unwrap().chars().count();
        assert_eq!((problem.offset, problem.length), (offset, "{rot}".len()), "{argument}");
        assert_eq!((problem.line, problem.column), (line, column), "{argument}");
    }
    // Written with an escape sequence, the word is not in the text as it reads.
    let text = replaced(TARGET, "--resume", "\"\\x7brot}\"");
    let problems = target(&text).unwrap_err().problems;
    assert_eq!(&text[problems[0].offset..][..problems[0].length], "\"\\x7brot}\"");
}

#[test]
fn each_kind_of_mistake_in_a_target_file_has_its_own_error() {
    let errors = [
        target_error_after("logs: out/logs", "root: out/logs"),
        target_error_after("logs: out/logs", "settings: out/logs"),
        target_error_after("logs: out/logs", "'my logs': out/logs"),
        target_error_after("logs: out/logs", "'1': out/logs"),
        target_error_after("out/logs", "/out/logs"),
        target_error_after("out/logs", "a/../b"),
        target_error_after("out/logs", "''"),
        target_error_after("{A: '1'}", "{'A=B': '1'}"),
        target_error_after("{A: '1'}", "{'': '1'}"),
        target_error_after("{A: '1'}", r#"{A: "1\0"}"#),
        target_error_after("{A: '1'}", r#"{"A\0": '1'}"#),
        target_error_after("[HF_HOME]", "['HF_HOME=1']"),
        target_error_after("[HF_HOME]", "['HF_*']"),
        target_error_after("[HF_HOME]", "['']"),
        target_error_after("[HF_HOME]", "[HF_HOME, HF_HOME]"),
        target_error_after("[HF_HOME]", "HF_HOME"),
        target_error_after("--resume", r#""a\0b""#),
        target_error_after("sync: 'no'", r#"sync: "\0""#),
        target_error_after("[cache]", "['']"),
        target_error_after("[cache]", "['~/cache']"),
        target_error_after("[cache]", "cache"),
        target_error_after("network: host", "network: hsot"),
        target_error_after("{sync: 'no'}", "{}"),
        target_error_after(", '{settings}'", ""),
        target_error_after("['--set', '{key}={value}']", "[]"),
        target_error_after("'{key}={value}'", "x"),
        target_error_after("submit, '{root}', '{file}'", "submit, '{root}'"),
        target_error_after("make, '{file}'", "make"),
        target_error_after("['{program}', '{root}', '{settings}']", "['{settings}']"),
    ];
    insta::assert_snapshot!(errors.concat());
}

#[test]
fn a_scenario_that_its_target_cannot_fulfil_is_rejected() {
    // A guard would not reach the target either.
    let without_guards = replaced(TARGET, "guards: {sync: {sync: 'no'}}\n", "");
    let error = |from: &str, to: &str| {
        let file = target(&replaced(&without_guards, from, to)).unwrap_or_else(|error| panic!("{error}"));
        let error = Scenario::parse(SCENARIO, "s").unwrap().check_against(&file).expect_err(from);
        format!("{from} -> {to}\n    {error}\n")
    };
    let errors = [
        error("verify: ['{program}', verify, '{checkpoints}']\n", ""),
        error("same: '(?<value>x)'\n", ""),
        error("refused-exits: [3]\n", ""),
        error(", saved: 'saved (?<step>\\d+)', resumed: 'from (?<step>\\d+)'", ""),
        error("submit: ['{program}', submit, '{root}', '{file}']\n", ""),
        error("start: ['{program}', '{root}', '{settings}']", "start: [x]"),
    ];
    insta::assert_snapshot!(errors.concat());
}

/// Faults that are over once they are injected, and others that last.
#[test]
fn an_end_is_refused_for_a_fault_that_does_not_last() {
    let momentary = [
        "crash: {when: {step: 1}, KEYS}",
        "signal: {which: [TERM], for: 1 s, when: {step: 1}, KEYS}",
        "signal: {which: [USR1], when: {step: 1}, KEYS}",
        "damage-files: {files: a, how: [flip], KEYS}",
        "flip-memory: {file: a, when: {step: 1}, KEYS}",
        "plant: {place: inbox, files: [{name: a, holds: {sound: 1}}], KEYS}",
        "poison-sample: {sample: 1, weight: 1, KEYS}",
        "fail-call: {errno: [EIO], when: {call: {at: 1}}, KEYS}",
        "short-call: {bytes: 1, when: {call: {to: [write], at: 1}}, KEYS}",
        "delay-call: {time: 1 s, when: {call: {at: 1}}, KEYS}",
        "swap-file: {by: nothing, when: {call: {at: 1}}, KEYS}",
    ];
    let lasting = [
        "signal: {which: [USR1], persistence: persistent, when: {step: 1}, KEYS}",
        "fail-call: {errno: [EIO], persistence: persistent, when: {call: {at: 1}}, KEYS}",
        "sweep-errno: {when: {call: {at: 1}}, KEYS}",
        "limits: {open-files: 8, when: {step: 1}, KEYS}",
        "read-only: {place: inbox, when: {step: 1}, KEYS}",
    ];
    for end in ["{after: 1 s}", "{output: x}"] {
        for fault in momentary.iter().chain(&lasting) {
            let error = |keys: &str| {
                let fault = fault.replace(", KEYS", keys);
                let text = replaced(SCENARIO, "signal", &format!("{fault}\n  - signal"));
                Scenario::parse(&text, "s").err().map(|error| error.to_string()).unwrap_or_default()
            };
            let without_until = error("");
            let has_until = |text: &str| text.contains("`until` has no effect");
            assert!(!has_until(&without_until), "{fault}: {without_until}");
            assert_eq!(has_until(&error(&format!(", until: {end}"))), momentary.contains(fault), "{fault}");
        }
    }
}

#[test]
fn a_fault_whose_keys_do_not_fit_is_rejected() {
    let error = |fault: &str| {
        let text = replaced(SCENARIO, "signal", &format!("{fault}\n  - signal"));
        let error = Scenario::parse(&text, "s").expect_err(fault);
        format!("{fault}\n    {error}\n")
    };
    let errors = [
        error("plant: {place: inbox, files: [{name: a}]}"),
        error("plant: {place: inbox, files: [{holds: {sound: 1}}]}"),
        error("plant: {place: inbox, files: [{name: a, holds: {sound: 1}, is: pipe}]}"),
        error("plant: {place: inbox, files: [{name: a, is: pipe, as: crlf}]}"),
        error("plant: {place: inbox, files: [{name: a, holds: {long-line: 1 MiB}, as: crlf}]}"),
        error("plant: {place: inbox, files: [{name: a, holds: {hex: 'abc'}}]}"),
        error("plant: {place: inbox, files: [{long-name: {repeat: ab, times: 200, end: c}, is: pipe}]}"),
        error("limits: {when: start}"),
        error("limits: {open-files: 2}"),
        error("limits: {processes: 0}"),
        error("limits: {open-files: 8, file-size: 1 MiB}"),
        error("damage-files: {how: [flip]}"),
        error("damage-files: {files: a, how: []}"),
        error("damage-files: {files: a, newest: every, how: [flip]}"),
        error("damage-files: {files: a, how: [mix]}"),
        error("damage-files: {files: a, how: [rename]}"),
        error("damage-files: {files: a, to: b, how: [remove]}"),
        error("damage-files: {files: a, how: [remove], part: [end]}"),
        error("damage-files: {files: a, how: [swap], each: true}"),
        error("damage-files: {files: '[', how: [flup], part: [], newest: 0}"),
        error("damage-files: {files: a, how: [flip], persistence: persistent}"),
        error("crash: {}"),
        error("crash: {when: restart}"),
        error("signal: {which: [TERM], when: restart}"),
    ];
    insta::assert_snapshot!(errors.concat());
}

#[test]
fn a_scenario_that_can_never_hold_is_rejected() {
    let error = |from: &str, to: &str| {
        let error = Scenario::parse(&replaced(SCENARIO, from, to), "s").expect_err(to);
        format!("{from} -> {to}\n    {error}\n")
    };
    let poison = "poison-sample: {sample: 5, weight: 3.0e38, effective-if: {output: x}}\n  - signal";
    let no_data = replaced(SCENARIO, ", submit: [{generate: {kind: text, samples: 4}}]", "");
    let errors = [
        error("which: [TERM], when", "which: [STOP], for: 1 s, when"),
        error("signal: {which: [TERM], when: {step: 3}}", "crash: {when: {step: 3}}"),
        error("ends-with: [0]", "ends-with: []"),
        error("outcome: [refused]", "outcome: []"),
        error("signal", poison),
        Scenario::parse(&replaced(&no_data, "signal", poison), "s").unwrap_err().to_string(),
        error("settings: {a: 1}", r#"settings: {a: "\0"}"#),
    ];
    insta::assert_snapshot!(errors.concat());
}
