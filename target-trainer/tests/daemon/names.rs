//! Holds every place where a name comes from outside against one table: the inbox, `submit`, HTTP, manifests, indexes
//! of shards, the cache of the Hugging Face hub, and ids of jobs. No two places may decide differently.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::trainer_root::{
    PROGRAM, TrainerRoot, all_output, daemon_command, run, sorted_names, text, wait_for,
};
use target_trainer::consolidate::check_request;
use target_trainer::model::{BaseCheck, BaseModel};
use target_trainer::store::{Manifest, RootLayout};

/// A name, and what it means everywhere.
struct Row {
    name: String,
    /// The name that a submitted file of this name gets. `None`: it is refused.
    submitted: Option<String>,
    /// It is the name of a file in a directory.
    is_file: bool,
}

/// The table.
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, submitted: Option<&str>, is_file| {
        rows.push(Row { name: name.to_owned(), submitted: submitted.map(str::to_owned), is_file });
    };
    // No file has these names.
    for name in ["", ".", "..", "/", "a/b", "../a", "a/../b", "/etc/passwd", "a/", "a\0b.jsonl", "\0"] {
        add(name, None, false);
    }
    // They are taken as they are.
    for name in [
        "a.jsonl",
        "-rf",
        "a b",
        "a\\b",
        "caf\u{e9}.jsonl",
        "cafe\u{301}.jsonl",
        "d\u{430}ta.jsonl",
        "Data.JSONL",
        "a\u{202e}lnosj.b",
        "a\u{200b}b",
        "a\nforged: b",
        "a\u{1b}[2Jb",
        "\u{85}a",
        &"n".repeat(255),
    ] {
        add(name, Some(name), true);
    }
    // The daemon ignores them.
    add(".hidden", Some("hidden"), true);
    add("...", Some("data"), true);
    add("a.tmp", Some("a.tmp.jsonl"), true);
    add("a.PART", Some("a.PART.jsonl"), true);
    add("a~", Some("a~.jsonl"), true);
    // They are too long for a file. What is copied loses its begin, and is never hidden by that.
    add(&format!("{}.jsonl", "n".repeat(255)), Some(&format!("{}.jsonl", "n".repeat(249))), false);
    add(&format!("{}.jsonl", "\u{e9}".repeat(200)), Some(&format!("{}.jsonl", "\u{e9}".repeat(124))), false);
    add(&format!("a{}", ".".repeat(300)), Some("data"), false);
    add(&format!("a.{}", "n".repeat(254)), Some(&"n".repeat(254)), false);
    rows
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

#[test]
fn the_table_says_what_a_file_system_does() {
    for row in rows() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        std::fs::create_dir(&inside).unwrap();
        // It is a name if a file can be made in the directory under exactly this name.
        let is_made = !row.name.starts_with('/') && std::fs::write(inside.join(&row.name), "").is_ok();
        assert_eq!(is_made && sorted_names(&inside) == [row.name.as_str()], row.is_file, "{:?}", row.name);
    }
}

#[test]
fn submit_decides_by_the_table() {
    // A command can't be given a NUL.
    for row in rows().into_iter().filter(|row| !row.name.contains('\0')) {
        let root = TrainerRoot::new(&[]);
        let file = root.dir.path().join("data");
        std::fs::write(&file, "{\"text\":\"a\"}\n").unwrap();
        let name = format!("--name={}", row.name);
        let output = run(&["submit", root.path_str(), file.to_str().unwrap(), &name]);
        let said = all_output(&output);
        assert_eq!(output.status.code(), Some(if row.submitted.is_some() { 0 } else { 2 }), "{said}");
        assert_eq!(sorted_names(&root.path().join("inbox")), Vec::from_iter(row.submitted), "{said}");
        assert_eq!(said.lines().count(), 1, "{said:?}");
        assert_eq!(sorted_names(root.dir.path()), ["data", "root"], "{said}");
    }
}

/// The whole path has a limit, too: in a deep directory, less is left of a name.
#[test]
fn submit_shortens_a_name_until_the_kernel_takes_the_whole_path() {
    let dir = tempfile::tempdir().unwrap();
    let mut root = dir.path().to_owned();
    while root.as_os_str().len() < 3800 {
        root.push("d".repeat(150));
    }
    std::fs::create_dir_all(root.join("inbox")).unwrap();
    let file = dir.path().join("data");
    std::fs::write(&file, "{\"text\":\"a\"}\n").unwrap();
    let name = format!("--name={}.jsonl", "n".repeat(249));
    for _ in 0..2 {
        let output = run(&["submit", root.to_str().unwrap(), file.to_str().unwrap(), &name]);
        assert!(output.status.success(), "{}", all_output(&output));
    }
    let names = sorted_names(&root.join("inbox"));
    assert!(names.len() == 2 && names.iter().all(|name| name.ends_with("n.jsonl")), "{names:?}");
    for name in names {
        let path = root.join("inbox").join(name);
        assert!(path.as_os_str().len() == 4095 && std::fs::read(path).is_ok());
    }
}

