//! Holds the architecture as tests: `ARCHITECTURE.md` is up to date, files are short and open with a comment,
//! unsafe code is in its place, and crates, modules and files use one another only as planned.
//! `vocabulary.rs` holds the rules for names, `code_rules.rs` those for code.

#![expect(clippy::unwrap_used, reason = "a test stops at the first file that it cannot read")]

#[path = "support/arrow_tables.rs"]
mod arrow_tables;
#[path = "support/module_graph.rs"]
mod module_graph;
#[path = "support/sources.rs"]
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use arrow_tables::{ArrowTable, CRATES};
use module_graph::{FileUse, ModuleGraph};
use sources::{files_below, has_extension, workspace};

/// The longest line of text and kernels, in characters. rustfmt holds the same limit for Rust.
const MAX_LINE_CHARS: usize = 110;

/// All files of the Rust crates, apart from the fuzz targets, each with its text.
fn rust_sources() -> Vec<(PathBuf, String)> {
    let crates = ["harness", "scenarios", "reports", "target-trainer"];
    let files = crates.iter().flat_map(|name| sources::rust_sources(name));
    files.map(|(path, text)| (workspace().join(path), text)).collect()
}

#[test]
fn every_path_in_architecture_md_exists() {
    let text = std::fs::read_to_string(workspace().join("ARCHITECTURE.md")).unwrap();
    let paths: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.contains('/') && !code.contains([' ', '<', '*', '{']))
        .collect();
    assert!(paths.len() > 20, "ARCHITECTURE.md names the parts of the project by path: {paths:?}");
    let missing: Vec<&&str> = paths.iter().filter(|path| !workspace().join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_rust_file_opens_with_a_module_comment() {
    let without_comment: Vec<PathBuf> = rust_sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(without_comment.is_empty(), "{without_comment:?}");
}

/// Files of the shim with unsafe code that are not called `sys.rs`, and why they need it.
const UNSAFE_FILES_OF_THE_SHIM: [(&str, &str); 22] = [
    ("build.rs", "it writes Rust code that refers to tables which the C++ compiler makes"),
    ("examples/cost.rs", "it calls functions by name and launches kernels"),
    ("plan/src/control.rs", "it maps a file that several processes share"),
    ("src/cublaslt.rs", "C calls its functions, with descriptors as pointers"),
    ("src/driver/info.rs", "C calls its functions, with buffers for text and their lengths"),
    ("src/driver/launch.rs", "C calls its functions, with the parameters of kernels as pointers"),
    ("src/driver/memory.rs", "C calls its functions, which read the program's memory"),
    ("src/driver/module.rs", "C calls its functions, with images as pointers"),
    ("src/driver/work.rs", "it moves the program's bytes and runs kernels"),
    ("src/forward.rs", "it calls functions of a driver that are only known by name"),
    ("src/hooks.rs", "it reads the arguments of calls from the caller's stack"),
    ("src/kernels.rs", "it reads tables that the C++ compiler made"),
    ("src/loader.rs", "it calls the dynamic loader"),
    ("src/matmul.rs", "its operands are addresses in the program's memory"),
    ("src/nvml.rs", "C calls its functions, and it calls those of a real NVML by name"),
    ("src/stacks.rs", "it implements a trait that promises valid memory: the stack of a fiber"),
    ("src/symbols.rs", "its functions are assembly"),
    ("src/nvml_exports.rs", "its functions are assembly"),
    ("tests/fault_rules.rs", "it launches kernels"),
    ("tests/forwarding.rs", "it launches kernels and calls functions by name"),
    ("tests/nvml_health.rs", "it launches a kernel"),
    ("tests/simulation.rs", "it launches kernels"),
];

#[test]
fn unsafe_code_is_only_in_files_named_for_it() {
    let keyword = ["uns", "afe "].concat();
    let uses_keyword =
        |text: &str| text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(&keyword));
    let shim = workspace().join("harness/simgpu");
    let listed: Vec<PathBuf> = UNSAFE_FILES_OF_THE_SHIM.iter().map(|(path, _)| shim.join(path)).collect();
    let is_allowed = |path: &PathBuf| {
        ["sys.rs", "cuda.rs"].iter().any(|name| path.ends_with(name)) || listed.contains(path)
    };
    let with_unsafe: Vec<PathBuf> =
        rust_sources().into_iter().filter(|(_, text)| uses_keyword(text)).map(|(path, _)| path).collect();
    let misplaced: Vec<&PathBuf> = with_unsafe.iter().filter(|path| !is_allowed(path)).collect();
    assert!(misplaced.is_empty(), "{misplaced:?}");
    let needless: Vec<&PathBuf> = listed.iter().filter(|path| !with_unsafe.contains(path)).collect();
    assert!(needless.is_empty(), "listed, but they do not need it: {needless:?}");
}

