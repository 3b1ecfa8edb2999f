//! Whether two names look alike to people, or are one name on file systems that ignore case or normal forms, and what
//! tells them apart.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;
use unicode_script::{Script, UnicodeScript};
use unicode_security::skeleton;

/// Longest name in a message, in characters.
const MAX_SHOWN_CHARS: usize = 80;
/// Characters before the first different one, of a name that is too long for a message.
const SHOWN_BEFORE: usize = 40;

/// What two names have in common if they look alike. Names that share neither text do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameKeys {
    /// The name with its case folded in full, in NFD (Unicode, D145: canonical caseless match).
    folded: String,
    /// The skeleton of UTS 39: characters that look alike are one, and invisible ones are left out.
    skeleton: String,
}

impl NameKeys {
    /// Those of a name. What is no text in it is one character each.
    pub fn of(name: &OsStr) -> NameKeys {
        let text = name.to_string_lossy();
        NameKeys {
            folded: text.nfd().default_case_fold().nfd().collect(),
            skeleton: skeleton(&text).collect(),
        }
    }

    /// Whether they are one name on a file system that ignores case and normal forms.
    pub fn is_same_in_other_case(&self, other: &NameKeys) -> bool {
        self.folded == other.folded
    }

    /// Two hashes. Names that look alike have one of them in common.
    pub(super) fn hashes(&self, hasher: &RandomState) -> [u64; 2] {
        [hasher.hash_one(("folded", &self.folded)), hasher.hash_one(("skeleton", &self.skeleton))]
    }

    /// Whether two names look alike.
    pub fn look_alike(&self, other: &NameKeys) -> bool {
        self.is_same_in_other_case(other) || self.skeleton == other.skeleton
    }
}

/// What tells two names apart that look alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameDifference {
    /// One text, in two normal forms of Unicode.
    NormalForm,
    Case,
    /// Bytes that are no UTF-8.
    Bytes,
    /// Characters that are not shown.
    Invisible,
    /// Characters of several scripts. Those of either name.
    Script(String, String),
    /// Characters of one script that look alike.
    Characters,
}

impl std::fmt::Display for NameDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NameDifference::NormalForm => f.write_str("normal form"),
            NameDifference::Case => f.write_str("case"),
            NameDifference::Bytes => f.write_str("bytes that are no UTF-8"),
            NameDifference::Invisible => f.write_str("invisible characters"),
            NameDifference::Script(one, other) => write!(f, "script ({one}; {other})"),
            NameDifference::Characters => f.write_str("characters that look alike"),
        }
    }
}

/// Two different names that look alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TwinNames {
    name: OsString,
    other: OsString,
    pub difference: NameDifference,
}

impl TwinNames {
    /// `None` if the names are equal, or do not look alike.
    pub fn of(name: &OsStr, other: &OsStr) -> Option<TwinNames> {
        if name == other || !NameKeys::of(name).look_alike(&NameKeys::of(other)) {
            return None;
        }
        let difference = difference(name, other);
        Some(TwinNames { name: name.to_owned(), other: other.to_owned(), difference })
    }
}

impl std::fmt::Display for TwinNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, other) = (in_ascii(&self.name), in_ascii(&self.other));
        let same = name.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        write!(
            f,
            "the name `{}` looks like `{}`, that of another file: they differ in {}",
            excerpt(&name, same),
            excerpt(&other, same),
            self.difference
        )
    }
}

fn difference(name: &OsStr, other: &OsStr) -> NameDifference {
    let (Some(name), Some(other)) = (name.to_str(), other.to_str()) else { return NameDifference::Bytes };
    if name.nfc().eq(other.nfc()) {
        return NameDifference::NormalForm;
    }
    let keys = |text: &str| NameKeys::of(OsStr::new(text));
    if keys(name).is_same_in_other_case(&keys(other)) {
        return NameDifference::Case;
    }
    // The characters that are in one of them only.
    let characters = |text: &str| text.nfd().collect::<BTreeSet<char>>();
    let (name_set, other_set) = (characters(name), characters(other));
    let is_invisible = |c: &char| skeleton(c.encode_utf8(&mut [0; 4])).next().is_none();
    if name_set.symmetric_difference(&other_set).all(is_invisible) {
        return NameDifference::Invisible;
    }
    let (scripts, other_scripts) = (scripts(&name_set), scripts(&other_set));
    match scripts == other_scripts {
        true => NameDifference::Characters,
        false => NameDifference::Script(scripts, other_scripts),
    }
}

/// The scripts of these characters, such as `Cyrillic and Latin`.
fn scripts(characters: &BTreeSet<char>) -> String {
    let scripts = characters.iter().map(|character| character.script());
    let is_own = |script: &Script| !matches!(script, Script::Common | Script::Inherited);
    let names: BTreeSet<&str> = scripts.filter(is_own).map(|script| script.full_name()).collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.into_iter().collect::<Vec<_>>().join(" and "),
    }
}

