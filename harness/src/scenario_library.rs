//! Finds, reads and checks scenarios and targets: those that are shipped inside the command, and files and
//! directories that the user names. Runs nothing.

use std::path::{Path, PathBuf};

use scenarios::{InvalidFile, Scenario, ScenarioStarted, TargetFile};

use crate::args::HostAccessArgs;
use crate::host_access_options::{HostAccessError, LocatedTarget, host_access, repeat_options};
use crate::shell_quote::{own_program, shell_quote};
use engine::file_error::{FileError, file_error};
use engine::gpu::find_shim_library;
use engine::run::PreparedScenario;
use engine::target::{ProgramError, check_command_programs, find_program, inherited_variables};

use crate::build_display::on_build;

#[derive(rust_embed::Embed)]
#[folder = "../scenarios/library"]
#[include = "*.yaml"]
struct ShippedScenarios;

#[derive(rust_embed::Embed)]
#[folder = "../scenarios/targets"]
#[include = "*.yaml"]
struct ShippedTargets;

/// Where the shipped targets are in the workspace. Their paths in records start with it.
const SHIPPED_TARGETS_DIR: &str = "scenarios/targets";
/// How much of a file is read. The parser accepts less.
const MAX_READ_BYTES: u64 = 2 << 20;

/// Why a scenario cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error(
        "there is no shipped scenario `{id}`{nearest}; run `trainwreck list`, or give the path of a file"
    )]
    UnknownId { id: String, nearest: String },
    #[error("there is no file `{path}`{nearest}", path = .path.display())]
    NoFile { path: PathBuf, nearest: String },
    #[error("`{path}` is neither a file nor a directory", path = .path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "scenario `{id}` is in `{first}` and in `{second}`; give one of them another `id`, or run them apart",
        first = .first.display(),
        second = .second.display()
    )]
    SameId { id: String, first: PathBuf, second: PathBuf },
    #[error("there are no scenario files (`*.yaml`) in directory `{path}`", path = .path.display())]
    Empty { path: PathBuf },
    #[error(transparent)]
    Read(#[from] FileError),
    #[error("{} of the given files are not valid", .0.len())]
    Invalid(Vec<InvalidFile>),
    #[error(
        "there is neither a file nor a shipped target `{name}`; the shipped targets are: {}",
        shipped_target_names().join(", ")
    )]
    UnknownTarget { name: String },
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    HostAccess(#[from] HostAccessError),
}

/// The text of a scenario or target file, and where it is from.
#[derive(Clone)]
pub(crate) struct LibrarySource {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    /// The name of the directory that the file is in. In the shipped library it is the scenario's domain.
    domain: String,
    /// Whether the user gave the ID or the path of this file, instead of a directory or nothing.
    is_named: bool,
}

/// A valid scenario with its source.
#[derive(Clone)]
pub(crate) struct LoadedScenario {
    pub(crate) source: LibrarySource,
    pub(crate) scenario: Scenario,
    /// Whether the user gave its ID or its file, so that it must not be skipped.
    pub(crate) is_named: bool,
}

fn shipped_target_names() -> Vec<String> {
    ShippedTargets::iter().filter_map(|name| Some(name.strip_suffix(".yaml")?.to_owned())).collect()
}

/// All shipped scenarios, sorted by ID.
pub(crate) fn shipped_scenarios() -> Result<Vec<LoadedScenario>, LibraryError> {
    parse_all(shipped_sources())
}

fn shipped_sources() -> Vec<LibrarySource> {
    let source = |name: std::borrow::Cow<'static, str>| {
        let file = ShippedScenarios::get(&name)?;
        let path = PathBuf::from("scenarios/library").join(name.as_ref());
        Some(LibrarySource {
            domain: domain_of(&path),
            path,
            text: String::from_utf8_lossy(&file.data).into_owned(),
            is_named: false,
        })
    };
    ShippedScenarios::iter().filter_map(source).collect()
}

