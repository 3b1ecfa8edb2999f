//! Why a sandbox's init could not do a step. Only the text of it reaches the harness.

use std::io::Error;

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
