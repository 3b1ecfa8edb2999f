//! Tests that NVRTC compiles every CUDA kernel for two GPU architectures, and that the committed PTX matches
//! the sources. The results of the kernels are tested in `tests/cuda`.
//!
//! `NVRTC_LIBRARY_DIR` is the directory of the library (`kernels/nvrtc.sh` installs it). Without it, the
//! loader searches its default directories. `UPDATE_PTX=1` regenerates the committed PTX.

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;
mod sys;

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use libtest_mimic::{Arguments, Failed};

/// The version that compiles the committed PTX. It is the first NVRTC of CUDA 12, so its PTX loads with every
/// driver of CUDA 12.
const COMMITTED_NVRTC: (i32, i32) = (12, 0);
/// The PTX ISA of NVRTC 12.0.
const COMMITTED_PTX_VERSION: &str = ".version 8.0";
/// Compute capability 8.0, that of the A100.
const COMMITTED_TARGET: &str = ".target sm_80";

/// Environment variable that is set in the process that was restarted with NVRTC's directory.
const RESTARTED_VARIABLE: &str = "KERNEL_TESTS_LIBRARY_DIR";

/// Kernels that exist for f32 and for bf16.
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
/// Kernels for bf16 on tensor cores; each exists for every head size of `TENSOR_CORE_HEAD_DIMS`.
const TENSOR_CORE_KERNELS: [&str; 3] = ["attention", "attention_backward_kv", "attention_backward_q"];
/// Head sizes of the tensor-core kernels.
const TENSOR_CORE_HEAD_DIMS: [u32; 4] = [16, 32, 64, 128];
/// Kernels that exist for one type only.
const UNTYPED_KERNELS: [&str; 6] =
    ["adamw", "cast_bf16", "checksum", "finish_norm", "square_sum", "weighted_sum"];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let no_compiler = match restart_with_nvrtc() {
        Ok(()) => sys::nvrtc_version().is_none().then(|| {
            "no NVRTC: set NVRTC_LIBRARY_DIR to the directory that kernels/nvrtc.sh prints".to_owned()
        }),
        Err(error) => panic!("{}", error.message().unwrap_or_default()),
    };
    let other_compiler = sys::nvrtc_version().filter(|version| *version != COMMITTED_NVRTC).map(|version| {
        let [found, committed] = [version, COMMITTED_NVRTC].map(version_text);
        format!("NVRTC {found}, but the committed PTX is from {committed}")
    });
    let mut trials = trials![the_sources_declare_exactly_the_expected_kernels, a_missing_kernel_is_detected,];
    trials.extend(trials![
        no_compiler.clone();
        every_kernel_compiles_for_sm_80,
        every_kernel_compiles_for_sm_90,
    ]);
    trials.extend(trials![no_compiler.or(other_compiler); the_committed_ptx_is_current]);
    trials.extend(trials![
        the_committed_ptx_has_every_kernel_and_loads_with_old_drivers,
        the_committed_ptx_has_the_digest_of_the_sources,
    ]);
    // One after the other: with UPDATE_PTX one of them writes the file that later ones read.
    let arguments = Arguments { test_threads: Some(1), ..arguments };
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn version_text((major, minor): (i32, i32)) -> String {
    format!("{major}.{minor}")
}

/// Adds `NVRTC_LIBRARY_DIR` to the loader's search path and restarts this program, because the loader reads
/// the path only when a process starts.
fn restart_with_nvrtc() -> Result<(), Failed> {
    let Some(dir) = std::env::var_os("NVRTC_LIBRARY_DIR").filter(|dir| !dir.is_empty()) else {
        return Ok(());
    };
    if std::env::var_os(RESTARTED_VARIABLE).as_ref() == Some(&dir) {
        return Ok(());
    }
    let mut path = dir.clone();
    if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(rest);
    }
    let program = std::env::current_exe()
        .map_err(|error| format!("could not find the path of the test program: {error}"))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env("LD_LIBRARY_PATH", path).env(RESTARTED_VARIABLE, &dir);
    Err(format!("could not restart the test program: {}", command.exec()).into())
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

/// Returns `all.cu` with each include replaced by the file's content, once.
fn joined_sources() -> Result<String, Failed> {
    let mut text = String::new();
    append_source("all.cu", &mut BTreeSet::new(), &mut text)?;
    Ok(text)
}

fn append_source(
    name: &str,
    included_before: &mut BTreeSet<String>,
    text: &mut String,
) -> Result<(), Failed> {
    if !included_before.insert(name.into()) {
        return Ok(());
    }
    for line in read(&kernels_dir().join(name))?.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) {
            Some(included) => append_source(included, included_before, text)?,
            None if line == "#pragma once" => {}
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    Ok(())
}

/// The names of all kernels.
fn expected_kernels() -> BTreeSet<String> {
    let typed =
        F32_AND_BF16_KERNELS.iter().flat_map(|kernel| [format!("{kernel}_f32"), format!("{kernel}_bf16")]);
    let tensor_core = TENSOR_CORE_KERNELS
        .iter()
        .flat_map(|kernel| TENSOR_CORE_HEAD_DIMS.map(|head| format!("{kernel}_bf16_d{head}")));
    typed.chain(tensor_core).chain(UNTYPED_KERNELS.map(String::from)).collect()
}