/// A daemon whose output goes to the file `stdout` beside the root. Dropping it kills the daemon.
struct RunningDaemon(Child);

impl RunningDaemon {
    fn start(root: &TrainerRoot) -> RunningDaemon {
        let stdout = std::fs::File::create(root.dir.path().join("stdout")).unwrap();
        let mut command = daemon_command();
        RunningDaemon(command.arg(root.path_str()).stdout(stdout).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for RunningDaemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn monitor_address(root: &TrainerRoot) -> String {
    let mut address = None;
    wait_for("the monitor", || {
        let status = std::fs::read(root.path().join("status.json")).unwrap_or_default();
        let status: Option<serde_json::Value> = serde_json::from_slice(&status).ok();
        address = status.and_then(|status| Some(status["monitor"]["address"].as_str()?.to_owned()));
        address.is_some()
    });
    address.unwrap()
}

fn status_and_body(address: &str, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = text(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[test]
fn http_decides_by_the_table() {
    let root = TrainerRoot::new(&["monitor.enabled=true", "monitor.port=0"]);
    let _daemon = RunningDaemon::start(&root);
    let address = monitor_address(&root);
    let token = std::fs::read_to_string(root.path().join("monitor-token")).unwrap();
    for row in rows() {
        // The daemon rejects such data, so that the name is free again.
        wait_for("an empty inbox", || sorted_names(&root.path().join("inbox")).is_empty());
        let request = post(&row.name, &token, "{\n");
        let (status, body) = status_and_body(&address, request.as_bytes());
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, if row.submitted.is_some() { 201 } else { 400 }, "{:?} {body}", row.name);
        assert_eq!(body["file"].as_str(), row.submitted.as_deref(), "{:?} {body}", row.name);
    }
    // Nor does it make a name of bytes that are no text, as little as `submit` does.
    let request = post("no-text", &token, "{\n").replace("%6e%6f", "%ff");
    let (status, body) = status_and_body(&address, request.as_bytes());
    assert!(status == 400 && body.contains("it is not UTF-8"), "{status} {body}");
    let no_text = root.dir.path().join(OsStr::from_bytes(b"\xff"));
    std::fs::write(&no_text, "").unwrap();
    let output = Command::new(PROGRAM).args(["submit", root.path_str()]).arg(&no_text).output().unwrap();
    assert!(output.status.code() == Some(2) && all_output(&output).contains("not UTF-8"), "{output:?}");
    std::fs::remove_file(no_text).unwrap();
    assert_eq!(sorted_names(root.dir.path()), ["root", "stdout"]);
}

#[test]
fn the_inbox_decides_by_the_table() {
    let root = TrainerRoot::new(&["recipe.steps=1", "limits.settle_s=0"]);
    let rows: Vec<Row> = rows().into_iter().filter(|row| row.is_file).collect();
    for (number, row) in rows.iter().enumerate() {
        let path = root.path().join("inbox").join(&row.name);
        std::fs::write(path, format!("{{\"text\":\"{number}\"}}\n")).unwrap();
    }
    let no_text = root.path().join("inbox").join(OsStr::from_bytes(b"\xff\n.jsonl"));
    std::fs::write(no_text, "{\"text\":\"no text\"}\n").unwrap();
    let output = root.drain();
    // What is submitted under its own name is what is taken from the inbox.
    let is_taken = |row: &&Row| row.submitted.as_ref() == Some(&row.name);
    let ignored: Vec<&str> = rows.iter().filter(|row| !is_taken(row)).map(|row| row.name.as_str()).collect();
    assert_eq!(output.matches("accepted job").count(), rows.iter().filter(is_taken).count() + 1, "{output}");
    assert!(output.contains("samples from \\xff\\n.jsonl\n"), "{output}");
    assert!(!output.contains("\nforged") && !output.contains(['\u{202e}', '\u{1b}', '\u{85}']), "{output:?}");
    let mut left = sorted_names(&root.path().join("inbox"));
    left.sort_by_key(|name| ignored.iter().position(|ignored| ignored == name));
    assert_eq!(left, ignored);
}

#[test]
fn manifests_indexes_and_revisions_decide_by_the_table() {
    let digest = |dir: &Path| BaseModel::digest(dir, BaseCheck::Full).unwrap_err().to_string();
    for row in rows() {
        let name = &row.name;
        let manifest = serde_json::json!({
            "format": 1, "step": 1, "base": "", "recipe": "", "files": { name: { "bytes": 0, "blake3": "" } }
        });
        let manifest = Manifest::parse(&serde_json::to_vec(&manifest).unwrap());
        assert_eq!(manifest.is_ok(), row.is_file, "{name:?}: {manifest:?}");

        // A shard is looked for in the directory of the index only.
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models--a--b");
        std::fs::create_dir_all(model.join("a")).unwrap();
        for outside in [dir.path().join("a"), dir.path().join("b"), model.join("a/b"), model.join("b")] {
            std::fs::write(outside, "").unwrap();
        }
        if row.is_file {
            std::fs::write(model.join(name), "").unwrap();
        }
        let index = serde_json::json!({ "weight_map": { "weight": name } });
        std::fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
        assert_eq!(digest(&model).contains("files are missing"), !row.is_file, "{name:?} {}", digest(&model));

        // A revision is a directory that is not hidden. White space at its ends is not a part of it.
        if name.trim() != name {
            continue;
        }
        for revision in ["1", "2"] {
            std::fs::create_dir_all(model.join("snapshots").join(revision)).unwrap();
        }
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), name).unwrap();
        let is_refused = digest(&model).contains("has no usable `refs/main`");
        assert_eq!(is_refused, !row.is_file || is_hidden(name), "{name:?} {}", digest(&model));
    }
}

#[test]
fn ids_of_jobs_decide_by_the_table() {
    let root = TrainerRoot::new(&[]);
    for row in rows() {
        let error = check_request(&RootLayout::new(&root.path()), &row.name).unwrap_err().to_string();
        let is_id = row.is_file && !is_hidden(&row.name);
        assert_eq!(error.contains("is not the id of a job"), !is_id, "{:?}: {error}", row.name);
    }
}

/// Somebody else's hidden directories, beside those of jobs.
#[test]
fn what_is_hidden_among_jobs_and_revisions_is_nowhere_taken_for_one() {
    let root = TrainerRoot::with_job(&["recipe.steps=1", "consolidation.auto=true"]);
    for dir in ["done/.hidden", "checkpoints/.hidden/step-1", "merged/.hidden", "queue/consolidate/.hidden"] {
        std::fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    let output = root.drain();
    assert!(output.contains("consolidated: job") && !output.contains("hidden"), "{output}");
    let verified = root.verify();
    assert!(verified.status.success(), "{}", all_output(&verified));
}

/// The daemon's own hidden files get visible names when it is killed. Somebody else may have chosen such a name.
#[test]
fn a_hidden_file_with_the_longest_name_gets_a_visible_one() {
    let root = TrainerRoot::new(&["recipe.steps=1", "limits.settle_s=0"]);
    for (number, begin) in [".taken-", ".rejected-"].into_iter().enumerate() {
        let name = format!("{begin}{}", "n".repeat(255 - begin.len()));
        let path = root.path().join("inbox").join(name);
        std::fs::write(path, format!("{{\"text\":\"{number}\"}}\n")).unwrap();
    }
    let output = root.drain();
    assert_eq!(output.matches("accepted job").count(), 2, "{output}");
    assert!(sorted_names(&root.path().join("inbox")).is_empty(), "{output}");
}

#[test]
fn a_path_of_the_settings_that_no_directory_can_have_is_an_error() {
    let root = TrainerRoot::new(&[]);
    let long = "n".repeat(256);
    for (path, problem) in [
        ("a\\u0000b", "has a NUL"),
        (long.as_str(), "has a name of more than 255 bytes"),
        (&"d/".repeat(2048), "has more than 4095 bytes"),
    ] {
        for key in ["train.checkpoint_dir", "maintenance.log_dir", "maintenance.snapshot_dir"] {
            let change = format!("{key}=\"{path}\"");
            let new = root.dir.path().join("new");
            let output = Command::new(PROGRAM).args(["init", "--set", &change]).arg(&new).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{}", all_output(&output));
            assert!(all_output(&output).contains(&format!("{key} {problem}")), "{}", all_output(&output));
            assert!(!new.exists());
        }
    }
}

const TWINS: [(&str, &str, &str); 5] = [
    ("caf\u{e9}.jsonl", "cafe\u{301}.jsonl", "normal form"),
    ("Data.jsonl", "data.jsonl", "case"),
    ("sums.jsonl", "sum\u{455}.jsonl", "script (Latin; Cyrillic and Latin)"),
    ("a\u{200b}.jsonl", "a.jsonl", "invisible characters"),
    ("part-1.jsonl", "part-l.jsonl", "characters that look alike"),
];

/// Submits data under this name. Returns what `submit` said.
fn submit(root: &TrainerRoot, name: &str, number: usize) -> String {
    let file = root.dir.path().join("data");
    std::fs::write(&file, format!("{{\"text\":\"{number}\"}}\n")).unwrap();
    let output = run(&["submit", root.path_str(), file.to_str().unwrap(), "--name", name]);
    assert!(output.status.success(), "{}", all_output(&output));
    text(&output.stdout)
}

#[test]
fn twins_are_told_by_submit_and_by_the_daemon_once_unless_the_guard_is_off() {
    for is_on in [true, false] {
        let guard = format!("guards.twin_names={is_on}");
        let root = TrainerRoot::new(&["recipe.steps=1", &guard]);
        for (number, (name, twin, _)) in TWINS.into_iter().enumerate() {
            assert_eq!(submit(&root, name, 2 * number).lines().count(), 1);
            let said = submit(&root, twin, 2 * number + 1);
            assert_eq!(said.contains("looks like"), is_on, "{said}");
            assert!(said.lines().skip(1).all(str::is_ascii) && said.lines().count() <= 2, "{said}");
        }
        let output = root.drain();
        assert_eq!(output.matches("finished job").count(), 2 * TWINS.len(), "{output}");
        let lines: Vec<&str> = output.lines().filter(|line| line.contains("looks like")).collect();
        assert_eq!(lines.len(), if is_on { TWINS.len() } else { 0 }, "{output}");
        for (_, _, difference) in TWINS.into_iter().filter(|_| is_on) {
            // Which of the two comes first depends on their times.
            let begin = difference.split(' ').next().unwrap();
            assert_eq!(lines.iter().filter(|line| line.contains(&format!("differ in {begin}"))).count(), 1);
        }
        assert!(lines.iter().all(|line| line.starts_with("job ") && line.is_ascii()), "{output}");
    }
}

/// A request that adds a job.
fn post(name: &str, token: &str, body: &str) -> String {
    let escaped: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
    format!(
        "POST /jobs?name={escaped} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        token.trim(),
        body.len()
    )
}

#[test]
fn a_twin_is_told_in_the_answer_of_http() {
    let root = TrainerRoot::new(&["monitor.enabled=true", "monitor.port=0", "recipe.steps=1000000"]);
    let _daemon = RunningDaemon::start(&root);
    let address = monitor_address(&root);
    let token = std::fs::read_to_string(root.path().join("monitor-token")).unwrap();
    let printed = || std::fs::read_to_string(root.dir.path().join("stdout")).unwrap();
    let (status, body) = status_and_body(&address, post("data", &token, "{\"text\":\"1\"}\n").as_bytes());
    assert_eq!((status, body.as_str()), (201, "{\"file\":\"data\"}\n"));
    wait_for("the job", || printed().contains("accepted job"));
    let (status, body) =
        status_and_body(&address, post("d\u{430}ta", &token, "{\"text\":\"2\"}\n").as_bytes());
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let warning = "the name `d\\u{430}ta` looks like `data`, that of another file: they differ in script (Cyrillic and \
                   Latin; Latin)";
    assert_eq!(
        (status, body["file"].as_str(), body["warning"].as_str()),
        (201, Some("d\u{430}ta"), Some(warning))
    );
    wait_for("the daemon's line", || printed().contains(warning));
}

#[test]
fn a_twin_of_a_queued_job_is_told_by_submit_and_by_the_next_daemon() {
    let root = TrainerRoot::new(&["recipe.steps=1"]);
    let entry = root.path().join("queue/processing/0123");
    std::fs::create_dir(&entry).unwrap();
    let data = b"{\"text\":\"queued\"}\n";
    std::fs::write(entry.join("data.jsonl"), data).unwrap();
    // The name is escaped in one key, and itself in the other.
    let id = blake3_of(data);
    let entry_of_id = root.path().join("queue/processing").join(&id);
    std::fs::rename(&entry, &entry_of_id).unwrap();
    let job = serde_json::json!({
        "id": &id, "name": "a\\u{200b}.jsonl", "file": "a\u{200b}.jsonl", "samples": 1, "order": 7
    });
    std::fs::write(entry_of_id.join("job.json"), job.to_string()).unwrap();
    let said = submit(&root, "a.jsonl", 1);
    assert!(said.contains("the name `a.jsonl` looks like `a\\u{200b}.jsonl`"), "{said}");
    let output = root.drain();
    assert_eq!(output.matches("they differ in invisible characters").count(), 1, "{output}");
    let finished = output.lines().find(|line| line.starts_with("finished job")).unwrap();
    assert!(finished.contains(&id), "the job that was queued before comes first: {output}");
}

fn blake3_of(data: &[u8]) -> String {
    target_trainer::intake::ContentId::of_reader(data).unwrap()
}
