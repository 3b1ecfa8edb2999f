//! Runs the parser on the fuzzing corpus, as an ordinary test.

#![expect(clippy::disallowed_methods, reason = "only the crate itself must read no files")]

use std::path::Path;

use scenarios::{Scenario, TargetFile};

#[test]
fn every_file_of_the_corpus_is_parsed_or_rejected_with_a_position() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/scenario");
    let mut count = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let text = String::from_utf8_lossy(&std::fs::read(entry.unwrap().path()).unwrap()).into_owned();
        if let Err(error) = Scenario::parse(&text, "corpus") {
            assert!(
                !error.problems.is_empty()
                    && error.problems.iter().all(|problem| problem.offset <= text.len())
            );
        }
        let _ = TargetFile::parse(&text, "corpus");
        count += 1;
    }
    assert!(count >= 7);
}
