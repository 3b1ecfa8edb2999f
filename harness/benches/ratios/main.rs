//! Measures what the gate costs and how fast the explorer is. Each figure is a ratio of two programs that are
//! measured in turn in the same run, so that it depends little on the machine.
//!
//! `cargo bench -p trainwreck` prints a table. If this machine cannot measure a row, the row contains
//! the reason.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its table, and stops at the first error"
)]

mod bench_sandboxes;
mod explorer;
mod overhead;
mod programs;
mod recoveries;
#[path = "../../tests/support/watched_sandbox.rs"]
#[expect(dead_code, reason = "shared with the tests, which use all of it")]
mod watched_sandbox;

/// One line of the table.
pub(crate) struct Row {
    pub(crate) title: String,
    pub(crate) measured: String,
    /// `None` if it could not be measured. `measured` then has the reason.
    pub(crate) ratio: Option<f64>,
    pub(crate) limit: RatioLimit,
}

/// The bound that a ratio should keep.
#[derive(Clone, Copy)]
pub(crate) enum RatioLimit {
    AtLeast(f64),
    AtMost(f64),
    /// No bound: the ratio is for comparison only.
    Unlimited,
}

impl Row {
    fn to_markdown(&self) -> String {
        let ratio = self.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.3}"));
        let (bound, met) = match self.limit {
            RatioLimit::AtLeast(min) => (format!("at least {min}"), self.ratio.map(|ratio| ratio >= min)),
            RatioLimit::AtMost(max) => (format!("at most {max}"), self.ratio.map(|ratio| ratio <= max)),
            RatioLimit::Unlimited => (String::new(), None),
        };
        let met = met.map_or("", |met| if met { "yes" } else { "no" });
        format!("| {} | {} | {ratio} | {bound} | {met} |", self.title, self.measured)
    }
}

fn main() {
    engine::sandbox::run_init_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if programs::run_named_program(&arguments) {
        return;
    }
    let is_selected = |name: &str| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|argument| name.contains(argument.as_str()))
    };
    println!("| measurement | result | ratio | limit | met |\n|---|---|---|---|---|");
    type Measure = fn() -> Vec<Row>;
    let measures: [(&str, Measure); 7] = [
        ("explorer", explorer::against_bare_recovery),
        ("strace", explorer::against_strace),
        ("training", overhead::training_overhead),
        ("steps", overhead::step_overhead),
        ("save", overhead::save_overhead),
        ("warm", explorer::warm_start),
        ("recoveries", recoveries::in_sandbox_against_bare),
    ];
    for (_, measure) in measures.into_iter().filter(|(name, _)| is_selected(name)) {
        measure().iter().for_each(|row| println!("{}", row.to_markdown()));
    }
}

/// The middle value. Of an even number of values it is the larger one in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
