//! Builds the seccomp program that the kernel runs at each system call of the target. It decides which calls
//! are intercepted, that is, reported to the supervisor. Pure.

use nix::libc;

use super::CallKind;

/// A seccomp program. Each instruction is a `sock_filter`: code, jump if true, jump if false, operand.
type SeccompProgram = Vec<(u16, u8, u8, u32)>;

/// Which calls are intercepted in addition to those that change the file tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterOptions {
    /// Kinds that are intercepted only on request, because they are frequent and change nothing.
    pub extra_kinds: Vec<CallKind>,
    /// Also intercepts writes to standard output and standard error.
    pub stdio_writes: bool,
}

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

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
        (LOAD_WORD, 0, 0, ARCHITECTURE_OFFSET),
        // Calls of another architecture have other numbers, so they are allowed without a look at the number.
        (JUMP_IF_EQUAL, 1, 0, NATIVE_ARCHITECTURE),
        (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        (LOAD_WORD, 0, 0, NUMBER_OFFSET),
    ];
    for (number, condition) in intercepted_calls(options) {
        program.extend(call_instructions(number as u32, &condition));
    }
    program.push((RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

/// The instructions for one call: skip them if the number differs, otherwise return notify or allow.
fn call_instructions(number: u32, condition: &FilterCondition) -> SeccompProgram {
    let notify = (RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF);
    let allow = (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    let test = match condition {
        FilterCondition::Always => vec![notify],
        FilterCondition::FdAboveStdio => {
            vec![
                (LOAD_WORD, 0, 0, argument_offset(FD_ARGUMENT)),
                (JUMP_IF_GREATER, 0, 1, libc::STDERR_FILENO as u32),
                notify,
                allow,
            ]
        }
        FilterCondition::AnyBitSet { argument_index, bits } => {
            vec![
                (LOAD_WORD, 0, 0, argument_offset(*argument_index)),
                (JUMP_IF_ANY_BIT, 0, 1, *bits),
                notify,
                allow,
            ]
        }
        FilterCondition::SharedWritableMapping => vec![
            (LOAD_WORD, 0, 0, argument_offset(MMAP_PROTECTION_ARGUMENT)),
            (JUMP_IF_ANY_BIT, 0, 5, libc::PROT_WRITE as u32),
            (LOAD_WORD, 0, 0, argument_offset(MMAP_FLAGS_ARGUMENT)),
            (JUMP_IF_ANY_BIT, 0, 3, libc::MAP_SHARED as u32),
            (JUMP_IF_ANY_BIT, 2, 0, libc::MAP_ANONYMOUS as u32),
            notify,
            allow,
            allow,
        ],
    };
    let skip = u8::try_from(test.len()).unwrap_or(u8::MAX);
    std::iter::once((JUMP_IF_EQUAL, 0, skip, number)).chain(test).collect()
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
        (libc::SYS_chmod, Always),
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
    let intercepts_reads = options.extra_kinds.contains(&CallKind::OpenRead);
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
        (libc::SYS_fchmod, Always),
        (libc::SYS_fchmodat, Always),
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
    options.extra_kinds.iter().for_each(|kind| calls.extend(extra_calls(*kind)));
    calls
}

/// The calls of a kind that is intercepted only on request.
fn extra_calls(kind: CallKind) -> Vec<(i64, FilterCondition)> {
    use FilterCondition::{Always, FdAboveStdio};
    match kind {
        CallKind::Read => [libc::SYS_read, libc::SYS_pread64, libc::SYS_readv, libc::SYS_preadv]
            .map(|number| (number, FdAboveStdio))
            .into(),
        CallKind::Close => vec![(libc::SYS_close, FdAboveStdio)],
        CallKind::Stat => stat_calls(),
        CallKind::Access => access_calls(),
        CallKind::Utimens => vec![(libc::SYS_utimensat, Always)],
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
        for (index, (code, jt, jf, _)) in program.iter().enumerate() {
            if code & 7 == libc::BPF_JMP as u16 {
                assert!(index + 1 + usize::from(*jt.max(jf)) < program.len());
            }
        }
        assert_eq!(program.last().map(|(code, ..)| *code), Some(RETURN));
    }
}
