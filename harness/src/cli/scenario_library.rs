//! Finds scenarios and targets: shipped inside the command, or files and folders that the user names.

use std::path::{Path, PathBuf};

use scenarios::{InvalidFile, Scenario, ScenarioStarted, TargetFile};

use crate::gpu::find_shim_library;
use crate::run::PreparedScenario;
use crate::target::{ProgramError, find_program};

#[derive(rust_embed::Embed)]
#[folder = "../scenarios/library"]
#[include = "*.yaml"]
struct ShippedScenarios;

#[derive(rust_embed::Embed)]
#[folder = "../scenarios/targets"]
#[include = "*.yaml"]
struct ShippedTargets;

/// Why a scenario can't be run.
#[derive(Debug, thiserror::Error)]
pub(super) enum LibraryError {
    #[error(
        "there is no shipped scenario `{id}`{nearest}; `trainwreck list` shows them, and a file is named by its path"
    )]
    UnknownId { id: String, nearest: String },
    #[error("`{path}` has no scenario files (`*.yaml`) below it", path = .path.display())]
    Empty { path: PathBuf },
    #[error("could not read `{path}`: {error}", path = .path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{} of the files named are not valid", .0.len())]
    Invalid(Vec<InvalidFile>),
    #[error("scenario `{scenario}` uses target `{target}`, which is neither shipped nor a file beside it")]
    NoTarget { scenario: String, target: String },
    #[error(
        "there is no target file `{name}` and no shipped target of that name; the shipped ones are: {}",
        shipped_target_names()
    )]
    UnknownTarget { name: String },
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// A file's text, and where it came from.
#[derive(Clone)]
pub(super) struct LibrarySource {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// Folder of the library: the name of the folder that it lies in.
    domain: String,
}

/// A scenario that was read and checked.
#[derive(Clone)]
pub(super) struct LoadedScenario {
    pub(super) source: LibrarySource,
    pub(super) scenario: Scenario,
}

fn shipped_target_names() -> String {
    let names: Vec<String> =
        ShippedTargets::iter().filter_map(|name| Some(name.strip_suffix(".yaml")?.to_owned())).collect();
    names.join(", ")
}

/// All shipped scenarios, by id.
pub(super) fn shipped_scenarios() -> Result<Vec<LoadedScenario>, LibraryError> {
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
        })
    };
    ShippedScenarios::iter().filter_map(source).collect()
}

/// The scenarios that were asked for; all shipped ones where nothing was.
pub(super) fn select_scenarios(which: &[String]) -> Result<Vec<LoadedScenario>, LibraryError> {
    if which.is_empty() {
        return shipped_scenarios();
    }
    let mut sources = Vec::new();
    for word in which {
        let path = Path::new(word);
        if path.is_dir() {
            sources.extend(sources_in_dir(path)?);
        } else if path.is_file() {
            sources.push(read_source(path)?);
        } else {
            sources.push(shipped_source_by_id(word)?);
        }
    }
    parse_all(sources)
}

fn shipped_source_by_id(id: &str) -> Result<LibrarySource, LibraryError> {
    let of_id = |source: &LibrarySource| {
        source.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{id}-")))
    };
    shipped_sources()
        .into_iter()
        .find(of_id)
        .ok_or_else(|| LibraryError::UnknownId { id: id.into(), nearest: nearest_id_hint(id) })
}

fn nearest_id_hint(id: &str) -> String {
    let ids = shipped_scenarios().unwrap_or_default().into_iter().map(|read| read.scenario.id().to_owned());
    let near = ids.map(|known| (strsim::damerau_levenshtein(&known, id), known)).min();
    near.filter(|(distance, _)| *distance <= 3)
        .map(|(_, known)| format!(" (nearest: `{known}`)"))
        .unwrap_or_default()
}

fn sources_in_dir(folder: &Path) -> Result<Vec<LibrarySource>, LibraryError> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let entries =
            std::fs::read_dir(&next).map_err(|error| LibraryError::Read { path: next.clone(), error })?;
        for path in entries.flatten().map(|entry| entry.path()) {
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "yaml" || extension == "yml" => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(LibraryError::Empty { path: folder.into() });
    }
    files.iter().map(|path| read_source(path)).collect()
}

/// Reads at most a little more than the budget of the parser, which then refuses it.
pub(super) fn read_source(path: &Path) -> Result<LibrarySource, LibraryError> {
    use std::io::Read as _;
    let failed = |error| LibraryError::Read { path: path.into(), error };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(2 << 20).read_to_end(&mut bytes).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|error| failed(std::io::Error::other(error)))?;
    Ok(LibrarySource { path: path.into(), text, domain: domain_of(path) })
}

fn domain_of(path: &Path) -> String {
    path.parent()
        .and_then(Path::file_name)
        .map_or_else(|| "own".into(), |name| name.to_string_lossy().into_owned())
}