/// Test programs without the standard harness: the directory or the stem of each, from the manifests.
fn programs_with_trials() -> Vec<PathBuf> {
    let mut programs = Vec::new();
    for package in ["harness", "target-trainer"] {
        let dir = workspace().join(package);
        let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        let tables = manifest.split("[[test]]").skip(1).filter(|table| table.contains("harness = false"));
        let name = |table: &str| Some(table.split("name = \"").nth(1)?.split('"').next()?.to_owned());
        programs.extend(tables.filter_map(name).map(|name| dir.join("tests").join(name)));
    }
    programs
}

/// Such a program does not know the attribute: the test would never run, and nothing would be said.
#[test]
fn no_test_program_with_trials_has_a_function_marked_as_a_test() {
    let programs = programs_with_trials();
    assert!(programs.len() > 8, "{programs:?}");
    let attribute = ["#[te", "st]"].concat();
    let marked: Vec<PathBuf> = rust_sources()
        .into_iter()
        .filter(|(path, text)| {
            let is_of = |program: &PathBuf| path.starts_with(program) || path.with_extension("") == *program;
            programs.iter().any(is_of) && text.lines().any(|line| line.trim() == attribute)
        })
        .map(|(path, _)| path)
        .collect();
    assert!(marked.is_empty(), "list them in `trials![..]` instead: {marked:?}");
}

/// Documentation does not count: a file must not become worse by being explained.
#[test]
fn no_rust_file_has_more_than_500_lines_of_code() {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    let long: Vec<(usize, PathBuf)> = rust_sources()
        .into_iter()
        .map(|(path, text)| (text.lines().filter(is_code).count(), path))
        .filter(|(lines, _)| *lines > 500)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

/// The packages that a manifest depends on, for its code, its tests, its build, or one platform.
fn dependencies_in(manifest: &str) -> BTreeSet<String> {
    let manifest: toml::Table = manifest.parse().unwrap();
    let platforms = manifest.get("target").and_then(toml::Value::as_table);
    let for_platforms = platforms.into_iter().flatten().filter_map(|(_, value)| value.as_table());
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let tables = std::iter::once(&manifest).chain(for_platforms);
    let lists = tables.flat_map(|table| kinds.map(|kind| table.get(kind)?.as_table()));
    let package = |(name, value): (&String, &toml::Value)| {
        let renamed = value.get("package").and_then(toml::Value::as_str);
        renamed.unwrap_or(name).replace('_', "-")
    };
    lists.flatten().flatten().map(package).collect()
}

/// The packages of the harness, which the trainer must not know.
const HARNESS_PACKAGES: [&str; 7] =
    ["engine", "gpu-words", "reports", "scenarios", "simgpu", "simgpu-plan", "trainwreck"];

/// Those of the forbidden packages that a manifest depends on.
fn forbidden_dependencies<'a>(manifest: &str, forbidden: &[&'a str]) -> Vec<&'a str> {
    let dependencies = dependencies_in(manifest);
    forbidden.iter().copied().filter(|name| dependencies.contains(*name)).collect()
}

#[test]
fn the_trainer_does_not_depend_on_the_harness() {
    let manifest = std::fs::read_to_string(workspace().join("target-trainer/Cargo.toml")).unwrap();
    assert_eq!(forbidden_dependencies(&manifest, &HARNESS_PACKAGES), [] as [&str; 0]);
}