/// A name in printable ASCII, everything else as escapes.
fn in_ascii(name: &OsStr) -> String {
    let mut result = String::new();
    for chunk in name.as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => result.push_str("\\\\"),
                ' '..='~' => result.push(character),
                _ => result.extend(character.escape_default()),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string can't fail.
            let _ = write!(result, "\\x{byte:02x}");
        }
    }
    result
}

/// The part of an ASCII text around this position, if the whole is too long.
fn excerpt(text: &str, position: usize) -> String {
    if text.len() <= MAX_SHOWN_CHARS {
        return text.to_owned();
    }
    let start = position.saturating_sub(SHOWN_BEFORE).min(text.len() - MAX_SHOWN_CHARS);
    let end = start + MAX_SHOWN_CHARS;
    let (before, after) = (if start > 0 { ".." } else { "" }, if end < text.len() { ".." } else { "" });
    format!("{before}{}{after}", &text[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twins(name: &str, other: &str) -> Option<TwinNames> {
        TwinNames::of(OsStr::new(name), OsStr::new(other))
    }

    #[test]
    fn names_that_look_alike_are_told_with_what_differs() {
        for (name, other, difference) in [
            ("caf\u{e9}.jsonl", "cafe\u{301}.jsonl", "normal form"),
            ("Data.jsonl", "data.jsonl", "case"),
            ("STRASSE", "stra\u{df}e", "case"),
            (
                "\u{3a3}\u{3af}\u{3c3}\u{3c5}\u{3c6}\u{3bf}\u{3c2}",
                "\u{3c3}\u{3af}\u{3c3}\u{3c5}\u{3c6}\u{3bf}\u{3c3}",
                "case",
            ),
            ("d\u{430}ta.jsonl", "data.jsonl", "script (Cyrillic and Latin; Latin)"),
            ("\u{441}\u{43e}\u{440}", "cop", "script (Cyrillic; Latin)"),
            ("a\u{200b}b", "ab", "invisible characters"),
            ("a\u{202e}b", "ab", "invisible characters"),
            ("part-1", "part-l", "characters that look alike"),
            ("\u{ff41}b", "ab", "characters that look alike"),
        ] {
            let twins = twins(name, other).unwrap_or_else(|| panic!("{name:?} {other:?}"));
            assert_eq!(twins.difference.to_string(), difference, "{name:?} {other:?}");
            assert!(twins.to_string().is_ascii(), "{twins}");
        }
        let bytes = TwinNames::of(OsStr::from_bytes(b"a\xff"), OsStr::from_bytes(b"a\xfe")).unwrap();
        assert_eq!(
            bytes.to_string(),
            "the name `a\\xff` looks like `a\\xfe`, that of another file: they differ in bytes that are no UTF-8"
        );
    }

    #[test]
    fn ordinary_names_of_one_script_are_no_twins() {
        let groups = [
            [
                "\u{434}\u{430}\u{43d}\u{43d}\u{44b}\u{435}.jsonl",
                "\u{437}\u{430}\u{434}\u{430}\u{447}\u{438}.jsonl",
                "\u{43a}\u{43d}\u{438}\u{433}\u{430}.jsonl",
            ],
            ["\u{6570}\u{636e}.jsonl", "\u{6570}\u{636e}\u{96c6}.jsonl", "\u{8bad}\u{7ec3}.jsonl"],
            [
                "\u{3b4}\u{3b5}\u{3b4}\u{3bf}\u{3bc}\u{3ad}\u{3bd}\u{3b1}.jsonl",
                "\u{3ba}\u{3b5}\u{3af}\u{3bc}\u{3b5}\u{3bd}\u{3bf}.jsonl",
                "\u{3b1}\u{3c1}\u{3c7}\u{3b5}\u{3af}\u{3bf}.jsonl",
            ],
            [
                "\u{628}\u{64a}\u{627}\u{646}\u{627}\u{62a}.jsonl",
                "\u{646}\u{635}.jsonl",
                "\u{645}\u{644}\u{641}.jsonl",
            ],
            ["donn\u{e9}es.jsonl", "\u{e9}t\u{e9}.jsonl", "stra\u{df}e.jsonl"],
            ["sums-1.jsonl", "sums-2.jsonl", "1-sums-1.jsonl"],
        ];
        let names: Vec<&str> = groups.into_iter().flatten().collect();
        for (number, name) in names.iter().enumerate() {
            names[number + 1..].iter().for_each(|other| assert_eq!(twins(name, other), None));
        }
    }

    #[test]
    fn of_long_names_the_place_where_they_differ_is_shown() {
        let name = |end: &str| format!("{}{end}{}", "n".repeat(200), "x".repeat(40));
        let text = twins(&name("A"), &name("a")).unwrap().to_string();
        assert!(text.contains("nnnAxxx") && text.contains("nnnaxxx") && text.len() < 300, "{text}");
    }
}
