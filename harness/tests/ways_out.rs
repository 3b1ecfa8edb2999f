//! Ways out of the sandbox that a target may try: through descriptors, other processes, namespaces, mounts,
//! devices, settings of the kernel, objects of the host. Each is tried by a target as root and as an ordinary
//! user, and the host is compared before and after. That a way is refused is fine; an effect outside is not.

#![expect(clippy::unwrap_used, reason = "a test stops at the first failure")]

#[expect(dead_code, unused_macros, reason = "each test program uses a part of it")]
mod support;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::OnceLock;

use libtest_mimic::Trial;
use support::command::{TRAINWRECK, output_text};
use support::machine::{GATE, Need, SANDBOX, missing};
use support::ordinary_user::OrdinaryUser;
use support::trial::trial;

/// Functions of `targets/ways_out.py`. With a path: what the machine must have, so that there is such a way.
const WAYS: [(&str, &str); 23] = [
    ("inherited-descriptors", "/proc/self/fd"),
    ("files-of-other-processes", "/proc/1"),
    ("parents-of-the-root", "/"),
    ("ptrace-of-init", "/"),
    ("other-namespaces", "/proc/self/ns"),
    ("new-mounts", "/"),
    ("mounts-in-new-namespaces", "/usr/bin/unshare"),
    ("device-files", "/"),
    ("devices", "/dev"),
    ("kernel-log", "/dev/kmsg"),
    ("kernel-settings", "/proc/sys/kernel"),
    ("device-settings", "/sys/kernel"),
    ("cgroups", "/sys/fs/cgroup"),
    ("clock", "/"),
    ("machine", "/"),
    ("tracing", "/"),
    ("file-handles", "/"),
    ("keys", "/proc/keys"),
    ("sockets-of-the-host", "/"),
    ("terminal", "/dev/tty"),
    ("signals", "/"),
    ("system-v-objects", "/proc/sysvipc"),
    ("files-of-the-harness", "/"),
];

/// Settings of the whole machine.
const SETTINGS: [&str; 12] = [
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/printk",
    "/proc/sys/vm/swappiness",
    "/proc/sys/fs/file-max",
    "/proc/sys/net/core/somaxconn",
    "/proc/irq/default_smp_affinity",
    "/proc/swaps",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/proc/self/oom_score_adj",
];

/// Who tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    ThisUser,
    Nobody,
}

fn main() -> ExitCode {
    let programs = [Need::Program("python3")];
    let own = missing(SANDBOX.iter().chain(&GATE).chain(&programs));
    let ordinary = [Need::OrdinaryUserWith("syscall-gate"), Need::Program("setpriv")];
    let ordinary = missing(SANDBOX.iter().chain(&GATE).chain(&programs).chain(&ordinary));
    let mut trials = vec![trial("each_way_is_tried", None, each_way_is_tried)];
    for (runner, missing) in [(Runner::ThisUser, own), (Runner::Nobody, ordinary)] {
        let trials_of_runner = WAYS.map(|(way, needed)| {
            let no_such_way = (!Path::new(needed).exists()).then(|| format!("no {needed}"));
            trial_of(way, runner, missing.clone().or(no_such_way))
        });
        trials.extend(trials_of_runner);
    }
    // Two ways at the same time would see each other's effects.
    support::trial::run_sequentially(trials)
}

fn trial_of(way: &'static str, runner: Runner, missing: Option<String>) -> Trial {
    let name = format!("{runner:?}_{way}").to_lowercase().replace('-', "_");
    trial(name, missing.as_deref(), move || check(way, runner))
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/ways_out.py")
}

/// A function of the script that no row names would never run.
fn each_way_is_tried() {
    let text = std::fs::read_to_string(script()).unwrap();
    let helpers = ["tried", "call", "write_to", "append_to", "main"];
    let functions = text.lines().filter_map(|line| line.strip_prefix("def ")?.split('(').next());
    let mut functions: Vec<String> =
        functions.filter(|name| !helpers.contains(name)).map(|name| name.replace('_', "-")).collect();
    let mut ways: Vec<String> = WAYS.iter().map(|(way, _)| (*way).to_owned()).collect();
    functions.sort();
    ways.sort();
    assert_eq!(functions, ways);
}

/// What a target could change outside.
struct Outside {
    dir: tempfile::TempDir,
    abstract_socket: UnixListener,
    port: TcpListener,
    /// A process that a signal could reach.
    process: Child,
}

