//! Copies a target's files at moments when it acknowledges a save, so that it can be asked later whether it resumes
//! from them. The target waits in the write call of the line meanwhile, and every call that changes a file waits for
//! the same supervisor. Runs nothing and judges nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use scenarios::{AnnouncedSave, Event};

use crate::announcements::{Announced, Announcement, AnnouncementPatterns, plain_line};
use crate::explore::copy_tree;
use crate::file_error::{FileError, chain};
use crate::gate::FileId;
use crate::run::printed_lines::{FirstPrints, PrintedLine};
use crate::sandbox::remove_tree;

/// At most this many are taken after the effects of the faults of one trial.
const MAX_AFTER_EFFECTS: usize = 4;
/// How often a copy is tried. A call that was let go before the line came may remove a file while it is copied.
const MAX_COPIES: u32 = 5;

/// The snapshots of a run. The injector takes them, and who started the run uses them.
pub(super) type SharedSnapshots = Arc<Mutex<SaveSnapshots>>;

/// Which saves are wanted.
enum WantedSaves {
    /// The first one, and one about in the middle: the 2nd, 4th, 8th .. replaces the one before it.
    FirstAndMiddle,
    /// The first one after each effect of a fault.
    AfterEffects { is_due: bool },
}

/// Takes and holds the snapshots of one run. Their files are removed on drop.
pub(super) struct SaveSnapshots {
    patterns: AnnouncementPatterns,
    prints: FirstPrints,
    /// The target's root, as the harness reaches it.
    root: PathBuf,
    /// Where the copies are stored. It need not exist.
    dir: PathBuf,
    wanted: WantedSaves,
    /// How many saves were acknowledged.
    saves: u64,
    taken: Vec<SaveSnapshot>,
    /// How many copies were begun.
    copies: u32,
}

/// The files right after a save was acknowledged.
#[derive(Debug, Clone)]
pub(super) struct SaveSnapshot {
    pub(super) save: AnnouncedSave,
    /// Which save of the run it was, 1-based.
    pub(super) nth: u64,
    pub(super) files: PathBuf,
    /// Why they could not be copied, such as files that only the target may read. `files` is not complete then.
    pub(super) failure: Option<String>,
}

impl SaveSnapshots {
    /// Those of a baseline: its first save, and one about in the middle. `root`: as the harness reaches it.
    pub(super) fn of_baseline(patterns: AnnouncementPatterns, root: PathBuf, dir: PathBuf) -> SaveSnapshots {
        SaveSnapshots::new(patterns, root, dir, WantedSaves::FirstAndMiddle)
    }

    /// Those of a trial: the first save after each effect of a fault.
    pub(super) fn of_trial(patterns: AnnouncementPatterns, root: PathBuf, dir: PathBuf) -> SaveSnapshots {
        SaveSnapshots::new(patterns, root, dir, WantedSaves::AfterEffects { is_due: false })
    }

    fn new(
        patterns: AnnouncementPatterns,
        root: PathBuf,
        dir: PathBuf,
        wanted: WantedSaves,
    ) -> SaveSnapshots {
        SaveSnapshots {
            patterns,
            prints: FirstPrints::default(),
            root,
            dir,
            wanted,
            saves: 0,
            taken: Vec::new(),
            copies: 0,
        }
    }

    pub(super) fn into_shared(self) -> SharedSnapshots {
        Arc::new(Mutex::new(self))
    }

    /// Sets the outputs with which the target's main process is about to be started.
    pub(super) fn set_main_outputs(&mut self, outputs: &[FileId]) {
        self.prints.set_main_outputs(outputs);
    }

    /// A fault has had an effect.
    pub(super) fn on_effect(&mut self) {
        if let WantedSaves::AfterEffects { is_due } = &mut self.wanted {
            *is_due = true;
        }
    }

    /// Takes a snapshot if the line acknowledges a save that is wanted.
    pub(super) fn on_line(&mut self, line: &PrintedLine) {
        let Some(save) = self.acknowledged_in(&line.text) else { return };
        if !self.prints.is_first(line) {
            return;
        }
        self.saves += 1;
        if !self.is_wanted() {
            return;
        }
        let mut copied = self.copy();
        for _ in 1..MAX_COPIES {
            copied = copied.or_else(|_| self.copy());
        }
        let failure = copied.err().map(|error| chain(&error));
        self.taken.push(SaveSnapshot { save, nth: self.saves, files: self.copy_dir(), failure });
    }

    /// Copies the files to a new directory.
    fn copy(&mut self) -> Result<(), FileError> {
        self.copies += 1;
        copy_tree(&self.root, &self.copy_dir()).map(drop)
    }

    /// The directory of the last copy.
    fn copy_dir(&self) -> PathBuf {
        self.dir.join(self.copies.to_string())
    }

    /// What was taken. The files stay until this is dropped.
    pub(super) fn take(&mut self) -> Vec<SaveSnapshot> {
        std::mem::take(&mut self.taken)
    }

    fn acknowledged_in(&self, line: &str) -> Option<AnnouncedSave> {
        let saved = self.patterns.saved.as_ref()?;
        if !saved.is_match(&plain_line(line)) {
            return None;
        }
        self.patterns.parse(line).into_iter().find_map(save_in)
    }

    /// Whether the save that is acknowledged now is wanted.
    fn is_wanted(&mut self) -> bool {
        match &mut self.wanted {
            WantedSaves::FirstAndMiddle => {
                let is_wanted = self.saves.is_power_of_two();
                if is_wanted && let Some(replaced) = self.taken.get(1) {
                    // Its directory is removed with the others if it could not be removed here.
                    let _ = remove_tree(&replaced.files);
                    self.taken.truncate(1);
                }
                is_wanted
            }
            WantedSaves::AfterEffects { is_due } => {
                std::mem::take(is_due) && self.taken.len() < MAX_AFTER_EFFECTS
            }
        }
    }
}

fn save_in(Announcement { job, what }: Announcement) -> Option<AnnouncedSave> {
    match what {
        Announced::Saved { step } => Some(AnnouncedSave { job, step }),
        _ => None,
    }
}

/// The save that an event acknowledges, if it does.
pub(super) fn announced_save(event: &Event) -> Option<AnnouncedSave> {
    save_in(Announcement::of_event(event)?)
}

impl Drop for SaveSnapshots {
    fn drop(&mut self) {
        // The owner of the run's directory removes what could not be removed here.
        let _ = remove_tree(&self.dir);
    }
}
