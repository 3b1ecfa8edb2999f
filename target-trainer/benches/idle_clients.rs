//! The steps per second of a job with no client of the monitor, with 1,000 that are idle, and with 1,000 that
//! connect again as soon as they are closed. The three take turns in one run, so that what else the machine does
//! concerns all of them: the ratio counts.
//!
//! `cargo bench -p target-trainer --bench idle_clients`. All clients are on loopback. Not done: clients that ask.

#![expect(clippy::unwrap_used, reason = "a benchmark ends at the first failure")]
#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_target-trainer");
const CLIENTS: usize = 1000;
/// How often the three take turns.
const ROUNDS: usize = 6;
const TURN_TIME: Duration = Duration::from_secs(4);
/// Time between two looks at the clients.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A running daemon. Dropping it kills it.
struct Daemon {
    process: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Daemon {
    fn start() -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (root, data) = (path("root"), path("sums.jsonl"));
        let run = |args: &[&str]| {
            assert!(Command::new(PROGRAM).args(args).stdout(Stdio::null()).status().unwrap().success());
        };
        let settings = ["device.use=cpu", "monitor.enabled=true", "monitor.port=0", "train.save_every=1000"];
        let settings = settings.iter().chain(&["recipe.steps=1000000000", "recipe.batch=32"]);
        let init = ["init", &root].into_iter().chain(settings.flat_map(|setting| ["--set", setting]));
        run(&init.collect::<Vec<_>>());
        run(&["make-data", "arithmetic", "--out", &data]);
        run(&["submit", &root, &data]);
        let mut command = Command::new(PROGRAM);
        command.args(["daemon", &root]).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap();
        let address = || {
            let status = std::fs::read_to_string(path("root/status.json")).ok()?;
            let status: serde_json::Value = serde_json::from_str(&status).ok()?;
            status["monitor"]["address"].as_str()?.parse().ok()
        };
        let address = loop {
            match address() {
                Some(address) => break address,
                None => std::thread::sleep(LOOK_INTERVAL),
            }
        };
        Daemon { process, address, _dir: dir }
    }

    /// Steps that are done.
    fn steps(&self) -> f64 {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("trainer_steps_total "));
        line.unwrap().parse().unwrap()
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// Steps per second while `act` is called again and again.
    fn speed(&self, mut act: impl FnMut()) -> f64 {
        let (begin, before) = (Instant::now(), self.steps());
        while begin.elapsed() < TURN_TIME {
            act();
            std::thread::sleep(LOOK_INTERVAL);
        }
        (self.steps() - before) / begin.elapsed().as_secs_f64()
    }
}

fn is_closed(client: &mut TcpStream) -> bool {
    !client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn main() {
    let daemon = Daemon::start();
    while daemon.steps() < 10.0 {
        std::thread::sleep(LOOK_INTERVAL);
    }
    let (mut none, mut idle, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        none.push(daemon.speed(|| {}));
        let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| daemon.client()).collect();
        idle.push(daemon.speed(|| {}));
        again.push(daemon.speed(|| {
            for client in &mut clients {
                if is_closed(client) {
                    *client = daemon.client();
                }
            }
        }));
    }
    let median = |speeds: &mut Vec<f64>| {
        speeds.sort_by(f64::total_cmp);
        speeds[speeds.len() / 2]
    };
    let base = median(&mut none);
    for (what, speeds) in
        [("no client", &mut none), ("1,000 idle", &mut idle), ("1,000 that connect again", &mut again)]
    {
        let speed = median(speeds);
        println!("{what:<26} {speed:>8.1} steps/s  ratio {:.3}", speed / base);
    }
}
