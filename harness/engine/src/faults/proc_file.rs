//! Another text in a file of `/proc`: init mounts a file over it, in the sandbox's own `/proc`. inotify(7) shows that it
//! was read. Knows no trigger.

use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use scenarios::ProcFile;

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::file_error::file_error;
use crate::sandbox::{PlantedProcFile, Sandbox};

/// A file of `/proc` with another text.
pub(super) struct ChangedProcFile {
    path: PathBuf,
    text: String,
    planted: Option<PlantedProcFile>,
    /// Reports reads of this text, and of no other that is put there later.
    watch: Option<Inotify>,
    reads: u64,
    /// Why it could not be put there.
    refused: Option<&'static str>,
}

impl ChangedProcFile {
    pub(super) fn new(fault: &ProcFile) -> ChangedProcFile {
        ChangedProcFile {
            path: fault.path.clone(),
            text: fault.text.clone(),
            planted: None,
            watch: None,
            reads: 0,
            refused: None,
        }
    }

    fn count_reads(&mut self) {
        while let Some(Ok(events)) = self.watch.as_ref().map(Inotify::read_events) {
            let is_read = |mask: AddWatchFlags| mask.contains(AddWatchFlags::IN_ACCESS);
            self.reads += events.iter().filter(|event| is_read(event.mask)).count() as u64;
        }
    }
}

/// Why nothing can be put over this path. `None`: it is a regular file, and no link is on the way to it.
fn reason_against(sandbox: &Sandbox, path: &Path) -> Option<&'static str> {
    let kind = |path: &Path| Some(std::fs::symlink_metadata(sandbox.host_path(path)).ok()?.file_type());
    let mut dirs = path.ancestors().skip(1).take_while(|dir| *dir != Path::new("/"));
    match kind(path) {
        None => Some("this machine has no such file"),
        Some(kind) if !kind.is_file() => Some("it is no regular file"),
        Some(_) if !dirs.all(|dir| kind(dir).is_some_and(|kind| kind.is_dir())) => {
            Some("a link is on the way to it")
        }
        Some(_) => None,
    }
}

impl InjectableFault for ChangedProcFile {
    fn mechanism(&self) -> String {
        format!("a file mounted over `{}` in the sandbox's own /proc", self.path.display())
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        if self.planted.is_some() {
            return Ok(());
        }
        self.refused = reason_against(context.sandbox, &self.path);
        if self.refused.is_some() {
            return Ok(());
        }
        self.planted = Some(context.sandbox.plant_proc_file(&self.path, &self.text)?);
        let path = context.sandbox.host_path(&self.path);
        let failed = |error: nix::Error| file_error::<FaultError>("watch", &path)(error.into());
        let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(failed)?;
        watch.add_watch(&path, AddWatchFlags::IN_ACCESS).map_err(failed)?;
        self.watch = Some(watch);
        Ok(())
    }

    fn effective_evidence(&mut self, _: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        self.count_reads();
        (self.reads > 0).then(|| format!("the text in `{}` was read", self.path.display()))
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        let Some(planted) = self.planted.take() else { return Ok(None) };
        context.sandbox.remove_proc_file(planted)?;
        self.count_reads();
        Ok(Some(format!("`{}` is the kernel's again, or another fault's", self.path.display())))
    }

    fn missing_evidence(&self) -> String {
        let path = self.path.display();
        match self.refused {
            Some(reason) => format!("`{path}`: {reason}"),
            None => format!("no process has read the text in `{path}`"),
        }
    }
}
