//! The monitor as its clients meet it: over real sockets on loopback, against the built command.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::trainer_root::{TrainerRoot, all_output, daemon_command, sorted_names, text, wait_for};
use proptest::prelude::*;

/// A job that lasts longer than each test.
const LONG_JOB: &str = "recipe.steps=100000";
const ON: [&str; 2] = ["monitor.enabled=true", "monitor.port=0"];

/// A daemon with a monitor. Dropping it kills the daemon.
struct Monitored {
    root: TrainerRoot,
    daemon: Child,
    address: SocketAddr,
}

impl Drop for Monitored {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn spawn(root: &TrainerRoot) -> Child {
    let mut command = daemon_command();
    command.arg(root.path_str()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn status(root: &Path) -> Option<serde_json::Value> {
    serde_json::from_str(&std::fs::read_to_string(root.join("status.json")).ok()?).ok()
}

/// The address in `status.json` of the daemon with this process id.
fn address_of(root: &TrainerRoot, daemon: &Child) -> SocketAddr {
    let mut address = None;
    wait_for("the monitor's address", || {
        let status = status(&root.path()).filter(|status| status["pid"] == daemon.id());
        address = status.and_then(|status| status["monitor"]["address"].as_str()?.parse().ok());
        address.is_some()
    });
    address.unwrap()
}

impl Monitored {
    fn of(root: TrainerRoot) -> Monitored {
        let daemon = spawn(&root);
        let address = address_of(&root, &daemon);
        Monitored { root, daemon, address }
    }

    fn new(settings: &[&str]) -> Monitored {
        Monitored::of(TrainerRoot::new(&[&ON[..], settings].concat()))
    }

    fn training(settings: &[&str]) -> Monitored {
        let monitored = Monitored::of(TrainerRoot::with_job(&[&ON[..], &[LONG_JOB], settings].concat()));
        wait_for("a save", || monitored.metric("trainer_saves_total") >= 1.0);
        monitored
    }

    fn token(&self) -> String {
        std::fs::read_to_string(self.root.path().join("monitor-token")).unwrap().trim().to_owned()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// Sends bytes and reads until the server closes.
    fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // The server may have closed because of what it has got so far.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Answer::of(&answer)
    }

    fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
    }

    fn post(&self, name: &str, headers: &str, body: &[u8]) -> Answer {
        let head = format!(
            "POST /jobs?name={name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        self.send(&[head.as_bytes(), body].concat())
    }

    fn post_with_token(&self, name: &str, body: &[u8]) -> Answer {
        self.post(name, &format!("Authorization: Bearer {}\r\n", self.token()), body)
    }

    fn metric(&self, name: &str) -> f64 {
        let answer = self.get("/metrics");
        let line = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}: {answer:?}")).parse().unwrap()
    }

    fn is_running(&mut self) -> bool {
        self.daemon.try_wait().unwrap().is_none()
    }

    fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.daemon.id())).unwrap().count()
    }
}

/// What a client has received.
#[derive(Debug)]
struct Answer {
    /// 0: the connection was closed without an answer.
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn of(bytes: &[u8]) -> Answer {
        let answer = text(bytes);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }
}

const JOB: &[u8] =
    b"{\"prompt\": \"1+1=\", \"completion\": \"2\"}\n{\"prompt\": \"1+2=\", \"completion\": \"3\"}\n";

