//! What is said of files that are wrong: all of it at once, each with its place.

#![expect(clippy::disallowed_methods, reason = "only the room is pure; its tests may look at a clock")]

use proptest::prelude::*;
use scenarios::{Scenario, TargetFile, TargetGpu};

const MANY: &str = include_str!("many-errors.yaml");

#[test]
fn all_errors_of_a_file_are_told_at_once() {
    insta::assert_snapshot!(Scenario::parse(MANY, "many-errors.yaml").unwrap_err());
}

/// What is said of a good scenario in which `from` is replaced by `to`.
fn mistake(from: &str, to: &str) -> String {
    let good = include_str!("../library/filesystem/fs-02-inodes-exhausted.yaml");
    assert!(good.contains(from), "{from}");
    format!("{from} -> {to}\n    {}\n", Scenario::parse(&good.replacen(from, to, 1), "f").expect_err(to))
}

#[test]
fn each_kind_of_mistake_has_its_own_words() {
    let mistakes = [
        mistake("severity", "severty"),
        mistake("severity: medium\n", ""),
        mistake("64 MiB", "64"),
        mistake("step: 12", "step: 1.5"),
        mistake("step: 12", "step: '12'"),
        mistake("step: 12", "stop: 12"),
        mistake("output: 'no inodes'", "output: '('"),
        mistake("id: fs-02", "id: FS2"),
        mistake("id: fs-02", "id: fs-02\nid: fs-03"),
        mistake("version: 1", "version: 2"),
        mistake("version: 1", "version: &a 1"),
        mistake("[recovered]", "[recoverd]"),
        mistake(", inodes: 512", ""),
        mistake("medium", "0755"),
        mistake("restarts: {max: 0}", "restarts"),
    ];
    insta::assert_snapshot!(mistakes.concat());
}

const GPU: &str = include_str!("../library/hardware/hw-01-gpu-driver-crash.yaml");

/// What is said of a good scenario of a GPU in which `from` is replaced by `to`.
fn gpu_mistake(from: &str, to: &str) -> String {
    assert!(GPU.contains(from), "{from}");
    format!("{from} -> {to}\n    {}\n", Scenario::parse(&GPU.replacen(from, to, 1), "f").expect_err(to))
}

#[test]
fn each_kind_of_mistake_about_a_gpu_has_its_own_words() {
    let call = "call: {to: [launch, synchronise], at: every}";
    let error = "gpu-error:\n      code: [launch-failed]\n      reported: [immediately, at-next-sync]\n";
    let mistakes = [
        gpu_mistake("  gpu: simulated\n", ""),
        gpu_mistake("gpu: simulated", "gpu: simulatd"),
        gpu_mistake("gpu: simulated", "gpu: {simulated: {devces: 2}}"),
        gpu_mistake("gpu: simulated", "gpu: {simulated: {devices: 0}}"),
        gpu_mistake("gpu: simulated", "gpu: {simulated: {driver: 12}}"),
        gpu_mistake("gpu: simulated", "gpu: [simulated]"),
        gpu_mistake("[launch-failed]", "[launch-faild]"),
        gpu_mistake("[launch-failed]", "[]"),
        gpu_mistake("[immediately, at-next-sync]", "[later]"),
        gpu_mistake(call, "call: {to: [lunch], at: 1}"),
        gpu_mistake(call, "call: {to: [launch]}"),
        gpu_mistake(call, "call: {to: [copy], kernel: 'attention*', at: 1}"),
        gpu_mistake(call, "call: {to: [launch], min-bytes: 1 MiB, at: 1}"),
        gpu_mistake(call, "call: {kernel: '{a', at: 1}"),
        gpu_mistake(call, "call: {at: every}\n      when: {call: {at: 3}}"),
        gpu_mistake(error, "gpu-hang:\n"),
        gpu_mistake(&format!("{error}      {call}"), "gpu-state:\n"),
        gpu_mistake(&format!("{error}      {call}"), "gpu-fragment:\n      holes: 0 B\n      call: {at: 1}"),
        gpu_mistake("method:", "method:\n  - crash-states: {}"),
        gpu_mistake("- always: verifies", "- always: {final-loss: {within: 1 %}}"),
        gpu_mistake("- always: verifies", "- always: {final-loss: {within: 1}}"),
    ];
    insta::assert_snapshot!(mistakes.concat());
}

