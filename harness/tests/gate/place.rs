//! A room with a watched folder in it, and the small program that is run there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use trainwreck::gate::{Interest, Overseer, Watched, attend, filter, mount_id};
use trainwreck::sandbox::{Bind, Ended, Launch, Room, RoomSpec};

/// The program of `targets/calls.c`.
pub(crate) fn compiled(flags: &[&str]) -> PathBuf {
    try_compiled(flags).unwrap()
}

pub(crate) fn try_compiled(flags: &[&str]) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/calls.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("calls{}", flags.concat()));
    if program.exists()
        && program.metadata().unwrap().modified().unwrap() > source.metadata().unwrap().modified().unwrap()
    {
        return Some(program);
    }
    let fresh = program.with_extension("new");
    let done = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&fresh)
        .arg(&source)
        .args(flags)
        .arg("-lpthread")
        .output()
        .ok()?;
    if !done.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&done.stderr));
        return None;
    }
    std::fs::rename(fresh, &program).unwrap();
    Some(program)
}

/// A room whose `/…/watched` is watched; everything is gone with it.
pub(crate) struct Place {
    pub(crate) room: Room,
    pub(crate) watched: PathBuf,
    pub(crate) dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (real, watched) = (dir.path().join("real"), dir.path().join("watched"));
        std::fs::create_dir(&real).unwrap();
        std::fs::create_dir(&watched).unwrap();
        let binds = vec![Bind { from: real, at: watched.clone() }];
        let spec = RoomSpec { dir: dir.path().join("room"), mounts: Vec::new(), binds, memory_cgroup: false };
        std::fs::create_dir(&spec.dir).unwrap();
        Place { room: Room::build(spec).unwrap(), watched, dir }
    }

    fn launch(&self, words: &[&str]) -> Launch {
        let path = ("PATH".into(), std::env::var_os("PATH").unwrap());
        Launch {
            argv: words.iter().map(Into::into).collect(),
            env: vec![path],
            cwd: Some(self.watched.clone()),
        }
    }

    /// Runs it to its end; what it said.
    pub(crate) fn run<O: Overseer + 'static>(
        &self,
        words: &[&str],
        interest: &Interest,
        overseer: &Arc<Mutex<O>>,
    ) -> (Ended, String) {
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let ((stdout, their_stdout), (_stderr, their_stderr)) = (pipe(), pipe());
        let watched = Watched::new([mount_id(&self.room.through(&self.watched)).unwrap()]);
        let mut attendance = None;
        let running = self
            .room
            .spawn_filtered(&self.launch(words), filter(interest), [their_stdout, their_stderr], |listener| {
                attendance = Some(attend(listener, watched, Arc::clone(overseer)));
            })
            .unwrap();
        let said = std::io::read_to_string(std::fs::File::from(stdout)).unwrap();
        let ended = running.wait_timeout(Duration::from_secs(60)).expect("it ends");
        self.room.strike().unwrap();
        attendance.unwrap().join();
        (ended, said)
    }

    pub(crate) fn file(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.room.through(&self.watched.join(name))).ok()
    }
}