#[test]
fn the_page_the_health_and_the_metrics_show_the_training() {
    let monitored = Monitored::training(&[]);
    assert!(monitored.address.ip().is_loopback());
    let page = monitored.get("/");
    assert!(page.status == 200 && page.head.contains("text/html"), "{page:?}");
    assert!(page.body.contains("of 100000") && page.body.contains("<polyline"), "{}", page.body);
    assert!(page.head.contains("default-src 'none'"), "{}", page.head);
    assert_eq!(monitored.get("/healthz").status, 200);
    let job = sorted_names(&monitored.root.path().join("metrics"))[0].clone();
    let history = std::fs::read_to_string(monitored.root.path().join("metrics").join(&job)).unwrap();
    let first: serde_json::Value = serde_json::from_str(history.lines().next().unwrap()).unwrap();
    for key in ["loss", "gradient_norm", "learning_rate", "tokens_per_s"] {
        assert!(first[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {first}");
    }
    for metric in ["steps_total", "saves_total", "loss", "job_step", "learning_rate", "tokens_per_second"] {
        assert!(monitored.metric(&format!("trainer_{metric}")) > 0.0, "{metric}");
    }
    for path in ["/nothing", "/jobs/1", "/../settings.toml", "/monitor-token", "//", "/%2e%2e/settings.toml"]
    {
        assert_eq!(monitored.get(path).status, 404, "{path}");
    }
    assert_eq!(monitored.get("/jobs?name=a").status, 405);
}

#[test]
fn without_the_setting_there_is_no_monitor_and_no_file_of_it() {
    let root = TrainerRoot::with_job(&["recipe.steps=5"]);
    root.drain();
    assert!(status(&root.path()).unwrap()["monitor"].is_null());
    for name in ["journal.jsonl", "metrics", "monitor-token"] {
        assert!(!root.path().join(name).exists(), "{name}");
    }
}

#[test]
fn a_monitor_changes_no_bit_of_the_weights() {
    let [plain, monitored] = [&[][..], &ON[..]]
        .map(|settings| TrainerRoot::with_job(&[settings, &["recipe.steps=20"][..]].concat()));
    plain.drain();
    monitored.drain();
    assert_eq!(plain.finished_adapter(), monitored.finished_adapter());
}

/// A port that is taken, and the listener that has it.
fn taken_port() -> (String, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (format!("monitor.port={}", listener.local_addr().unwrap().port()), listener)
}

#[test]
fn a_taken_port_leads_to_the_next_one_which_the_status_names() {
    let (port, taken) = taken_port();
    let monitored = Monitored::new(&[&port]);
    assert!(monitored.address.port() > taken.local_addr().unwrap().port());
    assert_eq!(monitored.get("/healthz").status, 200);
}

#[test]
fn a_pinned_port_that_is_taken_ends_the_daemon_with_its_own_exit_code() {
    let (port, _taken) = taken_port();
    let root = TrainerRoot::with_job(&["monitor.enabled=true", &port, "monitor.pinned=true"]);
    let output = root.spawn_daemon().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(23), "{}", all_output(&output));
    let port = port.trim_start_matches("monitor.port=");
    assert!(text(&output.stderr).contains(&format!("127.0.0.1:{port}")), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("monitor.pinned"), "{}", text(&output.stderr));
    assert_eq!(root.status()["ended"]["exit_code"], 23, "{}", root.status());
}

#[test]
fn an_address_that_the_machine_does_not_have_stops_no_training() {
    let root = TrainerRoot::with_job(&[ON[0], ON[1], "recipe.steps=5", "monitor.address=192.0.2.1"]);
    root.drain();
    let status = status(&root.path()).unwrap();
    assert!(status["monitor"]["error"].as_str().unwrap().contains("192.0.2.1"), "{status}");
    assert!(status["monitor"]["address"].is_null());
}

#[test]
fn a_job_that_is_posted_is_trained_and_replaces_no_file() {
    let monitored = Monitored::new(&["recipe.steps=3", "limits.settle_s=3600"]);
    // The daemon does not take this one before an hour has passed.
    let inbox = monitored.root.path().join("inbox");
    std::fs::write(inbox.join("sums.jsonl"), "mine\n").unwrap();
    let answer = monitored.post_with_token("sums.jsonl", JOB);
    assert!(answer.status == 201 && answer.body.contains("1-sums.jsonl"), "{answer:?}");
    wait_for("the job", || sorted_names(&monitored.root.path().join("done")).len() == 1);
    assert_eq!(std::fs::read_to_string(inbox.join("sums.jsonl")).unwrap(), "mine\n");
    assert_eq!(sorted_names(&inbox), ["sums.jsonl"]);
}

#[test]
fn a_change_without_the_token_is_refused_and_changes_nothing() {
    let monitored = Monitored::new(&[]);
    let token = monitored.token();
    for headers in [
        String::new(),
        "Authorization: Bearer 0000000000000000000000000000000000\r\n".into(),
        format!("Authorization: Bearer {}\r\n", &token[..63]),
        format!("Authorization: {token}\r\n"),
        format!("Cookie: token={token}\r\n"),
    ] {
        let answer = monitored.post("a.jsonl", &headers, JOB);
        assert_eq!(answer.status, 401, "{headers}: {answer:?}");
    }
    let authorized = format!("Authorization: Bearer {token}\r\n");
    let foreign = monitored.post("a.jsonl", &format!("{authorized}Origin: http://evil.example\r\n"), JOB);
    assert_eq!(foreign.status, 403, "{foreign:?}");
    let rebound = monitored.send(b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!(rebound.status, 421, "{rebound:?}");
    for name in ["..%2Fa.jsonl", "%2Fetc%2Fpasswd", "a%00b", "a/b", "", ".", "%2e%2e"] {
        assert_eq!(monitored.post_with_token(name, JOB).status, 400, "{name}");
    }
    assert_eq!(monitored.post_with_token("...", b"").status, 201, "a name of nothing but dots is `data`");
    let left = |dir: &str| sorted_names(&monitored.root.path().join(dir));
    wait_for("the empty file to be rejected", || left("inbox").is_empty() && left("failed").len() == 1);
    assert!(left("queue/processing").is_empty() && left("done").is_empty());
}

#[test]
fn elsewhere_than_on_loopback_everything_but_the_health_needs_the_token() {
    let mut monitored = Monitored::new(&["monitor.address=0.0.0.0"]);
    monitored.address.set_ip(Ipv4Addr::LOCALHOST.into());
    for path in ["/", "/metrics", "/nothing"] {
        let answer = monitored.get(path);
        assert!(answer.status == 401 && answer.head.contains("www-authenticate: basic"), "{answer:?}");
    }
    assert_eq!(monitored.get("/healthz").status, 200);
}

/// Counts the entries of a journal, as its documentation says.
fn saves_in_journal(root: &Path) -> f64 {
    let text = std::fs::read_to_string(root.join("journal.jsonl")).unwrap();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.fold(0.0, |count, line| match line["totals"]["saves"].as_f64() {
        Some(total) => total,
        None => count + f64::from(u8::from(line["event"] == "saved")),
    })
}

#[test]
fn after_kills_the_counters_are_those_of_the_journal() {
    let mut monitored = Monitored::training(&["train.save_every=1"]);
    for _ in 0..3 {
        let before = monitored.metric("trainer_saves_total");
        monitored.daemon.kill().unwrap();
        monitored.daemon.wait().unwrap();
        monitored.daemon = spawn(&monitored.root);
        monitored.address = address_of(&monitored.root, &monitored.daemon);
        wait_for("more saves", || monitored.metric("trainer_saves_total") > before + 2.0);
        let (least, counted) =
            (saves_in_journal(&monitored.root.path()), monitored.metric("trainer_saves_total"));
        let most = saves_in_journal(&monitored.root.path());
        assert!((least..=most).contains(&counted), "{least} {counted} {most}");
    }
    assert!(monitored.metric("trainer_resumes_total") >= 4.0);
}

#[test]
fn files_of_the_monitor_that_can_not_be_written_stop_no_training() {
    let root = TrainerRoot::with_job(&[ON[0], ON[1], "recipe.steps=20"]);
    for name in ["journal.jsonl", "monitor-token"] {
        std::fs::create_dir(root.path().join(name)).unwrap();
    }
    std::fs::write(root.path().join("metrics"), "a file in the way").unwrap();
    root.drain();
    let baseline = TrainerRoot::with_job(&["recipe.steps=20"]);
    baseline.drain();
    assert_eq!(root.finished_adapter(), baseline.finished_adapter());
}

#[test]
fn malformed_and_oversized_requests_get_an_error_or_a_closed_connection() {
    let mut monitored = Monitored::new(&[]);
    let line = |bytes: usize| vec![b'a'; bytes];
    let before = monitored.memory_bytes();
    let requests: Vec<Vec<u8>> = vec![
        b"\r\n\r\n\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost \x00: x\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(40),
        [b"GET /".to_vec(), line(1 << 20), b" HTTP/1.1\r\n\r\n".to_vec()].concat(),
        [b"GET / HTTP/1.1\r\nHost: ".to_vec(), line(8 << 20)].concat(),
        [b"GET / HTTP/1.1\r\n".to_vec(), b"A: b\r\n".repeat(100_000), b"\r\n".to_vec()].concat(),
        b"POST /jobs?name=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /jobs?name=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"POST /jobs?name=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_vec(),
        b"POST /jobs?name=a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"
            .to_vec(),
        [b"POST /jobs?name=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 33554432\r\n\r\n".to_vec(), line(32 << 20)]
            .concat(),
    ];
    for request in &requests {
        let answer = monitored.send(request);
        let start = text(&request[..request.len().min(80)]);
        assert!(matches!(answer.status, 0 | 400..500 | 505), "{start:?}: {answer:?}");
    }
    assert!(monitored.is_running());
    assert_eq!(monitored.get("/healthz").status, 200);
    let after = monitored.memory_bytes();
    assert!(after < before + (16 << 20), "{before} {after}");
    assert!(sorted_names(&monitored.root.path().join("inbox")).is_empty());
}

#[test]
fn a_client_that_has_sent_its_request_may_end_its_side_at_once() {
    let monitored = Monitored::new(&[]);
    for _ in 0..20 {
        let mut stream = monitored.connect();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(Answer::of(&answer).status, 200);
    }
}

/// What requests are made of, right or wrong, and in any order.
const PARTS: [&[u8]; 22] = [
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"OPTIONS * ",
    b"/ ",
    b"/metrics ",
    b"/jobs?name=a ",
    b"/jobs?name=%ff%00&name ",
    b"http://localhost/ ",
    b"HTTP/1.1\r\n",
    b"HTTP/1.0\r\n",
    b"Host: localhost\r\n",
    b"Host: [::1\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 18446744073709551615\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n",
    b"Authorization: Basic ====\r\n",
    b"Authorization: Bearer \xff\r\n",
    b"\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
];

fn raw_request() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        8 => (0..PARTS.len()).prop_map(|index| PARTS[index].to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..200),
    ];
    // Half of them begin well, so that more than the first line is read.
    let begin = prop_oneof![Just(&b""[..]), Just(&b"GET / HTTP/1.1\r\nHost: localhost\r\n"[..])];
    (begin, proptest::collection::vec(part, 0..12))
        .prop_map(|(begin, parts)| [begin, &parts.concat()].concat())
}

