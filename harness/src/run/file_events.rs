//! Counts the file events below a folder, save by save, and strikes at the one that is aimed at.
//!
//! Asynchronous: the kernel tells of an event after it happened, so the strike comes some tens of microseconds after
//! it. Where exactly it falls is for the operating system to decide, and the evidence says what was seen.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use crate::run::RunError;

/// Strikes; called once, with what was seen.
pub(super) type OnHit = Box<dyn Fn(String) + Send>;

/// Which event of which save (both 1-based), and what to do then.
pub(super) struct Aimed {
    pub(super) save: u64,
    pub(super) event: u64,
    pub(super) on_hit: OnHit,
}

#[derive(Default)]
struct Tally {
    ended: Vec<u64>,
    current: u64,
    aimed: Option<Aimed>,
    last: String,
}

/// Watches until dropped.
pub(super) struct FileEvents {
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Watcher {
    inotify: Inotify,
    folders: HashMap<WatchDescriptor, PathBuf>,
    top: PathBuf,
}

impl FileEvents {
    pub(super) fn watch(top: PathBuf, aimed: Option<Aimed>) -> Result<FileEvents, RunError> {
        let failed = |error| RunError::Watch { path: top.clone(), error };
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        let mut watcher = Watcher { inotify, folders: HashMap::new(), top: top.clone() };
        watcher.add(&top, &mut Vec::new()).map_err(failed)?;
        let tally = Arc::new(Mutex::new(Tally { aimed, ..Tally::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (its_tally, its_stop) = (Arc::clone(&tally), Arc::clone(&stop));
        let thread = std::thread::spawn(move || watcher.run(&its_tally, &its_stop));
        Ok(FileEvents { tally, stop, thread: Some(thread) })
    }

    /// A save has ended. If the aimed event did not come in it, the strike comes now, and the evidence says so.
    pub(super) fn save_ended(&self) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = std::mem::take(&mut tally.current);
        tally.ended.push(seen);
        let due = tally.aimed.as_ref().is_some_and(|aimed| aimed.save <= tally.ended.len() as u64);
        if let Some(aimed) = tally.aimed.take_if(|_| due) {
            (aimed.on_hit)(format!(
                "at the end of save {}, which had only {seen} file events this time",
                aimed.save
            ));
        }
    }

    /// File events of each save that has ended.
    pub(super) fn counts(&self) -> Vec<u64> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).ended.clone()
    }
}

impl Drop for FileEvents {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic in the watcher has nothing left to undo.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Tally {
    fn count(&mut self, what: String) {
        self.current += 1;
        self.last = what;
        let (save, event) = (self.ended.len() as u64 + 1, self.current);
        if let Some(aimed) = self.aimed.take_if(|aimed| aimed.save == save && aimed.event == event) {
            (aimed.on_hit)(format!("just after file event {event} of save {save}: {}", self.last));
        }
    }
}

impl Watcher {
    fn run(mut self, tally: &Mutex<Tally>, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut ready = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            // A time-out only looks whether to stop; an error shows again in the read below.
            let _ = poll(&mut ready, PollTimeout::from(20u8));
            for event in self.inotify.read_events().unwrap_or_default() {
                self.hear(&event, tally);
            }
        }
    }

    fn hear(&mut self, event: &InotifyEvent, tally: &Mutex<Tally>) {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.folders.remove(&event.wd);
            return;
        }
        let (Some(folder), Some(name)) = (self.folders.get(&event.wd), &event.name) else { return };
        let path = folder.join(name);
        let mut seen = vec![format!("{} {}", kind_of(event.mask), self.short(&path))];
        if event.mask.contains(AddWatchFlags::IN_ISDIR)
            && event.mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
        {
            // A folder that is already gone again has nothing to watch.
            let _ = self.add(&path, &mut seen);
        }
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        seen.into_iter().for_each(|what| tally.count(what));
    }

    /// Watches a folder and all below it. What a new folder already holds is told as created.
    fn add(&mut self, folder: &Path, seen: &mut Vec<String>) -> Result<(), nix::Error> {
        let wanted = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE;
        let watch = self.inotify.add_watch(folder, wanted | AddWatchFlags::IN_ONLYDIR)?;
        self.folders.insert(watch, folder.to_path_buf());
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            seen.push(format!("create {}", self.short(&entry.path())));
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add(&entry.path(), seen)?;
            }
        }
        Ok(())
    }

    fn short(&self, path: &Path) -> String {
        path.strip_prefix(&self.top).unwrap_or(path).display().to_string()
    }
}

fn kind_of(mask: AddWatchFlags) -> &'static str {
    let kinds = [
        (AddWatchFlags::IN_CREATE, "create"),
        (AddWatchFlags::IN_MODIFY, "modify"),
        (AddWatchFlags::IN_CLOSE_WRITE, "close"),
        (AddWatchFlags::IN_MOVED_FROM, "rename from"),
        (AddWatchFlags::IN_MOVED_TO, "rename to"),
        (AddWatchFlags::IN_DELETE, "remove"),
    ];
    kinds.iter().find(|(flag, _)| mask.contains(*flag)).map_or("touch", |(_, kind)| kind)
}