/// The scenarios that the arguments name (IDs, files or directories). Without arguments: all shipped
/// scenarios.
pub(crate) fn select_scenarios(arguments: &[String]) -> Result<Vec<LoadedScenario>, LibraryError> {
    if arguments.is_empty() {
        return shipped_scenarios();
    }
    let mut sources = Vec::new();
    for argument in arguments {
        let path = Path::new(argument);
        if path.is_dir() {
            sources.extend(sources_in_dir(path)?);
        } else if path.is_file() {
            sources.push(LibrarySource { is_named: true, ..read_source(path)? });
        } else if path.exists() {
            return Err(LibraryError::NotAFile { path: path.into() });
        } else if is_path(argument) {
            return Err(LibraryError::NoFile { path: path.into(), nearest: nearest_file_hint(path) });
        } else {
            sources.push(LibrarySource { is_named: true, ..shipped_source_by_id(argument)? });
        }
    }
    parse_all(sources)
}

/// Whether the argument can only be meant as a path, since no ID looks like that.
fn is_path(argument: &str) -> bool {
    argument.contains('/') || [".yaml", ".yml"].iter().any(|extension| argument.ends_with(extension))
}

fn shipped_source_by_id(id: &str) -> Result<LibrarySource, LibraryError> {
    let shipped = shipped_scenarios()?;
    match shipped.iter().find(|loaded| loaded.scenario.id() == id) {
        Some(loaded) => Ok(loaded.source.clone()),
        None => Err(LibraryError::UnknownId { id: id.into(), nearest: nearest_id_hint(id, &shipped) }),
    }
}

/// Text that says which IDs may be meant: those of a domain, of a prefix or of a pattern, or the most similar
/// one. An empty text if there is none.
fn nearest_id_hint(argument: &str, shipped: &[LoadedScenario]) -> String {
    let of_domain = shipped.iter().filter(|loaded| loaded.source.domain == argument);
    let of_domain: Vec<&str> = of_domain.map(|loaded| loaded.scenario.id()).collect();
    if !of_domain.is_empty() {
        return format!(" (domain `{argument}` has {})", of_domain.join(" "));
    }
    let ids = || shipped.iter().map(|loaded| loaded.scenario.id());
    // `fs`, `fs-`, `fs-*` and `fs-0?` all begin with what the IDs begin with.
    let prefix = argument.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric());
    let with_prefix: Vec<&str> = ids().filter(|id| !prefix.is_empty() && id.starts_with(prefix)).collect();
    if !with_prefix.is_empty() {
        return format!(" (there are {})", with_prefix.join(" "));
    }
    let nearest = ids().map(|known| (strsim::damerau_levenshtein(known, argument), known)).min();
    nearest
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, known)| format!(" (nearest: `{known}`)"))
        .unwrap_or_default()
}

/// Text that names the most similar file in the same directory.
fn nearest_file_hint(path: &Path) -> String {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if !dir.is_dir() {
        return format!("; there is no directory `{}`", dir.display());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let nearest = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .map(|known| (strsim::damerau_levenshtein(&known, &name), known))
        .min();
    nearest
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, known)| format!(" (nearest: `{}`)", path.with_file_name(known).display()))
        .unwrap_or_default()
}

/// The scenario files in a directory and its subdirectories, sorted by path.
fn sources_in_dir(dir: &Path) -> Result<Vec<LibrarySource>, LibraryError> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        let entries = std::fs::read_dir(&next).map_err(file_error::<LibraryError>("read", &next))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            match path.extension() {
                _ if path.is_dir() => dirs.push(path),
                Some(extension) if extension == "yaml" || extension == "yml" => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(LibraryError::Empty { path: dir.into() });
    }
    files.iter().map(|path| read_source(path)).collect()
}

/// Reads a file, but not much more than the parser accepts: the parser then reports that the file is too
/// large.
pub(crate) fn read_source(path: &Path) -> Result<LibrarySource, LibraryError> {
    use std::io::Read as _;
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_READ_BYTES).read_to_end(&mut bytes)?;
        String::from_utf8(bytes).map_err(std::io::Error::other)
    };
    let text = read().map_err(file_error::<LibraryError>("read", path))?;
    Ok(LibrarySource { path: path.into(), text, domain: domain_of(path), is_named: false })
}

