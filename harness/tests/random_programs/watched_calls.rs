//! The handlers of the gate with which programs run, and the defects that the tests must find. Knows no programs.

use engine::explore::OpRecorder;
use engine::gate::{
    CallDecision, CallEffect, CallHandler, CallKind, CarriedOut, FileId, GateFailure, InterceptedCall,
};
use nix::errno::Errno;

/// Performs each call, and syncs too.
pub(crate) struct PerformedCalls;

impl CallHandler for PerformedCalls {
    fn decide(&mut self, _call: &InterceptedCall) -> CallDecision {
        CallDecision::Perform
    }

    fn on_failure(&mut self, failure: GateFailure) {
        panic!("{failure}");
    }
}

/// Something that a gate may do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateDefect {
    /// A write moves fewer bytes than it could.
    ShortWrite,
    /// A call takes effect and returns an error.
    WrongErrno,
    /// A call does nothing and returns an error.
    CallLost,
    /// An effect does not reach the recording.
    EffectLost,
    /// The recording gets other bytes than the file.
    OtherBytes,
}

impl GateDefect {
    pub(crate) const ALL: [GateDefect; 5] = [
        GateDefect::ShortWrite,
        GateDefect::WrongErrno,
        GateDefect::CallLost,
        GateDefect::EffectLost,
        GateDefect::OtherBytes,
    ];
}

/// Records, with or without a defect. The defect shows at each call that it applies to.
pub(crate) struct RecordedCalls {
    pub(crate) recorder: OpRecorder,
    pub(crate) defect: Option<GateDefect>,
}

impl RecordedCalls {
    fn has(&self, defect: GateDefect) -> bool {
        self.defect == Some(defect)
    }
}

impl CallHandler for RecordedCalls {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision {
        let decision = self.recorder.decide(call);
        let is_write = call.kind == CallKind::Write && call.requested_bytes > Some(2);
        if is_write && self.has(GateDefect::ShortWrite) {
            CallDecision::Short(2)
        } else if call.kind == CallKind::Rename && self.has(GateDefect::WrongErrno) {
            CallDecision::PerformThenFail(Errno::EIO)
        } else if call.kind == CallKind::Unlink && self.has(GateDefect::CallLost) {
            CallDecision::Fail(Errno::EIO)
        } else {
            decision
        }
    }

    fn on_payload(&mut self, bytes: &[u8]) {
        match bytes {
            [first, rest @ ..] if self.has(GateDefect::OtherBytes) => {
                self.recorder.on_payload(&[&[first ^ 1], rest].concat());
            }
            _ => self.recorder.on_payload(bytes),
        }
    }

    fn on_effect(&mut self, effect: CallEffect) {
        let is_change = matches!(effect, CallEffect::Truncated { .. } | CallEffect::Renamed { .. });
        if !(is_change && self.has(GateDefect::EffectLost)) {
            self.recorder.on_effect(effect);
        }
    }

    fn on_carried_out(&mut self, carried_out: CarriedOut) {
        self.recorder.on_carried_out(carried_out);
    }

    fn on_failure(&mut self, failure: GateFailure) {
        self.recorder.on_failure(failure);
    }

    fn needs_paths(&self) -> bool {
        self.recorder.needs_paths()
    }

    fn performs_syncs(&self) -> bool {
        self.recorder.performs_syncs()
    }

    fn observes_pipe(&self, pipe: FileId) -> bool {
        self.recorder.observes_pipe(pipe)
    }
}
