//! Files that are put into a place of the target: by a rename, so that the target never sees a partial file, or by a
//! slow writer. Knows no trigger.

use std::fs::{File, OpenOptions};
use std::io::{Error, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use scenarios::{DataKind, PlantedContent, PlantedFile, SpecialFile, WriteStyle};

use crate::faults::hostile_data;
use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::sandbox::OpenDirectory;

/// Files that are planted in a place.
pub(super) struct PlantedFiles {
    place: String,
    files: Vec<PlantedFile>,
    /// Where they were planted.
    dir: Option<OpenDirectory>,
    planted: Vec<PathBuf>,
    writers: Vec<SlowWriter>,
    /// Why files are missing.
    failures: Vec<String>,
}

/// A file that is written piece by piece.
struct SlowWriter {
    path: PathBuf,
    content: Vec<u8>,
    written: usize,
    began: Instant,
    time: Duration,
    /// `None`: it is opened for each piece.
    file: Option<File>,
}

impl SlowWriter {
    fn begin(path: PathBuf, content: Vec<u8>, time: Duration, stays_open: bool) -> Result<SlowWriter, Error> {
        let file = File::create_new(&path)?;
        let file = stays_open.then_some(file);
        Ok(SlowWriter { path, content, written: 0, began: Instant::now(), time, file })
    }

    fn is_done(&self) -> bool {
        self.written == self.content.len()
    }

    /// Writes what is due now. A file that the target has taken away meanwhile is not made again.
    fn write_due(&mut self) -> Result<(), Error> {
        let part = self.began.elapsed().as_secs_f64() / self.time.as_secs_f64().max(f64::EPSILON);
        let due = ((self.content.len() as f64 * part.min(1.0)) as usize).min(self.content.len());
        if due <= self.written {
            return Ok(());
        }
        let piece = &self.content[self.written..due];
        match &mut self.file {
            Some(file) => file.write_all(piece)?,
            None => {
                let mut options = OpenOptions::new();
                options.append(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK);
                options.open(&self.path)?.write_all(piece)?;
            }
        }
        self.written = due;
        Ok(())
    }
}

impl PlantedFiles {
    pub(super) fn new(place: &str, files: &[PlantedFile]) -> PlantedFiles {
        PlantedFiles {
            place: place.into(),
            files: files.to_vec(),
            dir: None,
            planted: Vec::new(),
            writers: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Puts one file there.
    fn plant(
        &mut self,
        context: &FaultContext<'_>,
        dir: &Path,
        file: &PlantedFile,
        salt: u64,
    ) -> Result<(), Error> {
        let destination = dir.join(&file.name);
        match &file.content {
            PlantedContent::Data { kind, encoding: None, style: WriteStyle::Renamed } => {
                rename_into_place(&destination, |temporary| hostile_data::write(temporary, kind, salt))?;
            }
            PlantedContent::Data { kind, encoding, style } => {
                let content = hostile_data::encoded(kind, *encoding, salt)?;
                match *style {
                    WriteStyle::Renamed => {
                        rename_into_place(&destination, |temporary| {
                            File::create_new(temporary)?.write_all(&content)
                        })?;
                    }
                    WriteStyle::Slowly(time) => {
                        self.writers.push(SlowWriter::begin(destination.clone(), content, time, true)?);
                    }
                    WriteStyle::Growing(time) => {
                        self.writers.push(SlowWriter::begin(destination.clone(), content, time, false)?);
                    }
                }
            }
            PlantedContent::Special(special) => make_special(context, special, &destination)?,
        }
        self.planted.push(destination);
        Ok(())
    }
}

impl InjectableFault for PlantedFiles {
    fn mechanism(&self) -> String {
        let is_renamed = |file: &PlantedFile| {
            matches!(&file.content, PlantedContent::Data { style: WriteStyle::Renamed, .. })
        };
        let how = if self.files.iter().all(is_renamed) { "renamed into" } else { "put into" };
        format!("{} files {how} `{}`", self.files.len(), self.place)
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        self.dir = context.open_place(&self.place);
        let Some(dir) = self.dir.as_ref().map(OpenDirectory::path) else { return Ok(()) };
        for (salt, file) in (0..).zip(self.files.clone()) {
            if let Err(error) = self.plant(context, &dir, &file, salt) {
                self.failures.push(format!("`{}`: {error}", file.name.escape_debug()));
            }
        }
        Ok(())
    }

    fn tick(&mut self, _context: &FaultContext<'_>) -> Result<(), FaultError> {
        let PlantedFiles { writers, failures, .. } = self;
        writers.retain_mut(|writer| match writer.write_due() {
            Ok(()) => !writer.is_done(),
            // The target has taken the file away.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => {
                failures.push(format!("`{}`: {error}", writer.path.display()));
                false
            }
        });
        Ok(())
    }

    /// Effective when all files could be put into the place, and the target has taken all of them, or has failed while
    /// some are there.
    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        reaction: TargetReaction,
    ) -> Option<String> {
        if self.planted.is_empty() || !self.failures.is_empty() {
            return None;
        }
        let count = self.planted.len();
        let remaining = self.planted.iter().filter(|path| path.symlink_metadata().is_ok()).count();
        match (remaining, reaction.ended_abnormally) {
            (0, _) => Some(format!("the target took all {count} files from `{}`", self.place)),
            (remaining, true) => {
                Some(format!("the target ended with {remaining} of {count} files still in `{}`", self.place))
            }
            _ => None,
        }
    }

    fn missing_evidence(&self) -> String {
        match self.failures.first() {
            Some(first) => {
                format!("{} files could not be put into `{}`: {first}", self.failures.len(), self.place)
            }
            None => format!("the target did not take all files from `{}`", self.place),
        }
    }
}

/// Makes something that is no regular file.
fn make_special(context: &FaultContext<'_>, special: &SpecialFile, destination: &Path) -> Result<(), Error> {
    match special {
        SpecialFile::Pipe => Ok(nix::unistd::mkfifo(destination, Mode::from_bits_truncate(0o666))?),
        SpecialFile::Socket => std::os::unix::net::UnixListener::bind(destination).map(drop),
        SpecialFile::Directory => std::fs::create_dir(destination),
        SpecialFile::LinkTo(path) => std::os::unix::fs::symlink(path, destination),
        SpecialFile::HardLinkTo(path) => {
            let source = Path::new(path);
            let names: Vec<Component<'_>> = source.components().collect();
            let Some((Component::Normal(name), above)) = names.split_last() else {
                return Err(std::io::ErrorKind::InvalidInput.into());
            };
            let root = context.sandbox.host_path_in_root(Path::new(""));
            let dir = OpenDirectory::beneath(&root, &above.iter().collect::<PathBuf>())?;
            std::fs::hard_link(dir.path().join(name), destination)
        }
    }
}

/// Writes a file beside its destination, under a name that no target reads as data, and renames it. Returns
/// whether that was possible: the target may have removed the place, or have put something else there.
pub(super) fn write_into_place(destination: &Path, kind: &DataKind, salt: u64) -> bool {
    rename_into_place(destination, |temporary| hostile_data::write(temporary, kind, salt)).is_ok()
}

fn rename_into_place(
    destination: &Path,
    write: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let temporary = destination.with_file_name(".trainwreck.part");
    // A link of this name would be followed; a file of this name is not written to.
    let _ = std::fs::remove_file(&temporary);
    let moved = write(&temporary).and_then(|()| std::fs::rename(&temporary, destination));
    if moved.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    moved
}
