//! A bit that flips in the memory of the target: looks for a part of a file in the memory of each process, and flips
//! one bit of each copy. Knows no trigger.

use std::fs::{File, OpenOptions};
use std::io::Error;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use memchr::memmem::Finder;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use scenarios::{EffectSpec, FilePart, FlipMemory};

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::faults::target_files::{MAX_LISTED_FILES, TargetPlace, list_files};

/// Bytes of the file that are looked for.
const RUN_BYTES: usize = 64;
/// Different bytes that they must have: zeros or ones would be found anywhere.
const MIN_DIFFERENT_BYTES: usize = 16;
/// The byte of the run that is changed, and its bit: in f32 and in bf16, the highest bit of a mantissa.
const FLIPPED_BYTE: u64 = 2;
const FLIPPED_BIT: u8 = 1 << 6;
/// Memory that is read at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Most memory of the target that is looked at.
const MAX_BYTES: u64 = 16 << 30;

/// A bit that is flipped in memory.
pub(super) struct FlippedMemory {
    fault: FlipMemory,
    /// What was flipped.
    done: Vec<String>,
    /// Why nothing was, if so.
    why: String,
}

/// Parts of a file.
struct Runs {
    path: String,
    runs: Vec<Run>,
}

/// A part of a file that can be told from others.
struct Run {
    offset: u64,
    bytes: Vec<u8>,
}

/// Why there is nothing to look for.
#[derive(Debug, thiserror::Error)]
enum NoRun {
    #[error("the root holds more than {MAX_LISTED_FILES} files")]
    TooManyFiles,
    #[error("no file matched")]
    NoFile,
    #[error("`{path}`: {source}")]
    Read { path: String, source: Error },
    #[error("`{0}` has no {RUN_BYTES} bytes that can be told from others")]
    NotDistinctive(String),
}

/// What was found in the memory of one process.
struct Copies {
    addresses: Vec<u64>,
    looked_at: u64,
}

impl FlippedMemory {
    pub(super) fn new(fault: &FlipMemory) -> FlippedMemory {
        FlippedMemory { fault: fault.clone(), done: Vec::new(), why: "no file matched".into() }
    }

    /// Parts of the first file that matches, those nearest to `part` first.
    fn runs(&self, root: &Path) -> Result<Runs, NoRun> {
        let files = list_files(root).ok_or(NoRun::TooManyFiles)?;
        let path = files.into_iter().find(|path| self.fault.file.is_match(path)).ok_or(NoRun::NoFile)?;
        let open = || TargetPlace::of(root, &path).and_then(|place| open_to_read(&place.path()));
        let runs = open().and_then(|file| distinctive_runs(&file, self.fault.part()));
        match runs {
            Ok(runs) if runs.is_empty() => Err(NoRun::NotDistinctive(path)),
            Ok(runs) => Ok(Runs { path, runs }),
            Err(source) => Err(NoRun::Read { path, source }),
        }
    }

    fn flip_first_found(&mut self, context: &FaultContext<'_>, Runs { path, runs }: &Runs) {
        let mut looked_at = 0;
        for run in runs {
            for process in context.sandbox.processes() {
                let Some(dir) = context.sandbox.process_dir(process.pid_inside) else { continue };
                let name = format!("process {} ({})", process.pid_inside, process.name.escape_default());
                match flip_in_process(&dir, &run.bytes, MAX_BYTES.saturating_sub(looked_at)) {
                    Ok(copies) => {
                        looked_at += copies.looked_at;
                        let byte = run.offset + FLIPPED_BYTE;
                        self.done.extend(copies.addresses.iter().map(|address| {
                            format!("flipped a bit of byte {byte} of `{path}` at {address:#x} in {name}")
                        }));
                    }
                    // A process may end at any time.
                    Err(error) => self.why = format!("{name}: {error}"),
                }
            }
            if !self.done.is_empty() {
                return;
            }
        }
        if looked_at > 0 {
            let limit = if looked_at >= MAX_BYTES { ", which is the most that is looked at" } else { "" };
            let (parts, mib) = (runs.len(), looked_at >> 20);
            self.why = format!(
                "no process had one of {parts} parts of `{path}` in memory; {mib} MiB were read{limit}"
            );
        }
    }
}

