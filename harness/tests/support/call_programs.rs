//! Programs of file-system calls for `targets/random_calls.c`: how they are written, and what they do in a sandbox.
//! Must not know where they come from, nor what handles their calls.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use engine::sandbox::ProcessExit;
use tempfile::NamedTempFile;

use super::c_target;
use super::file_tree::{FileTree, file_tree, tree_differences};
use super::watched_sandbox::{WatchedOn, WatchedSandbox, create_files_of_every_type_in};

/// The calls of a program, one a line.
pub(crate) type Program = Vec<String>;

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProgramResult {
    /// A line for each call.
    pub(crate) output: String,
    /// What it left in its directory and in the one above.
    pub(crate) tree: FileTree,
}

impl ProgramResult {
    /// What is different behind the gate, one line each.
    pub(crate) fn differences(&self, gated: &ProgramResult) -> Vec<String> {
        let (bare_lines, gated_lines) = (self.output.lines(), gated.output.lines());
        let count = bare_lines.clone().count().max(gated_lines.clone().count());
        let ended = || std::iter::repeat("nothing");
        let lines = bare_lines.chain(ended()).zip(gated_lines.chain(ended())).take(count);
        let lines = lines.filter(|(bare, gated)| bare != gated);
        let outputs = lines.map(|(bare, gated)| format!("bare   {bare}\n    gated  {gated}"));
        outputs.chain(tree_differences(&self.tree, &gated.tree)).collect()
    }
}

/// The directory of a program among those that run together. The program may go up by one directory.
pub(crate) fn program_dir(index: usize) -> PathBuf {
    format!("p{index}/w").into()
}

/// The number of the program whose file this is.
pub(crate) fn program_of(path: &Path, watched: &Path) -> Option<usize> {
    let first = path.strip_prefix(watched).ok()?.components().next()?;
    first.as_os_str().to_str()?.strip_prefix('p')?.parse().ok()
}

/// The programs as the text that `random_calls` reads.
pub(crate) fn text_of(programs: &[Program]) -> String {
    let text = |(index, program): (usize, &Program)| {
        format!("program {}\n{}\n", program_dir(index).display(), program.join("\n"))
    };
    programs.iter().enumerate().map(text).collect()
}

/// Reads what [`text_of`] has written.
pub(crate) fn programs_in(text: &str) -> Vec<Program> {
    let mut programs: Vec<Program> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.starts_with("program ") {
            true => programs.push(Program::new()),
            false => programs.last_mut().expect("a line `program`").push(line.to_owned()),
        }
    }
    programs
}

/// How the process ended that ran all programs, what it printed, and what else the caller wants to know.
pub(crate) struct InterpreterRun<R> {
    pub(crate) exit: ProcessExit,
    pub(crate) output: String,
    pub(crate) noted: R,
}

/// The results of programs that ran together, and what the caller noted.
pub(crate) struct ProgramResults<R> {
    pub(crate) results: Vec<ProgramResult>,
    pub(crate) noted: R,
}

/// Runs programs one after the other in one sandbox. `run`: starts a command there and waits for its end.
pub(crate) fn run_programs<R>(
    programs: &[Program],
    file_system: WatchedOn,
    run: impl FnOnce(&WatchedSandbox, &[&str]) -> InterpreterRun<R>,
) -> ProgramResults<R> {
    let interpreter = c_target::compile("random_calls.c", &["-w"]).unwrap();
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text_of(programs).as_bytes()).unwrap();
    let setup = WatchedSandbox::on(file_system);
    let top = setup.sandbox.host_path(&setup.watched);
    for index in 0..programs.len() {
        let dir = top.join(program_dir(index));
        std::fs::create_dir_all(&dir).unwrap();
        create_files_of_every_type_in(&dir);
    }
    let argv = [interpreter.to_str().unwrap(), file.path().to_str().unwrap()];
    let InterpreterRun { exit, output, noted } = run(&setup, &argv);
    assert_eq!(exit, ProcessExit::Exited(0), "{output}");
    let place = setup.watched.display().to_string();
    let result_of = |index: usize| {
        let dir = program_dir(index);
        let title = format!("program {}\n", dir.display());
        let rest = output.split_once(&title).map_or("", |(_, rest)| rest);
        let own = rest.split("program ").next().unwrap_or_default().to_owned();
        // The place is another one each time, and links lead there.
        let tree = file_tree(&top.join(dir.parent().unwrap())).into_iter();
        let tree = tree.map(|(name, file)| (name, file.replace(&place, "~"))).collect();
        ProgramResult { output: own, tree }
    };
    ProgramResults { results: (0..programs.len()).map(result_of).collect(), noted }
}

/// The results of programs without the gate.
pub(crate) fn run_programs_bare(programs: &[Program], file_system: WatchedOn) -> Vec<ProgramResult> {
    let run = run_programs(programs, file_system, |setup, argv| {
        let (exit, output) = setup.run_bare(argv);
        InterpreterRun { exit, output, noted: () }
    });
    run.results
}