fn domain_of(path: &Path) -> String {
    path.parent()
        .and_then(Path::file_name)
        .map_or_else(|| "own".into(), |name| name.to_string_lossy().into_owned())
}

/// Parses all sources. Fails with the problems of all invalid files, not only of the first one.
fn parse_all(sources: Vec<LibrarySource>) -> Result<Vec<LoadedScenario>, LibraryError> {
    let (mut loaded, mut invalid) = (Vec::new(), Vec::new());
    for source in sources {
        match Scenario::parse(&source.text, &source.path.display().to_string()) {
            Ok(scenario) => {
                let is_named = source.is_named;
                loaded.push(LoadedScenario { source, scenario, is_named });
            }
            Err(error) => invalid.push(error),
        }
    }
    if !invalid.is_empty() {
        return Err(LibraryError::Invalid(invalid));
    }
    loaded.sort_by(|a, b| a.scenario.id().cmp(b.scenario.id()));
    // Verdicts, reports and directories go by the ID.
    match loaded.windows(2).find(|pair| pair[0].scenario.id() == pair[1].scenario.id()) {
        Some(pair) => Err(LibraryError::SameId {
            id: pair[0].scenario.id().into(),
            first: pair[0].source.path.clone(),
            second: pair[1].source.path.clone(),
        }),
        None => Ok(loaded),
    }
}

/// Adds what a scenario needs to run: its target, the target's program, and the GPU shim. `guard_removed`
/// names a guard that is switched off in this run. `access`: what the options open of the host.
pub(crate) fn prepare_scenario(
    loaded: LoadedScenario,
    seed: u64,
    guard_removed: Option<&str>,
    access: &HostAccessArgs,
) -> Result<PreparedScenario, LibraryError> {
    let LoadedScenario { source, scenario, .. } = loaded;
    let scenario_dir = source.path.parent().map(Path::to_path_buf).unwrap_or_default();
    let (target_source, target) = load_target_of(&scenario, &scenario_dir)?;
    let target_file = target_source.path.display().to_string();
    let target_dir = target_source.path.parent().map(Path::to_path_buf).unwrap_or_default();
    // A shipped target is of no use without the shipped trainer. That is not the user's mistake.
    let is_shipped = target_source.path.starts_with(SHIPPED_TARGETS_DIR);
    let (program, unavailable) = match find_program(target.program(), &target_dir, &on_build) {
        Ok(program) => (program, None),
        Err(error @ (ProgramError::NotFound { .. } | ProgramError::Executable(_))) if is_shipped => {
            (PathBuf::new(), Some(format!("the reference trainer is not here: {error}")))
        }
        Err(error) => return Err(error.into()),
    };
    let host_access = host_access(access, Some(LocatedTarget { file: &target, dir: &target_dir }))?;
    check_command_programs(&target).map_err(ProgramError::from)?;
    let shim = if scenario.gpu().is_some() { shim_if_available()? } else { None };
    let command = if guard_removed.is_some() { "ablate" } else { "run" };
    let started = ScenarioStarted {
        title: scenario.title().to_owned(),
        severity: scenario.severity().to_string(),
        domain: source.domain,
        repeat: format!(
            "{} {command} {} --seed {seed}{}",
            own_program(),
            run_argument_for(&scenario, &source.path),
            repeat_options(access)
        ),
        file: source.path.display().to_string(),
        source: source.text,
        target_source: target_source.text,
        target_file,
        guards: scenario.guards().to_vec(),
        inherited: inherited_variables(&target),
        guard_removed: guard_removed.map(str::to_owned),
    };
    Ok(PreparedScenario { scenario, target, program, host_access, shim, started, scenario_dir, unavailable })
}

