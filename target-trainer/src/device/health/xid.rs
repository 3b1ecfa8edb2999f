//! NVIDIA's XIDs: what each says and what it calls for. After NVIDIA's "XID Errors" (docs.nvidia.com/deploy/xid-errors).

use super::HealthEvent;

/// What an XID calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum XidAction {
    /// The program that did it gets the error itself.
    ReportedByCuda,
    /// To be seen to at the next occasion; training may go on.
    ResetLater,
    /// Work since the last checkpoint is lost; a fresh process may go on.
    RestartWorker,
    /// Nothing goes on before the card or the machine has been reset.
    ResetNow,
}

const KNOWN_XIDS: [(u64, &str, XidAction); 15] = [
    (13, "graphics engine exception", XidAction::ReportedByCuda),
    (31, "memory page fault", XidAction::ReportedByCuda),
    (43, "channel reset by the driver", XidAction::ReportedByCuda),
    (45, "channels were cleaned up after another error", XidAction::ReportedByCuda),
    (48, "double-bit ECC error", XidAction::RestartWorker),
    (61, "internal micro-controller breakpoint", XidAction::ResetNow),
    (62, "internal micro-controller halt", XidAction::ResetNow),
    (63, "a memory row was remapped, or a page retired", XidAction::ResetLater),
    (64, "a memory row could not be remapped, or a page not retired", XidAction::ResetLater),
    (74, "NVLink error", XidAction::ResetNow),
    (79, "GPU has fallen off the bus", XidAction::ResetNow),
    (92, "high rate of single-bit ECC errors", XidAction::ResetLater),
    (94, "contained memory error", XidAction::RestartWorker),
    (95, "uncontained memory error", XidAction::ResetNow),
    (119, "GSP does not answer", XidAction::ResetNow),
];

/// The line that an XID is worth.
pub(super) fn event_for_xid(xid: u64) -> HealthEvent {
    let Some((_, what, call)) = KNOWN_XIDS.iter().find(|(known, ..)| *known == xid) else {
        return HealthEvent::Warning(format!("XID {xid}: see NVIDIA's list of XIDs"));
    };
    let line = |what_to_do| format!("XID {xid}: {what}; {what_to_do}");
    match call {
        XidAction::ReportedByCuda => HealthEvent::Warning(line("the program that did it is told by CUDA")),
        XidAction::ResetLater => HealthEvent::Warning(line("reset the GPU at the next occasion")),
        XidAction::RestartWorker => HealthEvent::Untrusted(line("the worker is replaced")),
        XidAction::ResetNow => HealthEvent::Untrusted(line("reset the GPU, or the machine")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_xid_is_reported_with_its_required_action() {
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
            let expected = if distrusted {
                HealthEvent::Untrusted(words.into())
            } else {
                HealthEvent::Warning(words.into())
            };
            assert_eq!(event_for_xid(xid), expected);
        }
    }
}
