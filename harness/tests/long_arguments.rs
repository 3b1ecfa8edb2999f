//! Starts programs in a sandbox with arguments and environments of all sizes, in each way that a sandbox has. They
//! must arrive unchanged up to the kernel's limits. Above them, the error must say so.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test panics at the first unexpected result; as the started program, it prints a checksum"
)]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Command, ExitCode};
use std::time::Duration;

use engine::explore::{ForkedPython, ServerImports};
use engine::sandbox::{
    CommandRunner, HostAccess, LaunchSpec, ProcessExit, Sandbox, SandboxError, SandboxSpec, current_dir,
};
use libtest_mimic::Trial;
use nix::sys::resource::{Resource, getrlimit};

use support::machine::{Need, SANDBOX, missing};
use support::program_files::write_script;

/// First argument that makes this test program print the checksum of its other arguments and environment.
const CHECKSUM_ARGUMENT: &str = "__checksum";
/// The same in Python, which sets `LC_CTYPE` itself.
const PYTHON_CHECKSUM: &str = "import os, sys\n\
    variables = [item for item in sorted(os.environ.items()) if item[0] != 'LC_CTYPE']\n\
    words = sys.argv[1:] + [name + '=' + value for name, value in variables]\n\
    data = b''.join(os.fsencode(word) + b'\\0' for word in words)\n\
    print(len(data), sum((index % 251 + 1) * byte for index, byte in enumerate(data)))";

/// MAX_ARG_STRLEN: one argument or variable of this size, with its zero byte, is accepted.
const MAX_STRING_BYTES: usize = 128 * 1024;
/// Room for the name of the program and what the interpreter itself needs.
const ROOM_BYTES: usize = 32 * 1024;
const TIME_LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    if std::env::args_os().nth(1).is_some_and(|argument| argument == CHECKSUM_ARGUMENT) {
        let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
        println!("{}", checksum(&arguments, std::env::vars_os().collect()));
        return ExitCode::SUCCESS;
    }
    support::trial::run(tests())
}

fn tests() -> Vec<Trial> {
    let mut trials = trials![
        missing(&SANDBOX);
        spawned_programs_get_arguments_of_all_sizes,
        stored_commands_get_arguments_of_all_sizes,
        a_stored_command_is_found_and_started_as_a_shell_does,
    ];
    let with_python = missing(SANDBOX.iter().chain([&Need::Program("python3")]));
    trials.extend(trials![with_python; forks_of_a_server_get_arguments_of_all_sizes]);
    trials
}

/// Arguments and variables with which a program is started, and whether Linux starts it.
struct SizeCase {
    name: &'static str,
    arguments: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    starts: bool,
}

/// All byte values but 0 in turn, so that most texts are not UTF-8.
fn text(len_bytes: usize) -> OsString {
    OsString::from_vec((0..len_bytes).map(|index| (index % 255) as u8 + 1).collect())
}

/// Texts of 100,000 bytes that need this many bytes with their zero bytes and pointers.
fn texts(total_bytes: usize) -> Vec<OsString> {
    vec![text(100_000); total_bytes / 100_009]
}

/// The size that the kernel accepts for all arguments and variables together: a quarter of the stack limit, at
/// least 128 KiB and at most 6 MiB.
fn max_total_bytes() -> usize {
    let (stack_bytes, _) = getrlimit(Resource::RLIMIT_STACK).unwrap();
    (stack_bytes / 4).clamp(128 * 1024, 6 * 1024 * 1024) as usize
}

fn size_cases() -> Vec<SizeCase> {
    let case = |name, arguments: Vec<OsString>, values: Vec<OsString>, starts| {
        let numbered = values.into_iter().enumerate();
        let env = numbered.map(|(index, value)| (format!("V{index:03}").into(), value)).collect();
        SizeCase { name, arguments, env, starts }
    };
    let total = max_total_bytes();
    let mut cases = vec![
        case("nothing", vec![], vec![], true),
        case("empty", vec!["".into()], vec!["".into()], true),
        case("one argument above the limit", vec![text(MAX_STRING_BYTES)], vec![], false),
        case("one variable at the limit", vec![], vec![text(MAX_STRING_BYTES - 6)], true),
        case("one variable above the limit", vec![], vec![text(MAX_STRING_BYTES - 5)], false),
        case("arguments just below the limit", texts(total - ROOM_BYTES - 100_009), vec![], true),
        case("arguments above the limit", texts(total + 100_009), vec![], false),
        case("variables just below the limit", vec![], texts(total - ROOM_BYTES - 100_009), true),
        case("variables above the limit", vec![], texts(total + 100_009), false),
        case("more than a message may have", texts(9_000_000), vec![], false),
    ];
    for len_bytes in [1, 255, 4096, 38_000, 60_000, 100_000, MAX_STRING_BYTES - 1] {
        cases.push(case("one argument", vec![text(len_bytes)], vec![], true));
    }
    cases
}

/// The length and a weighted sum of all arguments and variables.
fn checksum(arguments: &[OsString], mut env: Vec<(OsString, OsString)>) -> String {
    env.sort();
    let variables = env.into_iter().map(|(name, value)| [name.as_os_str(), &value].join(OsStr::new("=")));
    let words = arguments.iter().cloned().chain(variables);
    let data: Vec<u8> = words.flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
    let weighted = |(index, byte): (usize, &u8)| (index % 251 + 1) * usize::from(*byte);
    format!("{} {}", data.len(), data.iter().enumerate().map(weighted).sum::<usize>())
}