#[test]
fn the_engine_does_not_depend_on_the_reports_or_the_command() {
    let manifest = std::fs::read_to_string(workspace().join("harness/engine/Cargo.toml")).unwrap();
    assert_eq!(forbidden_dependencies(&manifest, &["reports", "trainwreck"]), [] as [&str; 0]);
    assert_eq!(forbidden_dependencies(&manifest, &["scenarios"]), ["scenarios"], "it is read at all");
}

#[test]
fn dependencies_are_found_however_they_are_written() {
    let bad = [
        "[dependencies]\nengine = { workspace = true }",
        "[dependencies]\nengine={workspace=true}",
        "[dependencies]\nengine.workspace = true",
        "[dependencies.engine]\nworkspace = true",
        "[dev-dependencies]\n\"engine\" = \"1\"",
        "[build-dependencies]\nother = { path = \"../engine\", package = \"engine\" }",
        "[target.'cfg(unix)'.dependencies]\nengine.workspace = true",
    ];
    for manifest in bad {
        assert_eq!(forbidden_dependencies(manifest, &HARNESS_PACKAGES), ["engine"], "{manifest}");
    }
    let good = "[package]\nname = \"engine\"\n# engine = \"1\"\n[dependencies]\nengine-x = \"1\"\n\
                [features]\nengine = []";
    assert_eq!(forbidden_dependencies(good, &HARNESS_PACKAGES), [] as [&str; 0]);
}

/// Whether code names a variant of `Effect`, or imports variants.
fn names_single_fault(text: &str) -> bool {
    let code = sources::blank_comments_and_strings(text);
    let tokens: Vec<&str> = sources::tokens(&code).into_iter().map(|(_, token)| token).collect();
    let aliases = tokens.windows(3).filter_map(|three| match three {
        ["Effect", "as", name] => Some(*name),
        _ => None,
    });
    let names: BTreeSet<&str> = aliases.chain(["Effect"]).collect();
    let is_variant = |token: &str| {
        matches!(token, "{" | "*") || token.starts_with(|letter: char| letter.is_ascii_uppercase())
    };
    tokens.windows(4).any(|four| match four {
        [name, ":", ":", next] => names.contains(name) && is_variant(next),
        _ => false,
    })
}

/// The one row of each fault is in `faults/mod.rs`. All other code asks the fault itself, through `EffectSpec`.
#[test]
fn no_code_of_the_harness_names_a_single_fault_except_its_row() {
    let harness = ["harness/src", "harness/engine/src", "reports/src"];
    let naming: Vec<PathBuf> = harness
        .iter()
        .flat_map(|dir| sources::rust_sources(dir))
        .filter(|(_, text)| names_single_fault(text))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(naming, [PathBuf::from("harness/engine/src/faults/mod.rs")]);
}

#[test]
fn names_of_single_faults_are_found_however_they_are_imported() {
    let bad = [
        "fn f(effect: &Effect) -> bool { matches!(effect, Effect::Crash(_)) }",
        "use scenarios::Effect::Crash;",
        "use scenarios::Effect::{Crash, FillDisk};",
        "use scenarios::{Effect::{self, Crash}, Plan};",
        "use scenarios::Effect::*;",
        "use scenarios::Effect as Fault;\nfn f() -> Fault { Fault::Crash(1) }",
    ];
    for text in bad {
        assert!(names_single_fault(text), "{text}");
    }
    let good = "use scenarios::{Effect, Plan};\n// Effect::Crash\n\
                fn f() { Effect::describe(\"Effect::Crash\"); }\n\
                fn g() { CallEffect::Opened; RuleEffect::Hang; }";
    assert!(!names_single_fault(good));
}

/// The lines of a text that are too long, as (line number, length). With `is_markdown`, rows of tables, lines
/// with a URL, and the output of commands (blocks marked `console` or `text`) may be longer, because they
/// cannot be wrapped.
fn long_lines(text: &str, is_markdown: bool) -> Vec<(usize, usize)> {
    let mut is_command_output = false;
    let mut long = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            is_command_output = matches!(language.trim(), "console" | "text");
        }
        let exempt = is_command_output || line.trim_start().starts_with('|') || line.contains("://");
        let length = line.chars().count();
        if length > MAX_LINE_CHARS && !(is_markdown && exempt) {
            long.push((index + 1, length));
        }
    }
    long
}