fn open_to_read(path: &Path) -> Result<File, Error> {
    OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)
}

/// Parts of the file that are like no others, those nearest to `part` first, and texts last. Each lies among others of
/// this kind: at the border of two tensors, a part may be nowhere in memory as a whole.
fn distinctive_runs(file: &File, part: FilePart) -> Result<Vec<Run>, Error> {
    let len_bytes = file.metadata()?.len();
    let count = len_bytes / RUN_BYTES as u64;
    let begin = part.offset(len_bytes.max(1)) / RUN_BYTES as u64;
    let distances = std::iter::once(0).chain((0..32).map(|power| 1u64 << (2 * power)));
    let indexes = distances.flat_map(|distance| [begin.checked_sub(distance), begin.checked_add(distance)]);
    let mut runs = Vec::new();
    for index in indexes.flatten().filter(|index| *index < count) {
        let first = index.saturating_sub(1);
        let mut bytes = vec![0; RUN_BYTES * usize::try_from((index + 2).min(count) - first).unwrap_or(1)];
        file.read_exact_at(&mut bytes, first * RUN_BYTES as u64)?;
        if bytes.chunks(RUN_BYTES).all(is_distinctive) {
            let bytes = bytes.split_off(RUN_BYTES * usize::from(index > first));
            let run = Run { offset: index * RUN_BYTES as u64, bytes: bytes[..RUN_BYTES].to_vec() };
            runs.push(run);
        }
    }
    runs.dedup_by_key(|run| run.offset);
    // A text among other bytes is a header. Programs keep copies of it that they no longer use.
    runs.sort_by_key(|run| is_text(&run.bytes));
    Ok(runs)
}

fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

fn is_distinctive(bytes: &[u8]) -> bool {
    let mut different = bytes.to_vec();
    different.sort_unstable();
    different.dedup();
    different.len() >= MIN_DIFFERENT_BYTES
}

/// Flips the bit of each copy in the private memory of a process. Memory that is shared could be that of a file, or of
/// somebody else.
fn flip_in_process(dir: &Path, run: &[u8], max_bytes: u64) -> Result<Copies, Error> {
    let maps = std::fs::read_to_string(dir.join("maps"))?;
    let memory = OpenOptions::new().read(true).write(true).open(dir.join("mem"))?;
    let mut copies = Copies { addresses: Vec::new(), looked_at: 0 };
    for (begin, end) in maps.lines().filter_map(private_range) {
        let end = end.min(begin.saturating_add(max_bytes - copies.looked_at));
        copies.looked_at += end - begin;
        for address in find(&memory, run, begin, end) {
            let (at, mut byte) = (address + FLIPPED_BYTE, [0]);
            memory.read_exact_at(&mut byte, at)?;
            memory.write_all_at(&[byte[0] ^ FLIPPED_BIT], at)?;
            copies.addresses.push(at);
        }
    }
    Ok(copies)
}

