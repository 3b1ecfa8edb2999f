//! Prints errors; those in scenario and target files each with its line and a caret below the place.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use scenarios::{FailedRun, InvalidFile, Problem};

use crate::error::CliError;
use crate::exit::CommandExit;
use crate::print;
use crate::scenario_library::LibraryError;

/// Prints an error with its sources. Of invalid files it prints all problems, of a failed run the last lines of
/// its output.
pub(crate) fn print_failure(error: &CliError) {
    match error {
        CliError::Library(LibraryError::Invalid(files)) => files.iter().for_each(print_invalid_file),
        other => print::error_with_sources(other),
    }
    let details = error.failed_run().map(FailedRun::details).unwrap_or_default();
    details.iter().for_each(|line| print::error_block(&format!("    {}\n", reports::clean(line))));
}

/// Prints what failed after the result was known. Returns the exit of both together.
pub(crate) fn exit_despite(exit: CommandExit, failures: &[CliError]) -> CommandExit {
    failures.iter().for_each(print_failure);
    CommandExit::worst([exit].into_iter().chain(failures.iter().map(CliError::exit)))
}

/// Prints all problems of one file.
fn print_invalid_file(file: &InvalidFile) {
    let source = NamedSource::new(&file.file, file.source_text.clone());
    for problem in &file.problems {
        print::error_block(&render_problem(&ProblemDiagnostic { problem, source: &source }));
    }
}

fn render_problem(problem: &ProblemDiagnostic<'_>) -> String {
    let has_colours =
        std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let theme = if has_colours { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let mut text = String::new();
    match GraphicalReportHandler::new_themed(theme).with_width(100).render_report(&mut text, problem) {
        Ok(()) => text,
        Err(_) => {
            format!("{}:{}: {}\n", problem.problem.line, problem.problem.column, problem.problem.message)
        }
    }
}

/// A problem with its file's text, in the form that miette renders.
#[derive(Debug)]
struct ProblemDiagnostic<'a> {
    problem: &'a Problem,
    source: &'a NamedSource<String>,
}

impl std::fmt::Display for ProblemDiagnostic<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for ProblemDiagnostic<'_> {}

impl Diagnostic for ProblemDiagnostic<'_> {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = LabeledSpan::new(Some("here".into()), self.problem.offset, self.problem.length.max(1));
        Some(Box::new(std::iter::once(span)))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.problem.help.as_ref().map(|help| Box::new(help) as Box<dyn std::fmt::Display>)
    }
}
