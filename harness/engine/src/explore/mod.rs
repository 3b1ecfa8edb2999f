//! Records the file operations of one run, builds every crash state that the models allow within the bounds,
//! runs the recovery on each, and groups the failures by cause. Builds on `gate` and `sandbox`; knows no
//! scenario.
//!
//! Four stages, each of which imports only from those before it: `record`, `states`, `replay`, `report`. On
//! top of them, `pipeline` runs them in this order.
//!
//! `docs/explore.md` shows how to run it. Not done: io_uring and libaio, and more than two crashes in a row.

mod comparison_sample;
mod controls;
mod error;
mod explore_config;
mod explore_progress;
mod failing_trees;
mod noted_start;
mod pipeline;
mod record;
mod repeated_states;
mod replay;
mod replayed_states;
mod report;
mod second_crash;
mod start_comparison;
mod states;
mod tree_difference;
mod warm_news;
mod warm_start;

pub(crate) use comparison_sample::GrowingSample;
pub use error::{ExploreBaselineError, ExploreError, FoundFiles, KeptRecordingError, ValueDifference};
pub use explore_config::ExploreConfig;
pub use explore_progress::ExploreProgress;
pub use failing_trees::FailingTree;
pub use pipeline::{ExploreResult, explore};
pub use record::{
    AttributesId, ByteSource, CommandRecording, ContentPiece, ContentReader, CopyReport, CountedPaths,
    FileAttributes, FileContent, FileNode, FileNodeKind, FileTime, FirstCrash, GatedRun, KeepRecordingSpec,
    KeptRecording, LargeTreeProgress, MAX_COPIED_BYTES, NameChange, NodeId, Op, OpEffect, OpKind, OpRecorder,
    OverlayObstacle, PhaseLines, RECORDING_FACTOR, RecordSpec, RecorderConfig, Recording, RecordingGaps,
    RecordingProgress, UnsetAttributes, WatchedRoot, copy_tree,
};
pub use replay::{
    BaselineValues, ConsumedStep, ForkedPython, ImportNotes, JudgeSpec, MaterializePlace, OutputOracle,
    RecoveryResult, ReplayProgress, ReplaySpec, ServerImports, TriedState, WarmStart, materialize,
};
pub(crate) use report::kind_of_message;
pub use report::{ReportSpec, describe_evidence, describe_state};
pub use second_crash::{SecondCrash, SecondCrashes, explore_second_crashes, recovered_kills};
pub use states::{
    CrashCandidate, CrashKind, CrashState, DurableSet, EntryAttributes, EnumerateSpec, Enumeration,
    EnumerationCounts, ExploreScope, FileTree, FsBehavior, FsModel, PersistUnit, StateContents, StateName,
    Tear, TornWrite, TreeEntry, Witness, enumerate, enumerate_until, persist_units,
};
pub use tree_difference::{TreeDifference, TreeDifferenceKind};
pub use warm_news::{ColdReason, WarmNews};
