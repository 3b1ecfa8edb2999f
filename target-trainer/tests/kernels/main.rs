//! The CUDA kernels: that NVRTC takes every one of them for two kinds of cards, and that the committed PTX is that of the
//! sources. `NVRTC_LIBRARY_DIR` is a folder with the library (`kernels/nvrtc.sh` gets one); without it the loader's own
//! places are tried. `UPDATE_PTX=1` writes the committed PTX anew. What the kernels compute is tested elsewhere.

#![expect(clippy::print_stderr, reason = "a test says what it skips")]

mod sys;

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use libtest_mimic::{Arguments, Failed, Trial};

/// What makes the committed PTX: the first NVRTC of CUDA 12, whose PTX loads with every driver of CUDA 12.
const COMMITTED_NVRTC: (i32, i32) = (12, 0);
const COMMITTED_PTX_VERSION: &str = ".version 8.0";
const COMMITTED_TARGET: &str = ".target sm_80";

/// Set in the process that NVRTC's folder was handed to.
const RESTARTED_VARIABLE: &str = "KERNEL_TESTS_LIBRARY_DIR";

/// Kernels that come for f32 and for bf16.
const F32_AND_BF16_KERNELS: [&str; 14] = [
    "attention",
    "attention_backward_kv",
    "attention_backward_q",
    "attention_delta",
    "cross_entropy",
    "embed",
    "gather_rows",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "scatter_rows",
    "spread",
    "swiglu",
    "swiglu_backward",
];
/// Kernels for bf16 on tensor cores, one for each head size of `HEADS`.
const TENSOR_CORE_KERNELS: [&str; 3] = ["attention", "attention_backward_kv", "attention_backward_q"];
const TENSOR_CORE_HEAD_DIMS: [u32; 4] = [16, 32, 64, 128];
const UNTYPED_KERNELS: [&str; 6] =
    ["adamw", "cast_bf16", "checksum", "finish_norm", "square_sum", "weighted_sum"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(why) = restart_with_nvrtc() {
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    let found = sys::nvrtc_version();
    let no_compiler = match found {
        Some(_) => None,
        None => Some("no NVRTC was found: set NVRTC_LIBRARY_DIR to what kernels/nvrtc.sh prints".to_owned()),
    };
    let other_compiler = match found {
        Some(version) if version != COMMITTED_NVRTC => Some(format!(
            "the NVRTC found is {}, the committed PTX is by {}",
            version_text(version),
            version_text(COMMITTED_NVRTC)
        )),
        _ => no_compiler.clone(),
    };
    let skipped: BTreeSet<_> = [&no_compiler, &other_compiler].into_iter().flatten().collect();
    skipped.iter().for_each(|why| eprintln!("skipped: {why}"));
    let trials = vec![
        Trial::test(
            "the_sources_declare_every_kernel_that_is_asked_for_and_no_other",
            sources_declare_expected_kernels,
        ),
        Trial::test("a_kernel_that_is_not_there_is_noticed", missing_kernel_is_detected),
        Trial::test("every_kernel_compiles_for_sm_80", || compiles_for("sm_80"))
            .with_ignored_flag(no_compiler.is_some()),
        Trial::test("every_kernel_compiles_for_sm_90", || compiles_for("sm_90"))
            .with_ignored_flag(no_compiler.is_some()),
        Trial::test("the_committed_ptx_is_what_the_sources_give", committed_ptx_is_current)
            .with_ignored_flag(other_compiler.is_some()),
        Trial::test("the_committed_ptx_has_every_kernel_for_old_drivers", committed_ptx_is_complete),
        Trial::test("the_committed_ptx_names_the_sources_that_lie_here", committed_ptx_matches_sources),
    ];
    // One after another: with UPDATE_PTX one of them writes what the last ones read.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn version_text((major, minor): (i32, i32)) -> String {
    format!("{major}.{minor}")
}

/// The loader reads its path once, when a process starts: the folder is put there, and this program started again.
fn restart_with_nvrtc() -> Result<(), String> {
    let Some(folder) = std::env::var_os("NVRTC_LIBRARY_DIR").filter(|folder| !folder.is_empty()) else {
        return Ok(());
    };
    if std::env::var_os(RESTARTED_VARIABLE).as_ref() == Some(&folder) {
        return Ok(());
    }
    let mut path = folder.clone();
    if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(rest);
    }
    let program = std::env::current_exe().map_err(|error| format!("no own path: {error}"))?;
    let mut again = Command::new(program);
    again.args(std::env::args_os().skip(1)).env("LD_LIBRARY_PATH", path).env(RESTARTED_VARIABLE, &folder);
    Err(format!("could not start again: {}", again.exec()))
}

fn kernels_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn committed_path() -> PathBuf {
    kernels_dir().join("ptx/kernels.ptx")
}

fn read(path: &Path) -> Result<String, Failed> {
    std::fs::read_to_string(path)
        .map_err(|error| format!("could not read `{}`: {error}", path.display()).into())
}

/// `all.cu` with every file that it includes in its place, each once.
fn joined_sources() -> Result<String, Failed> {
    let mut text = String::new();
    append_source("all.cu", &mut BTreeSet::new(), &mut text)?;
    Ok(text)
}

fn append_source(name: &str, seen: &mut BTreeSet<String>, text: &mut String) -> Result<(), Failed> {
    if !seen.insert(name.into()) {
        return Ok(());
    }
    for line in read(&kernels_dir().join(name))?.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(included) => append_source(included, seen, text)?,
            None if line == "#pragma once" => {}
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    Ok(())
}

