//! NVIDIA's XIDs: the meaning of each and the action it requires. Source: NVIDIA, "XID Errors"
//! (docs.nvidia.com/deploy/xid-errors).

use super::health_event::HealthEvent;

/// The action that an XID requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum XidAction {
    /// The trainer does nothing: CUDA reports the error to the program that caused it.
    ReportedByCuda,
    /// Reset the GPU at the next opportunity; training may continue.
    ResetLater,
    /// Discard the work since the last checkpoint; a new process may continue.
    RestartWorker,
    /// Reset the GPU or the machine; nothing can run on the GPU before that.
    ResetNow,
}

/// Number, meaning and required action of each known XID.
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

/// Returns the event to report for an XID.
pub(super) fn event_for_xid(xid: u64) -> HealthEvent {
    let Some((_, meaning, action)) = KNOWN_XIDS.iter().find(|(known, ..)| *known == xid) else {
        return HealthEvent::Warning(format!("XID {xid}: see NVIDIA's list of XIDs"));
    };
    let text = |advice| format!("XID {xid}: {meaning}; {advice}");
    match action {
        XidAction::ReportedByCuda => {
            HealthEvent::Warning(text("CUDA reports it to the program that caused it"))
        }
        XidAction::ResetLater => HealthEvent::Warning(text("reset the GPU at the next opportunity")),
        XidAction::RestartWorker => HealthEvent::Untrusted(text("the worker is replaced")),
        XidAction::ResetNow => HealthEvent::Untrusted(text("reset the GPU or reboot the machine")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_xid_is_reported_with_its_required_action() {
        for (xid, untrusted, text) in [
            (48, true, "XID 48: double-bit ECC error; the worker is replaced"),
            (
                63,
                false,
                "XID 63: a memory row was remapped, or a page retired; reset the GPU at the next opportunity",
            ),
            (79, true, "XID 79: GPU has fallen off the bus; reset the GPU or reboot the machine"),
            (94, true, "XID 94: contained memory error; the worker is replaced"),
            (95, true, "XID 95: uncontained memory error; reset the GPU or reboot the machine"),
            (777, false, "XID 777: see NVIDIA's list of XIDs"),
        ] {
            let expected = if untrusted {
                HealthEvent::Untrusted(text.into())
            } else {
                HealthEvent::Warning(text.into())
            };
            assert_eq!(event_for_xid(xid), expected);
        }
    }
}
