//! The errors of invalid files: all problems at once, each with its place.

#![expect(clippy::disallowed_methods, reason = "only the crate itself must read no clock")]

use proptest::prelude::*;
use scenarios::{Scenario, TargetFile, TargetGpu};

const MANY: &str = include_str!("many-errors.yaml");

#[test]
fn all_errors_of_a_file_are_reported_at_once() {
    insta::assert_snapshot!(Scenario::parse(MANY, "many-errors.yaml").unwrap_err());
}

/// The error of a valid scenario in which `from` is replaced by `to`.
fn error_after(from: &str, to: &str) -> String {
    let valid = include_str!("../library/filesystem/fs-02-inodes-exhausted.yaml");
    assert!(valid.contains(from), "{from}");
    format!("{from} -> {to}\n    {}\n", Scenario::parse(&valid.replacen(from, to, 1), "f").expect_err(to))
}

#[test]
fn each_kind_of_mistake_has_its_own_error() {
    let errors = [
        error_after("severity", "severty"),
        error_after("severity: medium\n", ""),
        error_after("64 MiB", "64"),
        error_after("step: 12", "step: 1.5"),
        error_after("inodes: 512", "inodes: '512'"),
        error_after("step: 12", "stop: 12"),
        error_after("output: 'no inodes'", "output: '('"),
        error_after("id: fs-02", "id: FS2"),
        error_after("id: fs-02", "id: fs-02\nid: fs-03"),
        error_after("version: 1", "version: 2"),
        error_after("version: 1", "version: &a 1"),
        error_after("[recovered]", "[recoverd]"),
        error_after(", inodes: 512", ""),
        error_after("medium", "0755"),
        error_after("restarts: {max: 0}", "restarts"),
    ];
    insta::assert_snapshot!(errors.concat());
}

/// The error of a scenario with only this fault.
fn fault_error(fault: &str) -> String {
    let text = format!(
        "version: 1\nid: fs-01\ntitle: t\nseverity: extra\ntarget: {{use: x}}\nmethod:\n  - {fault}\n\
         expect: [{{always: {{outcome: [recovered]}}}}]\n"
    );
    format!("{fault}\n    {}\n", Scenario::parse(&text, "f").expect_err(fault))
}

#[test]
fn each_kind_of_mistake_in_a_signal_an_environment_and_a_command_has_its_own_error() {
    let faults = [
        "signal: {which: [TERM], for: 1 s, kill-after: 2 s, when: {step: 1}}",
        "signal: {which: [USR1], again-after: 1 s, when: {step: 1}}",
        "signal: {which: [STOP], kill-after: 1 s, when: {step: 1}}",
        "signal: {which: [TERM], again-after: 0 s, when: {step: 1}}",
        "signal: {which: [TERM], to: workers, when: {step: 1}}",
        "environment: {}",
        "environment: {umask: ['088']}",
        "environment: {umask: ['077'], when: {step: 1}}",
        "environment: {stdout: closed}",
        "environment: {stdin: full}",
        "environment: {set: {'A=B': c}}",
        "run-command: {}",
        "run-command: {command: []}",
        "run-command: {command: ['true'], second-target: true}",
        "run-command: {command: ['{program}', '{inbox}']}",
        "run-command: {second-target: true, copies: 0}",
        "run-command: {second-target: true, copies: 1000}",
    ];
    insta::assert_snapshot!(faults.map(fault_error).concat());
}

#[test]
fn each_kind_of_mistake_in_a_file_system_has_its_own_error() {
    let faults = [
        "file-system: {place: inbox}",
        "file-system: {place: inbox, ignores-case: true}\n  - read-only: {place: inbox}",
        "file-system: {ignores-case: true}",
        "file-system: {place: inbox, ignores-case: false}",
        "file-system: {place: inbox, ignores-case: yes}",
        "file-system: {place: inbox, time-unit: 500 ms}",
        "file-system: {place: inbox, time-unit: 2}",
        "file-system: {place: inbox, time-unit: 2 h}",
        "file-system: {place: inbox, ignore-case: true}",
        "file-system: {place: inbox, time-unit: 2 s, when: {step: 3}}",
    ];
    insta::assert_snapshot!(faults.map(fault_error).concat());
}

#[test]
fn each_kind_of_mistake_in_a_clock_has_its_own_error() {
    let faults = [
        "clock: {}",
        "clock: {by: []}",
        "clock: {by: [-6 min], to: ['2038-01-19T03:14:00Z']}",
        "clock: {by: [6 min]}",
        "clock: {by: [-6 m]}",
        "clock: {by: -6 min}",
        "clock: {to: [2038-01-19]}",
        "clock: {to: ['1969-12-31T23:59:59Z']}",
    ];
    insta::assert_snapshot!(faults.map(fault_error).concat());
}