#[test]
fn no_line_of_markdown_or_of_a_kernel_is_longer_than_110_characters() {
    let markdown = files_below("", |path| has_extension(path, &["md"]));
    let markdown = markdown.into_iter().map(|file| (file, true));
    let kernels = files_below("target-trainer/kernels", |path| has_extension(path, &["cu", "h"]));
    let mut long = Vec::new();
    for ((path, text), is_markdown) in markdown.chain(kernels.into_iter().map(|file| (file, false))) {
        let lines = long_lines(&text, is_markdown).into_iter();
        long.extend(lines.map(|(line, length)| format!("{}:{line}: {length}", path.display())));
    }
    assert!(long.is_empty(), "{} lines:\n{}", long.len(), long.join("\n"));
}

#[test]
fn long_lines_are_found_apart_from_tables_urls_and_command_output() {
    let long = "x".repeat(MAX_LINE_CHARS + 1);
    let text =
        format!("{long}\n| {long}\nhttps://{long}\n```console\n{long}\n```\n```yaml\n{long}\n```\n{long}");
    assert_eq!(long_lines(&text, true), [(1, 111), (8, 111), (10, 111)]);
    assert_eq!(long_lines(&"ä".repeat(MAX_LINE_CHARS), true), []);
    assert_eq!(long_lines(&format!("// {long} https://example.com"), false).len(), 1);
}

/// The graph of the crate in this source directory.
fn graph_of(dir: &str) -> ModuleGraph {
    let strip = |(path, text): (PathBuf, String)| (path.strip_prefix(dir).unwrap().to_path_buf(), text);
    ModuleGraph::new(&sources::rust_sources(dir).into_iter().map(strip).collect::<Vec<_>>())
}

/// The graph of a crate that a test makes up: paths with their texts.
fn graph_of_texts(files: &[(&str, &str)]) -> ModuleGraph {
    let files = files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned()));
    ModuleGraph::new(&files.collect::<Vec<_>>())
}

/// The row of a table that a module belongs to: the module itself, or the nearest module around it.
fn row_of<'a>(table: &'a ArrowTable, module: &str) -> Option<&'a (&'a str, &'a [&'a str])> {
    let contains = |row: &str| module == row || module.starts_with(&format!("{row}::"));
    table.iter().filter(|(row, _)| contains(row)).max_by_key(|(row, _)| row.len())
}

/// Uses that the table does not allow, and modules that are not in it. The crate's root may use everything.
fn forbidden_arrows(graph: &ModuleGraph, table: &ArrowTable) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for module in graph.modules.iter().filter(|module| !module.is_empty() && row_of(table, module).is_none())
    {
        found.insert(format!("{module}: not in the table"), String::new());
    }
    for used in &graph.uses {
        let [from, to] = [used.from, used.to].map(|file| row_of(table, &graph.modules[file]));
        let to = match to {
            Some((name, _)) => *name,
            None if graph.modules[used.to].is_empty() => "the crate's root",
            None => continue,
        };
        let Some((from, allowed)) = from else { continue };
        if *from != to && !allowed.contains(&to) && !allowed.contains(&"*") {
            found.entry(format!("{from} -> {to}")).or_insert_with(|| graph.describe(used));
        }
    }
    found
}

#[test]
fn modules_use_one_another_only_along_the_allowed_arrows() {
    let mut found = Vec::new();
    for (dir, table) in CRATES {
        for (arrow, place) in forbidden_arrows(&graph_of(dir), table) {
            found.push(format!("{dir}: {arrow}: {place}"));
        }
    }
    assert!(found.is_empty(), "{} arrows that the table does not allow:\n{}", found.len(), found.join("\n"));
}