impl Outside {
    fn new() -> Outside {
        let dir = tempfile::Builder::new().prefix("trainwreck-outside-").tempdir_in("/var/tmp").unwrap();
        for name in ["project", "tmp"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["outside", "inherited"] {
            std::fs::write(dir.path().join(name), "as it was\n").unwrap();
        }
        for path in ["", "project", "tmp", "outside", "inherited"].map(|name| dir.path().join(name)) {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        }
        std::fs::copy(script(), dir.path().join("ways_out.py")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = port.local_addr().unwrap().port();
        let address = SocketAddr::from_abstract_name(format!("trainwreck-{number}")).unwrap();
        let abstract_socket = UnixListener::bind_addr(&address).unwrap();
        port.set_nonblocking(true).unwrap();
        abstract_socket.set_nonblocking(true).unwrap();
        let process = Command::new("sleep").arg("600").spawn().unwrap();
        Outside { dir, abstract_socket, port, process }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Everything that a way could change. Equal before and after, if none had an effect.
    fn facts(&mut self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        let mut fact = |name: &str, value: String| drop(facts.insert(name.to_owned(), value));
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
        for setting in SETTINGS {
            fact(setting, text(Path::new(setting)));
        }
        for name in ["outside", "inherited"] {
            fact(name, text(&self.path(name)));
        }
        let keys = Command::new("python3").args(["-c", FIND_KEY]).output().unwrap();
        fact("keys", output_text(&keys));
        fact("mounts", text(Path::new("/proc/self/mountinfo")));
        fact("loop device", Path::new("/dev/loop211").exists().to_string());
        fact("modules", text(Path::new("/proc/modules")).lines().count().to_string());
        fact("process", format!("{:?}", self.process.try_wait().unwrap()));
        fact("abstract socket", self.abstract_socket.accept().is_ok().to_string());
        fact("port", self.port.accept().is_ok().to_string());
        fact("cgroup", Path::new("/sys/fs/cgroup/memory/escaped").exists().to_string());
        let now = jiff::Timestamp::now().as_second();
        fact("clock", (now > 1_600_000_000).to_string());
        let kernel_log =
            Command::new("dmesg").output().map(|output| output_text(&output)).unwrap_or_default();
        fact("kernel log", kernel_log.contains("trainwreck ESCAPED").to_string());
        facts
    }

    /// Runs a target that tries the way, on a terminal, with an inherited descriptor. Returns what the terminal
    /// got, and the target's own output.
    fn run(&self, way: &str, runner: Runner) -> (Option<i32>, String, String) {
        let number = self.port.local_addr().unwrap().port().to_string();
        let [inherited, script, output, report] = ["inherited", "ways_out.py", "project/output", "out"]
            .map(|name| self.path(name).display().to_string());
        let target = format!("exec python3 {script} {way} {number} > {output} 2>&1");
        let program = match runner {
            Runner::ThisUser => TRAINWRECK.to_owned(),
            Runner::Nobody => format!(
                "setpriv --reuid=65534 --regid=65534 --clear-groups {}",
                program_of_nobody().display()
            ),
        };
        let shell = format!(
            "exec 9<>{inherited} 8<.; exec {program} explore --watch runs --writable \"$OUTPUT\" --jobs 1 --out \
             {report} --timeout 20s --max-states 1 --check true -- sh -c '{}'",
            target.replace("project/output", "output/text")
        );
        std::fs::create_dir_all(self.path("output")).unwrap();
        std::fs::set_permissions(self.path("output"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", TERMINAL, "sh", "-c", &shell]).current_dir(self.path("project"));
        command.env("TMPDIR", self.path("tmp")).env("HOME", self.path("project")).env_remove("CARGO");
        command.env("OUTSIDE", self.path("outside")).env("REPORT", &report);
        command.env("OUTPUT", self.path("output"));
        let ended = command.output().unwrap();
        let mut tried = String::new();
        let opened = std::fs::File::open(self.path("output/text"));
        opened.unwrap().read_to_string(&mut tried).unwrap();
        (ended.status.code(), output_text(&ended), tried)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a program on a terminal of its own, and prints what the terminal got.
const TERMINAL: &str = "
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
while True:
    try:
        text = os.read(terminal, 65536)
    except OSError:
        break
    if not text:
        break
    os.write(1, text)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

/// Looks for the key in this user's own keyrings.
const FIND_KEY: &str = "
import ctypes
call = ctypes.CDLL(None).syscall
print([call(250, 10, ring, b'user', b'trainwreck-escaped', 0) for ring in (-3, -4, -5)])
";

/// A copy of the command that `nobody` can reach.
fn program_of_nobody() -> PathBuf {
    static COPY: OnceLock<OrdinaryUser> = OnceLock::new();
    COPY.get_or_init(|| OrdinaryUser::with_programs(&[TRAINWRECK.as_ref()])).path("trainwreck")
}

fn check(way: &str, runner: Runner) {
    let mut outside = Outside::new();
    let before = outside.facts();
    let (code, terminal, tried) = outside.run(way, runner);
    let after = outside.facts();
    assert!(tried.contains("tried ") || way == "signals", "{way}: {code:?}\n{terminal}\n{tried}");
    let changed: Vec<_> = after.iter().filter(|(name, value)| before.get(*name) != Some(value)).collect();
    assert!(changed.is_empty(), "{way} as {runner:?}: {changed:#?}\n{tried}");
    assert!(!terminal.contains("ESCAPED"), "{way} as {runner:?}: {terminal}");
    // What is open or visible, although nothing was done with it.
    let is_open = |line: &&str| {
        ["DEVICE IS OPEN", "SETTING IS OPEN", "HARNESS IS VISIBLE"].iter().any(|text| line.contains(text))
    };
    let open: Vec<&str> = tried.lines().filter(is_open).collect();
    assert!(open.is_empty(), "{way} as {runner:?}: {open:#?}");
    assert!(matches!(code, Some(0 | 1 | 3)), "{way} as {runner:?}: {code:?}\n{terminal}\n{tried}");
}
