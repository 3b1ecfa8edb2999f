//! Clients of a server that is a part of the target, each on a thread of its own. Knows no trigger.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use scenarios::{ClientAct, EffectSpec, HttpRequest};

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::faults::server_answer::ServerAnswer;
use crate::sandbox::connect_to;

/// How long a client tries to connect to a server that does not listen yet.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Time between two attempts to connect.
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);
/// How long a client waits for the next bytes of an answer, or until it can send more.
const ANSWER_TIME: Duration = Duration::from_secs(20);
/// How much of an answer is kept.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// The letters of a body that only has a size.
static FILLER: [u8; 1 << 16] = [b'a'; 1 << 16];

/// What has become of a client.
enum ClientResult {
    /// It is connected, and idle.
    Connected(OwnedFd),
    Answered(ServerAnswer),
    NotConnected(Errno),
}

/// Clients that ask at the same time.
pub(super) struct AskingClients {
    planned: HttpRequest,
    results: Option<Receiver<ClientResult>>,
    idle: Vec<OwnedFd>,
    answers: Vec<ServerAnswer>,
    /// How many answers the run has been told of.
    told: usize,
    not_connected: Option<Errno>,
}

impl AskingClients {
    pub(super) fn new(planned: &HttpRequest) -> AskingClients {
        AskingClients {
            planned: planned.clone(),
            results: None,
            idle: Vec::new(),
            answers: Vec::new(),
            told: 0,
            not_connected: None,
        }
    }

    /// Takes the results that are there.
    fn look(&mut self) {
        for result in self.results.iter().flat_map(Receiver::try_iter) {
            match result {
                ClientResult::Connected(socket) => self.idle.push(socket),
                ClientResult::Answered(answer) => self.answers.push(answer),
                ClientResult::NotConnected(error) => self.not_connected = Some(error),
            }
        }
    }
}

impl InjectableFault for AskingClients {
    fn mechanism(&self) -> String {
        format!("from sockets of the target's network: {}", self.planned.describe())
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        if self.results.is_some() {
            return Ok(());
        }
        let (sender, results) = channel();
        for _ in 0..self.planned.copies {
            let (socket, planned, sender) =
                (context.sandbox.tcp_socket()?, self.planned.clone(), sender.clone());
            // Nobody takes the result of a client that is still waiting at the end of the trial.
            std::thread::spawn(move || drop(sender.send(be_client(socket, &planned))));
        }
        self.results = Some(results);
        Ok(())
    }

    fn tick(&mut self, _: &FaultContext<'_>) -> Result<(), FaultError> {
        self.look();
        Ok(())
    }

    fn effective_evidence(&mut self, _: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        self.look();
        let done = self.idle.len() + self.answers.len();
        if done < self.planned.copies as usize {
            return None;
        }
        let what = self.planned.describe();
        match self.answers.last() {
            Some(answer) => Some(format!("{what}; the last answer: {answer}")),
            None => Some(format!("{what}; all are connected")),
        }
    }

    fn revert(&mut self, _: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        let count = self.idle.drain(..).count();
        Ok((count > 0).then(|| format!("idle connections closed: {count}")))
    }

    fn take_answers(&mut self) -> Vec<ServerAnswer> {
        let new = self.answers[self.told..].to_vec();
        self.told = self.answers.len();
        new
    }

    fn missing_evidence(&self) -> String {
        match self.not_connected {
            Some(error) => format!("nothing could be asked at port {}: {error}", self.planned.port),
            None => {
                let (done, all) = (self.idle.len() + self.answers.len(), self.planned.copies);
                format!("{done} of {all} clients of port {} were done", self.planned.port)
            }
        }
    }
}

fn be_client(socket: OwnedFd, planned: &HttpRequest) -> ClientResult {
    let deadline = Instant::now() + CONNECT_TIME;
    while let Err(error) = connect_to(&socket, Ipv4Addr::LOCALHOST, planned.port) {
        if error != Errno::ECONNREFUSED || Instant::now() > deadline {
            return ClientResult::NotConnected(error);
        }
        std::thread::sleep(CONNECT_INTERVAL);
    }
    match &planned.act {
        ClientAct::Idle => ClientResult::Connected(socket),
        ClientAct::Send { head, filler_bytes, is_request } => {
            ClientResult::Answered(ask(TcpStream::from(socket), head, *filler_bytes, *is_request))
        }
    }
}

/// Sends, and reads until the server closes the connection. A server may answer before it has read everything.
fn ask(mut stream: TcpStream, head: &[u8], filler_bytes: u64, is_request: bool) -> ServerAnswer {
    // They fail only for a time of 0.
    let _ = stream.set_read_timeout(Some(ANSWER_TIME));
    let _ = stream.set_write_timeout(Some(ANSWER_TIME));
    let mut left = filler_bytes;
    let mut is_sent = stream.write_all(head).is_ok();
    while is_sent && left > 0 {
        let len_bytes = left.min(FILLER.len() as u64);
        is_sent = stream.write_all(&FILLER[..len_bytes as usize]).is_ok();
        left -= len_bytes;
    }
    // A client of HTTP keeps its side open. What is no request may need the end, to be known as such.
    if !is_request {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut bytes = Vec::new();
    let mut part = [0; 1 << 14];
    let timed_out = loop {
        match stream.read(&mut part) {
            Ok(0) => break false,
            Ok(len_bytes) if bytes.len() < MAX_ANSWER_BYTES => bytes.extend_from_slice(&part[..len_bytes]),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    };
    ServerAnswer::of(&bytes, timed_out)
}
