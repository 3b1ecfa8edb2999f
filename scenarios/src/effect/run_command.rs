//! The fault `run-command`: commands that run beside the target, or a second copy of the target.

use crate::effect::call::CALL_MECHANISM;
use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::template::{Template, TemplatePiece, TemplatePieces};
use crate::yaml::spanned::Spanned;

/// The most commands that run at the same time.
const MAX_COPIES: u32 = 256;
/// How much of a command is shown.
const MAX_SHOWN_CHARS: usize = 120;
/// The words in braces that have a value in a command.
const COMMAND_WORDS: [&str; 4] = ["program", "root", "seed", COPY_WORD];
/// Stands for the number of the copy.
const COPY_WORD: &str = "copy";

fault!(
    /// Commands beside the target, in its sandbox. Either `command` or `second-target` must be given.
    RunCommandDraft {
        /// The program and its arguments. `{program}`, `{root}`, `{seed}` and `{copy}`, the number of the copy
        /// from 1, are replaced.
        command: Option<Spanned<Vec<Spanned<String>>>>,
        /// `true`: the command that starts the target is run once more.
        #[serde(default)]
        second_target: bool,
        /// `true`: they give the target more to do, so that it may end with more values than the baseline run. Default:
        /// `false`.
        #[serde(default)]
        adds_work: bool,
        /// `true`: the thread that printed the line at which they start changes no file and prints nothing until they
        /// have ended. If that takes more than 3 seconds, the fault is not effective. Default: `false`.
        #[serde(default)]
        target_waits: bool,
        /// How many of them run at the same time, 256 at most. Default: 1.
        copies: Option<Spanned<u32>>,
    }
);

/// What is run.
#[derive(Debug, Clone)]
pub enum CommandToRun {
    /// A program and its arguments, and the same as one text.
    Given { arguments: Vec<Template>, text: String },
    /// The command that starts the target.
    SecondTarget,
}

/// Runs commands beside the target.
#[derive(Debug, Clone)]
pub struct RunCommand {
    /// What is run.
    pub command: CommandToRun,
    /// How many run at the same time.
    pub copies: u32,
    /// Whether they give the target more to do.
    pub adds_work: bool,
    /// Whether the thread that printed the trigger's line waits for their end.
    pub target_waits: bool,
}

impl CheckEffect for RunCommandDraft {
    type Checked = RunCommand;

    fn check(&self, checker: &mut Checker) -> RunCommand {
        let command = match (&self.command, self.second_target) {
            (Some(command), false) => {
                checker.require_not_empty(command, "`command` is empty");
                let arguments = command.value.iter().map(|argument| template(argument, checker)).collect();
                let texts: Vec<&str> = command.value.iter().map(|argument| argument.value.as_str()).collect();
                CommandToRun::Given {
                    arguments,
                    text: texts.join(" ").chars().take(MAX_SHOWN_CHARS).collect(),
                }
            }
            (None, true) => CommandToRun::SecondTarget,
            _ => {
                // A key that could not be read is reported already.
                if checker.is_complete {
                    checker.method_problem(
                        "`run-command` must have either `command` or `second-target: true`",
                        "write `command: ['{program}', status, '{root}']`",
                    );
                }
                CommandToRun::SecondTarget
            }
        };
        let copies = self.copies.as_ref().map_or(1, |copies| checker.require_positive(copies, "copies"));
        if let Some(given) = self.copies.as_ref().filter(|given| given.value > MAX_COPIES) {
            checker.problems.push(given.problem(format!("`copies` must be at most {MAX_COPIES}")));
        }
        RunCommand {
            command,
            copies: copies.min(MAX_COPIES),
            adds_work: self.adds_work,
            target_waits: self.target_waits,
        }
    }
}

/// An argument. It is only valid if no problem is added.
fn template(argument: &Spanned<String>, checker: &mut Checker) -> Template {
    if argument.value.contains('\0') {
        checker.problems.push(argument.problem("the kernel passes no NUL byte to a program"));
    }
    for piece in TemplatePieces::of(&argument.value) {
        if let TemplatePiece::Word { word, .. } = piece
            && !COMMAND_WORDS.contains(&word)
        {
            let problem = argument.problem(format!("`{{{word}}}` has no value in `command`"));
            let help = format!(
                "`{{program}}`, `{{root}}`, `{{seed}}` and `{{copy}}` have one; `{{{{{word}}}}}` stands for the \
                 text `{{{word}}}`"
            );
            checker.problems.push(problem.help(help));
        }
    }
    Template::of(&argument.value)
}

impl EffectSpec for RunCommand {
    fn describe(&self) -> String {
        let copies = if self.copies > 1 { format!("{} times at once ", self.copies) } else { String::new() };
        match &self.command {
            CommandToRun::Given { text, .. } => format!("{copies}the command `{text}`"),
            CommandToRun::SecondTarget => format!("{copies}a second copy of the target"),
        }
    }

    fn adds_work(&self) -> bool {
        self.adds_work
    }

    fn holds_target(&self) -> bool {
        self.target_waits
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        self.target_waits.then_some(CALL_MECHANISM)
    }

    fn runs_commands(&self) -> bool {
        true
    }
}
