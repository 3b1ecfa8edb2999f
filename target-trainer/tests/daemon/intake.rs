//! Runs the built command with data files that come in oddly: at once, slowly, under hostile names, and with
//! nothing to learn. Checks that none is lost, cut or ignored in silence.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::trainer_root::{PROGRAM, TrainerRoot, all_output, log_lines, run, sorted_names, text, wait_for};

/// Two steps: these tests are about intake.
const SHORT_RUN: [&str; 1] = ["recipe.steps=2"];

fn sample(number: usize) -> String {
    format!("{{\"text\":\"sample {number}\"}}\n")
}

/// Writes a data file outside of the root and submits it. Returns what `submit` said.
fn submit(root: &TrainerRoot, name: &str, content: &str) -> String {
    let file = root.dir.path().join(name);
    std::fs::write(&file, content).unwrap();
    let output = run(&["submit", root.path_str(), file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", all_output(&output));
    text(&output.stdout)
}

#[test]
fn forty_submits_of_one_name_at_once_give_forty_files() {
    let root = TrainerRoot::new(&[]);
    let submits: Vec<_> = (0..40)
        .map(|number| {
            let dir = root.dir.path().join(number.to_string());
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("same.jsonl"), sample(number)).unwrap();
            Command::new(PROGRAM)
                .args(["submit", root.path_str(), dir.join("same.jsonl").to_str().unwrap()])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let told: BTreeSet<PathBuf> = submits
        .into_iter()
        .map(|submit| {
            let output = submit.wait_with_output().unwrap();
            assert!(output.status.success());
            PathBuf::from(text(&output.stdout).trim_end().strip_prefix("submitted ").unwrap())
        })
        .collect();
    assert_eq!(told.len(), 40, "each is told a name of its own");
    let contents: BTreeSet<String> = told.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert_eq!(contents, (0..40).map(sample).collect());
    assert_eq!(sorted_names(&root.path().join("inbox")).len(), 40, "no unfinished copy is left");
}

#[test]
fn a_submitted_file_is_taken_whatever_its_name_is() {
    let long = format!("{}.jsonl", "n".repeat(249));
    let names = [
        ".hidden.jsonl",
        "y.jsonl.tmp",
        "download.part",
        ".tmp-1-x",
        "data.tmpl.jsonl",
        "...",
        " ",
        "-rf",
        "new\nline.jsonl",
        "esc\u{1b}[31m",
        "right\u{202e}left",
        "é\u{301}",
        &long,
        &long,
    ];
    let root = TrainerRoot::new(&SHORT_RUN);
    for (number, name) in names.iter().enumerate() {
        let said = submit(&root, name, &sample(number));
        assert_eq!(said.lines().count(), 1, "{said:?}");
        assert!(!said.contains(['\u{1b}', '\u{202e}']), "{said:?}");
    }
    let output = root.drain();
    assert_eq!(output.matches("accepted job").count(), names.len(), "{output}");
    assert_eq!(output.matches("finished job").count(), names.len(), "{output}");
    assert!(sorted_names(&root.path().join("inbox")).is_empty());
}

#[test]
fn ignored_files_are_counted_at_the_end_of_a_drain() {
    let root = TrainerRoot::with_job(&SHORT_RUN);
    let unfinished =
        ["y.jsonl.tmp", "a.part", "b.jsonl.partial", "c.crdownload", "d.TMP", "e.filepart", "f.swp", "g~"];
    for name in unfinished.into_iter().chain([".hidden.jsonl", ".tmp-submit-1-2"]) {
        std::fs::write(root.path().join("inbox").join(name), sample(1)).unwrap();
        // `submit` gives each of them a name that is taken.
        let said = submit(&root, name, &sample(2));
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let output = root.drain();
    let named =
        " (.hidden.jsonl, a.part, b.jsonl.partial, c.crdownload, d.TMP, e.filepart, f.swp, g~, y.jsonl.tmp)";
    assert!(
        output.contains(&format!("not taken from the inbox because of their names{named}: ")),
        "{output}"
    );
    assert_eq!(sorted_names(&root.path().join("inbox")).len(), 10);
}

/// One writer keeps its file open, one opens it for each line, one is paused longer than the settle time.
#[test]
fn a_slow_writer_loses_no_line() {
    let root = TrainerRoot::with_job(&["recipe.steps=2", "limits.settle_s=1"]);
    let inbox = root.path().join("inbox");
    let append = |path: &PathBuf| OpenOptions::new().append(true).create(true).open(path).unwrap();
    let (open, reopened, paused) =
        (inbox.join("open.jsonl"), inbox.join("reopened.jsonl"), inbox.join("paused.jsonl"));
    let mut open = append(&open);
    let mut paused = append(&paused);
    paused.write_all(sample(1000).as_bytes()).unwrap();
    let daemon = root.spawn_daemon();
    for number in 0..12 {
        open.write_all(sample(number).as_bytes()).unwrap();
        append(&reopened).write_all(sample(100 + number).as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    paused.write_all(sample(1001).as_bytes()).unwrap();
    drop((open, paused));
    let output = daemon.wait_with_output().unwrap();
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{}", all_output(&output));
    for expected in
        ["12 samples from open.jsonl", "12 samples from reopened.jsonl", "2 samples from paused.jsonl"]
    {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    assert!(sorted_names(&inbox).is_empty());
}

#[test]
fn a_file_that_is_written_again_after_it_was_taken_is_taken_again() {
    let root = TrainerRoot::new(&["recipe.steps=2", "limits.settle_s=0"]);
    let inbox = root.path().join("inbox");
    // The name is used again and again, while the daemon takes the files.
    let daemon = Command::new(PROGRAM)
        .args(["daemon", root.path_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let target = inbox.join("same.jsonl");
    for number in 0..30 {
        let unfinished = inbox.join("next.tmp");
        std::fs::write(&unfinished, sample(number)).unwrap();
        wait_for("the file to be taken", || !target.exists());
        std::fs::rename(&unfinished, &target).unwrap();
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.id() as i32), nix::sys::signal::SIGTERM)
        .unwrap();
    let first = text(&daemon.wait_with_output().unwrap().stdout);
    let output = first + &root.drain();
    assert_eq!(output.matches("accepted job").count(), 30, "{output}");
    assert!(!output.contains("duplicate"), "{output}");
}

#[test]
fn of_two_rejected_files_with_one_name_and_one_error_both_are_kept() {
    let root = TrainerRoot::new(&["limits.settle_s=0"]);
    for content in ["{\"text\":1}\n", "{\"text\":2}\n", "{\"text\":3}\n"] {
        std::fs::write(root.path().join("inbox/same.jsonl"), content).unwrap();
        let output = root.drain();
        assert!(output.contains("rejected same.jsonl: line 1 column 1: `text` must be a string"), "{output}");
    }
    let failed = root.path().join("failed");
    let kept: BTreeSet<String> = sorted_names(&failed)
        .iter()
        .map(|name| std::fs::read_to_string(failed.join(name).join("data")).unwrap())
        .collect();
    assert_eq!(kept.len(), 3);
}

#[test]
fn a_file_with_nothing_to_learn_is_rejected_with_the_counts() {
    let cases = [
        ("weights", r#"{"text":"a","weight":0}"#, "1 have weight 0"),
        ("tiny", r#"{"text":"a","weight":1e-320}"#, "1 have weight 0"),
        ("small", r#"{"text":"a","weight":1e-45}"#, "1 have weight 0"),
        ("cut", r#"{"prompt":"a long prompt","completion":"b"}"#, "1 have nothing to learn within"),
        ("user", r#"{"messages":[{"role":"user","content":"a"}]}"#, "1 have no text to learn"),
    ];
    let root = TrainerRoot::new(&["limits.settle_s=0", "recipe.context=8", "recipe.steps=2"]);
    for (name, line, _) in cases {
        std::fs::write(root.path().join("inbox").join(format!("{name}.jsonl")), line).unwrap();
    }
    let lines: Vec<&str> = cases.iter().map(|(_, line, _)| *line).chain([r#"{"text":"a"}"#]).collect();
    std::fs::write(root.path().join("inbox/mixed.jsonl"), lines.join("\n")).unwrap();
    let output = root.drain();
    for (name, _, reason) in cases {
        let expected =
            format!("rejected {name}.jsonl: no sample has a token to learn: of 1 samples, {reason}");
        assert!(output.contains(&expected), "{expected}: {output}");
    }
    assert!(output.contains("5 of 6 samples have nothing to learn: 3 have weight 0, 1"), "{output}");
    assert_eq!(output.matches("finished job").count(), 1, "{output}");
}

#[test]
fn a_file_with_hard_links_waits_until_it_has_one_name() {
    let root = TrainerRoot::new(&["limits.settle_s=0", "recipe.steps=2"]);
    let (outside, inside) = (root.dir.path().join("outside"), root.path().join("inbox/linked.jsonl"));
    std::fs::write(&outside, sample(1)).unwrap();
    std::fs::hard_link(&outside, &inside).unwrap();
    let daemon = root.spawn_daemon();
    let log = || std::fs::read_to_string(root.path().join("status.json")).unwrap_or_default();
    wait_for("the status", || log().contains("\"idle\""));
    std::thread::sleep(Duration::from_millis(400));
    assert!(inside.exists() && std::fs::read_to_string(&outside).unwrap() == sample(1));
    std::fs::remove_file(&outside).unwrap();
    let output = daemon.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    assert!(text(&output.stdout).contains("other names (hard links)"), "{}", all_output(&output));
    assert!(text(&output.stdout).contains("finished job"), "{}", all_output(&output));
}

#[test]
fn all_errors_of_a_file_are_told_at_once_up_to_a_bound() {
    let root = TrainerRoot::new(&["limits.settle_s=0", "recipe.steps=2"]);
    let good = "{\"text\":\"a\"}\n";
    let few = [good, "{\"text\":1}\n", good, "[1]\n", good, "{\"text\":NaN}\n"].concat();
    let many: String = (0..1000).map(|_| "{\n").collect::<String>() + good;
    for (name, content) in [("few", few), ("many", format!("{good}{many}")), ("array", format!("[\n{good}]"))]
    {
        std::fs::write(root.path().join("inbox").join(name), content).unwrap();
    }
    let output = root.drain();
    for line in
        ["line 2 column 1: `text` must be", "line 4 column 1: invalid type", "line 6 column 9: `NaN` is"]
    {
        assert!(output.contains(&format!("rejected few: {line}")), "{line}: {output}");
    }
    assert_eq!(output.matches("rejected few:").count(), 3, "{output}");
    assert_eq!(output.matches("rejected many:").count(), 20, "{output}");
    assert_eq!(output.matches("rejected array:").count(), 1, "{output}");
    let failed = root.path().join("failed");
    let reasons: String = sorted_names(&failed)
        .iter()
        .map(|name| std::fs::read_to_string(failed.join(name).join("reason.json")).unwrap())
        .collect();
    assert_eq!(reasons.matches("\"line ").count(), 3 + 20 + 1, "{reasons}");
    assert_eq!(sorted_names(&failed).len(), 3);
}

#[test]
fn unknown_keys_are_counted_and_named_and_refused_only_if_strict() {
    let lines = "{\"text\":\"a\",\"id\":1}\n{\"text\":\"b\",\"x\\ny\":{}}\n{\"text\":\"c\"}\n";
    let root = TrainerRoot::new(&["limits.settle_s=0", "recipe.steps=2"]);
    std::fs::write(root.path().join("inbox/data.jsonl"), lines).unwrap();
    let output = root.drain();
    assert!(output.contains("2 samples have keys that are not used: `id`, `x\\ny`"), "{output}");
    let strict = TrainerRoot::new(&["limits.settle_s=0", "recipe.steps=2", "limits.strict=true"]);
    std::fs::write(strict.path().join("inbox/data.jsonl"), lines).unwrap();
    let output = strict.drain();
    assert_eq!(output.matches("unknown key").count(), 2, "{output}");
}

/// Whatever the crate prints or logs passes through `one_line`.
#[test]
fn nothing_is_printed_but_by_the_module_that_escapes() {
    fn sources(dir: &std::path::Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let mut files = Vec::new();
    sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let prints = ["io::stdout()", "io::stderr()", "println!", "print!(", "dbg!", ".print()"];
    let prints_itself = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        prints.iter().any(|call| text.contains(call))
    };
    let found: Vec<String> = files
        .iter()
        .filter(|path| prints_itself(path))
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, ["print.rs"]);
    let print = files.iter().find(|path| path.ends_with("cli/print.rs")).unwrap();
    let print = std::fs::read_to_string(print).unwrap();
    // Standard output and error, the log; and events of a worker, which are JSON.
    assert_eq!((print.matches("one_line(").count(), print.matches(".lock()").count()), (4, 3));
}

/// Texts that look like lines of the daemon, steer a terminal, or change the direction of what follows.
const HOSTILE: [&str; 9] = [
    "x\nsaved step 999999\nfinished job 0 at step 1 adapter blake3:0",
    "x\rsaved step 999999",
    "\u{1b}[2J\u{1b}]0;title\u{7}",
    "\u{9b}31m",
    "a\u{202e}b\u{2066}c\u{200f}d",
    "a\u{2028}saved step 999999\u{2029}b\u{85}c",
    "a\0b\u{7f}c\u{8}",
    "\u{feff}\u{200b}\u{ad}",
    "\u{e0041}\u{fff9}",
];

/// Whether a character may be in what the daemon prints and logs.
fn is_plain(character: char) -> bool {
    !character.is_control()
        && !"\u{202e}\u{2066}\u{200f}\u{2028}\u{2029}\u{feff}\u{200b}\u{ad}\u{e0041}\u{fff9}"
            .contains(character)
}

fn assert_plain(what: &str, output: &str) {
    for line in output.lines() {
        assert!(line.chars().all(is_plain), "{what}: {line:?}");
        assert!(
            !line.starts_with("saved step 999999") && !line.starts_with("finished job 0"),
            "{what}: {line:?}"
        );
    }
}

#[test]
fn no_text_from_outside_forges_a_line() {
    for hostile in HOSTILE {
        let root = TrainerRoot::new(&["limits.settle_s=0", "recipe.steps=2", "train.save_patience_s=0"]);
        let inbox = root.path().join("inbox");
        let json = serde_json::to_string(hostile).unwrap();
        let file_name = hostile.replace(['\0', '/'], "_");
        // As a key, twice as a key, a value of a wrong type, a role, a part of broken JSON.
        for (number, line) in [
            format!("{{{json}:1}}"),
            format!("{{{json}:1,{json}:1}}"),
            format!("{{\"messages\":[{{\"role\":{json},\"content\":\"a\"}}]}}"),
            format!("{{\"text\":{{{json}:{json}}}}}"),
            json.clone(),
            format!("{{\"text\":\"a\"}} {json}"),
            format!("{{\"text\":\"a\",\"weight\":{json}}}"),
            format!("{{\"text\":\"{hostile}\"}}"),
        ]
        .into_iter()
        .enumerate()
        {
            std::fs::write(inbox.join(format!("{number}.jsonl")), line.replace('\n', "\\n")).unwrap();
        }
        // As a name in the inbox: taken, rejected, a directory; and in the queue.
        std::fs::write(inbox.join(&file_name), sample(1)).unwrap();
        std::fs::write(inbox.join(format!("b{file_name}")), "[]").unwrap();
        std::fs::create_dir(inbox.join(format!("c{file_name}"))).unwrap();
        std::fs::create_dir(root.path().join("queue/processing").join(&file_name)).unwrap();
        let entry = root.path().join("queue/processing/entry");
        std::fs::create_dir(&entry).unwrap();
        std::fs::write(
            entry.join("job.json"),
            format!(r#"{{"id":{json},"name":{json},"samples":1,"order":1}}"#),
        )
        .unwrap();
        let output = root.spawn_daemon().wait_with_output().unwrap();
        assert_plain("daemon", &all_output(&output));
        assert!(all_output(&output).contains("rejected "), "{}", all_output(&output));
        let log = log_lines(&root.path());
        assert!(!log.is_empty());
        assert_plain("log", &log);
        // As a checkpoint of a job, as a submitted file, in the status and in the settings.
        let done = sorted_names(&root.path().join("done"))[0].clone();
        std::fs::create_dir(root.path().join("checkpoints").join(&done).join(format!("step-{file_name}")))
            .unwrap();
        assert_plain("verify", &all_output(&root.verify()));
        assert_plain("resume-info", &all_output(&run(&["resume-info", root.path_str()])));
        assert_plain("submit", &submit(&root, &file_name, &sample(2)));
        for status in [format!("{{\"state\":{json}}}"), hostile.to_owned()] {
            std::fs::write(root.path().join("status.json"), status).unwrap();
            assert_plain("status", &all_output(&run(&["status", root.path_str()])));
        }
        std::fs::write(root.path().join("settings.toml"), format!("{json} = 1\n")).unwrap();
        assert_plain("settings", &all_output(&run(&["verify", root.path_str()])));
        std::fs::write(root.path().join("settings.toml"), hostile).unwrap();
        assert_plain("settings", &all_output(&run(&["daemon", root.path_str()])));
        // As an argument.
        if !hostile.contains('\0') {
            assert_plain("arguments", &all_output(&run(&["daemon", root.path_str(), hostile])));
            assert_plain("arguments", &all_output(&run(&[hostile])));
        }
    }
}
