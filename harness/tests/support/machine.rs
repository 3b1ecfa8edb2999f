//! What a test needs of the machine, and whether the machine has it. The command itself decides about faults:
//! `trainwreck doctor`. Must not know any test.

use std::process::Command;
use std::sync::OnceLock;

use super::c_target;
use super::command::TRAINWRECK;
use super::ordinary_user::OrdinaryUser;

/// Something that a test needs and that not every machine has.
pub(crate) enum Need {
    /// A mechanism, by its name in the output of `trainwreck doctor`.
    Mechanism(&'static str),
    /// That the machine does not support a mechanism.
    NoMechanism(&'static str),
    /// A program that answers `--version`.
    Program(&'static str),
    /// A C library to link a static program with.
    StaticLibc,
    /// Tests run as root.
    Root,
    /// Tests run as root, and the user `nobody` may build sandboxes and use this mechanism. Where tests run as
    /// an ordinary user, all others show that already.
    OrdinaryUserWith(&'static str),
}

/// What runs a scenario with a file system of its own.
pub(crate) const SANDBOX: [Need; 2] = [Need::Mechanism("user-namespace"), Need::Mechanism("tmpfs")];
/// What intercepts the file-system calls of a target.
pub(crate) const GATE: [Need; 2] = [Need::Mechanism("user-namespace"), Need::Mechanism("syscall-gate")];
/// What runs a target on the simulated GPU.
pub(crate) const SIMULATED_GPU: [Need; 2] =
    [Need::Mechanism("user-namespace"), Need::Mechanism("simulated-gpu")];

/// The first of these needs that the machine does not meet, in words.
pub(crate) fn missing<'a>(needs: impl IntoIterator<Item = &'a Need>) -> Option<String> {
    needs.into_iter().find_map(Need::missing)
}

impl Need {
    fn missing(&self) -> Option<String> {
        match self {
            Need::Mechanism(name) => own_mechanisms(name).lacks(name).then(|| format!("no {name}")),
            Need::NoMechanism(name) => {
                own_mechanisms(name).grants(name).then(|| format!("this machine has a {name}"))
            }
            Need::Program(name) => (!runs(name)).then(|| format!("no {name}")),
            Need::StaticLibc => c_target::compile("calls.c", &["-static"])
                .is_err()
                .then(|| "no static C library to link with".into()),
            Need::Root => (!nix::unistd::geteuid().is_root()).then(|| "this user is not root".into()),
            Need::OrdinaryUserWith(mechanism) => missing_for_ordinary_user(mechanism),
        }
    }
}

/// What `trainwreck doctor` prints.
struct DoctorReport(String);

impl DoctorReport {
    /// Runs the doctor. Without `builds_shim` it does not build the library of the simulated GPU, which can
    /// take a minute, and therefore finds no GPU.
    fn of(mut doctor: Command, builds_shim: bool) -> DoctorReport {
        if !builds_shim {
            doctor.env_remove("CARGO");
        }
        DoctorReport(String::from_utf8_lossy(&doctor.arg("doctor").output().unwrap().stdout).into_owned())
    }

    fn line(&self, mechanism: &str) -> &str {
        let has_name = |line: &&str| line.split_whitespace().nth(1) == Some(mechanism);
        self.0
            .lines()
            .find(has_name)
            .unwrap_or_else(|| panic!("`trainwreck doctor` does not know `{mechanism}`:\n{}", self.0))
    }

    fn grants(&self, mechanism: &str) -> bool {
        !self.line(mechanism).starts_with('-')
    }

    /// If something could not be built, the machine does not lack it: its tests run, and fail.
    fn lacks(&self, mechanism: &str) -> bool {
        !self.grants(mechanism) && !self.line(mechanism).contains("could not build")
    }
}

/// The report of this user that tells about this mechanism.
fn own_mechanisms(mechanism: &str) -> &'static DoctorReport {
    static SANDBOX_REPORT: OnceLock<DoctorReport> = OnceLock::new();
    static GPU_REPORT: OnceLock<DoctorReport> = OnceLock::new();
    let (report, builds_shim) = match mechanism.ends_with("-gpu") {
        true => (&GPU_REPORT, true),
        false => (&SANDBOX_REPORT, false),
    };
    report.get_or_init(|| DoctorReport::of(Command::new(TRAINWRECK), builds_shim))
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

fn missing_for_ordinary_user(mechanism: &str) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("this user is an ordinary user already".into());
    }
    let user = OrdinaryUser::with_programs(&[TRAINWRECK.as_ref()]);
    let report = DoctorReport::of(user.command("trainwreck"), false);
    ["user-namespace", mechanism]
        .into_iter()
        .find(|name| report.lacks(name))
        .map(|name| format!("no {name} for an ordinary user"))
}