/// The library that simulates a GPU. Returns `None` if it is not available: scenarios that need it are then
/// skipped. A library that cannot be built is an error.
fn shim_if_available() -> Result<Option<PathBuf>, LibraryError> {
    match find_shim_library(&on_build) {
        Ok(path) => Ok(Some(path)),
        Err(ProgramError::NoLibrary { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Checks that the target and the data files of a scenario exist, and that the target has what the scenario
/// names and needs. Returns the target, and the directory of its file.
pub(crate) fn check_target(scenario: &Scenario, path: &Path) -> Result<(TargetFile, PathBuf), LibraryError> {
    let scenario_dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
    let (source, target) = load_target_of(scenario, &scenario_dir)?;
    Ok((target, source.path.parent().map(Path::to_path_buf).unwrap_or_default()))
}

/// Whether a shipped scenario has this ID, and is not this text itself.
pub(crate) fn is_id_of_another_shipped(id: &str, text: &str) -> bool {
    shipped_source_by_id(id).is_ok_and(|source| source.text != text)
}

/// Loads a target file by its path, or a shipped target by its name. Also returns the directory of the target
/// file: the path of the target's program is relative to it.
pub(crate) fn load_target(name: &str) -> Result<(TargetFile, PathBuf), LibraryError> {
    let path = Path::new(name);
    let (text, path) = if path.is_file() {
        let source = read_source(path)?;
        (source.text, source.path)
    } else {
        let file = ShippedTargets::get(&format!("{name}.yaml"));
        let file = file.ok_or_else(|| LibraryError::UnknownTarget { name: name.into() })?;
        let path = PathBuf::from(SHIPPED_TARGETS_DIR).join(format!("{name}.yaml"));
        (String::from_utf8_lossy(&file.data).into_owned(), path)
    };
    let target = TargetFile::parse(&text, &path.display().to_string());
    let target = target.map_err(|error| LibraryError::Invalid(vec![error]))?;
    Ok((target, path.parent().map(Path::to_path_buf).unwrap_or_default()))
}

/// Loads a scenario's target, and checks the scenario against it.
fn load_target_of(
    scenario: &Scenario,
    scenario_dir: &Path,
) -> Result<(LibrarySource, TargetFile), LibraryError> {
    let invalid = |error| LibraryError::Invalid(vec![error]);
    let source = target_source_of(scenario, scenario_dir)?;
    let target = TargetFile::parse(&source.text, &source.path.display().to_string()).map_err(invalid)?;
    let fits = scenario.check_against(&target);
    let has_data = scenario.check_data_files(|name| scenario_dir.join(name).is_file());
    let invalid_parts: Vec<InvalidFile> = [fits, has_data].into_iter().filter_map(Result::err).collect();
    if invalid_parts.is_empty() { Ok((source, target)) } else { Err(LibraryError::Invalid(invalid_parts)) }
}

/// The argument with which `run` and `ablate` find the scenario again: its path, or its ID if it is a shipped
/// one.
fn run_argument_for(scenario: &Scenario, path: &Path) -> String {
    if path.is_absolute() || path.is_file() && !path.starts_with("scenarios/library") {
        // What begins with a dash is no option.
        let is_like_option = path.as_os_str().as_encoded_bytes().starts_with(b"-");
        let path = if is_like_option { &Path::new(".").join(path) } else { path };
        shell_quote(path.as_os_str())
    } else {
        scenario.id().to_owned()
    }
}

/// The text of a scenario's target: a file in the scenario's directory comes before a shipped target.
fn target_source_of(scenario: &Scenario, scenario_dir: &Path) -> Result<LibrarySource, LibraryError> {
    let name = scenario.target();
    let file = scenario_dir.join(name);
    if file.is_file() {
        return read_source(&file);
    }
    let shipped = ShippedTargets::get(&format!("{name}.yaml"));
    let shipped = shipped.map(|file| String::from_utf8_lossy(&file.data).into_owned());
    let path = PathBuf::from(SHIPPED_TARGETS_DIR).join(format!("{name}.yaml"));
    shipped
        .map(|text| LibrarySource { path, text, domain: "targets".into(), is_named: false })
        .ok_or_else(|| LibraryError::Invalid(vec![scenario.unknown_target(&shipped_target_names())]))
}
