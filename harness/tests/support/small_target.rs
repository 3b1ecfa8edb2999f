//! Target files of trainers of a few lines, which announce steps, saves and resumes as `targets/stub.sh` does.
//! Must not know any test.

/// What a target file of a small trainer says besides what all of them announce.
pub(crate) struct SmallTarget<'a> {
    pub(crate) program: &'a str,
    /// The command that starts it.
    pub(crate) start: &'a str,
    /// How long it may print nothing. A test of a trainer that hangs takes a little longer than this.
    pub(crate) stall: &'a str,
    /// Further keys, a line each.
    pub(crate) more: &'a str,
}

/// Long enough for every trainer that does not hang, also where other programs use all cores.
pub(crate) const LONG_STALL: &str = "30 s";

impl SmallTarget<'_> {
    /// The target file. The trainer's checkpoints are in `ckpt`, below its root.
    pub(crate) fn to_yaml(&self) -> String {
        let SmallTarget { program, start, stall, more } = self;
        format!(
            r"
version: 1
id: small
title: a trainer of a few lines
program: '{program}'
places: {{checkpoints: ckpt}}
prepare: [[mkdir, -p, '{{checkpoints}}']]
start: {start}
announces:
  step: '^step (?<step>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
phases: {{checkpoint-save: {{begins: '^step \d+', ends: '^saved step \d+', place: checkpoints}}}}
same: '^finished with (?<value>\d+)'
timeouts: {{stall: {stall}, finish: 120 s}}
{more}
"
        )
    }
}
