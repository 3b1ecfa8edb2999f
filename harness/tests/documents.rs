//! README and docs against the command: every option and verb that they print exists, as does every package and target
//! that they give to cargo, every scenario and target file in them is valid, and the README's first example gives the output that is printed there.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode};

use scenarios::{Scenario, TargetFile};
use support::command::{TRAINWRECK, workspace};
use support::machine::{GATE, Need, missing};

fn main() -> ExitCode {
    let mut trials = trials![
        every_verb_and_option_in_the_documents_exists,
        every_scenario_and_target_file_in_the_documents_is_valid,
        every_link_in_the_documents_leads_to_a_file,
        an_unknown_option_in_a_document_is_noticed,
        every_package_and_target_for_cargo_in_the_documents_exists,
    ];
    trials.extend(trials![
        missing(GATE.iter().chain([&Need::Program("python3")]));
        the_first_example_of_the_readme_gives_the_output_printed_there,
    ]);
    support::trial::run(trials)
}

/// Each document: its path below the workspace, and its text.
fn documents() -> Vec<(String, String)> {
    let docs = std::fs::read_dir(workspace().join("docs")).unwrap();
    let docs = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_string_lossy()));
    let mut names: Vec<String> = docs.filter(|name| name.ends_with(".md")).collect();
    let others = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "harness/simgpu/README.md"];
    names.extend(others.map(str::to_owned));
    names.sort();
    names
        .into_iter()
        .map(|name| (name.clone(), std::fs::read_to_string(workspace().join(&name)).unwrap()))
        .collect()
}

/// Code blocks of a document: the language, and the text.
fn code_blocks(text: &str) -> Vec<(&str, &str)> {
    text.split("\n```")
        .skip(1)
        .step_by(2)
        .map(|block| block.split_once('\n').unwrap_or((block, "")))
        .collect()
}

/// Commands of a document's code blocks and code spans that call `trainwreck`: the words of each.
fn commands(text: &str) -> Vec<Vec<String>> {
    words_after(
        text,
        &["trainwreck ", "$ trainwreck ", "cargo run --release -- ", "$ cargo run --release -- "],
    )
}

/// Commands of a document's code blocks and code spans that begin in one of these ways: the words after it.
fn words_after(text: &str, starts: &[&str]) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let blocks = code_blocks(&joined).into_iter().flat_map(|(_, block)| block.lines()).map(str::to_owned);
    let spans = joined.split('`').skip(1).step_by(2).map(|span| span.replace("\\|", "|").replace('\n', " "));
    blocks
        .chain(spans)
        .filter_map(|line| {
            let rest = starts.iter().find_map(|start| line.trim_start().strip_prefix(start))?;
            Some(
                rest.split_whitespace()
                    .take_while(|word| *word != "--" && *word != "#")
                    .map(str::to_owned)
                    .collect(),
            )
        })
        .collect()
}

fn help_of(verb: Option<&str>) -> Option<String> {
    // `trainwreck WORD --help` is the help of `run` for a word that is no verb, so ask for the help of the verb.
    let output = Command::new(TRAINWRECK).arg("help").args(verb).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// What is wrong with a command in a document: its verb or an option of it does not exist.
fn mistake(command: &[String]) -> Option<String> {
    let verb =
        command.first().filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())).map(String::as_str);
    let Some(help) = help_of(verb) else { return Some(format!("no verb `{}`", verb.unwrap_or_default())) };
    let known: BTreeSet<&str> = help
        .split(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '[' | '<'))
        .filter(|word| word.starts_with("--"))
        .collect();
    let option = |word: &String| word.trim_matches(|c: char| !c.is_ascii_lowercase() && c != '-').to_owned();
    let options = command.iter().filter(|word| word.starts_with("--")).map(option);
    options
        .filter(|option| !known.contains(option.as_str()))
        .map(|option| format!("no option `{option}`"))
        .next()
}

fn every_verb_and_option_in_the_documents_exists() {
    let mut seen = 0;
    for (name, text) in documents() {
        for command in commands(&text) {
            seen += 1;
            assert_eq!(mistake(&command), None, "{name}: {command:?}");
        }
    }
    assert!(seen > 15, "the documents show commands: {seen}");
}

fn an_unknown_option_in_a_document_is_noticed() {
    let found =
        commands("text\n\n```console\n$ trainwreck run --sed 1 fs-01\n```\n\nRun `trainwreck prof fs-01`.\n");
    let mistakes: Vec<_> = found.iter().filter_map(|command| mistake(command)).collect();
    assert_eq!(mistakes, ["no option `--sed`", "no verb `prof`"], "{found:?}");
}

/// What cargo knows of the workspace.
struct Packages {
    /// The targets of each package.
    targets: BTreeMap<String, BTreeSet<String>>,
    /// The packages that a command without `-p` and `--workspace` is about.
    default: BTreeSet<String>,
}