fn parse_all(sources: Vec<LibrarySource>) -> Result<Vec<LoadedScenario>, LibraryError> {
    let (mut read, mut invalid) = (Vec::new(), Vec::new());
    for source in sources {
        match Scenario::parse(&source.text, &source.path.display().to_string()) {
            Ok(scenario) => read.push(LoadedScenario { source, scenario }),
            Err(error) => invalid.push(error),
        }
    }
    if !invalid.is_empty() {
        return Err(LibraryError::Invalid(invalid));
    }
    read.sort_by(|a, b| a.scenario.id().cmp(b.scenario.id()));
    Ok(read)
}

/// A scenario with its target found and its program at hand.
pub(super) fn prepare_scenario(
    read: LoadedScenario,
    seed: u64,
    guard_removed: Option<&str>,
) -> Result<PreparedScenario, LibraryError> {
    let LoadedScenario { source, scenario } = read;
    let beside = source.path.parent().map(Path::to_path_buf).unwrap_or_default();
    let (target_source, target) = load_target_of(&scenario, &beside)?;
    let target_file = target_source.path.display().to_string();
    let program = find_program(
        target.program(),
        &target_source.path.parent().map(Path::to_path_buf).unwrap_or_default(),
    )?;
    let stand_in = if scenario.gpu().is_some() { shim_if_available()? } else { None };
    let verb = if guard_removed.is_some() { "prove" } else { "run" };
    let started = ScenarioStarted {
        title: scenario.title().to_owned(),
        severity: scenario.severity().to_string(),
        domain: source.domain,
        repeat: format!("trainwreck {verb} {} --seed {seed}", run_argument_for(&scenario, &source.path)),
        file: source.path.display().to_string(),
        source: source.text,
        target_source: target_source.text,
        target_file,
        guards: scenario.guards().to_vec(),
        guard_removed: guard_removed.map(str::to_owned),
    };
    Ok(PreparedScenario { scenario, target, program, shim: stand_in, started, scenario_dir: beside })
}

/// Where the library is not at hand, its scenarios are skipped; where it can't be built, that is an error.
fn shim_if_available() -> Result<Option<PathBuf>, LibraryError> {
    match find_shim_library() {
        Ok(path) => Ok(Some(path)),
        Err(ProgramError::NoLibrary { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether the target that a scenario names exists and knows all that the scenario speaks of.
pub(super) fn check_target(scenario: &Scenario, path: &Path) -> Result<(), LibraryError> {
    load_target_of(scenario, &path.parent().map(Path::to_path_buf).unwrap_or_default()).map(|_| ())
}

/// A target file by its path, or a shipped one by its name; with the folder that its program's path is relative to.
pub(super) fn load_target(name: &str) -> Result<(TargetFile, PathBuf), LibraryError> {
    let path = Path::new(name);
    let (text, path) = if path.is_file() {
        let source = read_source(path)?;
        (source.text, source.path)
    } else {
        let file = ShippedTargets::get(&format!("{name}.yaml"));
        let file = file.ok_or_else(|| LibraryError::UnknownTarget { name: name.into() })?;
        let path = PathBuf::from("scenarios/targets").join(format!("{name}.yaml"));
        (String::from_utf8_lossy(&file.data).into_owned(), path)
    };
    let target = TargetFile::parse(&text, &path.display().to_string());
    let target = target.map_err(|error| LibraryError::Invalid(vec![error]))?;
    Ok((target, path.parent().map(Path::to_path_buf).unwrap_or_default()))
}

fn load_target_of(scenario: &Scenario, beside: &Path) -> Result<(LibrarySource, TargetFile), LibraryError> {
    let invalid = |error| LibraryError::Invalid(vec![error]);
    let source = target_source_of(scenario, beside)?;
    let target = TargetFile::parse(&source.text, &source.path.display().to_string()).map_err(invalid)?;
    scenario.check_against(&target).map_err(invalid)?;
    Ok((source, target))
}

fn run_argument_for(scenario: &Scenario, path: &Path) -> String {
    if path.is_absolute() || path.is_file() && !path.starts_with("scenarios/library") {
        path.display().to_string()
    } else {
        scenario.id().to_owned()
    }
}

fn target_source_of(scenario: &Scenario, beside: &Path) -> Result<LibrarySource, LibraryError> {
    let name = scenario.target();
    let file = beside.join(name);
    if file.is_file() {
        return read_source(&file);
    }
    let shipped = ShippedTargets::get(&format!("{name}.yaml"));
    let shipped = shipped.map(|file| String::from_utf8_lossy(&file.data).into_owned());
    let path = PathBuf::from("scenarios/targets").join(format!("{name}.yaml"));
    shipped
        .map(|text| LibrarySource { path, text, domain: "targets".into() })
        .ok_or_else(|| LibraryError::NoTarget { scenario: scenario.id().into(), target: name.into() })
}
