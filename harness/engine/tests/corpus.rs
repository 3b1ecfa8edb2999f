//! Replays the fuzz corpora of the files and messages that the harness reads, and runs the structure-aware
//! fuzz target on random sequences. So every machine makes the checks of a fuzz session, for a moment.

#![expect(clippy::unwrap_used, reason = "a test stops at the first unexpected result")]

#[path = "../../../fuzz/shared/file_operations.rs"]
mod file_operations;
#[path = "../../../fuzz/shared/record_text.rs"]
mod record_text;

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use simgpu_plan::ShimPlan;

fn each_file(target: &str, check: impl Fn(&[u8])) {
    files_of(target).iter().for_each(|file| check(&std::fs::read(file).unwrap()));
}

fn files_of(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn every_record_of_the_corpus_is_parsed_or_rejected_with_its_line() {
    each_file("record", |bytes| record_text::check_record_text(&String::from_utf8_lossy(bytes)));
}

#[test]
fn every_gpu_plan_of_the_corpus_is_parsed_or_rejected() {
    each_file("gpu_plan", |bytes| {
        if let Ok(plan) = ShimPlan::parse(bytes) {
            assert_eq!(ShimPlan::parse(&plan.to_json()).unwrap(), plan);
        }
    });
}

/// The names of those that are no messages begin with `invalid`.
#[test]
fn every_message_of_the_corpus_is_decoded_or_rejected() {
    for file in files_of("sandbox_protocol") {
        let bytes = std::fs::read(&file).unwrap();
        let is_message = engine::sandbox::check_packet_round_trip(bytes[0] % 2 == 0, &bytes[1..]);
        let is_expected = !file.file_name().unwrap().to_str().unwrap().starts_with("invalid");
        assert_eq!(is_message, is_expected, "{}", file.display());
    }
}

#[test]
fn every_sequence_of_the_corpus_has_consistent_crash_states() {
    each_file("file_operations", check_sequence);
}

fn check_sequence(bytes: &[u8]) {
    file_operations::check(&file_operations::steps_of(bytes));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_file_operations_has_consistent_crash_states(
        bytes in proptest::collection::vec(any::<u8>(), 0..256)
    ) {
        check_sequence(&bytes);
    }
}