/// The bytes come in two parts, and then the client says no more.
#[test]
fn no_bytes_stop_the_server_or_change_anything() {
    let mut monitored = Monitored::new(&[]);
    let before = monitored.memory_bytes();
    let runner_config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(runner_config);
    let checked = runner.run(&(raw_request(), any::<prop::sample::Index>()), |(bytes, cut)| {
        let mut stream = monitored.connect();
        let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
        // The server may have closed because of what it has got so far.
        let _ = stream.write_all(first).and_then(|()| stream.write_all(second));
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = Answer::of(&answer);
        prop_assert!(matches!(answer.status, 0 | 100 | 200 | 400..500 | 505), "{:?}", answer);
        prop_assert_eq!(monitored.get("/healthz").status, 200);
        Ok(())
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
    assert!(monitored.is_running());
    let after = monitored.memory_bytes();
    assert!(after < before + (16 << 20), "{before} {after}");
    for dir in ["inbox", "queue/processing", "done", "failed"] {
        assert!(sorted_names(&monitored.root.path().join(dir)).is_empty(), "{dir}");
    }
}

#[test]
fn data_beyond_the_limit_or_cut_off_leaves_nothing() {
    let monitored = Monitored::new(&["monitor.upload_bytes=1000"]);
    let too_large = JOB.repeat(20);
    assert_eq!(monitored.post_with_token("a", &too_large).status, 413);
    let authorized = format!("Authorization: Bearer {}\r\n", monitored.token());
    let head = format!("POST /jobs?name=a HTTP/1.1\r\nHost: localhost\r\n{authorized}");
    // The size is not known before.
    let chunk = format!("{:x}\r\n{}\r\n", too_large.len(), text(&too_large));
    let chunked = format!("{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunk}0\r\n\r\n");
    assert_eq!(monitored.send(chunked.as_bytes()).status, 413);
    let mut stream = monitored.connect();
    stream.write_all(format!("{head}Content-Length: 500\r\n\r\n{{\"text\": \"a\"}}\n").as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(matches!(Answer::of(&answer).status, 0 | 400), "{}", text(&answer));
    let inbox = monitored.root.path().join("inbox");
    wait_for("an empty inbox", || sorted_names(&inbox).is_empty());
    assert!(sorted_names(&monitored.root.path().join("queue/processing")).is_empty());
    assert!(sorted_names(&monitored.root.path().join("failed")).is_empty());
}

#[test]
fn a_thousand_idle_clients_keep_nobody_out_and_take_a_bounded_number_of_files() {
    let mut monitored = Monitored::training(&["monitor.connections=16"]);
    let before = monitored.open_files();
    let idle: Vec<TcpStream> = (0..1000).map(|_| monitored.connect()).collect();
    let begin = Instant::now();
    wait_for("steps", || monitored.metric("trainer_connections_total") > 1000.0);
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(monitored.open_files() <= before + 20, "{} {before}", monitored.open_files());
    assert!(monitored.metric("trainer_closed_connections_total") > 900.0);
    assert!(monitored.is_running());
    drop(idle);
}

#[test]
fn without_a_guard_the_monitor_harms_the_training() {
    let (port, _taken) = taken_port();
    let root = TrainerRoot::with_job(&["monitor.enabled=true", &port, "guards.free_port=false"]);
    assert_eq!(root.spawn_daemon().wait_with_output().unwrap().status.code(), Some(23));

    let monitored = Monitored::new(&["guards.change_token=false"]);
    assert_eq!(monitored.post("a.jsonl", "", JOB).status, 201);

    let monitored = Monitored::training(&["guards.client_limits=false", "monitor.connections=16"]);
    let before = monitored.open_files();
    let idle: Vec<TcpStream> = (0..200).map(|_| monitored.connect()).collect();
    wait_for("200 open files", || monitored.open_files() >= before + 200);
    drop(idle);

    let monitored = Monitored::new(&["guards.request_limits=false"]);
    let before = monitored.memory_bytes();
    let mut stream = monitored.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n").unwrap();
    stream.write_all(&vec![b'a'; 64 << 20]).unwrap();
    wait_for("64 MiB of memory", || monitored.memory_bytes() > before + (60 << 20));

    let mut monitored = Monitored::training(&["guards.journal_counts=false"]);
    wait_for("steps", || monitored.metric("trainer_steps_total") > 200.0);
    monitored.daemon.kill().unwrap();
    monitored.daemon.wait().unwrap();
    monitored.daemon = spawn(&monitored.root);
    monitored.address = address_of(&monitored.root, &monitored.daemon);
    assert!(monitored.metric("trainer_steps_total") < 200.0);
}

#[test]
fn a_client_that_says_nothing_is_closed_after_a_while() {
    let monitored = Monitored::new(&[]);
    let mut stream = monitored.connect();
    stream.write_all(b"GET / HT").unwrap();
    let mut silent = monitored.connect();
    let mut answer = Vec::new();
    // The read timeout is longer than that of the server.
    stream.read_to_end(&mut answer).unwrap();
    silent.read_to_end(&mut answer).unwrap();
    assert!(matches!(Answer::of(&answer).status, 0 | 408), "{}", text(&answer));
}
