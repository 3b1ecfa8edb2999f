//! Builds the seccomp program that keeps a target from setting the resource limits of its sandbox's init, which
//! has the same user: without memory or descriptors, init could not serve the harness any more. Pure.

use nix::libc;

use crate::seccomp::{SeccompInstruction, SeccompProgram};

const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;

/// Pid of init in its pid namespace.
const INIT_PID: u32 = 1;

// Offsets in `seccomp_data` of linux/seccomp.h. An argument has 64 bits, the lower half first.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const PID_OFFSET: u32 = 16;
const NEW_LIMIT_OFFSET: u32 = 32;

/// prlimit64 in the ABIs of this machine: `AUDIT_ARCH_*` of linux/audit.h, and the number of the call.
#[cfg(target_arch = "x86_64")]
const CALLS: [(u32, u32); 3] = [
    (0xC000_003E, libc::SYS_prlimit64 as u32),
    // The x32 ABI, and that of 32-bit programs.
    (0xC000_003E, 0x4000_0000 | libc::SYS_prlimit64 as u32),
    (0x4000_0003, 340),
];
#[cfg(target_arch = "aarch64")]
const CALLS: [(u32, u32); 2] = [(0xC000_00B7, libc::SYS_prlimit64 as u32), (0x4000_0028, 369)];

/// Calls that set limits of init fail with `EPERM`. All others are allowed.
pub(super) fn init_limits_filter() -> SeccompProgram {
    let load = SeccompInstruction::load_word;
    let mut program = SeccompProgram::new();
    for (architecture, number) in CALLS {
        let refused = [
            // Jumps lead behind the block.
            load(ARCHITECTURE_OFFSET),
            unless_equal(architecture, 9),
            load(NUMBER_OFFSET),
            unless_equal(number, 7),
            load(PID_OFFSET),
            unless_equal(INIT_PID, 5),
            // Without a new limit, the call only reads.
            load(NEW_LIMIT_OFFSET),
            unless_equal(0, 2),
            load(NEW_LIMIT_OFFSET + 4),
            if_equal(0, 1),
            SeccompInstruction::fail(libc::EPERM as u16),
        ];
        program.extend(refused);
    }
    program.push(SeccompInstruction::ALLOW);
    program
}

/// Skips so many instructions unless the loaded word has this value.
const fn unless_equal(value: u32, skipped: u8) -> SeccompInstruction {
    SeccompInstruction { code: JUMP_IF_EQUAL, jump_if_true: 0, jump_if_false: skipped, operand: value }
}

/// Skips so many instructions if the loaded word has this value.
const fn if_equal(value: u32, skipped: u8) -> SeccompInstruction {
    SeccompInstruction { code: JUMP_IF_EQUAL, jump_if_true: skipped, jump_if_false: 0, operand: value }
}
