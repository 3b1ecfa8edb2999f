//! A scenario file as it is written: the one place that says which keys there are. The schema is made from it, and the
//! words of each description are what an editor shows.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::calls::{CrashModel, FileCallKind};
use crate::expect_draft::ExpectationDraft;
use crate::gpu_draft::{GpuDraft, GpuError, GpuFlipBit, GpuFragment, GpuHang, GpuOverwrite, GpuStateFault};
use crate::leaf::{ErrnoName, FileName, Files, Id, Leave, MemoryMax, Pattern, Setting, Size, Span, Which};
use crate::spanned::Placed;

/// A scenario of Trainwreck: a target, a method that breaks it, and what is expected of it then.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "Trainwreck scenario, version 1")]
pub(crate) struct ScenarioDraft {
    /// Version of the language: 1.
    pub(crate) version: Placed<u32>,
    pub(crate) id: Placed<Id>,
    /// One line: what happens to the trainer.
    pub(crate) title: Placed<String>,
    /// How bad it is when a trainer does not survive this.
    pub(crate) severity: SeverityDraft,
    pub(crate) target: TargetUseDraft,
    /// Places of the target that get a tmpfs of their own.
    #[serde(default)]
    pub(crate) mounts: Vec<MountDraft>,
    /// The faults, in order. A fault strikes once in a trial unless `strike` says otherwise, so that a resumed target is
    /// not shot again.
    pub(crate) method: Placed<Vec<FaultDraft>>,
    /// What must hold.
    pub(crate) expect: Placed<Vec<ExpectationDraft>>,
    /// Protections of the target that this scenario relies on; `trainwreck prove` takes each away and wants to notice.
    #[serde(default)]
    pub(crate) guards: Vec<Placed<String>>,
}

/// How bad it is when a trainer does not survive this.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SeverityDraft {
    Critical,
    Medium,
    Low,
    Extra,
}

/// The trainer under test and what it is given to do.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct TargetUseDraft {
    /// Name of a shipped target (`reference`), or the path of a target file beside this one.
    #[serde(rename = "use")]
    pub(crate) target: String,
    /// A GPU for the target; none where it is not said.
    pub(crate) gpu: Option<Placed<GpuDraft>>,
    /// Settings of the target that differ from its defaults.
    #[serde(default)]
    pub(crate) settings: BTreeMap<String, Setting>,
    /// Data files handed in before the start.
    #[serde(default)]
    pub(crate) submit: Vec<SubmitDraft>,
}

/// A data file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SubmitDraft {
    /// A file that lies beside this one.
    File(FileName),
    /// Made by one of the target's `generate` commands.
    Generate(GenerateDraft),
}

/// A data file to be made.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct GenerateDraft {
    /// Which of the target's `generate` commands, such as `arithmetic`.
    pub(crate) kind: Placed<String>,
    /// How many samples.
    pub(crate) samples: Placed<u32>,
    /// About how many bytes each; the command's default where it is not said.
    pub(crate) length: Option<u32>,
}

/// A tmpfs for one place of the target.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MountDraft {
    /// Which place of the target file.
    pub(crate) place: Placed<String>,
    pub(crate) size: Size,
    /// Files and folders that it can hold; as the kernel decides where it is not said.
    pub(crate) inodes: Option<u64>,
}

