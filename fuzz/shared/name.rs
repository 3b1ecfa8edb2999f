//! What must hold of any bytes as the name of a file. For the fuzz target, its corpus, and the property tests.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use target_trainer::names::{
    NameIndex, NameKeys, NameProblem, TwinNames, check_name, is_file_name, is_ignored, is_job_id,
    numbered_name, shown_name, visible_name,
};
use unicode_normalization::UnicodeNormalization;

/// Checks the bytes as one name, and their two halves as two. Makes files in this directory, which is empty, and
/// removes them.
pub(crate) fn check(data: &[u8], dir: &Path) {
    let name = OsStr::from_bytes(data);
    check_one(name, dir);
    let (one, other) = data.split_at(data.len() / 2);
    check_two(OsStr::from_bytes(one), OsStr::from_bytes(other));
    if let Ok(text) = std::str::from_utf8(data) {
        check_submitted(text, dir);
        check_forms(text);
    }
}

/// An accepted name can be made in a directory and leads nowhere else; no other one can.
fn check_one(name: &OsStr, dir: &Path) {
    assert_eq!(is_made(name, dir), is_file_name(name), "{name:?}");
    assert!(!is_job_id(name) || is_file_name(name));
    let shown = shown_name(name);
    assert!(!shown.chars().any(char::is_control) && shown.chars().count() <= 82, "{shown:?}");
}

/// Whether a file can be made in the directory under exactly this name.
fn is_made(name: &OsStr, dir: &Path) -> bool {
    let path = dir.join(name);
    // Nothing outside of the directory is touched.
    if path.parent() != Some(dir) || path.file_name() != Some(name) {
        return false;
    }
    if OpenOptions::new().write(true).create_new(true).open(&path).is_err() {
        return false;
    }
    let names: Vec<OsString> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    std::fs::remove_file(&path).unwrap();
    names == [name]
}

/// A submitted file gets a name that the daemon takes, whatever number comes before it.
fn check_submitted(name: &str, dir: &Path) {
    if !matches!(check_name(OsStr::new(name)), Ok(()) | Err(NameProblem::TooLong)) {
        return;
    }
    let visible = visible_name(name);
    for (prefix, max_bytes) in [("", 255), ("1-", 255), ("1000-", 143), ("", 143)] {
        let given = numbered_name(OsStr::new(&visible), prefix, max_bytes);
        assert!(given.len() <= max_bytes && is_file_name(&given) && !is_ignored(&given), "{given:?}");
        assert!(given.to_str().is_some_and(|given| given.starts_with(prefix)), "{given:?}");
        assert!(is_made(&given, dir), "{given:?}");
    }
    let is_taken = is_file_name(name) && !is_ignored(OsStr::new(name));
    assert_eq!(numbered_name(OsStr::new(&visible), "", 255) == name, is_taken, "{name:?}");
}

/// Whether two names look alike does not depend on which is first, and the index finds it.
fn check_two(one: &OsStr, other: &OsStr) {
    let (twins, reversed) = (TwinNames::of(one, other), TwinNames::of(other, one));
    assert_eq!(twins.is_some(), reversed.is_some(), "{one:?} {other:?}");
    assert!(TwinNames::of(one, one).is_none() && NameKeys::of(one).look_alike(&NameKeys::of(one)));
    let mut index = NameIndex::default();
    assert!(index.add(other, true).is_empty());
    assert_eq!(index.add(one, true), Vec::from_iter(twins.clone()), "{one:?} {other:?}");
    if let Some(twins) = twins {
        let text = twins.to_string();
        assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{text}");
    }
}

/// The normal forms of a name look like it, and so does it in lower case.
fn check_forms(name: &str) {
    let keys = |text: &str| NameKeys::of(OsStr::new(text));
    let forms = [name.nfc().collect::<String>(), name.nfd().collect()];
    for form in &forms {
        assert!(keys(form).look_alike(&keys(name)), "{form:?} {name:?}");
        check_two(OsStr::new(form), OsStr::new(name));
    }
    // Other tables than ours may know newer letters.
    let is_old = |c: char| matches!(c, '\0'..='\u{52f}' | '\u{1e00}'..='\u{1eff}' | '\u{3000}'..='\u{9fff}');
    if name.chars().all(is_old) {
        let lower = name.to_lowercase();
        assert!(keys(&lower).is_same_in_other_case(&keys(name)), "{lower:?} {name:?}");
    }
}
