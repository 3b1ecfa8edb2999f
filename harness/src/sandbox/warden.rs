//! Pid 1 of a room: obeys the harness, reaps the dead, and takes everything along when it ends. One thread, no state
//! on disk. Runs in a process of its own; what it can't do it says, it never panics on purpose.

use std::collections::HashMap;
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid, getegid, geteuid};

use super::message::{Called, Filter, Launch, Orders, Reply, Request, receive, send};
use super::mounts::Mounts;
use super::warm::Warm;
use super::{Ended, call, processes, sys};

/// Never returns.
pub(super) fn main() -> ! {
    let socket = sys::own_stdin();
    let code = match outer(&socket) {
        Ok(code) => code,
        Err((doing, error)) => {
            // A harness that is gone needs no word.
            let _ = send(socket.as_fd(), &failed(doing, &error), &[]);
            1
        }
    };
    std::process::exit(code)
}

type Step<T> = Result<T, (&'static str, Error)>;

fn step<T, E: Into<Error>>(doing: &'static str, result: Result<T, E>) -> Step<T> {
    result.map_err(|error| (doing, error.into()))
}

fn failed(doing: &str, error: &Error) -> Reply {
    Reply::Failed { doing: doing.into(), detail: error.to_string() }
}

/// Makes the namespaces, and pid 1 in them.
fn outer(socket: &OwnedFd) -> Step<i32> {
    let orders: Option<(Orders, Vec<OwnedFd>)> = step("read its orders", receive(socket.as_fd()))?;
    let Some((orders, _)) = orders else { return Ok(0) };
    let (uid, gid) = (geteuid(), getegid());
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC;
    step("make namespaces", unshare(namespaces))?;
    step("deny setgroups", std::fs::write("/proc/self/setgroups", "deny"))?;
    step("map its user", std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")))?;
    step("map its group", std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")))?;
    step("become visible to the harness", prctl::set_dumpable(true))?;
    match step("fork", sys::fork())? {
        ForkResult::Child => {
            let code = match inner(socket, &orders) {
                Ok(()) => 0,
                Err((doing, error)) => {
                    let _ = send(socket.as_fd(), &failed(doing, &error), &[]);
                    1
                }
            };
            std::process::exit(code)
        }
        ForkResult::Parent { child } => {
            step("name the warden", send(socket.as_fd(), &Reply::Born { pid: child.as_raw() }, &[]))?;
            while let Err(Errno::EINTR) = sys::reap(true) {}
            Ok(0)
        }
    }
}

fn inner(socket: &OwnedFd, orders: &Orders) -> Step<()> {
    step("die with its parent", prctl::set_pdeathsig(Signal::SIGKILL))?;
    step("refuse core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    step("make mounts private", mount(None::<&Path>, "/", None::<&Path>, private, None::<&Path>))?;
    for order in &orders.mounts {
        step("make a mount point", std::fs::create_dir_all(&order.at))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        step(
            "mount a tmpfs",
            mount(Some("tmpfs"), &order.at, Some("tmpfs"), flags, Some(order.options.as_str())),
        )?;
    }
    for bind in &orders.binds {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        step("create what is shown elsewhere", std::fs::create_dir_all(&bind.from))?;
        step(
            "show a folder elsewhere",
            mount(Some(&bind.from), &bind.at, None::<&Path>, flags, None::<&Path>),
        )?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let fresh_proc = mount(Some("proc"), "/proc", Some("proc"), flags, None::<&Path>).is_ok();
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    step("block SIGCHLD", mask.thread_block())?;
    let children = step(
        "watch its children",
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK),
    )?;
    step("say that it is ready", send(socket.as_fd(), &Reply::Ready { fresh_proc }, &[]))?;
    Warden { socket, children, ids: HashMap::new(), mounts: Mounts::default(), held: Vec::new(), warm: None }
        .serve()
}

struct Warden<'a> {
    socket: &'a OwnedFd,
    children: SignalFd,
    /// Spawned processes, by pid inside.
    ids: HashMap<Pid, u64>,
    mounts: Mounts,
    /// Kept open for as long as the room lasts.
    held: Vec<OwnedFd>,
    warm: Option<Warm>,
}

impl Warden<'_> {
    /// Until the harness is gone.
    fn serve(mut self) -> Step<()> {
        loop {
            let mut ready = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => step("wait", polled)?,
            };
            let asked = ready[0].any().unwrap_or(false);
            while let Ok(Some(_)) = self.children.read_signal() {}
            self.bury(false)?;
            if asked {
                match step("read a request", receive(self.socket.as_fd()))? {
                    None => return Ok(()),
                    Some((request, files)) => self.obey(request, files)?,
                }
            }
        }
    }

    fn obey(&mut self, request: Request, files: Vec<OwnedFd>) -> Step<()> {
        let reply = match request {
            Request::Spawn { id, launch, cgroup_procs, filter } => {
                self.spawn(id, &launch, cgroup_procs, filter, files)
            }
            Request::Call { launch, timeout_ms, keep_bytes, warm } => {
                let limit = Duration::from_millis(timeout_ms);
                let called = match (&mut self.warm, warm) {
                    (Some(server), true) => server.run(&launch, limit, keep_bytes),
                    (None, true) => Err(Error::other("no fork server was started")),
                    (_, false) => call::run(&launch, limit, keep_bytes),
                };
                // Not one process of it is left when the answer goes out.
                let left_processes = if self.warm.is_some() { self.clear()? } else { self.strike()? };
                match called {
                    Ok(called) => Reply::Called(Called { left_processes, ..called }),
                    Err(error) => failed(&starting(&launch), &error),
                }
            }
            Request::Warm { launch } => match Warm::start(&launch) {
                Ok(warm) => {
                    self.warm = Some(warm);
                    Reply::Done { note: String::new() }
                }
                Err(error) => failed("start a fork server", &error),
            },
            Request::Hold => {
                self.held.extend(files);
                Reply::Done { note: String::new() }
            }
            Request::Strike => {
                self.strike()?;
                Reply::Done { note: String::new() }
            }
            Request::Signal { pid_inside, signal } => match send_signal(pid_inside, signal) {
                Ok(()) => Reply::Done { note: String::new() },
                Err(error) => failed("send a signal", &error.into()),
            },
            Request::Mount { at, change } => match self.mounts.change(&at, change) {
                Ok(note) => Reply::Done { note },
                Err(error) => failed(&format!("change the mount at `{}`", at.display()), &error.into()),
            },
        };
        step("answer", send(self.socket.as_fd(), &reply, &[]))
    }

    fn spawn(
        &mut self,
        id: u64,
        launch: &Launch,
        cgroup_procs: Option<std::path::PathBuf>,
        filter: Option<Filter>,
        files: Vec<OwnedFd>,
    ) -> Reply {
        let mut files = files.into_iter();
        let (Some(stdout), Some(stderr)) = (files.next(), files.next()) else {
            return Reply::Failed { doing: starting(launch), detail: "no outputs".into() };
        };
        let Some(mut command) = command(launch) else {
            return Reply::Failed { doing: starting(launch), detail: "no program".into() };
        };
        command.stdout(stdout).stderr(stderr);
        sys::detached(&mut command, cgroup_procs, filter.zip(files.next()));
        match command.spawn() {
            Ok(child) => {
                let pid_inside = i32::try_from(child.id()).unwrap_or(0);
                self.ids.insert(Pid::from_raw(pid_inside), id);
                Reply::Spawned { pid_inside }
            }
            Err(error) => failed(&starting(launch), &error),
        }
    }

    /// SIGKILL to all but the warden itself, and not one is left when it returns. Whether there was one.
    fn strike(&mut self) -> Step<bool> {
        let mut any = false;
        loop {
            match kill(Pid::from_raw(-1), Signal::SIGKILL) {
                Ok(()) => {
                    any = true;
                    self.bury(true)?;
                }
                Err(Errno::ESRCH) => {
                    self.bury(true)?;
                    return Ok(any);
                }
                Err(error) => return step("kill everything", Err(error)),
            }
        }
    }

    /// As `strike`, but lets the fork server live.
    fn clear(&mut self) -> Step<bool> {
        let spared = self.warm.as_ref().map(Warm::pid);
        let mut any = false;
        loop {
            self.bury(false)?;
            let left: Vec<Pid> = step("list processes", processes::alive())?
                .into_iter()
                .filter(|pid| pid.as_raw() != 1 && Some(*pid) != spared)
                .collect();
            if left.is_empty() {
                return Ok(any);
            }
            any = true;
            for pid in left {
                match kill(pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return step("kill what is left", Err(error)),
                }
            }
        }
    }

    /// Reaps, and tells of those that were spawned. `all`: until no child is left.
    fn bury(&mut self, all: bool) -> Step<()> {
        loop {
            match sys::reap(all) {
                Ok(Some((pid, ended, peak_bytes))) => self.tell(pid, ended, peak_bytes)?,
                Ok(None) | Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return step("reap", Err(error)),
            }
        }
    }

    fn tell(&mut self, pid: Pid, ended: Ended, peak_bytes: u64) -> Step<()> {
        let Some(id) = self.ids.remove(&pid) else { return Ok(()) };
        step("tell of an end", send(self.socket.as_fd(), &Reply::Ended { id, ended, peak_bytes }, &[]))
    }
}

fn starting(launch: &Launch) -> String {
    format!("start `{}`", launch.argv.first().map(|word| word.to_string_lossy()).unwrap_or_default())
}

/// With an empty standard input and no environment but the one that is given.
pub(super) fn command(launch: &Launch) -> Option<Command> {
    let mut command = Command::new(launch.argv.first()?);
    command.args(&launch.argv[1..]).env_clear().envs(launch.env.iter().cloned()).stdin(Stdio::null());
    if let Some(cwd) = &launch.cwd {
        command.current_dir(cwd);
    }
    Some(command)
}

fn send_signal(pid_inside: i32, signal: i32) -> Result<(), Errno> {
    // Never a group, never everybody.
    if pid_inside <= 1 {
        return Err(Errno::EINVAL);
    }
    kill(Pid::from_raw(pid_inside), Signal::try_from(signal)?)
}
