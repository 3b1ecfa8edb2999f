//! Consolidation: merges the adapter of a finished job into the base model, in a directory of its own. The
//! base is never changed. The adapter goes only if that was asked for, and only when the merged model has been
//! read back from the disk. It can be interrupted at each operation, and repeated.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::bounded_read::{open_regular_or_linked, read_regular};
use crate::durable::{self, DeferReason, DurableError};
use crate::exit::Exit;
use crate::file_error::{FileError, chain, file_error};
use crate::model::{
    AdapterLayout, AdapterMismatch, BaseCheck, BaseModel, BaseModelError, MergedModel, WeightsError, merge,
    probe_logits, probe_logits_of_base, relative_difference,
};
use crate::names::is_job_id;
use crate::plain_text::shown;
use crate::settings::Settings;
use crate::store::{
    AdapterError, FinishedResult, MergeReport, RECORD_FORMAT, ResultProblem, RootLayout, merged_files,
    read_adapter, read_merged, read_result, remove_merged_adapter, required_space, sorted_names, sync_policy,
};

/// The largest difference of the logits in f32, relative to the largest logit.
const MAX_DIFFERENCE: f32 = 1e-5;

/// What is consolidated.
pub struct ConsolidateRequest<'a> {
    pub layout: &'a RootLayout,
    pub settings: &'a Settings,
    /// The finished job.
    pub job: &'a str,
    /// Removes the adapter when the merged model has been read back.
    pub remove_adapter: bool,
}

/// A merged model.
#[derive(Debug, Clone, PartialEq)]
pub struct Consolidated {
    /// Its directory.
    pub dir: PathBuf,
    pub report: MergeReport,
    /// It was there before.
    pub was_there: bool,
    /// The adapter is gone.
    pub adapter_removed: bool,
    /// Where that is now which was in the place of the merged model and was none.
    pub moved_aside: Option<PathBuf>,
}

