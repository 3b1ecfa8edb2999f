//! Why a sandbox's init could not do a step. Only the text of it reaches the harness.

use std::io::Error;

use super::protocol::ControlReply;

/// A step of init that failed.
pub(super) struct InitError {
    pub(super) doing: &'static str,
    pub(super) source: Error,
}

/// A result whose error contains what init was doing.
pub(super) type InitResult<T> = Result<T, InitError>;

/// Adds to an error what init was doing.
pub(super) fn with_context<T, E: Into<Error>>(doing: &'static str, result: Result<T, E>) -> InitResult<T> {
    result.map_err(|error| InitError { doing, source: error.into() })
}

impl InitError {
    /// What the harness is told about it.
    pub(super) fn reply(&self) -> ControlReply {
        failed_reply(self.doing, &self.source)
    }
}

/// What the harness is told about a step that failed.
pub(super) fn failed_reply(doing: &str, error: &Error) -> ControlReply {
    ControlReply::Failed { doing: doing.into(), detail: error.to_string() }
}
