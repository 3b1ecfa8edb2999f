//! Builds the program that runs in the kernel at each call of the target: which calls are stopped. Pure.

use nix::libc;

use super::Kind;

/// A seccomp program, instruction by instruction: code, jump if true, jump if false, operand.
type Program = Vec<(u16, u8, u8, u32)>;

/// Which calls are stopped beside those that change a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interest {
    /// Kinds that are only stopped when asked for: they are frequent and change nothing.
    pub also: Vec<Kind>,
    /// Writes to standard output and error as well.
    pub words: bool,
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Offset of the low half of an argument.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xC000_00B7;

const WRITING: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32;

/// What must hold beside the number.
enum When {
    Always,
    /// The descriptor in the first argument is above 2.
    FileBeyondWords,
    /// Any of these bits is set in an argument.
    Bits(u32, u32),
    /// A writable shared mapping.
    SharedWritable,
}

/// The program for an interest.
pub fn filter(interest: &Interest) -> Program {
    let mut program = vec![
        (LOAD, 0, 0, ARCHITECTURE),
        // Calls of another architecture have other numbers: they go through unseen.
        (EQUAL, 1, 0, NATIVE),
        (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        (LOAD, 0, 0, NUMBER),
    ];
    for (number, when) in stopped(interest) {
        program.extend(rule(number as u32, &when));
    }
    program.push((RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

fn rule(number: u32, when: &When) -> Program {
    let stop = (RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF);
    let pass = (RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    let test = match when {
        When::Always => vec![stop],
        When::FileBeyondWords => vec![(LOAD, 0, 0, argument(0)), (GREATER, 0, 1, 2), stop, pass],
        When::Bits(index, bits) => vec![(LOAD, 0, 0, argument(*index)), (ANY_BIT, 0, 1, *bits), stop, pass],
        When::SharedWritable => vec![
            (LOAD, 0, 0, argument(2)),
            (ANY_BIT, 0, 5, libc::PROT_WRITE as u32),
            (LOAD, 0, 0, argument(3)),
            (ANY_BIT, 0, 3, libc::MAP_SHARED as u32),
            (ANY_BIT, 2, 0, libc::MAP_ANONYMOUS as u32),
            stop,
            pass,
            pass,
        ],
    };
    let over = u8::try_from(test.len()).unwrap_or(u8::MAX);
    std::iter::once((EQUAL, 0, over, number)).chain(test).collect()
}

/// Numbers that not every architecture has are left out where they do not exist.
#[cfg(target_arch = "x86_64")]
fn old_calls(opens: impl Fn(u32) -> When) -> Vec<(i64, When)> {
    use When::Always;
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
fn old_calls(_opens: impl Fn(u32) -> When) -> Vec<(i64, When)> {
    Vec::new()
}

fn stopped(interest: &Interest) -> Vec<(i64, When)> {
    use When::{Always, Bits, FileBeyondWords, SharedWritable};
    let write = || if interest.words { Always } else { FileBeyondWords };
    let readers_too = interest.also.contains(&Kind::OpenRead);
    let opens = |flags| if readers_too { Always } else { Bits(flags, WRITING) };
    let mut calls = vec![
        (libc::SYS_write, write()),
        (libc::SYS_writev, write()),
        (libc::SYS_pwrite64, FileBeyondWords),
        (libc::SYS_pwritev, FileBeyondWords),
        (libc::SYS_pwritev2, FileBeyondWords),
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
        (libc::SYS_mmap, SharedWritable),
        (libc::SYS_io_uring_setup, Always),
        (libc::SYS_io_setup, Always),
    ];
    calls.extend(old_calls(opens));
    interest.also.iter().for_each(|kind| calls.extend(asked_for(*kind)));
    calls
}

fn asked_for(kind: Kind) -> Vec<(i64, When)> {
    use When::{Always, FileBeyondWords};
    match kind {
        Kind::Read => [libc::SYS_read, libc::SYS_pread64, libc::SYS_readv, libc::SYS_preadv]
            .map(|number| (number, FileBeyondWords))
            .into(),
        Kind::Close => vec![(libc::SYS_close, FileBeyondWords)],
        Kind::Stat => stats(),
        Kind::Access => accesses(),
        Kind::Utimens => vec![(libc::SYS_utimensat, Always)],
        _ => Vec::new(),
    }
}

#[cfg(target_arch = "x86_64")]
fn stats() -> Vec<(i64, When)> {
    [libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_stat, libc::SYS_lstat]
        .map(|number| (number, When::Always))
        .into()
}

#[cfg(not(target_arch = "x86_64"))]
fn stats() -> Vec<(i64, When)> {
    [libc::SYS_newfstatat, libc::SYS_statx].map(|number| (number, When::Always)).into()
}

#[cfg(target_arch = "x86_64")]
fn accesses() -> Vec<(i64, When)> {
    [libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_access].map(|number| (number, When::Always)).into()
}

#[cfg(not(target_arch = "x86_64"))]
fn accesses() -> Vec<(i64, When)> {
    [libc::SYS_faccessat, libc::SYS_faccessat2].map(|number| (number, When::Always)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_lands_inside_the_program_and_the_last_word_is_a_return() {
        let interest = Interest { also: vec![Kind::Read, Kind::Stat, Kind::Close], words: true };
        let program = filter(&interest);
        for (at, (code, jt, jf, _)) in program.iter().enumerate() {
            if code & 7 == libc::BPF_JMP as u16 {
                assert!(at + 1 + usize::from(*jt.max(jf)) < program.len());
            }
        }
        assert_eq!(program.last().map(|(code, ..)| *code), Some(RETURN));
    }
}