/// Why there is no merged model. The adapter is where it was.
#[derive(Debug, thiserror::Error)]
pub enum ConsolidateError {
    /// The job's name leads out of the root.
    #[error("`{}` is not the id of a job; `done/` has those of the finished ones", shown(.0))]
    Name(String),
    /// There is no result of this job.
    #[error("there is no finished job `{}` in `{}`; {finished}", shown(.job), .dir.display())]
    Unknown { job: String, dir: PathBuf, finished: String },
    /// The job has no complete result.
    #[error("the result is not complete: {0}")]
    Result(#[from] ResultProblem),
    /// The adapter can't be read.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The adapter does not fit the base.
    #[error("the adapter does not fit the base model")]
    Mismatch(#[from] AdapterMismatch),
    /// The base can't be read.
    #[error(transparent)]
    Base(#[from] BaseModelError),
    /// A file of the base can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Both are digests.
    #[error("the adapter was trained on base {trained}, and this root's base is {found}; restore that base")]
    OtherBase { trained: String, found: String },
    /// The weights can't be merged.
    #[error("the weights can't be merged")]
    Weights(#[from] WeightsError),
    /// The merged model computes something else.
    #[error(
        "the logits of the merged model differ by {0:e} of the largest from those of base and adapter; {MAX_DIFFERENCE:e} \
         is allowed; nothing was removed"
    )]
    Differs(f32),
    /// What was written is not what was read back.
    #[error("the merged model could not be read back: {0}; check the disk; nothing was removed")]
    ReadBack(String),
    /// There is no room.
    #[error(transparent)]
    Space(#[from] DeferReason),
    /// A write failed.
    #[error(transparent)]
    Disk(#[from] DurableError),
    /// The thread that merges has ended.
    #[error("the thread that merges has ended")]
    ThreadEnded,
    /// The report can't be written as JSON.
    #[error("the report can't be encoded")]
    Report(#[from] serde_json::Error),
}

impl ConsolidateError {
    /// The exit code for this error.
    pub fn exit(&self) -> Exit {
        match self {
            ConsolidateError::Name(_) | ConsolidateError::Unknown { .. } => Exit::Usage,
            ConsolidateError::Base(_) | ConsolidateError::OtherBase { .. } => Exit::BaseModel,
            ConsolidateError::Space(_) | ConsolidateError::Disk(_) | ConsolidateError::ReadBack(_) => {
                Exit::Disk
            }
            _ => Exit::Failed,
        }
    }
}

/// Merges the adapter of a job, unless that is done.
///
/// # Errors
/// If it can't be done. The adapter is then where it was, and what was written is removed or is complete.
pub fn consolidate(request: &ConsolidateRequest<'_>) -> Result<Consolidated, ConsolidateError> {
    let ConsolidateRequest { layout, settings, job, remove_adapter } = request;
    let result = check_request(layout, job)?;
    let dir = layout.merged().join(job);
    let sync = sync_policy(&settings.guards);
    let existing = read_merged(&dir, job).ok().filter(|report| report.adapter == result.adapter);
    let was_there = existing.is_some();
    let mut moved_aside = None;
    let report = match existing {
        Some(report) => report,
        None => {
            let merged = merged(request, &result.adapter, result.base.as_deref())?;
            if *remove_adapter && !settings.guards.merge_first {
                remove_merged_adapter(&layout.done().join(job), &result.adapter, sync)?;
            }
            moved_aside = write(request, &dir, &merged)?;
            merged.report
        }
    };
    if *remove_adapter {
        remove_merged_adapter(&layout.done().join(job), &result.adapter, sync)?;
    }
    Ok(Consolidated { dir, report, was_there, adapter_removed: *remove_adapter, moved_aside })
}

/// Fails if no finished job has this id.
///
/// # Errors
/// If it is not an id, or its result is not complete.
pub fn check_request(layout: &RootLayout, job: &str) -> Result<FinishedResult, ConsolidateError> {
    if !is_job_id(job) {
        return Err(ConsolidateError::Name(job.to_owned()));
    }
    let dir = layout.done();
    if dir.join(job).symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        let names: Vec<String> = sorted_names(&dir).into_iter().filter(|name| is_job_id(name)).collect();
        let finished = match names.last() {
            None => "no job is finished yet".to_owned(),
            Some(last) => format!("{} finished jobs are there, such as `{}`", names.len(), shown(last)),
        };
        return Err(ConsolidateError::Unknown { job: job.to_owned(), dir, finished });
    }
    Ok(read_result(&dir.join(job), job)?)
}

/// A merged model that is not written yet.
struct Merged {
    report: MergeReport,
    config: Vec<u8>,
    weights: Vec<u8>,
    /// What the model computes when it is read back.
    logits: Vec<f32>,
}

fn merged(
    request: &ConsolidateRequest<'_>,
    adapter_digest: &str,
    trained: Option<&str>,
) -> Result<Merged, ConsolidateError> {
    let ConsolidateRequest { layout, settings, job, .. } = request;
    let (base_dir, check) = (layout.base(), BaseCheck::of_guard(settings.guards.base_check));
    let found = BaseModel::digest(&base_dir, check)?;
    if let Some(trained) = trained.filter(|trained| *trained != found) {
        return Err(ConsolidateError::OtherBase { trained: trained.to_owned(), found });
    }
    let base = BaseModel::read(&base_dir, check)?;
    let [config, weights] = BaseModel::files(&base_dir).map(|path| {
        let mut bytes = Vec::new();
        let read = open_regular_or_linked(&path)
            .and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut bytes));
        read.map(|_| bytes).map_err(file_error("read", &path))
    });
    let (recipe, tensors) = read_adapter(&layout.done().join(job))?;
    let adapter = AdapterLayout::new(&base.config, &recipe);
    let params = adapter.flat_params(&tensors, "")?;
    let MergedModel { model, weights } = merge(&base, &weights?, &adapter, &params)?;
    let expected = probe_logits(&base, &adapter, &params);
    let difference_in_f32 = relative_difference(&probe_logits_of_base(&model), &expected);
    if difference_in_f32.is_nan() || difference_in_f32 > MAX_DIFFERENCE {
        return Err(ConsolidateError::Differs(difference_in_f32));
    }
    let stored = BaseModel::from_bytes(base.config, &weights, check)?;
    let logits = probe_logits_of_base(&stored);
    let report = MergeReport {
        format: RECORD_FORMAT,
        job: (*job).to_owned(),
        adapter: adapter_digest.to_owned(),
        base: found,
        difference_in_f32,
        difference_as_stored: relative_difference(&logits, &expected),
        files: Vec::new(),
    };
    Ok(Merged { report, config: config?, weights, logits })
}

/// Writes the model aside, reads it back, and gives it its name. What has this name and is no merged model of the job
/// may be somebody's: it gets another name, which is returned.
fn write(
    request: &ConsolidateRequest<'_>,
    dir: &Path,
    merged: &Merged,
) -> Result<Option<PathBuf>, ConsolidateError> {
    let (settings, sync) = (request.settings, sync_policy(&request.settings.guards));
    let files = merged_files(merged.report.clone(), merged.config.clone(), merged.weights.clone())?;
    let parent = request.layout.merged();
    durable::create_dir(&parent)?;
    if settings.guards.no_links {
        durable::refuse_link(&parent)?;
    }
    if settings.guards.space_check {
        durable::check_space(&parent, required_space(&files))?;
    }
    if !settings.guards.merge_whole {
        durable::create_dir(dir)?;
        for (name, bytes) in &files {
            durable::write_in_place(&dir.join(name), bytes, sync)?;
        }
        return Ok(None);
    }
    let moved_aside = durable::move_aside(dir)?;
    durable::write_dir_checked(dir, &files, sync, settings.guards.abort_cleanup, |written| {
        let read_back = |reason: &dyn std::fmt::Display| ConsolidateError::ReadBack(reason.to_string());
        read_merged(written, request.job).map_err(|error| read_back(&error))?;
        let check = BaseCheck::of_guard(settings.guards.base_check);
        let model = BaseModel::read(written, check).map_err(|error| read_back(&chain(&error)))?;
        let is_same = probe_logits_of_base(&model) == merged.logits;
        if is_same { Ok(()) } else { Err(read_back(&"it computes other logits")) }
    })?;
    // Its directory may be new.
    durable::sync_dir(request.layout.root(), sync)?;
    Ok(moved_aside)
}

/// The jobs that somebody asks the daemon to consolidate, and whether their adapters are to go.
pub fn read_request(layout: &RootLayout, job: &str) -> Result<bool, FileError> {
    let path = layout.consolidate_requests().join(job);
    let bytes = read_regular(&path, 1024).map_err(file_error("read", &path))?;
    Ok(bytes.starts_with(REMOVE_ADAPTER.as_bytes()))
}

/// Content of a request with which the adapter goes.
const REMOVE_ADAPTER: &str = "remove-adapter";

/// Asks the daemon to consolidate a job, durably.
///
/// # Errors
/// If the request can't be written.
pub fn write_request(layout: &RootLayout, job: &str, remove_adapter: bool) -> Result<(), DurableError> {
    let dir = layout.consolidate_requests();
    durable::create_dir(&dir)?;
    let text = if remove_adapter { REMOVE_ADAPTER } else { "keep-adapter" };
    durable::replace(&dir.join(job), format!("{text}\n").as_bytes(), durable::SyncPolicy::Full)
}

impl std::fmt::Display for Consolidated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let MergeReport { job, difference_in_f32, difference_as_stored, .. } = &self.report;
        let verb = if self.was_there { "was consolidated before" } else { "consolidated" };
        write!(
            f,
            "{verb}: job {job}, merged model in `{}`; logits differ by {difference_in_f32:.1e} of the largest in \
             f32, by {difference_as_stored:.1e} in the base's own type; the adapter {}",
            self.dir.display(),
            if self.adapter_removed { "is removed" } else { "stays" }
        )?;
        match &self.moved_aside {
            None => Ok(()),
            Some(path) => write!(f, "; what was in its place is now `{}`", path.display()),
        }
    }
}