fn expected_kernels() -> BTreeSet<String> {
    let of_two =
        F32_AND_BF16_KERNELS.iter().flat_map(|kernel| [format!("{kernel}_f32"), format!("{kernel}_bf16")]);
    let tensor = TENSOR_CORE_KERNELS
        .iter()
        .flat_map(|kernel| TENSOR_CORE_HEAD_DIMS.map(|head| format!("{kernel}_bf16_d{head}")));
    of_two.chain(tensor).chain(UNTYPED_KERNELS.map(String::from)).collect()
}

/// Names behind `extern "C" __global__ void`, which may have launch bounds before them.
fn declared_kernels(source: &str) -> BTreeSet<String> {
    let named = |line: &str| {
        let rest = line.strip_prefix("extern \"C\" __global__ void ")?;
        let rest = match rest.strip_prefix("__launch_bounds__(") {
            Some(bounds) => bounds.split_once(") ")?.1,
            None => rest,
        };
        Some(rest.split_once('(')?.0.to_owned())
    };
    source.lines().filter_map(named).collect()
}

/// Names of the kernels that a program may launch.
fn ptx_entries(ptx: &str) -> BTreeSet<String> {
    let named =
        |line: &str| Some(line.strip_prefix(".visible .entry ")?.trim_end_matches(['(', ')']).to_owned());
    ptx.lines().filter_map(named).collect()
}

fn assert_same_kernels(found: &BTreeSet<String>, wanted: &BTreeSet<String>) -> Result<(), Failed> {
    let missing: Vec<_> = wanted.difference(found).collect();
    let surplus: Vec<_> = found.difference(wanted).collect();
    match missing.is_empty() && surplus.is_empty() {
        true => Ok(()),
        false => Err(format!("missing: {missing:?}; not asked for: {surplus:?}").into()),
    }
}

fn sources_declare_expected_kernels() -> Result<(), Failed> {
    assert_same_kernels(&declared_kernels(&joined_sources()?), &expected_kernels())
}

fn missing_kernel_is_detected() -> Result<(), Failed> {
    let lost = joined_sources()?.replace("void rope_bf16(", "void rope_bf17(");
    match assert_same_kernels(&declared_kernels(&lost), &expected_kernels()) {
        Ok(()) => Err("a kernel was taken away, and nobody noticed".into()),
        Err(_) => Ok(()),
    }
}

fn compile(arch: &'static str) -> Result<String, Failed> {
    let options = CompileOptions {
        arch: Some(arch),
        name: Some("kernels.cu".into()),
        options: vec!["--std=c++17".into()],
        ..CompileOptions::default()
    };
    match compile_ptx_with_opts(joined_sources()?, options) {
        Ok(ptx) => Ok(ptx.to_src()),
        Err(error) => Err(format!("NVRTC refuses the kernels for {arch}: {error:?}").into()),
    }
}

/// For a card itself, not for a virtual one: NVRTC goes on to assemble what it compiled.
fn compiles_for(arch: &'static str) -> Result<(), Failed> {
    assert_same_kernels(&ptx_entries(&compile(arch)?), &expected_kernels())
}

/// Without what the compiler says of itself, and without the variables that its built-in headers leave in each program.
fn without_compiler_comments(ptx: &str) -> String {
    let kept = |line: &&str| !line.starts_with("//") && !line.contains("2nv6target");
    let lines: Vec<_> = ptx.lines().filter(kept).map(str::trim_end).collect();
    format!("{}\n", lines.join("\n").trim())
}

/// Of the sources, but for comments: a better word in one asks for no new PTX.
fn source_digest(source: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().trim().to_owned();
    let lines: Vec<_> = source.lines().map(code).filter(|line| !line.is_empty()).collect();
    blake3::hash(lines.join("\n").as_bytes()).to_hex().to_string()
}

fn ptx_header(source: &str) -> String {
    format!(
        "// Generated by NVRTC {} from kernels/*.cu; kernels/README.md says how. Do not edit.\n// sources: {}\n",
        version_text(COMMITTED_NVRTC),
        source_digest(source)
    )
}

fn committed_ptx_is_current() -> Result<(), Failed> {
    let fresh = ptx_header(&joined_sources()?) + &without_compiler_comments(&compile("compute_80")?);
    let path = committed_path();
    if std::env::var_os("UPDATE_PTX").is_some_and(|value| value == "1") {
        return std::fs::write(&path, fresh)
            .map_err(|error| format!("could not write `{}`: {error}", path.display()).into());
    }
    let committed = read(&path)?;
    let differs = committed.lines().zip(fresh.lines()).position(|(old, new)| old != new);
    match (committed == fresh, differs) {
        (true, _) => Ok(()),
        (false, Some(line)) => Err(stale_ptx(&format!("line {}", line + 1))),
        (false, None) => Err(stale_ptx("the length")),
    }
}

fn stale_ptx(what: &str) -> Failed {
    format!(
        "`kernels/ptx/kernels.ptx` is not what the sources give ({what}): run with UPDATE_PTX=1 and NVRTC {}",
        version_text(COMMITTED_NVRTC)
    )
    .into()
}

fn committed_ptx_is_complete() -> Result<(), Failed> {
    let committed = read(&committed_path())?;
    for line in [COMMITTED_PTX_VERSION, COMMITTED_TARGET] {
        if !committed.lines().any(|found| found == line) {
            return Err(format!("the committed PTX has no line `{line}`").into());
        }
    }
    assert_same_kernels(&ptx_entries(&committed), &expected_kernels())
}

fn committed_ptx_matches_sources() -> Result<(), Failed> {
    let source = joined_sources()?;
    match read(&committed_path())?.starts_with(&ptx_header(&source)) {
        true => Ok(()),
        false => Err(stale_ptx("the digest of the sources")),
    }
}