/// Returns the names after `extern "C" __global__ void` and optional launch bounds, and those of the kernels
/// that the macro `ENTRY(STEM, SIZE, ..)` of `flash.cu` defines.
fn declared_kernels(source: &str) -> BTreeSet<String> {
    let kernel_name = |line: &str| {
        if let Some(arguments) = line.strip_prefix("ENTRY(") {
            let mut arguments = arguments.split(',').map(str::trim);
            return Some([arguments.next()?, arguments.next()?].concat());
        }
        let rest = line.strip_prefix("extern \"C\" __global__ void ")?;
        let rest = match rest.strip_prefix("__launch_bounds__(") {
            Some(bounds) => bounds.split_once(") ")?.1,
            None => rest,
        };
        Some(rest.split_once('(')?.0.to_owned())
    };
    source.lines().filter_map(kernel_name).collect()
}

/// Returns the names of the entry points.
fn ptx_entries(ptx: &str) -> BTreeSet<String> {
    let kernel_name =
        |line: &str| Some(line.strip_prefix(".visible .entry ")?.trim_end_matches(['(', ')']).to_owned());
    ptx.lines().filter_map(kernel_name).collect()
}

/// Fails with the difference between two sets of kernels.
fn assert_same_kernels(found: &BTreeSet<String>, expected: &BTreeSet<String>) -> Result<(), Failed> {
    let missing: Vec<_> = expected.difference(found).collect();
    let unexpected: Vec<_> = found.difference(expected).collect();
    match missing.is_empty() && unexpected.is_empty() {
        true => Ok(()),
        false => Err(format!("missing: {missing:?}; unexpected: {unexpected:?}").into()),
    }
}

fn the_sources_declare_exactly_the_expected_kernels() -> Result<(), Failed> {
    assert_same_kernels(&declared_kernels(&joined_sources()?), &expected_kernels())
}

fn a_missing_kernel_is_detected() -> Result<(), Failed> {
    for (declared, renamed) in [
        ("void rope_bf16(", "void rope_bf17("),
        ("ENTRY(attention_bf16_d, 64,", "ENTRY(attention_bf16_d, 65,"),
    ] {
        let sources = joined_sources()?;
        let without_one = sources.replace(declared, renamed);
        if without_one == sources {
            return Err(format!("no kernel is declared by `{declared}`").into());
        }
        if assert_same_kernels(&declared_kernels(&without_one), &expected_kernels()).is_ok() {
            return Err(format!("the kernel of `{declared}` was removed, and nothing noticed").into());
        }
    }
    Ok(())
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
        Err(error) => Err(format!("NVRTC can't compile the kernels for {arch}: {error:?}").into()),
    }
}

fn every_kernel_compiles_for_sm_80() -> Result<(), Failed> {
    compiles_for("sm_80")
}

fn every_kernel_compiles_for_sm_90() -> Result<(), Failed> {
    compiles_for("sm_90")
}

/// `arch` is a real architecture, so NVRTC also assembles the PTX.
fn compiles_for(arch: &'static str) -> Result<(), Failed> {
    assert_same_kernels(&ptx_entries(&compile(arch)?), &expected_kernels())
}

/// Removes the compiler's comments about itself, and the unused variables of its built-in headers.
fn without_compiler_comments(ptx: &str) -> String {
    let is_kept = |line: &&str| !line.starts_with("//") && !line.contains("2nv6target");
    let lines: Vec<_> = ptx.lines().filter(is_kept).map(str::trim_end).collect();
    format!("{}\n", lines.join("\n").trim())
}

/// Returns a digest of the sources without comments, so that a change of comments needs no new PTX.
fn source_digest(source: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().trim().to_owned();
    let lines: Vec<_> = source.lines().map(code).filter(|line| !line.is_empty()).collect();
    blake3::hash(lines.join("\n").as_bytes()).to_hex().to_string()
}

/// The first lines of the committed PTX.
fn ptx_header(source: &str) -> String {
    format!(
        "// Generated by NVRTC {} from kernels/*.cu; see kernels/README.md. Do not edit.\n\
         // sources: {}\n",
        version_text(COMMITTED_NVRTC),
        source_digest(source)
    )
}

fn the_committed_ptx_is_current() -> Result<(), Failed> {
    let fresh = ptx_header(&joined_sources()?) + &without_compiler_comments(&compile("compute_80")?);
    let path = committed_path();
    if std::env::var_os("UPDATE_PTX").is_some_and(|value| value == "1") {
        return std::fs::write(&path, fresh)
            .map_err(|error| format!("could not write `{}`: {error}", path.display()).into());
    }
    let committed = read(&path)?;
    let first_difference = committed.lines().zip(fresh.lines()).position(|(old, new)| old != new);
    match (committed == fresh, first_difference) {
        (true, _) => Ok(()),
        (false, Some(line)) => Err(stale_ptx(&format!("line {} differs", line + 1))),
        (false, None) => Err(stale_ptx("the length differs")),
    }
}

fn stale_ptx(difference: &str) -> Failed {
    format!(
        "`kernels/ptx/kernels.ptx` is not current ({difference}): \
         run this test with UPDATE_PTX=1 and NVRTC {}",
        version_text(COMMITTED_NVRTC)
    )
    .into()
}

fn the_committed_ptx_has_every_kernel_and_loads_with_old_drivers() -> Result<(), Failed> {
    let committed = read(&committed_path())?;
    for line in [COMMITTED_PTX_VERSION, COMMITTED_TARGET] {
        if !committed.lines().any(|found| found == line) {
            return Err(format!("the committed PTX has no line `{line}`").into());
        }
    }
    assert_same_kernels(&ptx_entries(&committed), &expected_kernels())
}

fn the_committed_ptx_has_the_digest_of_the_sources() -> Result<(), Failed> {
    let source = joined_sources()?;
    match read(&committed_path())?.starts_with(&ptx_header(&source)) {
        true => Ok(()),
        false => Err(stale_ptx("the digest of the sources differs")),
    }
}