/// A fault: its single key is what is done.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FaultDraft {
    /// SIGKILL of every process of the target at once; then it is resumed.
    Crash(Crash),
    /// SIGTERM to the main process, which must end within `grace`; then it is resumed.
    Terminate(Terminate),
    /// The place's tmpfs is made too small for what comes next: ENOSPC.
    FillDisk(FillDisk),
    /// The place's tmpfs is left without a free inode: ENOSPC although bytes are free.
    ExhaustInodes(ExhaustInodes),
    /// The place becomes read-only: EROFS.
    ReadOnly(ReadOnly),
    /// The target gets less memory than it needs, and the OOM killer comes (a memory cgroup; else a watcher that kills).
    MemoryLimit(MemoryLimit),
    /// Hostile files appear in a place, each by rename.
    Plant(Plant),
    /// Files appear in a place and are gone between the moment at which they are listed and the one at which they are opened.
    Vanish(Vanish),
    /// One sample of each submitted file gets a weight with which its loss overflows.
    PoisonSample(PoisonSample),
    /// A file system call fails. With `persistence: persistent` each later one as well, until the target has ended by itself.
    FailCall(FailCall),
    /// A read or a write moves fewer bytes than were asked for, as a signal, a full disk or a network file system makes it.
    ShortCall(ShortCall),
    /// A file system call takes long; other calls go on meanwhile.
    DelayCall(DelayCall),
    /// Between check and use somebody changes what a path stands for: just before the call sees it.
    SwapFile(SwapFile),
    /// Every call with every errno that it may plausibly return, each once and each from then on: a trial each.
    SweepErrno(SweepErrno),
    /// One undisturbed run is recorded, and every set of files that a crash may leave of it is laid out and resumed from: a
    /// trial each.
    CrashStates(CrashStates),
    /// A call of the GPU's driver fails.
    GpuError(GpuError),
    /// A kernel on the GPU never ends: whoever waits for it waits for ever.
    GpuHang(GpuHang),
    /// A kernel on the simulated GPU leaves a wrong value in what it wrote.
    GpuOverwrite(GpuOverwrite),
    /// A bit flips in the simulated GPU's memory, where most of it is in use.
    GpuFlipBit(GpuFlipBit),
    /// The simulated GPU's memory is in small pieces: a large allocation fails although enough is free.
    GpuFragment(GpuFragment),
    /// What the GPU tells of itself: lost, hot, slowed down, memory errors, XIDs. From when it strikes until it is taken back.
    GpuState(GpuStateFault),
}

/// A fault's own keys, and those that every fault has.
macro_rules! fault {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: $type,)*
            /// When it strikes; from the start where it is not said.
            pub(crate) when: Option<TriggerDraft>,
            /// How often it strikes in one trial: `transient` (the default) or `persistent`.
            #[serde(default)]
            pub(crate) persistence: PersistenceDraft,
            /// When it is taken back; never where it is not said.
            pub(crate) until: Option<UntilDraft>,
            /// What shows that it landed, in place of the fault's own evidence.
            pub(crate) effective_if: Option<EffectiveIfDraft>,
            /// Trials at most (64 where it is not said); what is left out is counted and told.
            pub(crate) max_trials: Option<Placed<u32>>,
        }

        impl $name {
            pub(crate) fn common(&self) -> Common<'_> {
                let $name { when, persistence, until, effective_if, max_trials, .. } = self;
                Common { when: when.as_ref(), persistence: *persistence, until: until.as_ref(), effective_if: effective_if.as_ref(), max_trials: max_trials.as_ref() }
            }
        }
    };
}
pub(crate) use fault;

/// What every fault has.
#[derive(Clone, Copy)]
pub(crate) struct Common<'a> {
    pub(crate) when: Option<&'a TriggerDraft>,
    pub(crate) persistence: PersistenceDraft,
    pub(crate) until: Option<&'a UntilDraft>,
    pub(crate) effective_if: Option<&'a EffectiveIfDraft>,
    pub(crate) max_trials: Option<&'a Placed<u32>>,
}

fault!(
    /// SIGKILL of the whole tree.
    Crash {
        /// Where in a call it falls. Where it is not said: before the one call that is aimed at; with `at: every` before
        /// each, inside each write, and after the last.
        point: Option<PointDraft>,
    }
);
fault!(
    /// SIGTERM to the main process.
    Terminate {
        /// Time to end in.
        grace: Span,
    }
);
fault!(
    /// A full disk.
    FillDisk {
        /// Which place; it needs a mount of its own in `mounts`.
        place: Placed<String>,
        /// How much stays free.
        leave: Leave,
    }
);
fault!(
    /// No inodes.
    ExhaustInodes {
        /// Which place; it needs a mount of its own, with `inodes`, in `mounts`.
        place: Placed<String>,
    }
);
fault!(
    /// A read-only place.
    ReadOnly {
        /// Which place.
        place: Placed<String>,
    }
);
fault!(
    /// Too little memory.
    MemoryLimit {
        /// How much the whole target may have.
        max: MemoryMax,
    }
);
fault!(
    /// Hostile files.
    Plant {
        /// Which place.
        place: Placed<String>,
        /// What is put there.
        files: Placed<Vec<PlantedDraft>>,
    }
);
fault!(
    /// Vanishing files.
    Vanish {
        /// Which place.
        place: Placed<String>,
        /// How many in each round.
        files: Placed<u32>,
        /// What they hold.
        holds: KindDraft,
    }
);
fault!(
    /// A sample that overflows.
    PoisonSample {
        /// Which line of the file, from 1.
        sample: Placed<u32>,
        /// Its weight, such as 3.0e38: finite in the file, too large once it multiplies a loss.
        weight: f64,
    }
);

