//! Looks at the inbox: lists names, waits until the writer of each file is done, and lets it be copied into
//! the queue. Each look is short, so that supervision goes on. What fails concerns one file, or pauses
//! intake; it never ends the daemon. Another process may remove or replace a file at any time.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::base_digest::BaseDigest;
use super::daemon_config::DaemonConfig;
use super::drain_state::{FilesLeft, InboxState, failing, list_of_names};
use super::error::{AcceptError, DaemonError};
use super::hidden_files::{HiddenFiles, TAKEN_PREFIX};
use super::ignored_names::{IgnoredNames, ignored_names};
use super::inbox_file::{FileIdentity, Taken, has_content, put_back, take_aside};
use super::incoming_copy::{CopyProgress, IncomingCopy};
use super::job_queue::JobQueue;
use super::jobs::{self, Known};
use super::pending_file::{PendingFile, SettleState};
use super::put_aside::PutAside;
use super::rejection::{Rejection, reject};
use super::trouble::Trouble;
use crate::denial::{Access, explained};
use crate::durable::{self, RequiredSpace, SyncPolicy};
use crate::exit::Exit;
use crate::file_error::chain;
use crate::intake::DataError;
use crate::model::BaseCheck;
use crate::names::{is_ignored, shown_name};
use crate::settings::Guards;
use crate::store::RootLayout;

/// Maximum time between two listings, with or without a notification from the kernel.
const LIST_INTERVAL: Duration = Duration::from_millis(500);
/// Minimum time between two listings: the daemon's own work in the inbox notifies it too.
const MIN_LIST_INTERVAL: Duration = Duration::from_millis(20);
/// Files that are watched at once. The others wait for their turn, so that memory does not grow with them.
const MAX_PENDING: usize = 8192;
/// Files in trouble that are remembered one by one.
const MAX_IN_TROUBLE: usize = 8192;
/// Bytes that a job needs in addition to its data.
const JOB_OVERHEAD_BYTES: u64 = 64 << 10;
/// Time of one look, after which the daemon looks after its worker.
const LOOK_TIME: Duration = Duration::from_millis(50);
/// Files that one look chooses.
const FILES_OF_A_LOOK: usize = 64;
/// Wait for the base model's digest, before another look at it.
const BASE_INTERVAL: Duration = Duration::from_millis(2);

/// The inbox and the files in it that are not dealt with yet.
pub(super) struct Inbox {
    dir: PathBuf,
    pending: BTreeMap<OsString, PendingFile>,
    /// Files in trouble that `pending` has no room for.
    put_aside: PutAside,
    copy: Option<IncomingCopy>,
    /// The digest of the base model, which is part of a job's id.
    base: BaseDigest,
    /// Why no file is accepted at the moment.
    pause: Option<Trouble>,
    /// Exit code of a drain that ends during the pause.
    pause_exit: Exit,
    /// Why the inbox can't be listed at the moment.
    list_trouble: Option<Trouble>,
    /// Files that an earlier daemon, or a failed removal, has left under names of the daemon.
    hidden: HiddenFiles,
    ignored: IgnoredNames,
    last_listed: Option<Instant>,
    notified: bool,
    /// Change notifications of the kernel. `None` if inotify is unavailable; then only the periodic listing
    /// finds files.
    changes: Option<(RecommendedWatcher, Receiver<()>)>,
}

impl Inbox {
    pub(super) fn new(layout: &RootLayout, guards: &Guards) -> Inbox {
        let dir = layout.inbox();
        let changes = watch(&dir)
            .inspect_err(|error| {
                tracing::warn!("no notifications for the inbox, it is listed twice a second: {error}")
            })
            .ok();
        Inbox {
            dir,
            pending: BTreeMap::new(),
            put_aside: PutAside::default(),
            copy: None,
            base: BaseDigest::new(layout.base(), BaseCheck::of_guard(guards.base_check)),
            pause: None,
            pause_exit: Exit::JobsFailed,
            list_trouble: None,
            hidden: HiddenFiles::default(),
            ignored: IgnoredNames::default(),
            last_listed: None,
            notified: false,
            changes,
        }
    }

