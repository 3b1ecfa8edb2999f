//! A scenario file as it is written. This file alone decides which keys there are: the JSON schema is made
//! from these types, and an editor shows their doc comments as help. Knows nothing of what the values mean
//! together; `check` does.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::calls::{CrashModel, FileCallKind};
use crate::expect_draft::ExpectationDraft;
use crate::gpu_draft::{
    GpuDraft, GpuErrorDraft, GpuFlipBitDraft, GpuFragmentDraft, GpuHangDraft, GpuOverwriteDraft,
    GpuStateDraft,
};
use crate::leaf::{
    ErrnoName, FileName, FreeSpace, MemoryCapDraft, OccurrenceDraft, PathGlob, Pattern, ScenarioId,
    SettingValue, Size, TimeSpan,
};
use crate::signal::{SignalName, SignalRecipient};
use crate::spanned::Spanned;

/// A Trainwreck scenario: a target, the faults that are injected into it, and what is expected of it then.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "Trainwreck scenario, version 1")]
pub(crate) struct ScenarioDraft {
    /// Version of the scenario language: 1.
    pub(crate) version: Spanned<u32>,
    /// Unique name of the scenario: a domain and two digits, such as `fs-01`.
    pub(crate) id: Spanned<ScenarioId>,
    /// One line that describes what happens to the trainer.
    pub(crate) title: Spanned<String>,
    /// How bad it is if a trainer does not survive this scenario.
    pub(crate) severity: SeverityDraft,
    /// The trainer under test and its input.
    pub(crate) target: TargetUseDraft,
    /// Places of the target that get a tmpfs of their own.
    #[serde(default)]
    pub(crate) mounts: Vec<MountDraft>,
    /// The faults, in order. A fault is injected once per trial unless it has `persistence: persistent`, so
    /// that a resumed target is not hit again.
    pub(crate) method: Spanned<Vec<FaultDraft>>,
    /// What must hold.
    pub(crate) expect: Spanned<Vec<ExpectationDraft>>,
    /// Protections of the target that this scenario relies on. `trainwreck ablate` switches off one at a
    /// time; the scenario must then be violated.
    #[serde(default)]
    pub(crate) guards: Vec<Spanned<String>>,
}

/// How bad it is if a trainer does not survive this scenario.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SeverityDraft {
    Critical,
    Medium,
    Low,
    Extra,
}

/// The trainer under test and its input.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct TargetUseDraft {
    /// Name of a shipped target (`reference`), or the path of a target file, relative to this file.
    #[serde(rename = "use")]
    pub(crate) target: String,
    /// The GPU that the target sees. Default: none.
    pub(crate) gpu: Option<Spanned<GpuDraft>>,
    /// Settings of the target that differ from its defaults.
    #[serde(default)]
    pub(crate) settings: BTreeMap<String, SettingValue>,
    /// Data files that are submitted to the target before it starts.
    #[serde(default)]
    pub(crate) submit: Vec<SubmitDraft>,
}

/// A data file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SubmitDraft {
    /// A file in the directory of this scenario file.
    File(FileName),
    /// A file that one of the target's `generate` commands makes.
    Generate(GenerateDraft),
}

/// A data file to be generated.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct GenerateDraft {
    /// Which of the target's `generate` commands, such as `arithmetic`.
    pub(crate) kind: Spanned<String>,
    /// Number of samples.
    pub(crate) samples: Spanned<u32>,
    /// Approximate bytes per sample. Default: the command's own.
    pub(crate) length: Option<u32>,
}

/// A tmpfs for one place of the target.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MountDraft {
    /// A place of the target file.
    pub(crate) place: Spanned<String>,
    /// Size of the tmpfs.
    pub(crate) size: Size,
    /// Number of files and directories that it can hold. Default: the kernel's choice.
    pub(crate) inodes: Option<u64>,
}

