//! What the gate costs and what the explorer is worth: each figure a ratio of two things measured in this one run, by turns.
//!
//! `cargo bench -p trainwreck` prints a table. What this machine can't do is told in its line.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its table, and stops at the first error"
)]

mod explorer;
mod overhead;
#[path = "../../tests/gate/place.rs"]
#[expect(dead_code, clippy::print_stderr, reason = "shared with the gate's tests")]
mod place;
mod programs;

/// One line of the table.
pub(crate) struct Row {
    pub(crate) title: &'static str,
    pub(crate) measured: String,
    /// None: it could not be measured, and `measured` says why.
    pub(crate) ratio: Option<f64>,
    pub(crate) limit: RatioLimit,
}

/// What a ratio should come to.
#[derive(Clone, Copy)]
pub(crate) enum RatioLimit {
    AtLeast(f64),
    AtMost(f64),
    /// For comparison only.
    Unlimited,
}

impl Row {
    fn to_markdown(&self) -> String {
        let ratio = self.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.3}"));
        let (wanted, met) = match self.limit {
            RatioLimit::AtLeast(least) => {
                (format!("at least {least}"), self.ratio.map(|ratio| ratio >= least))
            }
            RatioLimit::AtMost(most) => (format!("at most {most}"), self.ratio.map(|ratio| ratio <= most)),
            RatioLimit::Unlimited => (String::new(), None),
        };
        let met = met.map_or("", |met| if met { "yes" } else { "no" });
        format!("| {} | {} | {ratio} | {wanted} | {met} |", self.title, self.measured)
    }
}

fn main() {
    trainwreck::sandbox::run_init_if_requested();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if programs::run_named_program(&arguments) {
        return;
    }
    let wanted = |name: &str| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|argument| name.contains(argument.as_str()))
    };
    println!("| what | measured | ratio | wanted | met |\n|---|---|---|---|---|");
    type Measure = fn() -> Vec<Row>;
    let measures: [(&str, Measure); 5] = [
        ("explorer", explorer::against_bare_recovery),
        ("strace", explorer::against_strace),
        ("training", overhead::training_overhead),
        ("save", overhead::save_overhead),
        ("warm", explorer::warm_start),
    ];
    for (_, measure) in measures.into_iter().filter(|(name, _)| wanted(name)) {
        measure().iter().for_each(|row| println!("{}", row.to_markdown()));
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