#[test]
fn each_kind_of_mistake_in_a_file_of_proc_has_its_own_error() {
    let faults = [
        "proc-file: {path: /proc/meminfo}",
        "proc-file: {holds: x}",
        "proc-file: {path: /etc/passwd, holds: x}",
        "proc-file: {path: /proc, holds: x}",
        "proc-file: {path: /proc/../etc/passwd, holds: x}",
        "proc-file: {path: /proc/self/status, holds: x}",
        "proc-file: {path: /proc/1/status, holds: x}",
        "proc-file: {path: /proc/sys/vm/swappiness, holds: x}",
        "proc-file: {path: /proc/meminfo, holds: [x]}",
    ];
    insta::assert_snapshot!(faults.map(fault_error).concat());
}

#[test]
fn each_kind_of_mistake_in_a_policy_has_its_own_error() {
    let faults = [
        "landlock: {}",
        "landlock: {deny: []}",
        "landlock: {deny: [make-directory]}",
        "landlock: {deny: make-dir}",
        "landlock: {deny: [make-dir, make-dir]}",
        "landlock: {deny: [make-dir], when: {step: 3}}",
    ];
    insta::assert_snapshot!(faults.map(fault_error).concat());
}

/// The error of a scenario with this fault, which expects these answers.
fn answers_error(fault: &str, answers: &str) -> String {
    let text = format!(
        "version: 1\nid: fs-01\ntitle: t\nseverity: extra\ntarget: {{use: x}}\nmethod:\n  - {fault}\n\
         expect: [{{always: {{answers: {answers}}}}}]\n"
    );
    format!("{fault}, {answers}\n    {}\n", Scenario::parse(&text, "f").expect_err(fault))
}

#[test]
fn each_kind_of_mistake_in_a_port_and_a_request_has_its_own_error() {
    let faults = [
        "bound-port: {}",
        "bound-port: {port: 0}",
        "bound-port: {port: 65536}",
        "http-request: {port: 80}",
        "http-request: {path: /}",
        "http-request: {port: 0, path: /}",
        "http-request: {port: 80, path: /, idle: true}",
        "http-request: {port: 80, path: /, raw: x}",
        "http-request: {port: 80, path: metrics}",
        "http-request: {port: 80, path: '/a b'}",
        "http-request: {port: 80, path: /, method: 'GET /x'}",
        "http-request: {port: 80, path: /, headers: {'A:': b}}",
        "http-request: {port: 80, path: /, headers: {A: \"b\\r\\nC: d\"}}",
        "http-request: {port: 80, path: /, copies: 0}",
        "http-request: {port: 80, idle: true, copies: 501}",
        "http-request: {port: 80, raw: x, method: POST, headers: {}, body: y}",
        "http-request: {port: 80, idle: true, body-size: 1 KiB}",
    ];
    let answers = [
        answers_error("crash: {when: {step: 1}}", "{status: [200]}"),
        answers_error("http-request: {port: 80, idle: true}", "{status: [200]}"),
        answers_error("http-request: {port: 80, path: /}", "{status: []}"),
    ];
    insta::assert_snapshot!(faults.map(fault_error).concat() + &answers.concat());
}

const GPU: &str = include_str!("../library/hardware/hw-01-gpu-driver-crash.yaml");

/// The error of a valid GPU scenario in which `from` is replaced by `to`.
fn gpu_error_after(from: &str, to: &str) -> String {
    assert!(GPU.contains(from), "{from}");
    format!("{from} -> {to}\n    {}\n", Scenario::parse(&GPU.replacen(from, to, 1), "f").expect_err(to))
}

#[test]
fn each_kind_of_gpu_mistake_has_its_own_error() {
    let call = "call: {to: [launch, synchronise], at: every}";
    let error = "gpu-error:\n      code: [launch-failed]\n      reported: [immediately, at-next-sync]\n";
    let errors = [
        gpu_error_after("  gpu: simulated\n", ""),
        gpu_error_after("gpu: simulated", "gpu: simulatd"),
        gpu_error_after("gpu: simulated", "gpu: {simulated: {devces: 2}}"),
        gpu_error_after("gpu: simulated", "gpu: {simulated: {devices: 0}}"),
        gpu_error_after("gpu: simulated", "gpu: {simulated: {driver: 12}}"),
        gpu_error_after("gpu: simulated", "gpu: [simulated]"),
        gpu_error_after("[launch-failed]", "[launch-faild]"),
        gpu_error_after("[launch-failed]", "[]"),
        gpu_error_after("[immediately, at-next-sync]", "[later]"),
        gpu_error_after(call, "call: {to: [lunch], at: 1}"),
        gpu_error_after(call, "call: {to: [launch]}"),
        gpu_error_after(call, "call: {to: [copy], kernel: 'attention*', at: 1}"),
        gpu_error_after(call, "call: {to: [launch], min-bytes: 1 MiB, at: 1}"),
        gpu_error_after(call, "call: {kernel: '{a', at: 1}"),
        gpu_error_after(call, "call: {at: every}\n      when: {call: {at: 3}}"),
        gpu_error_after(error, "gpu-hang:\n"),
        gpu_error_after(&format!("{error}      {call}"), "gpu-state:\n"),
        gpu_error_after(
            &format!("{error}      {call}"),
            "gpu-fragment:\n      holes: 0 B\n      call: {at: 1}",
        ),
        gpu_error_after("method:", "method:\n  - crash-states: {}"),
        gpu_error_after("- always: verifies", "- always: {final-loss: {within: 1 %}}"),
        gpu_error_after("- always: verifies", "- always: {final-loss: {within: 1}}"),
    ];
    insta::assert_snapshot!(errors.concat());
}