/// A fault. Its single key names what is done.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FaultDraft {
    /// Kills every process of the target at once with SIGKILL, then resumes the target.
    Crash(CrashDraft),
    /// Sends a signal: TERM as a scheduler does before it kills, or STOP, followed by CONT.
    Signal(SignalDraft),
    /// Makes the place's tmpfs too small for what comes next: ENOSPC.
    FillDisk(FillDiskDraft),
    /// Leaves the place's tmpfs without a free inode: ENOSPC although bytes are free.
    ExhaustInodes(ExhaustInodesDraft),
    /// Makes the place read-only: EROFS.
    ReadOnly(ReadOnlyDraft),
    /// Gives the target less memory than it needs, so that it is OOM-killed: by the kernel in a memory
    /// cgroup, or by Trainwreck where this machine does not allow one.
    MemoryLimit(MemoryLimitDraft),
    /// Puts hostile files into a place, each by rename.
    Plant(PlantDraft),
    /// Puts files into a place and removes them after the target has listed them and before it opens them.
    Vanish(VanishDraft),
    /// Gives one sample of each submitted file a weight with which its loss overflows.
    PoisonSample(PoisonSampleDraft),
    /// Makes a file system call fail. With `persistence: persistent` each later matching call fails too,
    /// until the target has exited by itself.
    FailCall(FailCallDraft),
    /// Makes a read or a write transfer fewer bytes than requested, as after a signal, on a full disk or on a
    /// network file system.
    ShortCall(ShortCallDraft),
    /// Makes a file system call take long. Other calls go on meanwhile.
    DelayCall(DelayCallDraft),
    /// Replaces the file at a path just before a call uses it: a race between check and use.
    SwapFile(SwapFileDraft),
    /// Makes each matching call fail with each errno that it can plausibly return, once (transient) and from
    /// then on (persistent), one trial each.
    SweepErrno(SweepErrnoDraft),
    /// Records one undisturbed run, rebuilds each file tree that a crash in it may leave, and resumes the
    /// target from it, one trial each.
    CrashStates(CrashStatesDraft),
    /// Makes a call of the GPU driver fail.
    GpuError(GpuErrorDraft),
    /// Makes a GPU kernel run forever, so that every wait for it hangs.
    GpuHang(GpuHangDraft),
    /// Overwrites a value in the output of a kernel. Simulated GPU only.
    GpuOverwrite(GpuOverwriteDraft),
    /// Flips one bit in the largest allocation of GPU memory. Simulated GPU only.
    GpuFlipBit(GpuFlipBitDraft),
    /// Fragments the free GPU memory: a large allocation fails although enough memory is free. Simulated GPU
    /// only.
    GpuFragment(GpuFragmentDraft),
    /// Changes what the GPU reports about itself: lost, hot, throttled, memory errors, XIDs. Lasts from when
    /// the fault is injected until it is reverted.
    GpuState(GpuStateDraft),
}

/// Defines the draft of a fault: its own keys, and the keys that every fault has.
macro_rules! fault {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: $type,)*
            /// When the fault is injected. Default: before the target starts.
            pub(crate) when: Option<TriggerDraft>,
            /// How often the fault is injected in one trial: `transient` (once, the default) or `persistent`.
            #[serde(default)]
            pub(crate) persistence: PersistenceDraft,
            /// When the fault is reverted. Default: never.
            pub(crate) until: Option<UntilDraft>,
            /// What shows that the fault was effective. Replaces the fault's own evidence.
            pub(crate) effective_if: Option<EffectiveIfDraft>,
            /// Maximum number of trials (default: 64). Trials beyond it are left out, and counted in the
            /// report.
            pub(crate) max_trials: Option<Spanned<u32>>,
        }

        impl $name {
            pub(crate) fn common(&self) -> CommonKeys<'_> {
                let $name { when, persistence, until, effective_if, max_trials, .. } = self;
                CommonKeys {
                    when: when.as_ref(),
                    persistence: *persistence,
                    until: until.as_ref(),
                    effective_if: effective_if.as_ref(),
                    max_trials: max_trials.as_ref(),
                }
            }
        }
    };
}
pub(crate) use fault;

