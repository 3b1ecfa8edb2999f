//! Holds the vocabulary: no retired word in the tree, unique type names in each crate, no import that renames
//! one of our own types, and a doc comment on nearly every `pub` item. Works on the text of the files. Macros
//! are not expanded, apart from the two that define types: `fault!` and `leaf!`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first file that it cannot read")]

#[expect(dead_code, reason = "this test leaves no code out")]
#[path = "support/sources.rs"]
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use regex::Regex;
use sources::{
    CRATES, blank_comments_and_strings, files_below, has_extension, rust_sources, tokens, workspace,
};

/// Paths in a `use` that lead to our own types. A module that the file itself declares counts too.
const OWN_ROOTS: [&str; 10] = [
    "crate",
    "self",
    "super",
    "scenarios",
    "reports",
    "simgpu",
    "simgpu_plan",
    "gpu_words",
    "target_trainer",
    "engine",
];

/// Words that the glossary in `ARCHITECTURE.md` has replaced. They are searched for as whole words. An
/// underscore separates words, a letter or a digit does not.
const RETIRED_WORDS: [&str; 31] = [
    "Overseer",
    "Guardroom",
    "Sentry",
    "Booth",
    "RoomSpec",
    "warden",
    "Striker",
    "Hands",
    "Tape",
    "expedition",
    "steady state",
    "steady-state",
    "steady_state",
    "SteadyState",
    "stand-in",
    "stand-ins",
    "stand_in",
    "StandIn",
    "Ear",
    "Cast",
    "Scene",
    "Course",
    "Desk",
    "twist",
    "landmarks",
    "lawful",
    "struck",
    // The former name of `trainwreck ablate`, as a verb of the command.
    "Prove",
    "trainwreck prove",
    "`prove`",
    "\"prove\"",
];

/// Files whose lines are searched for retired words.
const TEXT_EXTENSIONS: [&str; 13] =
    ["rs", "py", "cu", "h", "c", "cpp", "sh", "toml", "yaml", "yml", "json", "snap", "md"];

/// Files that name retired words on purpose: the history, and this list.
const SKIPPED_FILES: [&str; 2] = ["CHANGELOG.md", "harness/tests/vocabulary.rs"];

/// Each occurrence of a retired word in a text, as (line number from 1, word).
fn retired_words_in(text: &str) -> Vec<(usize, &'static str)> {
    let is_whole = |line: &str, start: usize, end: usize| {
        let before = line[..start].chars().next_back();
        let after = line[end..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    };
    let mut hits = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in RETIRED_WORDS {
            let whole = |(start, _): &(usize, &str)| is_whole(line, *start, start + word.len());
            hits.extend(line.match_indices(word).filter(whole).map(|_| (index + 1, word)));
        }
    }
    hits
}

fn is_type_name(token: &str) -> bool {
    token.starts_with(|letter: char| letter.is_ascii_uppercase())
}

/// The types that a file defines, at any depth, as (line number, name). Associated types are not among them.
fn types_defined_in(text: &str) -> Vec<(usize, String)> {
    let code = blank_comments_and_strings(text);
    let tokens = tokens(&code);
    let at = |index: usize| tokens.get(index).map_or("", |(_, token)| *token);
    // For each open block: whether it is the block of an `impl` or a `trait`, whose `type` items are
    // associated types.
    let mut blocks: Vec<bool> = Vec::new();
    let mut next_is_impl_or_trait = false;
    let mut found = Vec::new();
    for (index, (_, token)) in tokens.iter().enumerate() {
        let before = index.checked_sub(1).map_or("", at);
        // Where the name stands, if this token begins a definition.
        let mut name = index + 1;
        match *token {
            "{" => blocks.push(std::mem::take(&mut next_is_impl_or_trait)),
            "}" => drop(blocks.pop()),
            // Elsewhere, as in `-> impl Iterator`, it is a type.
            "impl" if matches!(before, "" | "{" | "}" | ";" | "]" | "unsafe") => next_is_impl_or_trait = true,
            "trait" => next_is_impl_or_trait = true,
            "fault" | "leaf" if at(index + 1) == "!" => {
                name = index + 3;
                while at(name) == "#" {
                    name += tokens[name..].iter().take_while(|(_, token)| *token != "]").count() + 1;
                }
            }
            _ => {}
        }
        let defines = match *token {
            "struct" | "enum" | "trait" | "fault" | "leaf" => true,
            "union" => matches!(at(index + 2), "{" | "<"),
            "type" => blocks.last() != Some(&true),
            _ => false,
        };
        if defines && is_type_name(at(name)) {
            found.push((tokens[name].0, at(name).to_owned()));
        }
    }
    found
}

