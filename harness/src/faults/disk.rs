//! Disk full and inodes gone: the place's tmpfs is made just as large as what it holds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::faults::{Armed, FaultError, Scene, Since};
use crate::plan::PAGE;
use crate::sandbox::{MountChange, SpaceFacts};

/// A tmpfs in use is looked at and remounted again so often.
const TRIES: u32 = 500;
const AGAIN: Duration = Duration::from_micros(500);

/// What the file system runs out of.
#[derive(Clone, Copy)]
enum Lack {
    Bytes { leave: u64 },
    Inodes,
}

/// A place without room.
pub(super) struct Starved {
    place: String,
    lack: Lack,
    before: Option<SpaceFacts>,
    shown: Option<String>,
}

impl Starved {
    pub(super) fn of_bytes(place: &str, leave: u64) -> Starved {
        Starved { place: place.into(), lack: Lack::Bytes { leave }, before: None, shown: None }
    }

    pub(super) fn of_inodes(place: &str) -> Starved {
        Starved { place: place.into(), lack: Lack::Inodes, before: None, shown: None }
    }

    fn at(&self, scene: &Scene<'_>) -> PathBuf {
        scene.trainer.place_below_root(&self.place)
    }

    fn has_room(&self, now: &SpaceFacts) -> bool {
        match self.lack {
            Lack::Bytes { leave } => now.free_bytes > leave,
            Lack::Inodes => now.free_inodes > 0,
        }
    }

    /// What is in use may grow between the look and the remount, which is refused then: look again.
    fn shrink(&self, scene: &Scene<'_>, at: &Path) -> Result<SpaceFacts, FaultError> {
        let mut tries = 0;
        loop {
            let now = scene.room.space(at)?;
            match scene.room.remount(at, self.change(&now)) {
                Err(_) if tries < TRIES => tries += 1,
                changed => return Ok(changed.map(|_| now)?),
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn change(&self, now: &SpaceFacts) -> MountChange {
        match self.lack {
            Lack::Bytes { leave } => {
                let used = now.total_bytes - now.free_bytes;
                // A size of 0 means unlimited to tmpfs.
                MountChange::Resize { size_bytes: (used.next_multiple_of(PAGE) + leave).max(PAGE) }
            }
            Lack::Inodes => MountChange::Inodes { count: (now.total_inodes - now.free_inodes).max(1) },
        }
    }
}

impl Armed for Starved {
    fn mechanism(&self) -> String {
        match self.lack {
            Lack::Bytes { .. } => "tmpfs remounted with a smaller `size`".into(),
            Lack::Inodes => "tmpfs remounted with a smaller `nr_inodes`".into(),
        }
    }

    fn strike(&mut self, scene: &Scene<'_>) -> Result<(), FaultError> {
        let at = self.at(scene);
        let now = self.shrink(scene, &at)?;
        let after = scene.room.space(&at)?;
        self.before.get_or_insert(now);
        let took = !self.has_room(&after);
        let shown = format!(
            "statvfs of `{}`: {} bytes and {} inodes free",
            self.place, after.free_bytes, after.free_inodes
        );
        self.shown = took.then_some(shown);
        Ok(())
    }

    /// What the target removes gives it room again: as long as the fault lasts, that is taken away too.
    fn press(&mut self, scene: &Scene<'_>) -> Result<(), FaultError> {
        if self.before.is_none() {
            return Ok(());
        }
        let at = self.at(scene);
        let now = scene.room.space(&at)?;
        if self.has_room(&now) { self.shrink(scene, &at).map(drop) } else { Ok(()) }
    }

    fn landed(&mut self, _scene: &Scene<'_>, since: Since) -> Option<String> {
        let shown = self.shown.as_ref().filter(|_| since.met_in_place || since.ended_badly)?;
        Some(format!("{shown}, and the target went to write there"))
    }

    fn lift(&mut self, scene: &Scene<'_>) -> Result<Option<String>, FaultError> {
        let Some(before) = self.before.take() else { return Ok(None) };
        let change = match self.lack {
            Lack::Bytes { .. } => MountChange::Resize { size_bytes: before.total_bytes },
            Lack::Inodes => MountChange::Inodes { count: before.total_inodes },
        };
        scene.room.remount(&self.at(scene), change)?;
        Ok(Some("tmpfs has its former size again".into()))
    }

    fn place(&self) -> Option<&str> {
        Some(&self.place)
    }
}
