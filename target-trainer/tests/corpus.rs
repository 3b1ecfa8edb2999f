//! Runs the fuzz corpora as ordinary tests, without a fuzzer.

#![expect(clippy::unwrap_used, reason = "a test fails at the first unexpected value")]

#[path = "../../fuzz/shared/name.rs"]
mod name;
#[path = "../../fuzz/shared/server.rs"]
mod server;

use std::cell::RefCell;
use std::collections::BTreeSet;
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

#[test]
fn every_name_of_the_corpus_has_the_properties_of_a_name() {
    let dir = tempfile::tempdir().unwrap();
    for_each_file("name", |bytes| name::check(bytes, dir.path()));
}

/// All statuses of the answers to the corpus.
fn statuses(changes: &[&str]) -> BTreeSet<u16> {
    let dir = tempfile::tempdir().unwrap();
    let server = server::ServerCheck::new(dir.path(), changes);
    let statuses = RefCell::new(BTreeSet::new());
    for_each_file("server", |bytes| statuses.borrow_mut().extend(server.check(bytes)));
    statuses.into_inner()
}

#[test]
fn every_input_of_the_corpus_gives_answers_of_the_monitor() {
    assert_eq!(statuses(&[]), BTreeSet::from([100, 200, 201, 400, 401]));
}

#[test]
fn a_server_that_asks_for_no_token_or_gives_a_hidden_name_fails_the_check() {
    for guard in ["guards.change_token=false", "guards.submit_names=false"] {
        assert!(std::panic::catch_unwind(|| statuses(&[guard])).is_err(), "{guard}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_have_the_properties_of_a_name(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
        name::check(&bytes, tempfile::tempdir().unwrap().path());
    }

    #[test]
    fn any_text_has_the_properties_of_a_name(
        text in "(\\PC|\\p{C}|[./~]|\\.tmp|\u{301}|\u{430}|\u{200b}){0,40}|[aA\u{e9}]{250,258}"
    ) {
        name::check(text.as_bytes(), tempfile::tempdir().unwrap().path());
    }

    #[test]
    fn any_two_names_that_differ_in_form_case_or_a_look_alike_have_them(
        text in "([a-z]|\u{e9}|e\u{301}|\u{df}|[\u{430}-\u{44f}]){1,20}"
    ) {
        for other in [text.to_uppercase(), text.replace('a', "\u{430}"), format!("{text}\u{200b}")] {
            name::check(format!("{text}{other}").as_bytes(), tempfile::tempdir().unwrap().path());
            let (one, other) = (std::ffi::OsStr::new(&text), std::ffi::OsStr::new(&other));
            proptest::prop_assert_eq!(
                target_trainer::names::TwinNames::of(one, other).is_some(), one != other, "{:?} {:?}", one, other
            );
        }
    }
}
