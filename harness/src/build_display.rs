//! Shows that a part of Trainwreck is being built, which takes minutes. Knows nothing of what it is built for.

use engine::target::BuildEvent;

use crate::print;

/// Prints the progress of a build on standard error.
pub(crate) fn on_build(event: BuildEvent<'_>) {
    match event {
        BuildEvent::Started { package } => {
            let what = match package {
                "target-trainer" => "the reference trainer".to_owned(),
                "simgpu" => "the simulated GPU".to_owned(),
                other => format!("`{other}`"),
            };
            print::notice(&format!("building {what} (once, a few minutes)"));
        }
        BuildEvent::CargoLine(line) => print::notice(line),
    }
}
