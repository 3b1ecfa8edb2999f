//! The problems of a file, each with its place. Knows nothing of what files contain.

/// A place in a file's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SourceSpan {
    /// In bytes.
    pub(crate) offset: usize,
    /// In bytes.
    pub(crate) length: usize,
    /// 1-based.
    pub(crate) line: usize,
    /// 1-based, in characters.
    pub(crate) column: usize,
}

/// One problem of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// Offset into the file's text, in bytes.
    pub offset: usize,
    /// How many bytes of the text are wrong.
    pub length: usize,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Problem {
    pub(crate) fn at(span: SourceSpan, message: impl Into<String>) -> Problem {
        let SourceSpan { offset, length, line, column } = span;
        Problem { line, column, offset, length, message: message.into(), help: None }
    }

    pub(crate) fn help(self, help: impl Into<String>) -> Problem {
        Problem { help: Some(help.into()), ..self }
    }
}

/// A file that cannot be used, with all its problems in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines())]
pub struct InvalidFile {
    /// Name of the file, as given by the caller.
    pub file: String,
    /// Text of the file.
    pub source_text: String,
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl InvalidFile {
    pub(crate) fn new(file: &str, text: &str, mut problems: Vec<Problem>) -> InvalidFile {
        problems.sort_by_key(|problem| problem.offset);
        InvalidFile { file: file.into(), source_text: text.into(), problems }
    }

    /// One line per problem: `file:line:column: message (help)`.
    fn lines(&self) -> String {
        let line = |problem: &Problem| {
            let help = problem.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
            format!("{}:{}:{}: {}{help}", self.file, problem.line, problem.column, problem.message)
        };
        self.problems.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Help for an unknown name: the known name that is most similar, or all known names.
pub(crate) fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let distance = |candidate: &&str| strsim::damerau_levenshtein(name, candidate);
    match known.iter().min_by_key(|candidate| distance(candidate)) {
        Some(nearest) if distance(nearest) <= 1 + name.len() / 3 => format!("did you mean `{nearest}`?"),
        _ if known.is_empty() => "no names are defined".into(),
        _ => format!("expected one of: {}", known.join(", ")),
    }
}
