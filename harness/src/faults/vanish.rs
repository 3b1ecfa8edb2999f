//! Files that are gone between the moment at which the target lists them and the moment at which it opens them.
//!
//! A race, pressed again and again: inotify tells that the folder has been listed (IN_ACCESS on the folder itself),
//! then the files are removed, the last one first. Landed are those that were never opened before they went.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use scenarios::DataKind;

use crate::faults::{FaultContext, FaultError, InjectableFault, TargetReaction, hostile_data, plant};

/// Rounds in one trial; a race that has not landed by then is reported as not landed.
const MAX_ROUNDS: u64 = 200;

pub(super) struct VanishingFiles {
    place: String,
    files: u32,
    kind: DataKind,
    watch: Option<Inotify>,
    round: u64,
    planted: Vec<PathBuf>,
    listed: bool,
    opened: BTreeSet<String>,
    vanished: u64,
    effective_rounds: u64,
}

impl VanishingFiles {
    pub(super) fn new(place: &str, files: u32, kind: &DataKind) -> VanishingFiles {
        VanishingFiles {
            place: place.into(),
            files,
            kind: kind.clone(),
            watch: None,
            round: 0,
            planted: Vec::new(),
            listed: false,
            opened: BTreeSet::new(),
            vanished: 0,
            effective_rounds: 0,
        }
    }

    fn begin_round(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        self.round += 1;
        (self.listed, self.opened) = (false, BTreeSet::new());
        let folder = scene.place_path(&self.place);
        for n in 0..self.files {
            let name = format!("vanishing-{}-{n}.jsonl", self.round);
            let made = scene.staging_dir.join(&name);
            let salt = self.round * u64::from(self.files) + u64::from(n);
            hostile_data::write(&made, &self.kind, salt).map_err(FaultError::file("write", &made))?;
            let planted = folder.join(&name);
            plant::move_into_place(&made, &planted)?;
            self.planted.push(planted);
        }
        Ok(())
    }

    fn on_inotify_event(&mut self, event: &InotifyEvent) {
        let about_folder = event.name.is_none() || event.mask.contains(AddWatchFlags::IN_ISDIR);
        if about_folder {
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
        "unlink once inotify tells that the folder was listed".into()
    }

    fn inject(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        let folder = scene.place_path(&self.place);
        let failed = |error: nix::Error| FaultError::File {
            doing: "watch",
            path: folder.clone(),
            error: error.into(),
        };
        let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        watch.add_watch(&folder, AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_OPEN).map_err(failed)?;
        self.watch = Some(watch);
        self.begin_round(scene)
    }

    fn tick(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        if self.watch.is_none() {
            return Ok(());
        }
        self.drain_events();
        if self.listed && !self.planted.is_empty() {
            self.remove_all();
        } else if self.planted.is_empty() && self.round < MAX_ROUNDS {
            self.begin_round(scene)?;
        }
        Ok(())
    }

    fn effective_evidence(&mut self, _scene: &FaultContext<'_>, _since: TargetReaction) -> Option<String> {
        (self.vanished > 0).then(|| {
            format!("{} files removed after the folder was listed and before they were opened, in {} of {} rounds", self.vanished, self.effective_rounds, self.round)
        })
    }

    fn revert(&mut self, _scene: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        self.watch = None;
        std::mem::take(&mut self.planted).iter().for_each(|path| drop(std::fs::remove_file(path)));
        Ok(Some(format!("no more files after round {}", self.round)))
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
