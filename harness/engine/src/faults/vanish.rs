//! Files that are removed after the target has listed them and before it opens them.
//!
//! This is a race, so it is tried in many rounds. inotify(7) reports that the directory was listed (IN_ACCESS
//! on the directory itself). Then the files are removed, the last one first. The fault is effective for files
//! that were never opened before they were removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use scenarios::{DataKind, Vanish};

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::faults::plant;
use crate::file_error::file_error;
use crate::sandbox::OpenDirectory;

/// Rounds in one trial. If the race is not won by then, the fault is reported as not effective.
const MAX_ROUNDS: u64 = 200;

/// Files that are planted and removed again in rounds.
pub(super) struct VanishingFiles {
    place: String,
    /// Files in each round.
    files: u32,
    kind: DataKind,
    watch: Option<Inotify>,
    dir: Option<OpenDirectory>,
    round: u64,
    planted: Vec<PathBuf>,
    listed: bool,
    /// Names that were opened in this round.
    opened: BTreeSet<String>,
    vanished: u64,
    effective_rounds: u64,
}

impl VanishingFiles {
    pub(super) fn new(fault: &Vanish) -> VanishingFiles {
        VanishingFiles {
            place: fault.place.clone(),
            files: fault.files,
            kind: fault.kind.clone(),
            watch: None,
            dir: None,
            round: 0,
            planted: Vec::new(),
            listed: false,
            opened: BTreeSet::new(),
            vanished: 0,
            effective_rounds: 0,
        }
    }

    fn begin_round(&mut self) {
        self.round += 1;
        (self.listed, self.opened) = (false, BTreeSet::new());
        let Some(dir) = self.dir.as_ref().map(OpenDirectory::path) else { return };
        for n in 0..self.files {
            let name = format!("vanishing-{}-{n}.jsonl", self.round);
            let salt = self.round * u64::from(self.files) + u64::from(n);
            let destination = dir.join(&name);
            if plant::write_into_place(&destination, &self.kind, salt) {
                self.planted.push(destination);
            }
        }
    }

    fn on_inotify_event(&mut self, event: &InotifyEvent) {
        let is_about_dir = event.name.is_none() || event.mask.contains(AddWatchFlags::IN_ISDIR);
        if is_about_dir {
            self.listed |= event.mask.contains(AddWatchFlags::IN_ACCESS);
        } else if event.mask.contains(AddWatchFlags::IN_OPEN) {
            self.opened.extend(event.name.as_ref().map(|name| name.to_string_lossy().into_owned()));
        }
    }

    fn drain_events(&mut self) {
        while let Some(Ok(events)) = self.watch.as_ref().map(Inotify::read_events) {
            events.iter().for_each(|event| self.on_inotify_event(event));
        }
    }

    fn remove_all(&mut self) {
        let mut removed = Vec::new();
        for path in std::mem::take(&mut self.planted).into_iter().rev() {
            if std::fs::remove_file(&path).is_ok() {
                removed.push(path);
            }
        }
        self.drain_events();
        let unopened = removed.iter().filter(|path| !self.opened.contains(&name_of(path))).count() as u64;
        self.vanished += unopened;
        self.effective_rounds += u64::from(unopened > 0);
    }
}

impl InjectableFault for VanishingFiles {
    fn mechanism(&self) -> String {
        "unlink once inotify reports that the directory was listed".into()
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        self.dir = context.open_place(&self.place);
        let Some(dir) = self.dir.as_ref().map(OpenDirectory::path) else { return Ok(()) };
        let failed = |error: nix::Error| file_error::<FaultError>("watch", &dir)(error.into());
        let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        match watch.add_watch(&dir, AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_OPEN) {
            // The target has made the place unreadable.
            Err(Errno::EACCES) => return Ok(()),
            watched => watched.map_err(failed)?,
        };
        self.watch = Some(watch);
        self.begin_round();
        Ok(())
    }

    fn tick(&mut self, _context: &FaultContext<'_>) -> Result<(), FaultError> {
        if self.watch.is_none() {
            return Ok(());
        }
        self.drain_events();
        if self.listed && !self.planted.is_empty() {
            self.remove_all();
        } else if self.planted.is_empty() && self.round < MAX_ROUNDS {
            self.begin_round();
        }
        Ok(())
    }

    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        _reaction: TargetReaction,
    ) -> Option<String> {
        (self.vanished > 0).then(|| {
            format!(
                "{} files removed after the directory was listed and before they were opened, \
                 in {} of {} rounds",
                self.vanished, self.effective_rounds, self.round
            )
        })
    }

    fn revert(&mut self, _context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        self.watch = None;
        std::mem::take(&mut self.planted).iter().for_each(|path| drop(std::fs::remove_file(path)));
        Ok(Some(format!("no files are planted after round {}", self.round)))
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
