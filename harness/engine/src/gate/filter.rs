//! Builds the seccomp program that the kernel runs at each system call of the target. It decides which calls
//! are intercepted, that is, reported to the supervisor. Pure.

use nix::libc;

use super::CallKind;
use super::attribute_calls::attribute_call_numbers;
use crate::seccomp::{SeccompInstruction, SeccompProgram};

/// Which calls are intercepted in addition to those that change the file tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterOptions {
    /// Kinds that are intercepted only on request, because they are frequent and change nothing.
    pub extra_kinds: Vec<CallKind>,
    /// Also intercepts writes to standard output and standard error.
    pub stdio_writes: bool,
}

const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
/// The bits of an instruction's code that tell jumps from other instructions (`BPF_CLASS`).
#[cfg(test)]
const CLASS_BITS: u16 = 7;

// Offsets in `seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;
/// Size of one argument in `seccomp_data`.
const ARGUMENT_BYTES: u32 = 8;
/// Offset of the lower 32 bits of an argument in `seccomp_data`.
const fn argument_offset(index: u32) -> u32 {
    ARGUMENTS_OFFSET + ARGUMENT_BYTES * index
}

// Positions of arguments.
const FD_ARGUMENT: u32 = 0;
const OPEN_FLAGS_ARGUMENT: u32 = 1;
const OPENAT_FLAGS_ARGUMENT: u32 = 2;
const MMAP_PROTECTION_ARGUMENT: u32 = 2;
const MMAP_FLAGS_ARGUMENT: u32 = 3;

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
const NATIVE_ARCHITECTURE: u32 = 0xC000_003E;
/// `AUDIT_ARCH_AARCH64` of linux/audit.h.
#[cfg(target_arch = "aarch64")]
const NATIVE_ARCHITECTURE: u32 = 0xC000_00B7;

const WRITE_FLAGS: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32;

/// What must hold in addition to the call's number for the call to be intercepted.
enum FilterCondition {
    Always,
    /// The descriptor in the first argument is above that of standard error.
    FdAboveStdio,
    /// Any of the bits is set in the argument.
    AnyBitSet {
        argument_index: u32,
        bits: u32,
    },
    /// The arguments of mmap describe a writable, shared, file-backed mapping.
    SharedWritableMapping,
}

/// Builds the seccomp program for the given options.
pub fn build_filter(options: &FilterOptions) -> SeccompProgram {
    let mut program = vec![
        SeccompInstruction::load_word(ARCHITECTURE_OFFSET),
        // Calls of another architecture have other numbers, so they are allowed without a look at the number.
        jump(JUMP_IF_EQUAL, NATIVE_ARCHITECTURE, 1, 0),
        SeccompInstruction::ALLOW,
        SeccompInstruction::load_word(NUMBER_OFFSET),
    ];
    for (number, condition) in intercepted_calls(options) {
        program.extend(call_instructions(number as u32, &condition));
    }
    program.push(SeccompInstruction::ALLOW);
    program
}

/// Compares the loaded word with the operand, and skips so many instructions.
const fn jump(code: u16, operand: u32, jump_if_true: u8, jump_if_false: u8) -> SeccompInstruction {
    SeccompInstruction { code, jump_if_true, jump_if_false, operand }
}

/// The instructions for one call: skip them if the number differs, otherwise return notify or allow.
fn call_instructions(number: u32, condition: &FilterCondition) -> SeccompProgram {
    let (notify, allow) = (SeccompInstruction::NOTIFY, SeccompInstruction::ALLOW);
    let load_argument = |index| SeccompInstruction::load_word(argument_offset(index));
    let test = match condition {
        FilterCondition::Always => vec![notify],
        FilterCondition::FdAboveStdio => {
            let highest_stdio = libc::STDERR_FILENO as u32;
            vec![load_argument(FD_ARGUMENT), jump(JUMP_IF_GREATER, highest_stdio, 0, 1), notify, allow]
        }
        FilterCondition::AnyBitSet { argument_index, bits } => {
            vec![load_argument(*argument_index), jump(JUMP_IF_ANY_BIT, *bits, 0, 1), notify, allow]
        }
        FilterCondition::SharedWritableMapping => vec![
            load_argument(MMAP_PROTECTION_ARGUMENT),
            jump(JUMP_IF_ANY_BIT, libc::PROT_WRITE as u32, 0, 5),
            load_argument(MMAP_FLAGS_ARGUMENT),
            jump(JUMP_IF_ANY_BIT, libc::MAP_SHARED as u32, 0, 3),
            jump(JUMP_IF_ANY_BIT, libc::MAP_ANONYMOUS as u32, 2, 0),
            notify,
            allow,
            allow,
        ],
    };
    let skip = u8::try_from(test.len()).unwrap_or(u8::MAX);
    std::iter::once(jump(JUMP_IF_EQUAL, number, 0, skip)).chain(test).collect()
}

