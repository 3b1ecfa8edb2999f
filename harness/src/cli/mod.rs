//! The command: one file per verb. The only room that prints.

mod analyze;
mod args;
mod check;
mod diagnose;
mod exit;
mod explore;
mod explore_target;
mod explored;
mod library;
mod print;
mod progress;
mod recorder;
mod run;
mod screen;
mod written;

use std::path::Path;

use clap::Parser;

use crate::cli::args::{Kind, Typed, Verb};
pub use crate::cli::exit::Exit;
use crate::{gpu, sandbox};

/// Does what the command line asks for.
pub fn main() -> Exit {
    let typed = match Typed::try_parse() {
        Ok(typed) => typed,
        Err(error) => {
            // Help and version are no errors; clap knows which stream each belongs to.
            let _ = error.print();
            return if error.use_stderr() { Exit::Invalid } else { Exit::Survived };
        }
    };
    match &typed.verb {
        None => run::run(&typed.run, run::Mode::Run),
        Some(Verb::Run(args)) => run::run(args, run::Mode::Run),
        Some(Verb::Explore(args)) => explore::run(args),
        Some(Verb::Prove(args)) => run::run(args, run::Mode::Prove),
        Some(Verb::List) => list(),
        Some(Verb::Check { files }) => check::check(files),
        Some(Verb::Analyze { record, out }) => analyze::analyze(record, out.as_deref()),
        Some(Verb::Doctor) => doctor(),
        Some(Verb::Recover) => recover(),
        Some(Verb::Schema { kind, write }) => schema(*kind, write.as_deref()),
    }
}

fn list() -> Exit {
    match library::shipped() {
        Ok(all) => {
            for library::Read { scenario, .. } in &all {
                let (id, severity, guards) =
                    (scenario.id(), scenario.severity().to_string(), scenario.guards().join(", "));
                print::line(&format!("{id:<9} {severity:<9} {:<52} {guards}", scenario.title()));
            }
            Exit::Survived
        }
        Err(error) => diagnose::library_error(&error),
    }
}

fn doctor() -> Exit {
    for mechanism in sandbox::doctor().into_iter().chain(gpu::doctor()) {
        let mark = if mechanism.granted { "✓" } else { "-" };
        print::line(&format!("{mark} {:<22} {}", mechanism.name, mechanism.detail));
    }
    Exit::Survived
}

fn recover() -> Exit {
    match sandbox::recover() {
        Ok(swept) if swept.is_empty() => print::line("nothing was left behind"),
        Ok(swept) => swept.iter().for_each(|swept| print::line(&format!("swept {swept}"))),
        Err(error) => {
            print::error(&error);
            return Exit::CleanUpFailed;
        }
    }
    Exit::Survived
}

fn schema(kind: Kind, write: Option<&Path>) -> Exit {
    let Some(folder) = write else {
        print::line(
            match kind {
                Kind::Scenario => scenarios::schema::scenario(),
                Kind::Target => scenarios::schema::target(),
            }
            .trim_end(),
        );
        return Exit::Survived;
    };
    let files = [
        ("scenario-v1.json", scenarios::schema::scenario()),
        ("target-v1.json", scenarios::schema::target()),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        if let Err(error) = std::fs::write(&path, text) {
            print::error(&format!("could not write `{}`: {error}", path.display()));
            return Exit::HarnessFailed;
        }
        print::line(&format!("wrote {}", path.display()));
    }
    Exit::Survived
}
