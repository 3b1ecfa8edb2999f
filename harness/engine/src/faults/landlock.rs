//! A policy that denies calls below the root although the modes of the files allow them: the target is started under
//! rules of Landlock. Knows no trigger.

use nix::errno::Errno;
use scenarios::{CallKind, DeniedRight, EffectSpec, Landlock};

use crate::faults::injectable_fault::{
    FaultContext, FaultError, InjectableFault, RefusedCalls, TargetReaction,
};
use crate::landlock::FileRights;
use crate::sandbox::Confinement;

/// A policy for the programs that are started while it is in force.
pub(super) struct DeniedAccess {
    planned: Landlock,
    is_injected: bool,
    /// Pid of the target's main process, which was started under it.
    started: Option<i32>,
}

impl DeniedAccess {
    pub(super) fn new(planned: &Landlock) -> DeniedAccess {
        DeniedAccess { planned: planned.clone(), is_injected: false, started: None }
    }

    fn denies(&self, right: DeniedRight) -> bool {
        self.planned.denied.contains(&right)
    }
}

/// The right as Landlock names it.
fn file_right(right: DeniedRight) -> FileRights {
    match right {
        DeniedRight::ReadFile => FileRights::READ_FILE,
        DeniedRight::WriteFile => FileRights::WRITE_FILE,
        DeniedRight::Truncate => FileRights::TRUNCATE,
        DeniedRight::ReadDir => FileRights::READ_DIR,
        DeniedRight::MakeDir => FileRights::MAKE_DIR,
        DeniedRight::MakeFile => FileRights::MAKE_FILE,
        DeniedRight::MakeLink => FileRights::MAKE_LINK,
        DeniedRight::MakePipe => FileRights::MAKE_PIPE,
        DeniedRight::MakeSocket => FileRights::MAKE_SOCKET,
        DeniedRight::RemoveFile => FileRights::REMOVE_FILE,
        DeniedRight::RemoveDir => FileRights::REMOVE_DIR,
        DeniedRight::RenameAcross => FileRights::REFER,
    }
}

impl InjectableFault for DeniedAccess {
    fn mechanism(&self) -> String {
        format!("the target is started under rules of Landlock: {}", self.planned.describe())
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        let denied =
            self.planned.denied.iter().copied().map(file_right).fold(FileRights::default(), |a, b| a | b);
        let below = context.trainer.root.into();
        context.sandbox.confine_starts(Some(Confinement { denied, below }));
        self.is_injected = true;
        Ok(())
    }

    /// The gate sees the calls that fail.
    fn effective_evidence(&mut self, context: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        if self.is_injected {
            self.started = self.started.or(context.main_pid);
        }
        None
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        if !std::mem::take(&mut self.is_injected) {
            return Ok(None);
        }
        context.sandbox.confine_starts(None);
        Ok(Some("later starts are under no policy".into()))
    }

    fn refused_calls(&self) -> Option<RefusedCalls<'_>> {
        let errnos: &[Errno] = match (self.denies(DeniedRight::RenameAcross), self.planned.denied.len()) {
            (true, 1) => &[Errno::EXDEV],
            (true, _) => &[Errno::EACCES, Errno::EXDEV],
            (false, _) => &[Errno::EACCES],
        };
        let reads = self.denies(DeniedRight::ReadFile) || self.denies(DeniedRight::ReadDir);
        let extra_kinds: &[CallKind] = if reads { &[CallKind::OpenToRead] } else { &[] };
        Some(RefusedCalls { place: None, errnos, extra_kinds, although_modes_allow: true })
    }

    fn missing_evidence(&self) -> String {
        match self.started {
            None => "the target was not started under the policy".into(),
            Some(pid) => format!(
                "process {pid} was started under the policy, and no call below the root failed because of it"
            ),
        }
    }
}