/// Each name that more than one definition in these files has, with all the places.
fn repeated_type_names(files: &[(PathBuf, String)]) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in files {
        for (line, name) in types_defined_in(text) {
            places.entry(name).or_default().push(format!("{}:{line}", path.display()));
        }
    }
    let repeated = places.into_iter().filter(|(_, places)| places.len() > 1);
    repeated.map(|(name, places)| format!("{name}: {}", places.join(", "))).collect()
}

/// Each import in a file that gives one of our own types another name, as (line number, `X as Y`).
fn renaming_imports_in(text: &str, own_types: &BTreeSet<String>) -> Vec<(usize, String)> {
    let code = blank_comments_and_strings(text);
    let tokens = tokens(&code);
    let names: Vec<&str> = tokens.iter().map(|(_, token)| *token).collect();
    let declared: BTreeSet<&str> =
        names.windows(2).filter(|pair| pair[0] == "mod").map(|pair| pair[1]).collect();
    let mut found = Vec::new();
    for start in (0..names.len()).filter(|index| names[*index] == "use") {
        let end = start + names[start..].iter().take_while(|name| **name != ";").count();
        let root = names[start + 1..end].iter().find(|name| **name != ":");
        if !root.is_some_and(|root| OWN_ROOTS.contains(root) || declared.contains(root)) {
            continue;
        }
        for index in start + 1..end.saturating_sub(1) {
            let [old, keyword, new] = [names[index - 1], names[index], names[index + 1]];
            if keyword == "as" && new != "_" && own_types.contains(old) {
                found.push((tokens[index].0, format!("{old} as {new}")));
            }
        }
    }
    found
}

/// The number of `pub` items in a file, and those without a doc comment as (line number, kind and name).
/// A module in a file of its own may have its doc comment there: `module_is_documented` answers for it.
fn undocumented_items_in(
    text: &str,
    module_is_documented: impl Fn(&str) -> bool,
) -> (usize, Vec<(usize, String)>) {
    let item = Regex::new(concat!(
        r"^\s*pub\s+(?:(?:const|async|unsafe|extern)\s+)*",
        r"(fn|struct|enum|trait|union|const|static|type|mod)\s+(?:mut\s+)?([A-Za-z_]\w*)(\s*;)?"
    ))
    .unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (mut total, mut undocumented) = (0, Vec::new());
    for (index, code) in blank_comments_and_strings(text).lines().enumerate() {
        let Some(found) = item.captures(code) else { continue };
        total += 1;
        let in_own_file = &found[1] == "mod" && found.get(3).is_some();
        let is_documented =
            has_doc_comment(&lines[..index]) || (in_own_file && module_is_documented(&found[2]));
        if !is_documented {
            undocumented.push((index + 1, format!("{} {}", &found[1], &found[2])));
        }
    }
    (total, undocumented)
}

/// Whether the lines above an item end with a doc comment. Attributes may stand between it and the item.
fn has_doc_comment(lines_above: &[&str]) -> bool {
    let mut above = lines_above.iter().rev().map(|line| line.trim());
    while let Some(line) = above.next() {
        if line.starts_with("///") || line.starts_with("#[doc") {
            return true;
        }
        if !line.ends_with(']') {
            return false;
        }
        if !line.starts_with("#[") {
            // The last line of an attribute with several.
            above.by_ref().find(|line| line.starts_with("#["));
        }
    }
    false
}

/// Whether the file of a module that `parent` declares opens with a doc comment.
fn module_file_is_documented(parent: &Path, name: &str) -> bool {
    let stem = parent.file_stem().unwrap();
    let own_dir = ["mod", "lib", "main"].iter().any(|entry| stem == *entry);
    let dir = if own_dir { parent.parent().unwrap().to_path_buf() } else { parent.with_extension("") };
    [dir.join(format!("{name}.rs")), dir.join(name).join("mod.rs")]
        .iter()
        .filter_map(|path| std::fs::read_to_string(workspace().join(path)).ok())
        .any(|text| text.starts_with("//!"))
}

#[test]
fn no_retired_word_is_left_in_the_tree() {
    let wanted = |path: &Path| {
        let is_text = has_extension(path, &TEXT_EXTENSIONS) || path.starts_with(".ci");
        is_text && !SKIPPED_FILES.iter().any(|skipped| path == Path::new(skipped))
    };
    let mut hits = Vec::new();
    for (path, text) in files_below("", wanted) {
        let in_file = retired_words_in(&text).into_iter();
        hits.extend(in_file.map(|(line, word)| format!("{}:{line}:{word}", path.display())));
    }
    assert!(hits.is_empty(), "{} retired words:\n{}", hits.len(), hits.join("\n"));
}

#[test]
fn type_names_are_unique_in_each_crate() {
    let mut repeated = Vec::new();
    for dir in CRATES {
        let files = rust_sources(dir);
        assert!(!files.is_empty(), "`{dir}` has no source files");
        repeated.extend(repeated_type_names(&files));
    }
    assert!(repeated.is_empty(), "{} names:\n{}", repeated.len(), repeated.join("\n"));
}