/// The keys that every fault has.
#[derive(Clone, Copy)]
pub(crate) struct CommonKeys<'a> {
    pub(crate) when: Option<&'a TriggerDraft>,
    pub(crate) persistence: PersistenceDraft,
    pub(crate) until: Option<&'a UntilDraft>,
    pub(crate) effective_if: Option<&'a EffectiveIfDraft>,
    pub(crate) max_trials: Option<&'a Spanned<u32>>,
}

fault!(
    /// Kills the whole process tree with SIGKILL.
    CrashDraft {
        /// Where in a call the kill happens. Default: before the call, if the trigger names one call; with
        /// `at: every`, before each call, inside each write, and after the last call.
        point: Option<KillPointDraft>,
    }
);
fault!(
    /// Sends a signal. One trial for each in the list.
    SignalDraft {
        /// The signals, without `SIG`: `[TERM, INT]`.
        which: Spanned<Vec<SignalName>>,
        /// `main`: the process that the target file's command started. `every-process`: all of the target's.
        /// Default: `main`.
        #[serde(default)]
        to: SignalRecipient,
        /// After STOP: the time until CONT follows; required. After another signal: the time within which the
        /// target must exit, otherwise it is `hung`; it is then resumed. Default: 30 s after TERM, INT and
        /// QUIT, as in Kubernetes. After the other signals the target may go on.
        r#for: Option<Spanned<TimeSpan>>,
    }
);
fault!(
    /// A full disk.
    FillDiskDraft {
        /// A place of the target file. It must be listed in `mounts`.
        place: Spanned<String>,
        /// How many bytes stay free.
        leave: FreeSpace,
    }
);
fault!(
    /// No free inodes.
    ExhaustInodesDraft {
        /// A place of the target file. It must be listed in `mounts`, with `inodes`.
        place: Spanned<String>,
    }
);
fault!(
    /// A read-only place.
    ReadOnlyDraft {
        /// A place of the target file.
        place: Spanned<String>,
    }
);
fault!(
    /// Too little memory.
    MemoryLimitDraft {
        /// How much memory all processes of the target may use together.
        max: MemoryCapDraft,
    }
);
fault!(
    /// Hostile files.
    PlantDraft {
        /// A place of the target file.
        place: Spanned<String>,
        /// The files that are put there.
        files: Spanned<Vec<PlantedFileDraft>>,
    }
);
fault!(
    /// Vanishing files.
    VanishDraft {
        /// A place of the target file.
        place: Spanned<String>,
        /// Number of files in each round.
        files: Spanned<u32>,
        /// What the files contain.
        holds: DataKindDraft,
    }
);
fault!(
    /// A sample whose loss overflows.
    PoisonSampleDraft {
        /// Line number of the sample in the file, from 1.
        sample: Spanned<u32>,
        /// Weight of the sample, such as 3.0e38: finite in the file, too large once it is multiplied by a
        /// loss.
        weight: f64,
    }
);

fault!(
    /// A call that fails.
    FailCallDraft {
        /// The errnos that the call fails with, one trial each.
        errno: Spanned<Vec<ErrnoName>>,
        /// The call is done before it returns the error, as when only its result is lost. Default: false.
        #[serde(default)]
        performed: bool,
    }
);
fault!(
    /// A call that transfers too few bytes.
    ShortCallDraft {
        /// Number of bytes that are transferred, at least 1.
        bytes: Spanned<u32>,
    }
);
fault!(
    /// A slow call.
    DelayCallDraft {
        /// How long the call is delayed.
        time: TimeSpan,
    }
);
fault!(
    /// A replaced file.
    SwapFileDraft {
        /// What the path refers to instead.
        by: ReplacementDraft,
    }
);
fault!(
    /// All errnos of all calls.
    SweepErrnoDraft {}
);

