//! Builds the seccomp program that the kernel runs at each system call of the target. It decides which calls
//! are intercepted, that is, reported to the supervisor. Pure.

use nix::libc;

use super::CallKind;
use super::attribute_calls::attribute_call_numbers;
use super::calls::{FICLONE, FICLONERANGE};
use super::clock_call::{EARLY_CALLS, WALL_CLOCK_FUTEX_CALLS, WALL_CLOCKS};
use crate::seccomp::{SeccompInstruction, SeccompProgram};

/// Which calls are intercepted in addition to those that change the file tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterOptions {
    /// Kinds that are intercepted only on request, because they are frequent and change nothing.
    pub extra_kinds: Vec<CallKind>,
    /// Also intercepts calls that connect or send to an address. What is sent on a connection is not
    /// intercepted.
    pub connections: bool,
    /// Also intercepts calls for the time of the wall clock, and waits until such a time.
    pub wall_clock: bool,
    /// Intercepts only what is written to standard output and error, and nothing else of what is above.
    pub outputs_only: bool,
}

const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
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
const IOCTL_REQUEST_ARGUMENT: u32 = 1;
const OPEN_FLAGS_ARGUMENT: u32 = 1;
const OPENAT_FLAGS_ARGUMENT: u32 = 2;
const SENDTO_ADDRESS_ARGUMENT: u32 = 4;
const MMAP_FLAGS_ARGUMENT: u32 = 3;
const DESCRIPTOR_ARGUMENT: u32 = 0;
const CLOCK_ARGUMENT: u32 = 0;
const WAIT_FLAGS_ARGUMENT: u32 = 1;
const QUEUE_TIME_ARGUMENT: u32 = 4;
const FUTEX_CLOCK_ARGUMENT: u32 = 4;

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE_ARCHITECTURE: u32 = 0xC000_003E;
/// `AUDIT_ARCH_AARCH64` of linux/audit.h.
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE_ARCHITECTURE: u32 = 0xC000_00B7;
/// `__X32_SYSCALL_BIT` of asm/unistd.h: calls of the x32 ABI have numbers from here on. No other ABI has such
/// high numbers.
pub(super) const FIRST_X32_NUMBER: u32 = 0x4000_0000;

const WRITE_FLAGS: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) as u32;

/// What must hold in addition to the call's number for the call to be intercepted.
enum FilterCondition {
    Always,
    /// Any of the bits is set in the argument.
    AnyBitSet {
        argument_index: u32,
        bits: u32,
    },
    /// The argument has one of these values.
    AnyValue {
        argument_index: u32,
        values: Vec<u32>,
    },
    /// Any of the bits is set in the argument, or it has one of these values.
    AnyBitSetOrValue {
        argument_index: u32,
        bits: u32,
        values: Vec<u32>,
    },
    /// The arguments of mmap describe a shared mapping of a file. It need not be writable: mprotect can change
    /// that.
    SharedFileMapping,
}