    /// Why no file is accepted at the moment, if so.
    pub(super) fn pause_message(&self) -> Option<&str> {
        self.pause.as_ref().map(Trouble::message)
    }

    /// Whether a look now has something to do.
    pub(super) fn has_work(&self) -> bool {
        let is_paused = self.pause.as_ref().is_some_and(|pause| !pause.is_due());
        !is_paused && (self.copy.is_some() || self.due_files().next().is_some())
    }

    /// Works for a short time: lists, checks, copies. Stops early if a stop is requested. `reserved_bytes` of
    /// the disk are left for the running job.
    ///
    /// # Errors
    /// Only with a guard off: `tolerate_vanished` if a file vanishes, `intake_retry` if anything else fails.
    pub(super) fn look(
        &mut self,
        config: &DaemonConfig<'_>,
        queue: &mut JobQueue,
        reserved_bytes: u64,
    ) -> Result<(), DaemonError> {
        self.notified |= self.changes.as_ref().is_some_and(|(_, changes)| changes.try_iter().count() > 0);
        if self.pause.as_ref().is_some_and(|pause| !pause.is_due()) {
            return Ok(());
        }
        self.list_if_due(config);
        let deadline = Instant::now() + LOOK_TIME;
        let mut names = self.next_names().into_iter();
        while Instant::now() < deadline && !(config.stop_requested)() {
            let (name, result) = if let Some(copy) = self.copy.take() {
                (copy.name.clone(), self.continue_copy(copy, deadline, config, queue))
            } else if let Some(name) = names.next() {
                let result = self.check_file(&name, config, reserved_bytes);
                (name, result)
            } else {
                return Ok(());
            };
            if let Err(error) = result {
                self.handle_error(&name, error, config)?;
            }
            if self.pause.as_ref().is_some_and(|pause| !pause.is_due()) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn due_files(&self) -> impl Iterator<Item = (&OsString, &PendingFile)> {
        let now = Instant::now();
        self.pending.iter().filter(move |(_, file)| file.next_look <= now)
    }

    /// The files of the next look: those that have waited longest, so that one that fails again and again
    /// keeps no other waiting. Those of one listing in the order of their names.
    fn next_names(&self) -> Vec<OsString> {
        let mut files: Vec<_> = self.due_files().collect();
        files.sort_by_key(|(_, file)| file.next_look);
        files.into_iter().take(FILES_OF_A_LOOK).map(|(name, _)| name.clone()).collect()
    }

    /// How many more files can be watched.
    fn room(&self) -> usize {
        MAX_PENDING.saturating_sub(self.pending.values().filter(|file| file.trouble.is_none()).count())
    }

    fn is_full_of_trouble(&self) -> bool {
        self.pending.values().filter(|file| file.trouble.is_some()).count() >= MAX_IN_TROUBLE
    }

    fn list_if_due(&mut self, config: &DaemonConfig<'_>) {
        let age = self.last_listed.map_or(LIST_INTERVAL, |listed| listed.elapsed());
        let wait = if self.notified { MIN_LIST_INTERVAL } else { LIST_INTERVAL };
        let is_due = self.list_trouble.as_ref().is_none_or(Trouble::is_due);
        if age < wait || !is_due || self.room() == 0 {
            return;
        }
        (self.last_listed, self.notified) = (Some(Instant::now()), false);
        match self.list(config) {
            Ok(()) if self.list_trouble.take().is_some() => {
                (config.print_line)("the inbox can be read again")
            }
            Ok(()) => {}
            Err(error) => {
                let message = format!("could not read `{}`: {error}", self.dir.display());
                if Trouble::record(&mut self.list_trouble, &message) {
                    (config.print_line)(&format!("{message}; will try again"));
                }
            }
        }
    }

    /// Adds the files of the inbox, at most [`MAX_PENDING`] that are not in trouble.
    fn list(&mut self, config: &DaemonConfig<'_>) -> std::io::Result<()> {
        self.put_aside.expire(!self.is_full_of_trouble());
        self.hidden.begin_listing();
        let (mut room, now) = (self.room(), Instant::now());
        let denied = |error| explained(error, &self.dir, Access::Read);
        for entry in std::fs::read_dir(&self.dir).map_err(denied)? {
            let name = entry?.file_name();
            if is_ignored(&name) {
                self.hidden.restore(&self.dir, &name, config);
                self.ignored.tell(&self.dir, &name, config);
                continue;
            }
            if room == 0 {
                break;
            }
            if !self.pending.contains_key(&name) && !self.put_aside.contains(&name) {
                self.pending.insert(name, PendingFile::new(now));
                room -= 1;
            }
        }
        Ok(())
    }

    /// Looks at a file: waits for its writer, and begins its copy when the writer is done.
    fn check_file(
        &mut self,
        name: &OsStr,
        config: &DaemonConfig<'_>,
        reserved_bytes: u64,
    ) -> Result<(), AcceptError> {
        let Some(file) = self.pending.get_mut(name) else { return Ok(()) };
        let path = self.dir.join(name);
        if let (Some(job), Some(identity)) = (file.accepted_as.clone(), file.identity) {
            return self.remove_accepted(name, &job, identity, config);
        }
        let settle_time = Duration::from_secs(config.settings.limits.settle_s);
        let (source, identity) = match file.check_settled(&path, settle_time, &config.settings.guards)? {
            SettleState::Waiting => return Ok(()),
            SettleState::WrittenForLong => {
                let name = shown_name(name);
                (config.print_line)(&format!("waiting for {name}: a process has it open for writing"));
                return Ok(());
            }
            SettleState::OtherType { other_type, identity } => {
                let message = format!("{other_type}, not a regular file");
                return self.reject_file(name, identity, &[], &message, config);
            }
            SettleState::Ready { source, identity } => (source, identity),
        };
        let max_bytes = config.settings.limits.file_bytes;
        if identity.len_bytes > max_bytes {
            let message = format!("the file is larger than {max_bytes} bytes");
            return self.reject_file(name, identity, &[], &message, config);
        }
        if config.settings.guards.space_check {
            let bytes = identity.len_bytes.saturating_add(JOB_OVERHEAD_BYTES).saturating_add(reserved_bytes);
            let required = RequiredSpace { bytes, inodes: 3 };
            durable::check_space(&config.layout.processing(), required)?;
        }
        self.copy = Some(IncomingCopy::start(config, name, source, identity)?);
        Ok(())
    }

    fn continue_copy(
        &mut self,
        copy: IncomingCopy,
        deadline: Instant,
        config: &DaemonConfig<'_>,
        queue: &mut JobQueue,
    ) -> Result<(), AcceptError> {
        let temporary = copy.temporary().to_owned();
        let result = self.advance_copy(copy, deadline, config, queue);
        if result.is_err() {
            // The space may be what is missing. The next copy tries again to remove it.
            let _ = durable::remove_tree(&temporary);
        }
        result
    }

    fn advance_copy(
        &mut self,
        mut copy: IncomingCopy,
        deadline: Instant,
        config: &DaemonConfig<'_>,
        queue: &mut JobQueue,
    ) -> Result<(), AcceptError> {
        match copy.advance(deadline)? {
            CopyProgress::Unfinished => {
                self.copy = Some(copy);
                Ok(())
            }
            CopyProgress::Changed => {
                if let Some(file) = self.pending.get_mut(&copy.name) {
                    file.wait_for_writer(copy.identity, Duration::ZERO);
                }
                Ok(durable::remove_tree(copy.temporary())?)
            }
            CopyProgress::Invalid(errors) => {
                durable::remove_tree(copy.temporary())?;
                let message = errors.first().map_or("", |error| error.message.as_str());
                self.reject_file(&copy.name, copy.identity, &errors, message, config)
            }
            CopyProgress::Complete => match self.base.get() {
                Ok(Some(base)) => self.accept(&copy, &base, config, queue),
                Ok(None) => {
                    std::thread::sleep(BASE_INTERVAL);
                    self.copy = Some(copy);
                    Ok(())
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Moves a complete copy into the queue by one rename, then removes the file from the inbox.
    fn accept(
        &mut self,
        copy: &IncomingCopy,
        base: &str,
        config: &DaemonConfig<'_>,
        queue: &mut JobQueue,
    ) -> Result<(), AcceptError> {
        let counts = copy.counts();
        if config.settings.guards.learned_check && counts.without_effect() == counts.samples {
            let message = format!(
                "no sample has a token to learn: of {} samples, {}",
                counts.samples,
                counts.reasons()
            );
            durable::remove_tree(copy.temporary())?;
            return self.reject_file(&copy.name, copy.identity, &[], &message, config);
        }
        let job = copy.describe(queue.next_order(config)?, base, &config.settings.recipe)?;
        let known = match config.settings.guards.known_jobs {
            true => jobs::known(&config.layout, &job)?,
            false => Known::No,
        };
        if known != Known::No {
            if known == Known::Queued {
                jobs::renew_data(&config.layout, &job.id, &copy.data_path())?;
            }
            durable::remove_tree(copy.temporary())?;
            (config.print_line)(&format!("duplicate {}: the same content as job {}", job.name, job.id));
        } else {
            // Not after the rename: a daemon that is killed in between would never say it.
            queue.tell_twins(config, &job.id, &copy.name, true);
            durable::rename(copy.temporary(), &config.layout.processing().join(&job.id))?;
            queue.insert(&job);
            (config.print_line)(&format!(
                "accepted job {}: {} samples from {}",
                job.id, job.samples, job.name
            ));
            if let Some(text) = copy.unknown_keys().text() {
                (config.print_line)(&format!("job {}: {text}", job.id));
            }
            if counts.without_effect() > 0 {
                let (without, reasons) = (counts.without_effect(), counts.reasons());
                (config.print_line)(&format!(
                    "job {}: {without} of {} samples have nothing to learn: {reasons}",
                    job.id, job.samples
                ));
            }
        }
        if let Some(file) = self.pending.get_mut(&copy.name) {
            file.accepted_as = Some(job.id.clone());
            file.accepted_content = job.data.clone();
        }
        self.remove_accepted(&copy.name, &job.id, copy.identity, config)
    }

    /// Removes a file that is in the queue, if it is still the file that was copied.
    fn remove_accepted(
        &mut self,
        name: &OsStr,
        job: &str,
        identity: FileIdentity,
        config: &DaemonConfig<'_>,
    ) -> Result<(), AcceptError> {
        durable::sync_dir(&config.layout.processing(), SyncPolicy::Full)?;
        let (path, aside) = (self.dir.join(name), self.dir.join(format!("{TAKEN_PREFIX}{job}")));
        if !config.settings.guards.settled_files {
            durable::remove_file(&path).map_err(AcceptError::Remove)?;
            self.dealt_with(name, config);
            return Ok(());
        }
        let taken = match take_aside(&path, &aside, identity) {
            Err(error) if error.is_not_found() => Taken::Replaced,
            taken => taken.map_err(AcceptError::Remove)?,
        };
        if taken == Taken::Yes {
            let guard = config.settings.guards.compare_content;
            let content = self.pending.get(name).and_then(|file| file.accepted_content.as_deref());
            if has_content(&aside, &identity, content.filter(|_| guard))? {
                durable::remove_file(&aside).map_err(AcceptError::Remove)?;
            } else {
                let shown_name = shown_name(name);
                (config.print_line)(&format!(
                    "{shown_name} has changed and kept its time; its new content is taken as another job"
                ));
                put_back(&aside, &path).map_err(AcceptError::Remove)?;
            }
        }
        self.dealt_with(name, config);
        // A file that has come to the name meanwhile is found by the next listing.
        self.notified = true;
        Ok(())
    }

    fn reject_file(
        &mut self,
        name: &OsStr,
        identity: FileIdentity,
        errors: &[DataError],
        message: &str,
        config: &DaemonConfig<'_>,
    ) -> Result<(), AcceptError> {
        let path = self.dir.join(name);
        reject(config, &Rejection { path: &path, name, identity, errors, message })?;
        self.dealt_with(name, config);
        Ok(())
    }

    /// Forgets a file that was accepted or rejected. Both need writes, so a pause is over.
    fn dealt_with(&mut self, name: &OsStr, config: &DaemonConfig<'_>) {
        self.pending.remove(name);
        self.end_pause(config);
    }

    fn end_pause(&mut self, config: &DaemonConfig<'_>) {
        if self.pause.take().is_some() {
            (config.print_line)("intake continues");
        }
    }

    fn handle_error(
        &mut self,
        name: &OsStr,
        error: AcceptError,
        config: &DaemonConfig<'_>,
    ) -> Result<(), DaemonError> {
        let shown_name = shown_name(name);
        if error.is_vanished() {
            if !config.settings.guards.tolerate_vanished {
                return Err(DaemonError::Accept { path: self.dir.join(name), source: error });
            }
            (config.print_line)(&format!("vanished before it could be read: {shown_name}"));
            let was_in_trouble = self.pending.remove(name).is_some_and(|file| file.trouble.is_some());
            // If it was the only one that failed, nothing tells that another one would.
            if was_in_trouble && self.pending.values().all(|file| file.trouble.is_none()) {
                self.end_pause(config);
            }
            return Ok(());
        }
        if !config.settings.guards.intake_retry {
            return Err(DaemonError::Accept { path: self.dir.join(name), source: error });
        }
        let reason = chain(&error);
        if self.puts_aside(name, &error) {
            if self.put_aside.add(name) {
                (config.print_line)(&format!(
                    "more than {MAX_IN_TROUBLE} files of the inbox can't be taken; the others are tried again \
                     now and then, without a message for each"
                ));
            }
            return Ok(());
        }
        if let Some(file) = self.pending.get_mut(name) {
            let is_new = Trouble::record(&mut file.trouble, &reason);
            file.exit = error.exit();
            if let Some(trouble) = &file.trouble {
                file.next_look = trouble.next_try();
            }
            if is_new && !error.concerns_all_files() {
                let what = if file.accepted_as.is_some() { "removed" } else { "accepted" };
                (config.print_line)(&format!(
                    "{shown_name} could not be {what} yet, will try again: {reason}"
                ));
            }
        }
        if error.concerns_all_files() {
            self.pause_exit = error.exit();
            self.pause(&format!("intake paused, will try again: {reason}"), config);
        }
        Ok(())
    }

    /// Forgets a file that fails, if there are too many of them.
    fn puts_aside(&mut self, name: &OsStr, error: &AcceptError) -> bool {
        let is_new = |file: &PendingFile| file.trouble.is_none() && file.accepted_as.is_none();
        let puts_aside = !error.concerns_all_files()
            && self.pending.get(name).is_some_and(is_new)
            && self.is_full_of_trouble();
        puts_aside && self.pending.remove(name).is_some()
    }

    fn pause(&mut self, message: &str, config: &DaemonConfig<'_>) {
        if Trouble::record(&mut self.pause, message) {
            (config.print_line)(message);
        }
    }

    /// What the inbox holds now, after a fresh listing.
    pub(super) fn state(&mut self, config: &DaemonConfig<'_>) -> InboxState {
        if self.list_trouble.is_none() && self.list(config).is_err() {
            // The next look will report it.
            return InboxState::Busy;
        }
        let left = FilesLeft {
            dir: &self.dir,
            count: self.pending.len() + self.put_aside.len(),
            is_copying: self.copy.is_some(),
            has_waiting: self.pending.values().any(|file| file.trouble.is_none()),
            pause: failing(&self.pause, self.pause_exit),
            other_troubles: [
                failing(&self.list_trouble, Exit::JobsFailed),
                failing(self.hidden.trouble(), Exit::JobsFailed),
            ],
        };
        left.state(self.pending.values().filter_map(|file| failing(&file.trouble, file.exit)))
    }

    /// The names in the inbox that are never taken, as a part of a sentence. Empty if there are none.
    pub(super) fn ignored_files(&self) -> String {
        list_of_names(ignored_names(&self.dir))
    }
}

fn watch(dir: &Path) -> Result<(RecommendedWatcher, Receiver<()>), notify::Error> {
    let (sender, changes) = channel();
    // The send fails only if the daemon has dropped the receiver.
    let mut watcher = notify::recommended_watcher(move |event: Result<notify::Event, notify::Error>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = sender.send(());
        }
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok((watcher, changes))
}
