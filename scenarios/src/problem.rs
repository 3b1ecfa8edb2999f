//! What is wrong with a file, and where: all of it at once.

/// A stretch of a file's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SourceSpan {
    pub(crate) offset: usize,
    pub(crate) length: usize,
    /// 1-based.
    pub(crate) line: usize,
    /// 1-based, in characters.
    pub(crate) column: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// Byte offset into the file's text, and how many bytes it concerns.
    pub offset: usize,
    pub length: usize,
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Problem {
    pub(crate) fn at(place: SourceSpan, message: impl Into<String>) -> Problem {
        let SourceSpan { offset, length, line, column } = place;
        Problem { line, column, offset, length, message: message.into(), help: None }
    }

    pub(crate) fn help(self, help: impl Into<String>) -> Problem {
        Problem { help: Some(help.into()), ..self }
    }
}

/// A file that can't be used, with everything that is wrong in it, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines())]
pub struct InvalidFile {
    pub file: String,
    pub source_text: String,
    pub problems: Vec<Problem>,
}

impl InvalidFile {
    pub(crate) fn new(file: &str, text: &str, mut problems: Vec<Problem>) -> InvalidFile {
        problems.sort_by_key(|problem| problem.offset);
        InvalidFile { file: file.into(), source_text: text.into(), problems }
    }

    /// `file:line:column: message (help)`, a line each.
    fn lines(&self) -> String {
        let line = |problem: &Problem| {
            let help = problem.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("{}:{}:{}: {}{help}", self.file, problem.line, problem.column, problem.message)
        };
        self.problems.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// The known word nearest to one that is not known, as advice.
pub(crate) fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let distance = |candidate: &&str| strsim::damerau_levenshtein(word, candidate);
    match known.iter().min_by_key(|candidate| distance(candidate)) {
        Some(near) if distance(near) <= 1 + word.len() / 3 => format!("did you mean `{near}`?"),
        _ if known.is_empty() => "there is none to choose from".into(),
        _ => format!("known are: {}", known.join(", ")),
    }
}