/// Builds the seccomp program for the given options.
pub fn build_filter(options: &FilterOptions) -> SeccompProgram {
    // Calls of another architecture have other numbers. The supervisor refuses and reports them all, unless nothing
    // depends on what a target calls.
    let foreign = if options.outputs_only { SeccompInstruction::ALLOW } else { SeccompInstruction::NOTIFY };
    let mut program = vec![
        SeccompInstruction::load_word(ARCHITECTURE_OFFSET),
        jump(JUMP_IF_EQUAL, NATIVE_ARCHITECTURE, 1, 0),
        foreign,
        SeccompInstruction::load_word(NUMBER_OFFSET),
        jump(JUMP_IF_AT_LEAST, FIRST_X32_NUMBER, 0, 1),
        foreign,
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
    let any_value = |values: &[u32]| -> SeccompProgram {
        values.iter().flat_map(|value| [jump(JUMP_IF_EQUAL, *value, 0, 1), notify]).collect()
    };
    let test = match condition {
        FilterCondition::Always => vec![notify],
        FilterCondition::AnyBitSet { argument_index, bits } => {
            vec![load_argument(*argument_index), jump(JUMP_IF_ANY_BIT, *bits, 0, 1), notify, allow]
        }
        FilterCondition::AnyValue { argument_index, values } => {
            [vec![load_argument(*argument_index)], any_value(values), vec![allow]].concat()
        }
        FilterCondition::AnyBitSetOrValue { argument_index, bits, values } => {
            let bit = vec![load_argument(*argument_index), jump(JUMP_IF_ANY_BIT, *bits, 0, 1), notify];
            [bit, any_value(values), vec![allow]].concat()
        }
        FilterCondition::SharedFileMapping => vec![
            load_argument(MMAP_FLAGS_ARGUMENT),
            jump(JUMP_IF_ANY_BIT, libc::MAP_SHARED as u32, 0, 2),
            jump(JUMP_IF_ANY_BIT, libc::MAP_ANONYMOUS as u32, 1, 0),
            notify,
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
        (libc::SYS_mknod, Always),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn legacy_calls(_open_condition: impl Fn(u32) -> FilterCondition) -> Vec<(i64, FilterCondition)> {
    Vec::new()
}

/// All intercepted calls with their conditions.
fn intercepted_calls(options: &FilterOptions) -> Vec<(i64, FilterCondition)> {
    use FilterCondition::{Always, AnyBitSet, AnyValue, SharedFileMapping};
    if options.outputs_only {
        let outputs = vec![libc::STDOUT_FILENO as u32, libc::STDERR_FILENO as u32];
        let to_output = || AnyValue { argument_index: DESCRIPTOR_ARGUMENT, values: outputs.clone() };
        return vec![(libc::SYS_write, to_output()), (libc::SYS_writev, to_output())];
    }
    let intercepts_reads = options.extra_kinds.contains(&CallKind::OpenToRead);
    let open_condition = |argument_index| match intercepts_reads {
        true => Always,
        false => AnyBitSet { argument_index, bits: WRITE_FLAGS },
    };
    let clone_requests = vec![FICLONE, FICLONERANGE];
    let mut calls = vec![
        (libc::SYS_write, Always),
        (libc::SYS_writev, Always),
        (libc::SYS_pwrite64, Always),
        (libc::SYS_pwritev, Always),
        (libc::SYS_pwritev2, Always),
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
        (libc::SYS_mknodat, Always),
        (libc::SYS_ioctl, AnyValue { argument_index: IOCTL_REQUEST_ARGUMENT, values: clone_requests }),
        (libc::SYS_fsync, Always),
        (libc::SYS_fdatasync, Always),
        (libc::SYS_sync_file_range, Always),
        (libc::SYS_syncfs, Always),
        (libc::SYS_sync, Always),
        (libc::SYS_msync, Always),
        (libc::SYS_mmap, SharedFileMapping),
        (libc::SYS_io_uring_setup, Always),
        (libc::SYS_io_setup, Always),
    ];
    calls.extend(legacy_calls(open_condition));
    calls.extend(attribute_call_numbers().into_iter().map(|number| (number, Always)));
    if options.connections {
        // Of `sendto` and `send`, only those with an address.
        let has_address = AnyBitSet { argument_index: SENDTO_ADDRESS_ARGUMENT, bits: u32::MAX };
        calls.extend([
            (libc::SYS_connect, Always),
            (libc::SYS_sendto, has_address),
            (libc::SYS_sendmmsg, Always),
        ]);
    }
    options.extra_kinds.iter().for_each(|kind| calls.extend(extra_calls(*kind)));
    if options.wall_clock {
        calls.extend(clock_calls());
    }
    calls
}

/// The calls for the time of the wall clock, and the waits until such a time. First of all those that a program
/// makes before.
fn clock_calls() -> Vec<(i64, FilterCondition)> {
    use FilterCondition::{Always, AnyBitSet, AnyBitSetOrValue, AnyValue};
    let values = WALL_CLOCKS.map(|clock| clock as u32).to_vec();
    let of_wall_clock = |argument_index| AnyValue { argument_index, values: values.clone() };
    let with_flag = |bits: i32| AnyBitSet { argument_index: WAIT_FLAGS_ARGUMENT, bits: bits as u32 };
    let has_time = || AnyBitSet { argument_index: QUEUE_TIME_ARGUMENT, bits: u32::MAX };
    let futex = AnyBitSetOrValue {
        argument_index: WAIT_FLAGS_ARGUMENT,
        bits: libc::FUTEX_CLOCK_REALTIME as u32,
        values: WALL_CLOCK_FUTEX_CALLS.map(|call| call as u32).to_vec(),
    };
    let mut calls: Vec<_> = EARLY_CALLS.iter().map(|number| (*number, Always)).collect();
    calls.extend([
        (libc::SYS_clock_gettime, of_wall_clock(CLOCK_ARGUMENT)),
        (libc::SYS_gettimeofday, Always),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_time, Always),
        (libc::SYS_clock_settime, of_wall_clock(CLOCK_ARGUMENT)),
        (libc::SYS_settimeofday, Always),
        (libc::SYS_adjtimex, Always),
        (libc::SYS_clock_adjtime, of_wall_clock(CLOCK_ARGUMENT)),
        (libc::SYS_clock_nanosleep, with_flag(libc::TIMER_ABSTIME)),
        (libc::SYS_timerfd_settime, with_flag(libc::TFD_TIMER_ABSTIME)),
        (libc::SYS_timer_settime, with_flag(libc::TIMER_ABSTIME)),
        (libc::SYS_futex, futex),
        (libc::SYS_futex_waitv, of_wall_clock(FUTEX_CLOCK_ARGUMENT)),
        (libc::SYS_mq_timedsend, has_time()),
        (libc::SYS_mq_timedreceive, has_time()),
    ]);
    calls
}

/// The calls of a kind that is intercepted only on request.
fn extra_calls(kind: CallKind) -> Vec<(i64, FilterCondition)> {
    match kind {
        CallKind::Read => {
            let numbers =
                [libc::SYS_read, libc::SYS_pread64, libc::SYS_readv, libc::SYS_preadv, libc::SYS_preadv2];
            numbers.map(|number| (number, FilterCondition::Always)).into()
        }
        CallKind::Close => vec![(libc::SYS_close, FilterCondition::Always)],
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
            connections: true,
            wall_clock: true,
            outputs_only: false,
        };
        let outputs_only = FilterOptions { outputs_only: true, ..FilterOptions::default() };
        for program in [options, outputs_only].iter().map(build_filter) {
            stays_inside(&program);
        }
    }

    fn stays_inside(program: &[SeccompInstruction]) {
        for (index, instruction) in program.iter().enumerate() {
            if instruction.code & CLASS_BITS == libc::BPF_JMP as u16 {
                let longest_jump = instruction.jump_if_true.max(instruction.jump_if_false);
                assert!(index + 1 + usize::from(longest_jump) < program.len());
            }
        }
        assert_eq!(program.last(), Some(&SeccompInstruction::ALLOW));
    }
}