/// The rows that a row may use. `*` is all others.
fn allowed_rows<'a>(table: &'a ArrowTable, row: &str) -> Vec<&'a str> {
    let allowed = table.iter().find(|(name, _)| *name == row).map_or(&[] as &[_], |(_, allowed)| allowed);
    if allowed.contains(&"*") {
        table.iter().map(|(name, _)| *name).filter(|name| *name != row).collect()
    } else {
        allowed.to_vec()
    }
}

/// The rows of a table that reach themselves.
fn rows_in_circles<'a>(table: &'a ArrowTable) -> Vec<&'a str> {
    let reaches = |start: &'a str| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![start]);
        while let Some(next) = open.pop() {
            open.extend(allowed_rows(table, next).into_iter().filter(|used| reached.insert(*used)));
        }
        reached
    };
    table.iter().map(|(row, _)| *row).filter(|row| reaches(row).contains(row)).collect()
}

#[test]
fn every_crate_has_a_table_of_arrows() {
    let with_table: BTreeSet<&str> = CRATES.iter().map(|(dir, _)| *dir).collect();
    assert_eq!(with_table, BTreeSet::from(sources::CRATES));
}

#[test]
fn the_table_of_arrows_has_no_circle() {
    for (dir, table) in CRATES {
        assert_eq!(rows_in_circles(table), [] as [&str; 0], "{dir}: rows that reach themselves");
    }
}

#[test]
fn circles_of_a_table_are_found_through_rows_that_may_use_everything() {
    let table: &ArrowTable = &[("disk", &[]), ("judge", &["run"]), ("run", &["*"])];
    assert_eq!(rows_in_circles(table), ["judge", "run"]);
    let table: &ArrowTable = &[("disk", &["store"]), ("size", &["disk"]), ("store", &["size"]), ("cli", &[])];
    assert_eq!(rows_in_circles(table), ["disk", "size", "store"]);
    let table: &ArrowTable = &[("disk", &[]), ("judge", &["disk"]), ("run", &["*"])];
    assert_eq!(rows_in_circles(table), [] as [&str; 0]);
}

/// The arrows of a table that no code uses, and arrows to modules without a row.
fn needless_arrows(graph: &ModuleGraph, table: &ArrowTable) -> Vec<String> {
    let rows_of = |used: &FileUse| {
        let [from, to] = [used.from, used.to].map(|file| row_of(table, &graph.modules[file]));
        Some((from?.0, to?.0))
    };
    let used: BTreeSet<(&str, &str)> = graph.uses.iter().filter_map(rows_of).collect();
    let listed = table.iter().flat_map(|(from, allowed)| allowed.iter().map(move |to| (*from, *to)));
    let needless = listed.filter(|(from, to)| *to != "*" && !used.contains(&(*from, *to)));
    needless.map(|(from, to)| format!("{from} -> {to}")).collect()
}

#[test]
fn every_arrow_of_a_table_is_used_by_the_code() {
    let mut found = Vec::new();
    for (dir, table) in CRATES {
        let needless = needless_arrows(&graph_of(dir), table).into_iter();
        found.extend(needless.map(|arrow| format!("{dir}: {arrow}")));
    }
    assert!(found.is_empty(), "{} arrows that no code uses:\n{}", found.len(), found.join("\n"));
}

#[test]
fn files_do_not_use_one_another_in_a_circle() {
    let mut found = Vec::new();
    for (dir, _) in CRATES {
        let graph = graph_of(dir);
        for circle in graph.circles() {
            let names: Vec<String> =
                circle.iter().map(|file| format!("{dir}/{}", graph.files[*file].display())).collect();
            found.push(format!("{}:\n{}", names.join(" "), uses_within(&graph, &circle)));
        }
    }
    assert!(found.is_empty(), "{} circles:\n{}", found.len(), found.join("\n"));
}

/// One use for each pair of files in a circle.
fn uses_within(graph: &ModuleGraph, circle: &[usize]) -> String {
    let is_within = |used: &&FileUse| circle.contains(&used.from) && circle.contains(&used.to);
    let mut pairs = BTreeMap::new();
    for used in graph.uses.iter().filter(is_within) {
        pairs.entry((used.from, used.to)).or_insert_with(|| format!("  {}\n", graph.describe(used)));
    }
    pairs.into_values().collect()
}