/// File trees as crashes leave them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct CrashStatesDraft {
    /// Which kinds of crash. Default: a kill of the process, and a power loss on `ext4`, `xfs`, `btrfs` and
    /// `posix`.
    pub(crate) of: Option<Spanned<Vec<CrashModel>>>,
    /// Only crashes from the start of one occurrence of this phase to the start of the next. The seed chooses
    /// the occurrence, never the first.
    pub(crate) during: Option<Spanned<String>>,
    /// Only crashes at changes of these paths.
    pub(crate) on: Option<PathGlob>,
    /// 1 (the default): states that a crash of the target leaves. 2: the target is killed once, and the
    /// states are those that a second crash leaves, during the recovery.
    pub(crate) depth: Option<Spanned<u32>>,
    /// Maximum number of trials (default: 64): representatives of each kind first. Trials beyond it are left
    /// out, and counted in the report.
    pub(crate) max_trials: Option<Spanned<u32>>,
}

impl CrashStatesDraft {
    pub(crate) fn common(&self) -> CommonKeys<'_> {
        CommonKeys {
            when: None,
            persistence: PersistenceDraft::Transient,
            until: None,
            effective_if: None,
            max_trials: self.max_trials.as_ref(),
        }
    }
}

/// Where in a call a kill happens.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KillPointDraft {
    /// Before the kernel does the call.
    Before,
    /// Half of the bytes of a write have been written.
    Inside,
    /// After the kernel has done the call.
    After,
}

/// What a path refers to after the swap.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReplacementDraft {
    /// The file is removed.
    Nothing,
    /// An empty file.
    EmptyFile,
    /// A symbolic link to a name that does not exist.
    DanglingLink,
}

/// When a fault is injected.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TriggerDraft {
    /// Before the target starts.
    Start,
    /// When the target announces this step or a later one.
    Step(u64),
    /// When a line of the target's output matches.
    Output(Pattern),
    /// This long after the target has started.
    After(TimeSpan),
    /// At exactly one file system call below the root. The target waits in the call until the fault has been
    /// injected.
    Call(CallDraft),
}

/// A file system call. Calls of all threads and processes of the target are counted together.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct CallDraft {
    /// Which kinds of call. Default: those that change files or make a change durable.
    pub(crate) to: Option<Spanned<Vec<FileCallKind>>>,
    /// Only calls on these paths.
    pub(crate) on: Option<PathGlob>,
    /// Only calls during this phase of the target file, such as `checkpoint-save`. The seed chooses one
    /// occurrence of the phase, never the first.
    pub(crate) during: Option<Spanned<String>>,
    /// Which of the calls that match.
    pub(crate) at: Spanned<OccurrenceDraft>,
}

/// How often a fault is injected in one trial.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PersistenceDraft {
    /// Once, so that a resumed target is not hit again.
    #[default]
    Transient,
    /// Each time that the trigger matches, from the first time on.
    Persistent,
}

/// When a fault is reverted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UntilDraft {
    /// At the end of the trial.
    Never,
    /// This long after the injection.
    After(TimeSpan),
    /// When a line of the target's output matches.
    Output(Pattern),
}

/// What shows that a fault was effective.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EffectiveIfDraft {
    /// A line of the target's output matches.
    Output(Pattern),
}

/// A file to be planted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PlantedFileDraft {
    /// Name of the file.
    pub(crate) name: FileName,
    /// What the file contains.
    pub(crate) holds: DataKindDraft,
}

/// What a file contains: JSON lines, valid or hostile.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DataKindDraft {
    /// This many well-formed samples.
    Sound(u32),
    /// One line with arrays nested to this depth.
    NestedJson(u32),
    /// One line with an object that doubles at each of this many levels (at most 22), written out.
    ExponentialJson(u32),
    /// One line with a number of this many digits.
    LongNumber(u32),
    /// One line with an object that has the same key this many times.
    DuplicateKeys(u32),
    /// One line of this size, sparse on disk.
    LongLine(Size),
}