impl Packages {
    fn read() -> Packages {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        cargo.current_dir(workspace()).args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
        let metadata: serde_json::Value = serde_json::from_slice(&cargo.output().unwrap().stdout).unwrap();
        let list = |value: &serde_json::Value| value.as_array().unwrap().clone();
        let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
        let default_ids = list(&metadata["workspace_default_members"]);
        let packages = list(&metadata["packages"]);
        let default = packages.iter().filter(|package| default_ids.contains(&package["id"])).map(name);
        let targets = packages
            .iter()
            .map(|package| (name(package), list(&package["targets"]).iter().map(name).collect()));
        Packages { targets: targets.collect(), default: default.collect() }
    }

    /// What is wrong with the words after `cargo`: a package does not exist, or a target is in none of the packages that
    /// the command is about.
    fn mistake(&self, words: &[String]) -> Option<String> {
        let value_of = |options: &[&str]| {
            let option = words.iter().position(|word| options.contains(&word.as_str()))?;
            words.get(option + 1)
        };
        let package = value_of(&["-p", "--package"]);
        if let Some(package) = package.filter(|package| !self.targets.contains_key(*package)) {
            return Some(format!("no package `{package}`"));
        }
        let is_about = |name: &String| match package {
            Some(package) => name == package,
            None => words.iter().any(|word| word == "--workspace") || self.default.contains(name),
        };
        let target = value_of(&["--test", "--bench", "--example", "--bin"])?;
        let mut about = self.targets.iter().filter(|(name, _)| is_about(name));
        (!about.any(|(_, targets)| targets.contains(target))).then(|| format!("no target `{target}`"))
    }
}

fn every_package_and_target_for_cargo_in_the_documents_exists() {
    let packages = Packages::read();
    let mut seen = 0;
    for (name, text) in documents() {
        for command in words_after(&text, &["cargo ", "$ cargo "]) {
            seen += 1;
            assert_eq!(packages.mistake(&command), None, "{name}: cargo {command:?}");
        }
    }
    assert!(seen > 15, "the documents show commands for cargo: {seen}");
    let text =
        "`cargo test --test cuda`, `cargo test -p target-trainer --test\ncuda` and `cargo build -p trainer`";
    let found = words_after(text, &["cargo "]);
    let mistakes: Vec<_> = found.iter().map(|words| packages.mistake(words)).collect();
    let expected = [Some("no target `cuda`".to_owned()), None, Some("no package `trainer`".to_owned())];
    assert_eq!(mistakes, expected);
}

fn every_scenario_and_target_file_in_the_documents_is_valid() {
    let mut seen = 0;
    for (name, text) in documents() {
        for (_, yaml) in code_blocks(&text).into_iter().filter(|(language, _)| *language == "yaml") {
            // A part of a file is not checked by itself.
            if !yaml.lines().any(|line| line.starts_with("version:")) {
                continue;
            }
            seen += 1;
            let is_target = yaml.lines().any(|line| line.starts_with("start:"));
            let errors = if is_target {
                TargetFile::parse(yaml, &name).err()
            } else {
                Scenario::parse(yaml, &name).err()
            };
            assert!(errors.is_none(), "{}", errors.unwrap());
        }
    }
    assert!(seen >= 3, "the documents show whole files: {seen}");
}

fn every_link_in_the_documents_leads_to_a_file() {
    let mut seen = 0;
    for (name, text) in documents() {
        let base = workspace().join(&name).parent().unwrap().to_path_buf();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let path = link.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            seen += 1;
            assert!(base.join(path).exists(), "{name}: {link}");
        }
    }
    assert!(seen > 5, "the documents have links: {seen}");
}

/// Lines of the example that depend on the machine's speed or on where it runs.
fn is_stable(line: &str) -> bool {
    !line.contains("states/s") && !line.trim_start().starts_with("repeat:") && !line.contains("..")
}

fn the_first_example_of_the_readme_gives_the_output_printed_there() {
    let readme = std::fs::read_to_string(workspace().join("README.md")).unwrap();
    let blocks = code_blocks(&readme);
    let (_, script) = blocks.iter().find(|(language, _)| *language == "python").unwrap();
    let (_, console) = blocks.iter().find(|(_, text)| text.contains("trainwreck explore")).unwrap();
    let console = &console[console.find("$ trainwreck explore").unwrap()..];
    let lines: Vec<&str> = console.lines().collect();
    let end = 1 + lines.iter().position(|line| !line.ends_with('\\')).unwrap();
    let command = lines[..end].join("\n").replacen("$ trainwreck", TRAINWRECK, 1);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("train.py"), script).unwrap();
    std::fs::create_dir(dir.path().join("runs")).unwrap();
    let output = Command::new("sh").args(["-c", &command]).current_dir(&dir).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let stable_lines = lines[end..].iter().filter(|line| is_stable(line)).count();
    assert!(stable_lines > 5, "most of the example can be compared: {stable_lines} lines");
    let missing: Vec<&&str> = lines[end..]
        .iter()
        .filter(|line| is_stable(line) && !printed.lines().any(|own| own == **line))
        .collect();
    assert!(
        missing.is_empty(),
        "lines of the README that the command did not print: {missing:#?}\nit printed:\n{printed}"
    );
    assert_eq!(output.status.code(), Some(1), "findings: {printed}");
    let left: Vec<_> = std::fs::read_dir(dir.path().join("runs")).unwrap().collect();
    assert!(left.is_empty(), "the watched directory is not touched: {left:?}");
}
