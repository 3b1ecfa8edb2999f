//! Runs the fuzz corpora as ordinary tests, without a fuzzer.

#![expect(clippy::unwrap_used, reason = "a test fails at the first unexpected value")]

use std::convert::Infallible;
use std::path::Path;

use target_trainer::intake::{ReadError, read_samples};
use target_trainer::settings::{Guards, Limits, Settings};
use target_trainer::store::{Manifest, decode};

fn for_each_file(corpus: &str, check: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(corpus);
    let files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty());
    files.iter().for_each(|file| check(&std::fs::read(file).unwrap()));
}

#[test]
fn every_data_file_of_the_corpus_gives_samples_or_an_error_with_a_position() {
    let limits = Limits { line_bytes: 4096, nesting: 16, ..Limits::default() };
    for_each_file("data_line", |bytes| {
        match read_samples::<Infallible>(bytes, &limits, &Guards::default(), |_| Ok(())) {
            Ok(samples) => assert!(!samples.is_empty()),
            Err(ReadError::Data(error)) => assert!(error.line >= 1 && error.column >= 1),
            Err(ReadError::Input(error)) => unreachable!("bytes in memory can be read: {error}"),
        }
    });
}

#[test]
fn every_manifest_of_the_corpus_is_parsed_or_rejected() {
    for_each_file("manifest", |bytes| {
        let _ = Manifest::parse(bytes);
        let _ = decode(bytes);
    });
}

#[test]
fn every_settings_file_of_the_corpus_is_in_range_or_rejected() {
    for_each_file("settings", |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(settings) = Settings::parse(&text, "corpus") {
            assert!(settings.train.micro_batch > 0);
        }
        let _ = Settings::default().with(&[text.into_owned()]);
    });
}
