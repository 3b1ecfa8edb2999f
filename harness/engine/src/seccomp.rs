//! A seccomp program as data. The gate builds programs and a sandbox installs them; neither knows the other.

use nix::libc;
use serde::{Deserialize, Serialize};

/// A seccomp program, in the order in which the kernel runs it.
pub type SeccompProgram = Vec<SeccompInstruction>;

/// One instruction: a `sock_filter` of linux/filter.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PackedInstruction", into = "PackedInstruction")]
pub struct SeccompInstruction {
    /// The operation, as `BPF_*` bits.
    pub code: u16,
    /// How many instructions are skipped if the condition of a jump holds.
    pub jump_if_true: u8,
    /// How many instructions are skipped if it does not hold.
    pub jump_if_false: u8,
    /// The operand.
    pub operand: u32,
}

/// An instruction in a message: code, jump if true, jump if false, operand. It has no names, because a
/// program has hundreds of instructions.
#[derive(Serialize, Deserialize)]
struct PackedInstruction(u16, u8, u8, u32);

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

impl SeccompInstruction {
    /// Lets the kernel perform the call.
    pub const ALLOW: SeccompInstruction = SeccompInstruction::returning(libc::SECCOMP_RET_ALLOW);
    /// Reports the call to the listener.
    pub const NOTIFY: SeccompInstruction = SeccompInstruction::returning(libc::SECCOMP_RET_USER_NOTIF);

    /// Fails the call with an errno.
    pub const fn fail(errno: u16) -> SeccompInstruction {
        SeccompInstruction::returning(libc::SECCOMP_RET_ERRNO | errno as u32)
    }

    const fn returning(action: u32) -> SeccompInstruction {
        SeccompInstruction { code: RETURN, jump_if_true: 0, jump_if_false: 0, operand: action }
    }

    /// Loads 32 bits of the call's `seccomp_data`.
    pub const fn load_word(offset: u32) -> SeccompInstruction {
        SeccompInstruction { code: LOAD_WORD, jump_if_true: 0, jump_if_false: 0, operand: offset }
    }
}

impl From<PackedInstruction> for SeccompInstruction {
    fn from(packed: PackedInstruction) -> SeccompInstruction {
        let PackedInstruction(code, jump_if_true, jump_if_false, operand) = packed;
        SeccompInstruction { code, jump_if_true, jump_if_false, operand }
    }
}

impl From<SeccompInstruction> for PackedInstruction {
    fn from(instruction: SeccompInstruction) -> PackedInstruction {
        let SeccompInstruction { code, jump_if_true, jump_if_false, operand } = instruction;
        PackedInstruction(code, jump_if_true, jump_if_false, operand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_four_numbers_in_a_message() -> Result<(), serde_json::Error> {
        let program: SeccompProgram = vec![SeccompInstruction::load_word(4), SeccompInstruction::ALLOW];
        let message = serde_json::to_string(&program)?;
        assert_eq!(message, "[[32,0,0,4],[6,0,0,2147418112]]");
        assert_eq!(serde_json::from_str::<SeccompProgram>(&message)?, program);
        Ok(())
    }
}
