//! Why a line or a data file is rejected, and where.

use crate::plain_text::shown;

/// Why a data file is rejected, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct DataError {
    /// Line, counted from 1.
    pub line: u64,
    /// Column in bytes, counted from 1.
    pub column: u64,
    /// What is wrong.
    pub message: String,
    /// The rest of the file can't be checked, or need not be.
    pub ends_check: bool,
}

/// Why a line is rejected, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct LineError {
    /// Column in bytes, counted from 1.
    pub column: u64,
    /// What is wrong.
    pub problem: LineProblem,
}

impl LineError {
    /// The error as part of a file.
    pub(super) fn in_line(&self, line: u64) -> DataError {
        let ends_check = matches!(
            self.problem,
            LineProblem::NoSamples
                | LineProblem::TooManyLines(_)
                | LineProblem::TooLong(_)
                | LineProblem::OtherFormat(_)
        );
        DataError { line: line.max(1), column: self.column, message: self.problem.to_string(), ends_check }
    }
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// The file ends without a sample.
    #[error("the file has no samples")]
    NoSamples,
    /// The file has too many lines.
    #[error("more than {0} lines, the limit of `limits.lines`")]
    TooManyLines(u64),
    /// The line is too long.
    #[error("the line is longer than {0} bytes")]
    TooLong(usize),
    /// Lists and objects are nested too deeply.
    #[error("nested more than {0} levels deep")]
    TooDeep(usize),
    /// A number is too long.
    #[error("a number has more than {0} characters")]
    LongNumber(usize),
    /// The bytes are not text.
    #[error("not UTF-8; convert it")]
    NotUtf8,
    /// Two files were joined.
    #[error("a byte order mark (U+FEFF) within the file, as if two files were joined; remove it")]
    ByteOrderMark,
    /// What a crash leaves of a file on some file systems.
    #[error("only NUL bytes: the file was not written completely")]
    OnlyNul,
    /// The text can't be encoded.
    #[error("`{0}` is half of a character (a lone surrogate); cut texts between characters")]
    LoneSurrogate(String),
    /// Python and others write it.
    #[error("`{0}` is not JSON; write a number or null")]
    NotANumber(&'static str),
    /// The line is a part of an object.
    #[error(
        "the line ends within the object: it was cut, or the JSON is pretty-printed; write one object per line"
    )]
    EndsWithin,
    /// Python's notation of a dictionary.
    #[error("single quotes are not JSON; use double quotes")]
    SingleQuotes,
    /// Two objects on one line.
    #[error("another object on the same line; write one object per line")]
    SecondValue,
    /// The whole file is something else.
    #[error("the file is {0}")]
    OtherFormat(&'static str),
    /// The text is not JSON, or not an object without duplicate keys. Holds the parser's text.
    #[error("{0}")]
    Json(String),
    /// The object does not describe a sample.
    #[error(transparent)]
    Sample(#[from] SampleProblem),
}

/// Why an object does not describe a sample.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleProblem {
    /// A key that no form has.
    #[error(
        "unknown key `{}`; known keys are prompt, completion, text, messages, weight; \
         without `limits.strict`, others are ignored",
        shown(.0)
    )]
    UnknownKey(String),
    /// The value is not a text.
    #[error("`{0}` must be a string")]
    NotAString(String),
    /// The keys of no form, or of more than one.
    #[error("expected exactly one of: `prompt` and `completion`, `text`, or `messages`")]
    NotOneForm,
    /// The weight is negative, too large, or not a number.
    #[error("`weight` must be a number from 0 to 3.4e38")]
    Weight,
    /// There are no messages.
    #[error("`messages` must be a list with at least one message")]
    NoMessages,
    /// A message lacks a text. Messages are counted from 1.
    #[error("message {number}: `{key}` is missing or not a string")]
    MessagePart { number: usize, key: &'static str },
    /// A message has another role. Messages are counted from 1.
    #[error(
        "message {number}: unknown role `{}`; known roles are system, user, assistant, tool",
        shown(.role)
    )]
    UnknownRole { number: usize, role: String },
}

/// Why the next line of a stream can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LineReadError {
    /// The file is not valid.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The stream failed.
    #[error("could not be read")]
    Input(#[source] std::io::Error),
}

/// Why the samples of a stream can't be read. `E` is the error of the function that gets the lines.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E> {
    /// The file is not valid.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The stream failed. Another attempt may succeed.
    #[error("could not be read")]
    Input(#[source] std::io::Error),
    /// The function that gets the lines has failed.
    #[error(transparent)]
    Sink(E),
}

impl<E> From<LineReadError> for ReadError<E> {
    fn from(error: LineReadError) -> ReadError<E> {
        match error {
            LineReadError::Data(error) => ReadError::Data(error),
            LineReadError::Input(error) => ReadError::Input(error),
        }
    }
}
