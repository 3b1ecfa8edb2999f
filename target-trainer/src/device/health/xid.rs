//! NVIDIA's XIDs: what each says and what it calls for. After NVIDIA's "XID Errors" (docs.nvidia.com/deploy/xid-errors).

use super::Remark;

/// What an XID calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// The program that did it gets the error itself.
    Program,
    /// To be seen to at the next occasion; training may go on.
    Later,
    /// Work since the last checkpoint is lost; a fresh process may go on.
    Restart,
    /// Nothing goes on before the card or the machine has been reset.
    Reset,
}

const KNOWN: [(u64, &str, Call); 15] = [
    (13, "graphics engine exception", Call::Program),
    (31, "memory page fault", Call::Program),
    (43, "channel reset by the driver", Call::Program),
    (45, "channels were cleaned up after another error", Call::Program),
    (48, "double-bit ECC error", Call::Restart),
    (61, "internal micro-controller breakpoint", Call::Reset),
    (62, "internal micro-controller halt", Call::Reset),
    (63, "a memory row was remapped, or a page retired", Call::Later),
    (64, "a memory row could not be remapped, or a page not retired", Call::Later),
    (74, "NVLink error", Call::Reset),
    (79, "GPU has fallen off the bus", Call::Reset),
    (92, "high rate of single-bit ECC errors", Call::Later),
    (94, "contained memory error", Call::Restart),
    (95, "uncontained memory error", Call::Reset),
    (119, "GSP does not answer", Call::Reset),
];

/// The line that an XID is worth.
pub(super) fn remark(xid: u64) -> Remark {
    let Some((_, what, call)) = KNOWN.iter().find(|(known, ..)| *known == xid) else {
        return Remark::Warning(format!("XID {xid}: see NVIDIA's list of XIDs"));
    };
    let line = |what_to_do| format!("XID {xid}: {what}; {what_to_do}");
    match call {
        Call::Program => Remark::Warning(line("the program that did it is told by CUDA")),
        Call::Later => Remark::Warning(line("reset the GPU at the next occasion")),
        Call::Restart => Remark::Distrust(line("the worker is replaced")),
        Call::Reset => Remark::Distrust(line("reset the GPU, or the machine")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_xid_is_told_with_what_it_calls_for() {
        for (xid, distrusted, words) in [
            (48, true, "XID 48: double-bit ECC error; the worker is replaced"),
            (
                63,
                false,
                "XID 63: a memory row was remapped, or a page retired; reset the GPU at the next occasion",
            ),
            (79, true, "XID 79: GPU has fallen off the bus; reset the GPU, or the machine"),
            (94, true, "XID 94: contained memory error; the worker is replaced"),
            (95, true, "XID 95: uncontained memory error; reset the GPU, or the machine"),
            (777, false, "XID 777: see NVIDIA's list of XIDs"),
        ] {
            let expected =
                if distrusted { Remark::Distrust(words.into()) } else { Remark::Warning(words.into()) };
            assert_eq!(remark(xid), expected);
        }
    }
}
