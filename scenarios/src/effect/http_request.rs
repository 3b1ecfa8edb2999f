//! The fault `http-request`: clients of a server that is a part of the target.

use std::collections::BTreeMap;

use crate::effect::bound_port::checked_port;
use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::units::ByteSize;
use crate::yaml::spanned::Spanned;

/// The most clients at the same time. Each is an open file of Trainwreck.
const MAX_COPIES: u32 = 500;

fault!(
    /// Clients that connect to `127.0.0.1` in the target's network. `path`, `raw` or `idle` must be given.
    HttpRequestDraft {
        /// The TCP port.
        port: Spanned<u16>,
        /// What is asked for, such as `/metrics`.
        path: Option<Spanned<String>>,
        /// The method. Default: `GET`.
        method: Option<Spanned<String>>,
        /// More headers. `Host`, `Connection` and `Content-Length` are there already, unless they are given.
        headers: Option<Spanned<BTreeMap<String, String>>>,
        /// The body. Default: none.
        body: Option<String>,
        /// So many letters, sent after that.
        body_size: Option<ByteSize>,
        /// The bytes that are sent, instead of a request.
        raw: Option<String>,
        /// `true`: the clients connect and say nothing until the fault is reverted.
        #[serde(default)]
        idle: bool,
        /// `true`: the requests give the target more to do, so that it may end with more values than the baseline
        /// run. Default: `false`.
        #[serde(default)]
        adds_work: bool,
        /// How many clients there are at the same time, 500 at most. Default: 1.
        copies: Option<Spanned<u32>>,
    }
);

/// What a client sends.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientAct {
    /// These bytes, then so many letters. It reads until the server closes the connection.
    Send {
        head: Vec<u8>,
        filler_bytes: u64,
        /// Whether it is well-formed. What is not ends with the end of the client's side.
        is_request: bool,
    },
    /// Nothing. It stays connected.
    Idle,
}

/// Connects clients to a server in the target.
#[derive(Debug, Clone)]
pub struct HttpRequest {
    /// Never 0.
    pub port: u16,
    /// What each client does.
    pub act: ClientAct,
    /// How many clients there are at the same time.
    pub copies: u32,
    /// Whether they give the target more to do.
    pub adds_work: bool,
    /// The request, in a few words.
    text: String,
}

impl CheckEffect for HttpRequestDraft {
    type Checked = HttpRequest;

    fn check(&self, checker: &mut Checker) -> HttpRequest {
        let (act, text) = match (&self.path, &self.raw, self.idle) {
            (Some(path), None, false) => self.request(path, checker),
            (None, Some(raw), false) => {
                let (head, filler_bytes) = (raw.clone().into_bytes(), self.filler_bytes());
                let act = ClientAct::Send { head, filler_bytes, is_request: false };
                (act, format!("{} bytes that are no request", raw.len()))
            }
            (None, None, true) => (ClientAct::Idle, "idle".to_owned()),
            _ => {
                // A key that could not be read is reported already.
                if checker.is_complete {
                    checker.method_problem(
                        "`http-request` must have exactly one of `path`, `raw` and `idle: true`",
                        "write `path: /metrics`",
                    );
                }
                (ClientAct::Idle, String::new())
            }
        };
        let only_requests = [
            ("method", self.method.is_some()),
            ("headers", self.headers.is_some()),
            ("body", self.body.is_some()),
            ("body-size", self.body_size.is_some() && self.idle),
        ];
        for (key, _) in only_requests.iter().filter(|(_, is_given)| *is_given && self.path.is_none()) {
            checker.method_problem(format!("`{key}` needs `path`"), "remove it, or add `path`");
        }
        let copies = self.copies.as_ref().map_or(1, |copies| checker.require_positive(copies, "copies"));
        if let Some(given) = self.copies.as_ref().filter(|given| given.value > MAX_COPIES) {
            checker.problems.push(given.problem(format!("`copies` must be at most {MAX_COPIES}")));
        }
        HttpRequest {
            port: checked_port(&self.port, checker),
            act,
            copies: copies.min(MAX_COPIES),
            adds_work: self.adds_work,
            text,
        }
    }
}

impl HttpRequestDraft {
    fn filler_bytes(&self) -> u64 {
        self.body_size.map_or(0, |size| size.0)
    }

    fn request(&self, path: &Spanned<String>, checker: &mut Checker) -> (ClientAct, String) {
        let method = self.method.as_ref().map_or("GET", |method| method.value.as_str());
        let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_word(&path.value) || !path.value.starts_with('/') {
            let message = "`path` must begin with `/` and have no spaces";
            checker.problems.push(path.problem(message).help("write a space as `%20`"));
        }
        if let Some(given) = self.method.as_ref().filter(|given| !is_word(&given.value)) {
            checker.problems.push(given.problem("`method` must be one word, such as `POST`"));
        }
        let body = self.body.as_deref().unwrap_or_default();
        let len_bytes = body.len() as u64 + self.filler_bytes();
        let mut headers: BTreeMap<&str, String> = BTreeMap::from([
            ("Host", "127.0.0.1".to_owned()),
            ("Connection", "close".to_owned()),
            ("Content-Length", len_bytes.to_string()),
        ]);
        if let Some(given) = &self.headers {
            for (name, value) in &given.value {
                if !is_word(name) || name.contains(':') || value.contains(['\r', '\n', '\0']) {
                    let shown = name.escape_debug();
                    let problem =
                        given.problem(format!("`{shown}` is no header, or its value has line breaks"));
                    checker.problems.push(problem.help("to send anything else, use `raw`"));
                }
                headers.retain(|own, _| !own.eq_ignore_ascii_case(name));
                headers.insert(name, value.clone());
            }
        }
        let mut head = format!("{method} {} HTTP/1.1\r\n", path.value);
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        head.push_str("\r\n");
        head.push_str(body);
        let act =
            ClientAct::Send { head: head.into_bytes(), filler_bytes: self.filler_bytes(), is_request: true };
        (act, format!("{method} {}", path.value))
    }
}

impl EffectSpec for HttpRequest {
    fn describe(&self) -> String {
        match self.copies {
            1 => format!("a client of port {}: {}", self.port, self.text),
            copies => format!("{copies} clients of port {}: {}", self.port, self.text),
        }
    }

    fn asks_a_server(&self) -> bool {
        self.act != ClientAct::Idle
    }

    fn adds_work(&self) -> bool {
        self.adds_work
    }
}
