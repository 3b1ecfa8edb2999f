//! Builds the program that runs in the kernel at each call of the target: which calls are stopped. Pure.

use nix::libc;

use super::CallKind;

/// A seccomp program, instruction by instruction: code, jump if true, jump if false, operand.
type SeccompProgram = Vec<(u16, u8, u8, u32)>;

/// Which calls are stopped beside those that change a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterOptions {
    /// Kinds that are only stopped when asked for: they are frequent and change nothing.
    pub extra_kinds: Vec<CallKind>,
    /// Writes to standard output and error as well.
    pub stdio_writes: bool,
}

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
/// Offset of the low half of an argument.
const fn argument_offset(index: u32) -> u32 {
    16 + 8 * index
}

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xC000_00B7;

const WRITE_FLAGS: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32;

/// What must hold beside the number.
enum FilterCondition {
    Always,
    /// The descriptor in the first argument is above 2.
    FdAboveStdio,
    /// Any of these bits is set in an argument.
    AnyBitSet(u32, u32),
    /// A writable shared mapping.
    SharedWritableMapping,
}

/// The program for an interest.
pub fn build_filter(interest: &FilterOptions) -> SeccompProgram {
    let mut program = vec![
        (LOAD_WORD, 0, 0, ARCHITECTURE_OFFSET),
        // Calls of another architecture have other numbers: they go through unseen.
        (JUMP_IF_EQUAL, 1, 0, NATIVE),
        (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        (LOAD_WORD, 0, 0, NUMBER_OFFSET),
    ];
    for (number, when) in intercepted_calls(interest) {
        program.extend(call_instructions(number as u32, &when));
    }
    program.push((RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

fn call_instructions(number: u32, when: &FilterCondition) -> SeccompProgram {
    let stop = (RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF);
    let pass = (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    let test = match when {
        FilterCondition::Always => vec![stop],
        FilterCondition::FdAboveStdio => {
            vec![(LOAD_WORD, 0, 0, argument_offset(0)), (JUMP_IF_GREATER, 0, 1, 2), stop, pass]
        }
        FilterCondition::AnyBitSet(index, bits) => {
            vec![(LOAD_WORD, 0, 0, argument_offset(*index)), (JUMP_IF_ANY_BIT, 0, 1, *bits), stop, pass]
        }
        FilterCondition::SharedWritableMapping => vec![
            (LOAD_WORD, 0, 0, argument_offset(2)),
            (JUMP_IF_ANY_BIT, 0, 5, libc::PROT_WRITE as u32),
            (LOAD_WORD, 0, 0, argument_offset(3)),
            (JUMP_IF_ANY_BIT, 0, 3, libc::MAP_SHARED as u32),
            (JUMP_IF_ANY_BIT, 2, 0, libc::MAP_ANONYMOUS as u32),
            stop,
            pass,
            pass,
        ],
    };
    let over = u8::try_from(test.len()).unwrap_or(u8::MAX);
    std::iter::once((JUMP_IF_EQUAL, 0, over, number)).chain(test).collect()
}

/// Numbers that not every architecture has are left out where they do not exist.
#[cfg(target_arch = "x86_64")]
fn old_calls(opens: impl Fn(u32) -> FilterCondition) -> Vec<(i64, FilterCondition)> {
    use FilterCondition::Always;
    vec![
        (libc::SYS_open, opens(1)),
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
fn old_calls(_opens: impl Fn(u32) -> FilterCondition) -> Vec<(i64, FilterCondition)> {
    Vec::new()
}

fn intercepted_calls(interest: &FilterOptions) -> Vec<(i64, FilterCondition)> {
    use FilterCondition::{Always, AnyBitSet, FdAboveStdio, SharedWritableMapping};
    let write = || if interest.stdio_writes { Always } else { FdAboveStdio };
    let readers_too = interest.extra_kinds.contains(&CallKind::OpenRead);
    let opens = |flags| if readers_too { Always } else { AnyBitSet(flags, WRITE_FLAGS) };
    let mut calls = vec![
        (libc::SYS_write, write()),
        (libc::SYS_writev, write()),
        (libc::SYS_pwrite64, FdAboveStdio),
        (libc::SYS_pwritev, FdAboveStdio),
        (libc::SYS_pwritev2, FdAboveStdio),
        (libc::SYS_openat, opens(2)),
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
    calls.extend(old_calls(opens));
    interest.extra_kinds.iter().for_each(|kind| calls.extend(extra_calls(*kind)));
    calls
}

fn extra_calls(kind: CallKind) -> Vec<(i64, FilterCondition)> {
    use FilterCondition::{Always, FdAboveStdio};
    match kind {
        CallKind::Read => [libc::SYS_read, libc::SYS_pread64, libc::SYS_readv, libc::SYS_preadv]
            .map(|number| (number, FdAboveStdio))
            .into(),
        CallKind::Close => vec![(libc::SYS_close, FdAboveStdio)],
        CallKind::Stat => stats(),
        CallKind::Access => accesses(),
        CallKind::Utimens => vec![(libc::SYS_utimensat, Always)],
        _ => Vec::new(),
    }
}

#[cfg(target_arch = "x86_64")]
fn stats() -> Vec<(i64, FilterCondition)> {
    [libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_stat, libc::SYS_lstat]
        .map(|number| (number, FilterCondition::Always))
        .into()
}

#[cfg(not(target_arch = "x86_64"))]
fn stats() -> Vec<(i64, FilterCondition)> {
    [libc::SYS_newfstatat, libc::SYS_statx].map(|number| (number, FilterCondition::Always)).into()
}

#[cfg(target_arch = "x86_64")]
fn accesses() -> Vec<(i64, FilterCondition)> {
    [libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_access]
        .map(|number| (number, FilterCondition::Always))
        .into()
}

#[cfg(not(target_arch = "x86_64"))]
fn accesses() -> Vec<(i64, FilterCondition)> {
    [libc::SYS_faccessat, libc::SYS_faccessat2].map(|number| (number, FilterCondition::Always)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_stays_inside_the_program_and_the_last_instruction_returns() {
        let interest = FilterOptions {
            extra_kinds: vec![CallKind::Read, CallKind::Stat, CallKind::Close],
            stdio_writes: true,
        };
        let program = build_filter(&interest);
        for (at, (code, jt, jf, _)) in program.iter().enumerate() {
            if code & 7 == libc::BPF_JMP as u16 {
                assert!(at + 1 + usize::from(*jt.max(jf)) < program.len());
            }
        }
        assert_eq!(program.last().map(|(code, ..)| *code), Some(RETURN));
    }
}