#[test]
fn a_real_gpu_takes_no_fault_that_only_a_simulated_one_can_have() {
    let real = GPU.replacen("gpu: simulated", "gpu: real", 1);
    assert!(Scenario::parse(&real, "f").is_ok());
    let flipped = real.replacen("method:", "method:\n  - gpu-flip-bit: {call: {at: 1}}", 1);
    let error = Scenario::parse(&flipped, "f").unwrap_err().to_string();
    assert!(error.contains("`gpu-flip-bit` can't be done to a real GPU"), "{error}");
}

#[test]
fn a_gpu_is_named_by_a_word_or_described() {
    let gpu =
        |text: &str| Scenario::parse(&GPU.replacen("gpu: simulated", text, 1), "f").unwrap().gpu().cloned();
    let Some(TargetGpu::Simulated(usual)) = gpu("gpu: simulated") else { panic!("it is simulated") };
    assert_eq!((usual.devices, usual.memory.0, usual.driver.to_string()), (1, 1 << 30, "12.8".into()));
    let described =
        gpu("gpu: {simulated: {devices: 2, memory: 64 MiB, driver: 11.4, compute-capability: '8.0'}}");
    let Some(TargetGpu::Simulated(described)) = described else { panic!("it is simulated") };
    assert_eq!((described.devices, described.memory.0), (2, 64 << 20));
    assert_eq!(
        (described.driver.to_string(), described.compute_capability.to_string()),
        ("11.4".into(), "8.0".into())
    );
    assert_eq!(gpu("gpu: real"), Some(TargetGpu::Real));
    assert_eq!(gpu("gpu: {simulated: {}}"), Some(TargetGpu::Simulated(usual)));
}

#[test]
fn a_target_file_whose_pattern_lacks_its_group_is_told_so() {
    let good = include_str!("../targets/reference.yaml");
    let error = TargetFile::parse(&good.replacen("(?<step>", "(?<stop>", 1), "t").unwrap_err().to_string();
    assert!(error.contains("the pattern has no group `step`"), "{error}");
}

#[test]
fn a_name_that_the_target_does_not_know_is_told_with_the_nearest_one() {
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
fn bombs_are_refused_in_bounded_time() {
    let deep = "[".repeat(100_000);
    let wide = format!("[{}]", "1,".repeat(400_000));
    let long = "a".repeat(2 << 20);
    for bomb in [deep, wide, long] {
        let began = std::time::Instant::now();
        assert!(Scenario::parse(&bomb, "bomb").is_err());
        assert!(began.elapsed().as_secs() < 20, "bounded, with room for a slow machine");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,400}") {
        let _ = Scenario::parse(&text, "any");
        let _ = TargetFile::parse(&text, "any");
    }

    #[test]
    fn no_mutation_of_a_good_file_makes_the_parser_panic(at in 0usize..900, with in "[\\[\\]{}:,'\"\\-a-z0-9 \n&*!|>%#]{0,6}", cut in 0usize..12) {
        let good = include_str!("../library/data/data-01-adversarial-json.yaml");
        let at = (0..=at.min(good.len())).rev().find(|at| good.is_char_boundary(*at)).unwrap();
        let end = (at + cut).min(good.len());
        let text = format!("{}{with}{}", &good[..at], good.get(end..).unwrap_or_default());
        if let Err(error) = Scenario::parse(&text, "mutated") {
            prop_assert!(!error.problems.is_empty());
        }
    }
}
