//! Makes a program ask the kernel for the time: its vDSO answers without a system call otherwise (vdso(7)).
//! Decides nothing.

use std::fs::{File, OpenOptions, read_to_string};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;

use nix::libc;

/// Largest vDSO. Those of Linux have a few pages.
const MAX_VDSO_BYTES: u64 = 1 << 20;

/// `SHT_DYNSYM` of elf.h.
const DYNAMIC_SYMBOLS: u32 = 11;
// Sizes and places of elf(5), for 64 bits.
const SECTIONS_OFFSET: usize = 0x28;
const SECTION_SIZE_OFFSET: usize = 0x3A;
const SECTION_COUNT_OFFSET: usize = 0x3C;
const SECTION_TYPE: usize = 4;
const SECTION_CONTENT: usize = 24;
const SECTION_BYTES: usize = 32;
const SECTION_LINK: usize = 40;
const SYMBOL_BYTES: usize = 24;
const SYMBOL_VALUE: usize = 8;

/// A function of the vDSO, and the system call that does the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ClockFunction {
    offset: u64,
    number: i64,
}

/// Replaces the functions of the vDSO that tell the wall clock by system calls. Only this process sees that,
/// and those that it forks.
///
/// # Errors
/// If there is a vDSO and its functions can't be found or replaced.
pub(super) fn replace_clock_functions(tid: i32) -> Result<()> {
    let Some((start, end)) = vdso_range(&read_to_string(format!("/proc/{tid}/maps"))?) else {
        return Ok(());
    };
    let len_bytes = end.saturating_sub(start).min(MAX_VDSO_BYTES);
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{tid}/mem"))?;
    let mut image = vec![0; len_bytes as usize];
    memory.read_exact_at(&mut image, start)?;
    let functions = clock_functions(&image).filter(|found| !found.is_empty());
    let functions = functions.ok_or_else(|| Error::new(ErrorKind::InvalidData, "a vDSO without a clock"))?;
    functions.iter().try_for_each(|function| replace_function(&memory, start, *function))
}

#[cfg(target_arch = "x86_64")]
fn replace_function(memory: &File, start: u64, function: ClockFunction) -> Result<()> {
    // mov eax, number; syscall; ret
    let [a, b, c, d] = (function.number as u32).to_le_bytes();
    memory.write_all_at(&[0xB8, a, b, c, d, 0x0F, 0x05, 0xC3], start + function.offset)
}

#[cfg(not(target_arch = "x86_64"))]
fn replace_function(_memory: &File, _start: u64, _function: ClockFunction) -> Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Where the vDSO is in the memory that `/proc/PID/maps` describes.
fn vdso_range(maps: &str) -> Option<(u64, u64)> {
    let line = maps.lines().find(|line| line.ends_with(" [vdso]"))?;
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// The functions that tell the wall clock. `None`: the image can't be read.
fn clock_functions(image: &[u8]) -> Option<Vec<ClockFunction>> {
    let sections = number::<8>(image, SECTIONS_OFFSET)? as usize;
    let section_bytes = number::<2>(image, SECTION_SIZE_OFFSET)? as usize;
    let count = number::<2>(image, SECTION_COUNT_OFFSET)? as usize;
    let section = |index: usize| image.get(sections.checked_add(index.checked_mul(section_bytes)?)?..);
    let is_symbols = |section: &&[u8]| number::<4>(section, SECTION_TYPE) == Some(u64::from(DYNAMIC_SYMBOLS));
    let symbols = (0..count).filter_map(section).find(is_symbols)?;
    let names = section(number::<4>(symbols, SECTION_LINK)? as usize)?;
    let names = image.get(number::<8>(names, SECTION_CONTENT)? as usize..)?;
    let first = number::<8>(symbols, SECTION_CONTENT)? as usize;
    let table = image.get(first..first.checked_add(number::<8>(symbols, SECTION_BYTES)? as usize)?)?;
    let mut found: Vec<ClockFunction> =
        table.chunks_exact(SYMBOL_BYTES).filter_map(|symbol| clock_function(symbol, names)).collect();
    found.sort_unstable();
    // Two names may have one place.
    found.dedup();
    Some(found)
}

fn clock_function(symbol: &[u8], names: &[u8]) -> Option<ClockFunction> {
    let name = names.get(number::<4>(symbol, 0)? as usize..)?.split(|byte| *byte == 0).next()?;
    let number_of_call = match name {
        b"clock_gettime" | b"__vdso_clock_gettime" => libc::SYS_clock_gettime,
        b"gettimeofday" | b"__vdso_gettimeofday" => libc::SYS_gettimeofday,
        #[cfg(target_arch = "x86_64")]
        b"time" | b"__vdso_time" => libc::SYS_time,
        _ => return None,
    };
    Some(ClockFunction { offset: number::<8>(symbol, SYMBOL_VALUE)?, number: number_of_call })
}

/// A number of so many bytes.
fn number<const BYTES: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let found = bytes.get(offset..offset.checked_add(BYTES)?)?;
    Some(found.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_functions_of_this_machine_are_found_and_a_damaged_image_is_no_panic() {
        let (start, end) = vdso_range(&read_to_string("/proc/self/maps").unwrap()).unwrap();
        let mut image = vec![0; (end - start) as usize];
        File::open("/proc/self/mem").unwrap().read_exact_at(&mut image, start).unwrap();
        let found = clock_functions(&image).unwrap();
        let has = |number| found.iter().any(|function| function.number == number);
        assert!(has(libc::SYS_clock_gettime) && has(libc::SYS_gettimeofday), "{found:?}");
        for length in 0..image.len() {
            let _ = clock_functions(&image[..length]);
        }
        assert_eq!(clock_functions(&[0xFF; 4096]), None);
    }
}
