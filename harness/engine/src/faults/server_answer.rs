//! What a client of the target has been answered, as data.

/// What a client has been answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAnswer {
    /// The status of the answer. `None`: what came was no answer of HTTP, or nothing came.
    pub status: Option<u16>,
    /// What came, as text.
    pub text: String,
    /// The server had not closed the connection when the time was over.
    pub timed_out: bool,
}

impl ServerAnswer {
    pub(super) fn of(bytes: &[u8], timed_out: bool) -> ServerAnswer {
        let text = String::from_utf8_lossy(bytes).into_owned();
        // As in `HTTP/1.1 200 OK`.
        let status =
            text.strip_prefix("HTTP/").and_then(|rest| rest.split(' ').nth(1)?.get(..3)?.parse().ok());
        ServerAnswer { status, text, timed_out }
    }
}

impl std::fmt::Display for ServerAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.status, self.timed_out) {
            (Some(status), _) => write!(f, "{status}"),
            (None, true) => f.write_str("none in time"),
            (None, false) => f.write_str("none, the connection was closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ServerAnswer;

    #[test]
    fn the_status_is_that_of_the_first_line() {
        for (text, status) in [
            ("HTTP/1.1 200 OK\r\n\r\nx", Some(200)),
            ("HTTP/1.0 404\r\n", Some(404)),
            ("HTTP/1.1", None),
            ("HTTP/1.1 2", None),
            ("SSH-2.0-x", None),
            ("", None),
        ] {
            assert_eq!(ServerAnswer::of(text.as_bytes(), false).status, status, "{text:?}");
        }
    }
}
