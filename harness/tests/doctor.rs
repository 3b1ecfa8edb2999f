//! What `trainwreck doctor` prints: which mechanisms, in which order and columns. The machine decides which
//! of them it supports, and the words about each.

#![expect(clippy::unwrap_used, reason = "a test stops at the first failure")]

#[expect(dead_code, unused_macros, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::process::Command;

use support::command::TRAINWRECK;

/// Replaces what the machine decides: the mark, and the text behind the columns of the mark and the name.
fn redacted(line: &str) -> String {
    let (mark, rest) = line.split_at(line.find(' ').unwrap());
    let (name, detail) = rest.split_at(24);
    assert!(matches!(mark, "✓" | "-") && !detail.trim().is_empty(), "{line}");
    format!("[mark]{name}[detail]")
}

#[test]
fn doctor_prints_a_line_for_each_mechanism() {
    // Without cargo it does not build the simulated GPU first.
    let output = Command::new(TRAINWRECK).arg("doctor").env_remove("CARGO").output().unwrap();
    assert!(output.status.success());
    let lines: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(redacted).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    [mark] user-namespace         [detail]
    [mark] fresh-proc             [detail]
    [mark] tmpfs                  [detail]
    [mark] read-only-remount      [detail]
    [mark] fuse                   [detail]
    [mark] syscall-gate           [detail]
    [mark] memory-cgroup          [detail]
    [mark] process-cgroup         [detail]
    [mark] inotify                [detail]
    [mark] landlock               [detail]
    [mark] simulated-gpu          [detail]
    [mark] real-gpu               [detail]
    ");
}