fn build_sandbox() -> (tempfile::TempDir, Sandbox) {
    let dir = tempfile::tempdir().unwrap();
    let sandbox_dir = dir.path().join("sandbox");
    std::fs::create_dir(&sandbox_dir).unwrap();
    let spec = SandboxSpec {
        dir: sandbox_dir,
        mounts: Vec::new(),
        binds: Vec::new(),
        cgroups: Vec::new(),
        visible_root: None,
        distinct_pids: false,
        host_access: HostAccess {
            writable: vec![dir.path().canonicalize().unwrap()],
            ..HostAccess::default()
        },
        cwd: current_dir().unwrap(),
    };
    (dir, Sandbox::build(spec).unwrap())
}

/// This test program with the arguments and variables of a case.
fn checksum_launch(case: &SizeCase) -> LaunchSpec {
    let program = [std::env::current_exe().unwrap().into(), CHECKSUM_ARGUMENT.into()];
    LaunchSpec {
        argv: program.into_iter().chain(case.arguments.iter().cloned()).collect(),
        env: case.env.clone(),
        cwd: None,
    }
}

/// Checks what a program printed, or why it was not started.
fn check(case: &SizeCase, printed: Result<String, SandboxError>) {
    let largest = case.arguments.iter().chain(case.env.iter().map(|(_, value)| value)).map(|text| text.len());
    let name = format!("{} ({} bytes)", case.name, largest.max().unwrap_or(0));
    match printed {
        Ok(printed) => {
            assert!(case.starts, "{name}: it was started");
            assert_eq!(printed.trim(), checksum(&case.arguments, case.env.clone()), "{name}");
        }
        Err(error) => {
            assert!(!case.starts, "{name}: {error}");
            assert!(matches!(error, SandboxError::ArgumentsTooLong { .. }), "{name}: {error}");
            assert!(error.is_unusable_command());
            let message = error.to_string();
            assert!(message.contains("argument list too long") && message.contains("ulimit"), "{message}");
        }
    }
}

fn spawned_programs_get_arguments_of_all_sizes() {
    let (_dir, sandbox) = build_sandbox();
    for case in size_cases() {
        let printed = sandbox.spawn(&checksum_launch(&case)).map(|mut process| {
            let mut printed = String::new();
            let outputs = process.take_outputs().unwrap();
            std::fs::File::from(outputs.stdout).read_to_string(&mut printed).unwrap();
            assert_eq!(process.wait_timeout(TIME_LIMIT), Some(ProcessExit::Exited(0)));
            printed
        });
        check(&case, printed);
    }
    sandbox.close().unwrap();
}

/// Runs a command twice: what is kept for later runs must not change.
fn run_twice(sandbox: &Sandbox, launch: &LaunchSpec, runner: CommandRunner) -> Result<String, SandboxError> {
    let command = sandbox.store_command(launch, runner)?;
    let mut runs = Vec::new();
    for _ in 0..2 {
        let completed = sandbox.run_stored(command, TIME_LIMIT, 4096)?;
        assert_eq!(completed.exit, Some(ProcessExit::Exited(0)), "{}", completed.stderr);
        runs.push(completed.stdout);
    }
    assert_eq!(runs[0], runs[1]);
    Ok(runs.remove(0))
}

fn stored_commands_get_arguments_of_all_sizes() {
    let (_dir, sandbox) = build_sandbox();
    for case in size_cases() {
        check(&case, run_twice(&sandbox, &checksum_launch(&case), CommandRunner::NewProcess));
    }
    sandbox.close().unwrap();
}

fn forks_of_a_server_get_arguments_of_all_sizes() {
    // `python3` may be a script that looks for the interpreter and needs room of its own.
    let output = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    let python = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    for case in size_cases() {
        let (_dir, sandbox) = build_sandbox();
        let command = [&python, "-c", PYTHON_CHECKSUM].map(OsString::from).into_iter();
        let launch = LaunchSpec {
            argv: command.chain(case.arguments.iter().cloned()).collect(),
            env: case.env.clone(),
            cwd: None,
        };
        let imports = ServerImports::Named(Vec::new());
        let ForkedPython { server, request } = ForkedPython::of(&launch, &imports, &[]).unwrap();
        let started = sandbox.start_fork_server(&server);
        check(&case, started.and_then(|()| run_twice(&sandbox, &request, CommandRunner::ForkServer)));
        sandbox.close().unwrap();
    }
}

/// A program of the table is looked up in the `PATH` of its own environment, at each start.
fn a_stored_command_is_found_and_started_as_a_shell_does() {
    let (dir, sandbox) = build_sandbox();
    let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
    [&first, &second].iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let path = std::env::join_paths([&first, &second]).unwrap();
    let env = vec![("PATH".into(), path)];
    let launch = LaunchSpec { argv: vec!["recover".into(), "x".into()], env, cwd: None };
    let command = sandbox.store_command(&launch, CommandRunner::NewProcess).unwrap();
    let run = || sandbox.run_stored(command, TIME_LIMIT, 100);
    let write = |dir: &std::path::Path, text: &str, mode: u32| write_script(&dir.join("recover"), text, mode);
    let error = run().unwrap_err();
    assert!(matches!(&error, SandboxError::NotStarted { program, .. } if program == "recover"), "{error}");
    assert!(error.is_unusable_command(), "a missing program: {error}");
    write(&second, "#!/bin/sh\necho second $1\n", 0o755);
    assert_eq!(run().unwrap().stdout, "second x\n");
    write(&first, "#!/bin/sh\necho first $1\n", 0o644);
    assert_eq!(run().unwrap().stdout, "second x\n", "a file that may not be executed is passed over");
    write(&first, "echo first $1\n", 0o755);
    assert_eq!(run().unwrap().stdout, "first x\n", "a script without a line for its interpreter");
    sandbox.close().unwrap();
}