/// Begin and end of a mapping that can be read and belongs to the process alone.
fn private_range(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    // `[vvar]` and `[vsyscall]` are the kernel's.
    let is_kernel = fields.nth(3).is_some_and(|name| name.starts_with("[v"));
    if is_kernel || !permissions.starts_with('r') || !permissions.ends_with('p') {
        return None;
    }
    let (begin, end) = range.split_once('-')?;
    Some((u64::from_str_radix(begin, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Where the run begins in this range. What can't be read is passed over.
fn find(memory: &File, run: &[u8], begin: u64, end: u64) -> Vec<u64> {
    let finder = Finder::new(run);
    let mut chunk = vec![0; CHUNK_BYTES + run.len() - 1];
    let mut found = Vec::new();
    let mut at = begin;
    while at < end {
        let len = chunk.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let read = memory.read_at(&mut chunk[..len], at).unwrap_or(0);
        found.extend(finder.find_iter(&chunk[..read]).map(|index| at + index as u64));
        at += CHUNK_BYTES as u64;
    }
    found
}

impl InjectableFault for FlippedMemory {
    fn mechanism(&self) -> String {
        format!("a write to /proc/PID/mem: {}", self.fault.describe())
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        match self.runs(&context.sandbox.host_path_in_root(Path::new(""))) {
            Ok(runs) => self.flip_first_found(context, &runs),
            Err(why) => self.why = why.to_string(),
        }
        Ok(())
    }

    fn effective_evidence(&mut self, _: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        let first = self.done.first()?;
        let others = match self.done.len() - 1 {
            0 => String::new(),
            others => format!(", and of {others} more copies"),
        };
        Some(format!("{first}{others}"))
    }

    fn missing_evidence(&self) -> String {
        self.why.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use super::*;

    fn file_of(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_run_is_taken_where_bytes_can_be_told_from_others() {
        let varied: Vec<u8> = (0..RUN_BYTES as u8).collect();
        let zeros = vec![0; 10 * RUN_BYTES];
        let bytes = [&varied.repeat(4), &zeros, &varied.repeat(4), &zeros[..3]].concat();
        let of = |bytes: &[u8], part| {
            let runs = distinctive_runs(&file_of(bytes), part).unwrap();
            assert!(runs.iter().all(|run| run.bytes == varied));
            runs.iter().map(|run| run.offset / RUN_BYTES as u64).collect::<Vec<_>>()
        };
        // Not 3 and 14, which have zeros beside them.
        assert_eq!(of(&bytes, FilePart::Start), [0, 1, 16]);
        assert_eq!(of(&bytes, FilePart::End), [17, 2]);
        assert_eq!(of(&varied, FilePart::End), [0]);
        assert!(of(&zeros, FilePart::Middle).is_empty() && of(&varied[..63], FilePart::Start).is_empty());
        assert!(of(&[], FilePart::Middle).is_empty());
    }

    #[test]
    fn what_is_no_text_comes_before_a_header() {
        let text: Vec<u8> = (b' '..=b'~').cycle().take(8 * RUN_BYTES).collect();
        let numbers: Vec<u8> = (0..=255).cycle().take(32 * RUN_BYTES).collect();
        let file = file_of(&[text, numbers].concat());
        let offset = |run: &Run| run.offset / RUN_BYTES as u64;
        let runs = distinctive_runs(&file, FilePart::Start).unwrap();
        assert_eq!(runs.iter().map(offset).collect::<Vec<_>>(), [16, 0, 1, 4]);
    }

    #[test]
    fn a_bit_flips_in_the_memory_of_a_process() {
        let text: String = ('0'..='z').cycle().take(RUN_BYTES).collect();
        let mut child = std::process::Command::new("sleep").arg("60").env("TEXT", &text).spawn().unwrap();
        let dir = PathBuf::from(format!("/proc/{}", child.id()));
        let environment = || std::fs::read(dir.join("environ")).unwrap_or_default();
        let has = |text: &str| Finder::new(text).find(&environment()).is_some();
        // Until the child has become `sleep`.
        while !has(&text) {
            std::thread::yield_now();
        }
        assert!(
            flip_in_process(&dir, text.as_bytes(), 0).unwrap().addresses.is_empty(),
            "nothing is looked at"
        );
        let found = flip_in_process(&dir, text.as_bytes(), MAX_BYTES).unwrap();
        let mut flipped = text.clone().into_bytes();
        flipped[FLIPPED_BYTE as usize] ^= FLIPPED_BIT;
        let has_flipped = !has(&text) && has(std::str::from_utf8(&flipped).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(has_flipped && !found.addresses.is_empty());
    }

    #[test]
    fn only_private_memory_that_can_be_read_is_looked_at() {
        for line in [
            "7f00-7f10 rw-s 00000000 00:01 1 /dev/shm/x",
            "7f00-7f10 ---p 00000000 00:00 0",
            "7f00-7f10 r--p 00000000 00:00 0 [vvar]",
            "7f00-7f10 r-xp 00000000 00:00 0 [vdso]",
            "nonsense",
            "",
        ] {
            assert_eq!(private_range(line), None, "{line}");
        }
        assert_eq!(private_range("7f00-7f10 r--p 00000000 08:01 9 /x"), Some((0x7f00, 0x7f10)));
        assert_eq!(private_range("7f00-7f10 rw-p 00000000 00:00 0"), Some((0x7f00, 0x7f10)));
    }
}