/// Intercepted calls that only older architectures have.
#[cfg(target_arch = "x86_64")]
fn legacy_calls(open_condition: impl Fn(u32) -> FilterCondition) -> Vec<(i64, FilterCondition)> {
    use FilterCondition::Always;
    vec![
        (libc::SYS_open, open_condition(OPEN_FLAGS_ARGUMENT)),
        (libc::SYS_creat, Always),
        (libc::SYS_rename, Always),
        (libc::SYS_link, Always),
        (libc::SYS_symlink, Always),
        (libc::SYS_unlink, Always),
        (libc::SYS_mkdir, Always),
        (libc::SYS_rmdir, Always),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn legacy_calls(_open_condition: impl Fn(u32) -> FilterCondition) -> Vec<(i64, FilterCondition)> {
    Vec::new()
}

/// All intercepted calls with their conditions.
fn intercepted_calls(options: &FilterOptions) -> Vec<(i64, FilterCondition)> {
    use FilterCondition::{Always, AnyBitSet, FdAboveStdio, SharedWritableMapping};
    let write_condition = || if options.stdio_writes { Always } else { FdAboveStdio };
    let intercepts_reads = options.extra_kinds.contains(&CallKind::OpenToRead);
    let open_condition = |argument_index| match intercepts_reads {
        true => Always,
        false => AnyBitSet { argument_index, bits: WRITE_FLAGS },
    };
    let mut calls = vec![
        (libc::SYS_write, write_condition()),
        (libc::SYS_writev, write_condition()),
        (libc::SYS_pwrite64, FdAboveStdio),
        (libc::SYS_pwritev, FdAboveStdio),
        (libc::SYS_pwritev2, FdAboveStdio),
        (libc::SYS_openat, open_condition(OPENAT_FLAGS_ARGUMENT)),
        (libc::SYS_openat2, Always),
        (libc::SYS_sendfile, Always),
        (libc::SYS_copy_file_range, Always),
        (libc::SYS_splice, Always),
        (libc::SYS_ftruncate, Always),
        (libc::SYS_truncate, Always),
        (libc::SYS_fallocate, Always),
        (libc::SYS_renameat, Always),
        (libc::SYS_renameat2, Always),
        (libc::SYS_linkat, Always),
        (libc::SYS_symlinkat, Always),
        (libc::SYS_unlinkat, Always),
        (libc::SYS_mkdirat, Always),
        (libc::SYS_fsync, Always),
        (libc::SYS_fdatasync, Always),
        (libc::SYS_sync_file_range, Always),
        (libc::SYS_syncfs, Always),
        (libc::SYS_sync, Always),
        (libc::SYS_msync, Always),
        (libc::SYS_mmap, SharedWritableMapping),
        (libc::SYS_io_uring_setup, Always),
        (libc::SYS_io_setup, Always),
    ];
    calls.extend(legacy_calls(open_condition));
    calls.extend(attribute_call_numbers().into_iter().map(|number| (number, Always)));
    options.extra_kinds.iter().for_each(|kind| calls.extend(extra_calls(*kind)));
    calls
}

/// The calls of a kind that is intercepted only on request.
fn extra_calls(kind: CallKind) -> Vec<(i64, FilterCondition)> {
    use FilterCondition::FdAboveStdio;
    match kind {
        CallKind::Read => [libc::SYS_read, libc::SYS_pread64, libc::SYS_readv, libc::SYS_preadv]
            .map(|number| (number, FdAboveStdio))
            .into(),
        CallKind::Close => vec![(libc::SYS_close, FdAboveStdio)],
        CallKind::Stat => stat_calls(),
        CallKind::Access => access_calls(),
        _ => Vec::new(),
    }
}

#[cfg(target_arch = "x86_64")]
fn stat_calls() -> Vec<(i64, FilterCondition)> {
    [libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_stat, libc::SYS_lstat]
        .map(|number| (number, FilterCondition::Always))
        .into()
}

#[cfg(not(target_arch = "x86_64"))]
fn stat_calls() -> Vec<(i64, FilterCondition)> {
    [libc::SYS_newfstatat, libc::SYS_statx].map(|number| (number, FilterCondition::Always)).into()
}

#[cfg(target_arch = "x86_64")]
fn access_calls() -> Vec<(i64, FilterCondition)> {
    [libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_access]
        .map(|number| (number, FilterCondition::Always))
        .into()
}

#[cfg(not(target_arch = "x86_64"))]
fn access_calls() -> Vec<(i64, FilterCondition)> {
    [libc::SYS_faccessat, libc::SYS_faccessat2].map(|number| (number, FilterCondition::Always)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_stays_inside_the_program_and_the_last_instruction_returns() {
        let options = FilterOptions {
            extra_kinds: vec![CallKind::Read, CallKind::Stat, CallKind::Close],
            stdio_writes: true,
        };
        let program = build_filter(&options);
        for (index, instruction) in program.iter().enumerate() {
            if instruction.code & CLASS_BITS == libc::BPF_JMP as u16 {
                let longest_jump = instruction.jump_if_true.max(instruction.jump_if_false);
                assert!(index + 1 + usize::from(longest_jump) < program.len());
            }
        }
        assert_eq!(program.last(), Some(&SeccompInstruction::ALLOW));
    }
}