fault!(
    /// A call that fails.
    FailCall {
        /// With what: a trial for each.
        errno: Placed<Vec<ErrnoName>>,
        /// It is done all the same: what returned an error may have happened.
        #[serde(default)]
        performed: bool,
    }
);
fault!(
    /// A call that moves too little.
    ShortCall {
        /// Bytes that are moved, at least 1.
        bytes: Placed<u32>,
    }
);
fault!(
    /// A slow call.
    DelayCall {
        time: Span,
    }
);
fault!(
    /// A swapped file.
    SwapFile {
        /// What is there instead.
        by: SwappedDraft,
    }
);
fault!(
    /// All errnos of all calls.
    SweepErrno {}
);

/// Files as crashes leave them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct CrashStates {
    /// Which crashes; where none is said, a kill and a power loss on each file system.
    pub(crate) of: Option<Placed<Vec<CrashModel>>>,
    /// Only from the beginning of one turn of this phase to that of the next, never the first, as the seed decides.
    pub(crate) during: Option<Placed<String>>,
    /// Only at changes of these paths.
    pub(crate) on: Option<Files>,
    /// 2: the target is killed in the middle, and the states are those that a second crash leaves of its recovery.
    pub(crate) depth: Option<Placed<u32>>,
    /// Trials at most (64 where it is not said): representatives of each kind first; what is left out is counted and told.
    pub(crate) max_trials: Option<Placed<u32>>,
}

impl CrashStates {
    pub(crate) fn common(&self) -> Common<'_> {
        let max_trials = self.max_trials.as_ref();
        Common { when: None, persistence: PersistenceDraft::Transient, until: None, effective_if: None, max_trials }
    }
}

/// Where in a call a crash falls.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PointDraft {
    Before,
    /// Half of the bytes of a write have been written.
    Inside,
    After,
}

/// What a path stands for after somebody has come between check and use.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SwappedDraft {
    Nothing,
    EmptyFile,
    /// A link to a name that does not exist.
    DanglingLink,
}

/// When a fault strikes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TriggerDraft {
    /// Before the target is started.
    Start,
    /// Once the target announces this step or a later one.
    Step(u64),
    /// Once a line of its output matches.
    Output(Pattern),
    /// This long after it was started.
    After(Span),
    /// At a file system call below the root, exactly: the target waits in it until the fault has been made.
    Call(CallDraft),
}

/// A file system call. Calls of all threads and processes of the target are counted together.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct CallDraft {
    /// Which kinds; where none is said, those that change files or make a change durable.
    pub(crate) to: Option<Placed<Vec<FileCallKind>>>,
    /// Only on these paths.
    pub(crate) on: Option<Files>,
    /// Only in this phase of the target file, such as `checkpoint-save`: in one of its turns, never the first, as the seed decides.
    pub(crate) during: Option<Placed<String>>,
    /// Which of the calls that match.
    pub(crate) at: Placed<Which>,
}

/// How often a fault strikes in one trial.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PersistenceDraft {
    /// Once: a resumed target is not shot again.
    #[default]
    Transient,
    /// Each time its trigger comes.
    Persistent,
}

/// When a fault is taken back.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UntilDraft {
    /// At the end of the trial.
    Never,
    /// This long after it struck.
    After(Span),
    /// Once a line of the target's output matches.
    Output(Pattern),
}

/// What shows that a fault landed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EffectiveIfDraft {
    /// A line of the target's output matches.
    Output(Pattern),
}

/// A file to be planted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PlantedDraft {
    pub(crate) name: FileName,
    /// What it holds.
    pub(crate) holds: KindDraft,
}

/// What a file holds: JSON lines, sound or hostile.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KindDraft {
    /// So many well-formed samples.
    Sound(u32),
    /// One line with arrays nested so deep.
    NestedJson(u32),
    /// One line with an object that doubles at each of so many levels (at most 22), written out.
    ExponentialJson(u32),
    /// One line with a number of so many digits.
    LongNumber(u32),
    /// One object in which the same key stands so many times.
    DuplicateKeys(u32),
    /// One line of this size, sparse on disk.
    LongLine(Size),
}
