//! Which modules of each crate may use which. `architecture.rs` holds the code against these tables.

/// For each module of a crate, the modules that it may use. A module without a row belongs to the row of the
/// module around it. `*`: every other module. No row may use items that the crate's root defines.
pub(crate) type ArrowTable = [(&'static str, &'static [&'static str])];

/// Each crate's source directory, with its table. From the ground up.
pub(crate) const CRATES: [(&str, &ArrowTable); 8] = [
    ("harness/engine/src", ENGINE),
    ("harness/src", COMMAND),
    ("harness/simgpu/words/src", GPU_WORDS),
    ("harness/simgpu/plan/src", SIMGPU_PLAN),
    ("harness/simgpu/src", SIMGPU),
    ("scenarios/src", SCENARIOS),
    ("reports/src", REPORTS),
    ("target-trainer/src", TRAINER),
];

const ENGINE: &ArrowTable = &[
    ("file_error", &[]),
    ("locks", &[]),
    ("seccomp", &[]),
    ("gate", &["locks", "seccomp"]),
    ("sandbox", &["file_error", "locks", "seccomp"]),
    ("plan", &[]),
    ("judge", &[]),
    ("observe", &["locks"]),
    ("target", &["sandbox"]),
    ("gpu", &["file_error", "locks", "target"]),
    ("faults", &["file_error", "gpu", "plan", "sandbox", "target"]),
    ("explore::error", &["file_error", "sandbox"]),
    ("explore::record", &["explore::error", "file_error", "gate", "locks", "sandbox"]),
    ("explore::states", &["explore::record"]),
    (
        "explore::replay",
        &["explore::error", "explore::record", "explore::states", "file_error", "locks", "sandbox"],
    ),
    ("explore::report", &["explore::record", "explore::states", "explore::replay"]),
    // The pipeline, its configuration, and second crashes.
    (
        "explore",
        &[
            "explore::error",
            "explore::record",
            "explore::states",
            "explore::replay",
            "explore::report",
            "file_error",
            "sandbox",
        ],
    ),
    ("run", &["*"]),
];

const COMMAND: &ArrowTable = &[
    ("args", &[]),
    ("exit", &[]),
    ("print", &[]),
    ("option_error", &[]),
    ("shell_quote", &[]),
    ("host_access_options", &["args", "shell_quote"]),
    ("scenario_library", &["args", "host_access_options"]),
    ("record_writer", &[]),
    ("error", &["exit", "host_access_options", "option_error", "scenario_library"]),
    ("diagnostics", &["error", "print", "scenario_library"]),
    ("interrupt", &["error", "print"]),
    ("report_paths", &["error", "print"]),
    ("session", &["error", "print"]),
    ("report_files", &["error"]),
    ("run_display", &["print"]),
    ("explore_display", &["print"]),
    ("exploration_output", &["error", "print"]),
    ("explore_options", &["args", "error", "host_access_options", "option_error"]),
    (
        "explore_target",
        &["args", "error", "explore_options", "host_access_options", "option_error", "scenario_library"],
    ),
    ("analyze", &["error", "exit", "print", "report_files", "report_paths"]),
    ("check", &["args", "diagnostics", "error", "exit", "host_access_options", "print", "scenario_library"]),
    (
        "run",
        &[
            "args",
            "diagnostics",
            "error",
            "exit",
            "host_access_options",
            "interrupt",
            "option_error",
            "print",
            "record_writer",
            "report_files",
            "report_paths",
            "run_display",
            "scenario_library",
            "session",
        ],
    ),
    (
        "explore",
        &[
            "args",
            "diagnostics",
            "error",
            "exit",
            "exploration_output",
            "explore_display",
            "explore_options",
            "explore_target",
            "interrupt",
            "print",
            "report_paths",
            "session",
            "shell_quote",
        ],
    ),
    ("cli", &["*"]),
];

const GPU_WORDS: &ArrowTable = &[];

const SIMGPU_PLAN: &ArrowTable = &[("control", &[])];

const SIMGPU: &ArrowTable = &[
    ("address_space", &[]),
    ("calls", &[]),
    ("codes", &[]),
    ("kernels", &[]),
    ("loader", &[]),
    ("locks", &[]),
    ("matmul", &[]),
    ("stacks", &[]),
    ("symbols", &[]),
    ("sys", &[]),
    ("call_table", &["symbols"]),
    ("fibers", &["kernels", "stacks", "sys"]),
    ("device_memory", &["address_space", "fibers", "sys"]),
    ("faults", &["calls", "codes", "locks", "symbols"]),
    (
        "driver",
        &["codes", "device_memory", "faults", "fibers", "kernels", "locks", "matmul", "symbols", "sys"],
    ),
    ("forward", &["call_table", "codes", "faults", "loader", "locks", "symbols"]),
    ("hooks", &["call_table", "calls", "driver", "faults", "forward", "symbols"]),
    ("cublaslt", &["codes", "driver", "faults", "hooks", "matmul"]),
    ("nvml", &["driver", "faults", "forward", "locks"]),
];

const SCENARIOS: &ArrowTable = &[
    ("trials_planned", &[]),
    ("units", &[]),
    ("verdict", &[]),
    ("yaml", &[]),
    ("operation", &["yaml"]),
    ("trigger", &["operation", "yaml"]),
    ("gpu", &["units", "yaml"]),
    ("effect", &["gpu", "operation", "trials_planned", "trigger", "units", "yaml"]),
    ("template", &[]),
    ("target", &["template"]),
    ("scenario", &["effect", "gpu", "target", "trigger", "units", "verdict", "yaml"]),
    ("recovery_check", &[]),
    ("sandbox_hint", &[]),
    ("ending", &[]),
    ("failed_run", &["ending", "sandbox_hint"]),
    ("record", &["ending", "failed_run", "sandbox_hint", "trials_planned", "verdict"]),
    ("trial_counts", &["record", "trials_planned"]),
    ("exploration", &["effect", "recovery_check", "sandbox_hint", "trials_planned", "verdict"]),
    (
        "check",
        &[
            "effect",
            "gpu",
            "operation",
            "scenario",
            "target",
            "template",
            "trigger",
            "units",
            "verdict",
            "yaml",
        ],
    ),
    ("schema", &["check"]),
];

const REPORTS: &ArrowTable = &[
    ("clean", &[]),
    ("error", &[]),
    ("exploration", &[]),
    ("view", &["error"]),
    ("summary", &["error", "view"]),
    ("html", &["clean", "summary", "view"]),
    ("junit", &["clean", "summary", "view"]),
    ("markdown", &["clean", "summary", "view"]),
];

const TRAINER: &ArrowTable = &[
    ("exit", &[]),
    ("file_error", &[]),
    ("locks", &[]),
    ("random", &[]),
    ("durable", &[]),
    ("device", &["locks"]),
    ("state", &[]),
    ("make_data", &["random"]),
    ("settings", &["device", "file_error", "state"]),
    ("store", &["durable", "file_error", "settings", "state"]),
    ("intake", &["settings"]),
    ("model", &["device", "file_error", "intake", "random", "state", "store"]),
    ("optim", &["state"]),
    (
        "train",
        &[
            "device",
            "durable",
            "exit",
            "file_error",
            "intake",
            "model",
            "optim",
            "random",
            "settings",
            "state",
            "store",
        ],
    ),
    ("daemon", &["device", "durable", "exit", "file_error", "intake", "settings", "store", "train"]),
    ("cli", &["*"]),
];
