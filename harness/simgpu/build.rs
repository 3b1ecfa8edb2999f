//! Compiles the trainer's kernels as host C++ and writes the table of their names. Must not know any kernel.
//! Without a C++ compiler, or without kernels, the table is empty and contains the reason, and the library
//! still builds. A kernel that a working compiler rejects fails the build.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// (name of the table in the library, directory of the kernels).
const TABLES: [(&str, &str); 2] = [("trainer", "../../target-trainer/kernels"), ("planted", "tests/planted")];

fn main() {
    let root = PathBuf::from(env("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env("OUT_DIR"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=host");
    for argument in ["-Wl,-z,nodelete", "-Wl,-Bsymbolic"] {
        println!("cargo:rustc-cdylib-link-arg={argument}");
    }
    let no_compiler = compile_host(&root, &out);
    let mut tables = String::new();
    for (table, directory) in TABLES {
        let directory = root.join(directory);
        println!("cargo:rerun-if-changed={}", directory.display());
        let sources = sources(&directory);
        let reason = match &no_compiler {
            Some(reason) => reason.clone(),
            None if sources.is_empty() => format!("there are no kernels in `{}`", directory.display()),
            None => String::new(),
        };
        if reason.is_empty() {
            compile_kernels(&root, &out, table, &sources);
        }
        tables.push_str(&rust_table(table, &reason));
    }
    write(&out.join("tables.rs"), &tables);
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("could not write {}: {error}", path.display()));
}

fn compiler(root: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    // The library must load where there is no C++ runtime library. `-ffp-contract=off` keeps sums in the
    // written order.
    build.cpp(true).cpp_link_stdlib(None).std("c++20").opt_level(2);
    build.flag("-fno-exceptions").flag("-fno-rtti").flag("-ffp-contract=off").flag("-fno-math-errno");
    build.flag("-fno-strict-aliasing").flag("-fno-stack-protector").flag("-Wno-unused-parameter");
    build.flag("-Wno-unused-function").flag("-Wno-unknown-pragmas").flag("-Wno-unused-variable");
    build.define("SIMGPU_HOST", None).include(root.join("host"));
    build
}

/// Compiles the host functions. Returns the reason if there is no C++20 compiler.
fn compile_host(root: &Path, out: &Path) -> Option<String> {
    let empty = out.join("empty.cpp");
    write(&empty, "");
    if let Err(error) = compiler(root).file(&empty).try_compile("simgpu_probe") {
        println!(
            "cargo:warning=the simulated GPU will have no kernels: {}",
            error.to_string().lines().next().unwrap_or_default()
        );
        return Some(
            "there was no C++20 compiler when the shim was built; install one and build again".into(),
        );
    }
    compiler(root).file(root.join("host/simgpu_host.cpp")).compile("simgpu_host");
    println!("cargo:rustc-link-lib=m");
    None
}

/// Returns `all.cu` if there is one, else all files that no other file includes.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).filter(|path| is_source(path)).collect();
    paths.sort();
    let all = directory.join("all.cu");
    match paths.contains(&all) {
        true => vec![all],
        false => {
            let included: BTreeSet<String> = paths.iter().flat_map(|path| includes(path)).collect();
            paths.retain(|path| !included.contains(&name(path)));
            paths
        }
    }
}

fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "cu")
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn includes(path: &Path) -> Vec<String> {
    let quoted = |line: &str| {
        let rest = line.trim().strip_prefix("#include")?.trim().strip_prefix('"')?;
        rest.split('"').next().map(String::from)
    };
    read(path).lines().filter_map(quoted).collect()
}

/// Returns the names of the kernels in a file and in the files that it includes, in order.
fn kernels(path: &Path, seen: &mut BTreeSet<PathBuf>) -> Vec<String> {
    if !seen.insert(path.into()) {
        return Vec::new();
    }
    println!("cargo:rerun-if-changed={}", path.display());
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut names: Vec<_> =
        includes(path).iter().flat_map(|included| kernels(&directory.join(included), seen)).collect();
    names.extend(read(path).lines().filter_map(declared_kernel));
    names
}

/// Returns `NAME` of a line that starts with `extern "C" __global__ void NAME(`. Launch bounds may precede
/// the name. Of a line that starts with `ENTRY(STEM, SIZE,`, the macro of `flash.cu`, returns `STEMSIZE`.
fn declared_kernel(line: &str) -> Option<String> {
    if let Some(arguments) = line.strip_prefix("ENTRY(") {
        let mut arguments = arguments.split(',').map(str::trim);
        return Some([arguments.next()?, arguments.next()?].concat());
    }
    let rest = line.strip_prefix("extern \"C\" __global__ void ")?;
    let rest = match rest.strip_prefix("__launch_bounds__(") {
        Some(bounds) => bounds.split_once(')')?.1.trim_start(),
        None => rest,
    };
    let name = rest.split('(').next()?.trim();
    (!name.is_empty()).then(|| name.into())
}

/// Returns the code that `src/kernels.rs` includes: a function that returns the table and the reason if it is
/// empty.
fn rust_table(table: &str, reason: &str) -> String {
    if !reason.is_empty() {
        return format!(
            "fn {table}() -> (&'static [KernelEntry], &'static str) {{\n    (&[], {reason:?})\n}}\n"
        );
    }
    format!(
        "unsafe extern \"C\" {{\n    static simgpu_table_{table}: KernelEntry;\n    \
         static simgpu_count_{table}: u32;\n}}\n\
         fn {table}() -> (&'static [KernelEntry], &'static str) {{\n    \
         // SAFETY: build.rs writes as many entries as it counts, and both are constants of the image.\n    \
         let entries = unsafe {{\n        \
         std::slice::from_raw_parts(&raw const simgpu_table_{table}, simgpu_count_{table} as usize)\n    \
         }};\n    \
         (entries, \"\")\n}}\n"
    )
}

/// Compiles one translation unit: the sources, then the table of all their kernels.
fn compile_kernels(root: &Path, out: &Path, table: &str, sources: &[PathBuf]) {
    let mut unit = String::new();
    for source in sources {
        writeln!(unit, "#include \"{}\"", source.display()).expect("writing to a string cannot fail");
    }
    let mut seen = BTreeSet::new();
    let names: Vec<_> = sources.iter().flat_map(|source| kernels(source, &mut seen)).collect();
    writeln!(unit, "extern \"C\" {{\nextern const simgpu_kernel simgpu_table_{table}[] = {{")
        .expect("writing to a string cannot fail");
    for name in &names {
        writeln!(unit, "    SIMGPU_KERNEL({name}),").expect("writing to a string cannot fail");
    }
    let count = names.len();
    writeln!(
        unit,
        "    {{nullptr, nullptr, nullptr, 0}}}};\nextern const unsigned simgpu_count_{table} = {count};\n}}"
    )
    .expect("writing to a string cannot fail");
    let file = out.join(format!("{table}.cpp"));
    write(&file, &unit);
    let mut build = compiler(root);
    build.file(&file).flag("-include").flag(root.join("host/simgpu_host.h"));
    if let Err(error) = build.try_compile(&format!("simgpu_{table}")) {
        panic!("a kernel does not compile as host C++: {error}");
    }
}