#[test]
fn a_fault_that_needs_a_simulated_gpu_is_rejected_for_a_real_one() {
    let real = GPU.replacen("gpu: simulated", "gpu: real", 1);
    assert!(Scenario::parse(&real, "f").is_ok());
    let flipped = real.replacen("method:", "method:\n  - gpu-flip-bit: {call: {at: 1}}", 1);
    let error = Scenario::parse(&flipped, "f").unwrap_err().to_string();
    assert!(error.contains("`gpu-flip-bit` is not possible on a real GPU"), "{error}");
}

#[test]
fn a_gpu_is_given_by_name_or_as_a_map() {
    let gpu =
        |text: &str| Scenario::parse(&GPU.replacen("gpu: simulated", text, 1), "f").unwrap().gpu().cloned();
    let Some(TargetGpu::Simulated(default)) = gpu("gpu: simulated") else { panic!("must be simulated") };
    assert_eq!((default.devices, default.memory.0, default.driver.to_string()), (1, 1 << 30, "12.8".into()));
    let described =
        gpu("gpu: {simulated: {devices: 2, memory: 64 MiB, driver: 11.4, compute-capability: '8.0'}}");
    let Some(TargetGpu::Simulated(described)) = described else { panic!("must be simulated") };
    assert_eq!((described.devices, described.memory.0), (2, 64 << 20));
    assert_eq!(
        (described.driver.to_string(), described.compute_capability.to_string()),
        ("11.4".into(), "8.0".into())
    );
    assert_eq!(gpu("gpu: real"), Some(TargetGpu::Real));
    assert_eq!(gpu("gpu: {simulated: {}}"), Some(TargetGpu::Simulated(default)));
}

#[test]
fn a_pattern_of_a_target_file_without_its_group_is_rejected() {
    let valid = include_str!("../targets/reference.yaml");
    let error = TargetFile::parse(&valid.replacen("(?<step>", "(?<stop>", 1), "t").unwrap_err().to_string();
    assert!(error.contains("the pattern has no group `step`"), "{error}");
}

#[test]
fn the_error_of_an_unknown_name_suggests_the_most_similar_one() {
    let text = include_str!("../library/filesystem/fs-02-inodes-exhausted.yaml").replacen(
        "[space-check]",
        "[space-chek]",
        1,
    );
    let target = TargetFile::parse(include_str!("../targets/reference.yaml"), "t").unwrap();
    let error = Scenario::parse(&text, "f").unwrap().check_against(&target).unwrap_err().to_string();
    assert_eq!(error, "f:17:10: target `reference` has no guard `space-chek` (did you mean `space-check`?)");
}

#[test]
fn huge_files_are_rejected_in_bounded_time() {
    let deep = "[".repeat(100_000);
    let wide = format!("[{}]", "1,".repeat(400_000));
    let long = "a".repeat(2 << 20);
    for bomb in [deep, wide, long] {
        let start = std::time::Instant::now();
        assert!(Scenario::parse(&bomb, "bomb").is_err());
        assert!(start.elapsed().as_secs() < 20, "bounded, even on a slow machine");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,400}") {
        let _ = Scenario::parse(&text, "any");
        let _ = TargetFile::parse(&text, "any");
    }

    #[test]
    fn no_mutation_of_a_valid_file_makes_the_parser_panic(
        offset in 0usize..900,
        inserted in "[\\[\\]{}:,'\"\\-a-z0-9 \n&*!|>%#]{0,6}",
        cut in 0usize..12,
    ) {
        let valid = include_str!("../library/data/data-01-adversarial-json.yaml");
        let is_boundary = |offset: &usize| valid.is_char_boundary(*offset);
        let start = (0..=offset.min(valid.len())).rev().find(is_boundary).unwrap();
        let end = (start + cut).min(valid.len());
        let text = format!("{}{inserted}{}", &valid[..start], valid.get(end..).unwrap_or_default());
        if let Err(error) = Scenario::parse(&text, "mutated") {
            prop_assert!(!error.problems.is_empty());
        }
    }
}