#[test]
fn no_import_renames_one_of_our_own_types() {
    let sources = CRATES.iter().flat_map(|dir| rust_sources(dir));
    let own_types: BTreeSet<String> =
        sources.flat_map(|(_, text)| types_defined_in(&text)).map(|(_, name)| name).collect();
    assert!(own_types.len() > 100, "{own_types:?}");
    let mut found = Vec::new();
    for (path, text) in rust_sources("") {
        let in_file = renaming_imports_in(&text, &own_types).into_iter();
        found.extend(in_file.map(|(line, import)| format!("{}:{line}: {import}", path.display())));
    }
    assert!(found.is_empty(), "{} imports:\n{}", found.len(), found.join("\n"));
}

#[test]
fn fewer_than_3_percent_of_the_pub_items_lack_a_doc_comment() {
    let (mut total, mut undocumented) = (0, Vec::new());
    for (path, text) in CRATES.iter().flat_map(|dir| rust_sources(dir)) {
        let (count, items) = undocumented_items_in(&text, |name| module_file_is_documented(&path, name));
        total += count;
        undocumented.extend(items.iter().map(|(line, item)| format!("{}:{line}: {item}", path.display())));
    }
    assert!(total > 100, "{total} `pub` items were found");
    assert!(
        undocumented.len() * 100 < total * 3,
        "{} of {total} `pub` items have no doc comment:\n{}",
        undocumented.len(),
        undocumented.join("\n")
    );
}

#[test]
fn retired_words_are_found_as_whole_words_with_their_case() {
    let bad =
        "let desk = Desk::new();\nbecome_warden(); // of course\nThe steady-state run\nrun `prove`, twisted";
    assert_eq!(retired_words_in(bad), [(1, "Desk"), (2, "warden"), (3, "steady-state"), (4, "`prove`")]);
    assert_eq!(retired_words_in("Desktop, Broadcast, forecast, wardens2, to prove that"), []);
}

#[test]
fn repeated_type_names_are_found_at_any_depth_but_not_associated_types_comments_or_strings() {
    let first = r#"
        // struct Commented;
        pub struct Twice<'a> { letter: &'a str }
        mod inner { pub(crate) enum Nested { A } }
        fault!(
            /// A fault.
            Made { field: u8, }
        );
        impl Iterator for Twice<'_> { type Item = char; }
        const TEXT: &str = "struct Quoted;";
        type Alias = [u8; 4];
    "#;
    let second = r##"
        fn f() -> impl Iterator<Item = u8> { type Alias = u8; struct Nested; 0..1 }
        trait Twice { type Item; }
        struct Made; struct Commented; struct Item; struct Once;
        const RAW: &str = r#" " struct Quoted; "#;
        struct Quoted;
    "##;
    let files = [(PathBuf::from("a.rs"), first.to_owned()), (PathBuf::from("b.rs"), second.to_owned())];
    assert_eq!(
        repeated_type_names(&files),
        ["Alias: a.rs:11, b.rs:2", "Made: a.rs:7, b.rs:4", "Nested: a.rs:4, b.rs:2", "Twice: a.rs:3, b.rs:3"]
    );
}

#[test]
fn imports_that_rename_our_own_types_are_found() {
    let own = BTreeSet::from(["Effect".to_owned(), "Read".to_owned()]);
    let bad = "mod leaf;\nuse crate::{Effect as Word, Other};\npub use leaf::Effect as Leaf;\n\
               use scenarios::{a::{\n    Read as Load,\n}};";
    let found = [(2, "Effect as Word"), (3, "Effect as Leaf"), (5, "Read as Load")];
    assert_eq!(renaming_imports_in(bad, &own), found.map(|(line, import)| (line, import.to_owned())));
    let good = "use std::io::Read as IoRead; use crate::Effect as _; use crate::make as make_it; 1 as u8;";
    assert_eq!(renaming_imports_in(good, &own), []);
}

#[test]
fn pub_items_without_a_doc_comment_are_found() {
    let text = r#"
/// Has one.
#[derive(Debug)]
#[expect(
    dead_code,
    reason = "an attribute with several lines"
)]
pub struct Documented { pub field: u8 }
pub const fn bare() {}

pub(crate) fn not_public() {}
// An ordinary comment.
pub const LIMIT: u8 = 1;
pub extern "C" fn exported() {}
pub mod described;
pub mod silent;
/// pub fn in_a_comment() {}
pub static NAMED: u8 = 1;
"#;
    let (total, undocumented) = undocumented_items_in(text, |module| module == "described");
    let expected = [(9, "fn bare"), (13, "const LIMIT"), (14, "fn exported"), (16, "mod silent")];
    assert_eq!(undocumented, expected.map(|(line, item)| (line, item.to_owned())));
    assert_eq!(total, 7);
}