#[test]
fn a_circle_of_files_is_found_through_re_exports_and_nested_imports() {
    let graph = graph_of_texts(&[
        ("lib.rs", "pub mod store;\npub use store::Store;"),
        ("store/mod.rs", "mod disk;\nmod size;\npub use disk::{Disk, Store};\nuse self::size::MAX;"),
        ("store/disk.rs", "use super::size::{self, limit::{MAX}};\npub struct Disk; pub struct Store;"),
        ("store/size.rs", "fn f() -> crate::Store { crate::store::Disk }\npub const MAX: u8 = 1;"),
    ]);
    let circles: Vec<Vec<String>> = graph
        .circles()
        .iter()
        .map(|circle| circle.iter().map(|file| graph.files[*file].display().to_string()).collect())
        .collect();
    assert_eq!(circles, [["store/disk.rs", "store/size.rs"]]);
    let uses = uses_within(&graph, &[2, 3]);
    assert!(uses.contains("store/size.rs:1 uses `crate::Store` of store/disk.rs"), "{uses}");
}

#[test]
fn re_exports_comments_strings_tests_and_other_crates_are_no_circle() {
    let graph = graph_of_texts(&[
        ("lib.rs", "mod disk;\nmod size;\npub use disk::Disk;\npub(crate) use size::{MAX, MIN};"),
        (
            "disk.rs",
            "use crate::MAX;\nuse std::size::Disk;\npub struct Disk(u8);\nimpl Disk { fn max() -> u8 { MAX } }",
        ),
        (
            "size.rs",
            "// crate::disk::Disk\npub const MAX: u8 = 1; const TEXT: &str = \"crate::disk::Disk\";\n\
             #[cfg(test)]\nmod tests { use crate::Disk; fn f(x: [Disk; 2]) { if true { } } }\n\
             #[cfg(test)]\nuse crate::disk::Disk;\npub const MIN: u8 = 0;",
        ),
    ]);
    assert_eq!(graph.circles(), [] as [Vec<usize>; 0]);
    let uses: Vec<String> = graph.uses.iter().map(|used| graph.describe(used)).collect();
    assert_eq!(uses, ["disk.rs:1 uses `crate::MAX` of size.rs"]);
}

#[test]
fn forbidden_arrows_and_unknown_modules_are_found() {
    let table: &ArrowTable = &[("disk", &[]), ("store", &["disk"]), ("store::size", &[])];
    let graph = graph_of_texts(&[
        ("lib.rs", "mod disk; mod store; mod other;"),
        ("disk/mod.rs", "mod raw; pub use raw::Raw;"),
        ("disk/raw.rs", "pub struct Raw; use crate::store::{Store};"),
        ("store/mod.rs", "mod size; use crate::disk::Raw; pub struct Store; fn f() { size::max() }"),
        ("store/size.rs", "fn max() { crate::disk::Raw; }"),
        ("other.rs", "use crate::disk::Raw;"),
    ]);
    let found: Vec<String> = forbidden_arrows(&graph, table).into_keys().collect();
    assert_eq!(
        found,
        ["disk -> store", "other: not in the table", "store -> store::size", "store::size -> disk"]
    );
}

#[test]
fn arrows_that_no_code_uses_are_found() {
    let table: &ArrowTable =
        &[("disk", &[]), ("size", &["disk", "gone"]), ("store", &["disk", "size"]), ("cli", &["*"])];
    let graph = graph_of_texts(&[
        ("lib.rs", "mod cli; mod disk; mod size; mod store;"),
        ("cli.rs", ""),
        ("disk.rs", "pub struct Raw;"),
        ("size.rs", "#[cfg(test)]\nmod tests { use crate::disk::Raw; }"),
        ("store.rs", "use crate::disk::Raw;"),
    ]);
    assert_eq!(needless_arrows(&graph, table), ["size -> disk", "size -> gone", "store -> size"]);
}
