//! Errors with carets.

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use scenarios::{InvalidFile, Problem};

use crate::cli::exit::Exit;
use crate::cli::library::LibraryError;
use crate::cli::print;

/// Prints it and says how the command ends.
pub(super) fn library_error(error: &LibraryError) -> Exit {
    match error {
        LibraryError::Invalid(files) => files.iter().for_each(invalid_file),
        other => print::error(other),
    }
    match error {
        LibraryError::Program(_) => Exit::HarnessFailed,
        _ => Exit::Invalid,
    }
}

/// All problems of one file, each with its line and a caret.
pub(super) fn invalid_file(file: &InvalidFile) {
    let source = NamedSource::new(&file.file, file.source_text.clone());
    for problem in &file.problems {
        print::error_block(&drawn(&Drawn { problem, source: &source }));
    }
}

fn drawn(problem: &Drawn<'_>) -> String {
    let colours =
        std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let theme = if colours { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let mut text = String::new();
    match GraphicalReportHandler::new_themed(theme).with_width(100).render_report(&mut text, problem) {
        Ok(()) => text,
        Err(_) => {
            format!("{}:{}: {}\n", problem.problem.line, problem.problem.column, problem.problem.message)
        }
    }
}

#[derive(Debug)]
struct Drawn<'a> {
    problem: &'a Problem,
    source: &'a NamedSource<String>,
}

impl std::fmt::Display for Drawn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Drawn<'_> {}

impl Diagnostic for Drawn<'_> {
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
