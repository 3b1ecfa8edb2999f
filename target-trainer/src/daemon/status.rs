//! `status.json`: where the daemon stands, replaced as a whole, for people and monitors. Training goes on without it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::device::GpuFacts;
use crate::durable::{self, Care};
use crate::settings::Guards;
use crate::store::Layout;
use crate::train::Word;

/// Between two writes of mere steps.
const EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Default, Serialize)]
struct Facts {
    pid: u32,
    state: &'static str,
    job: Option<String>,
    step: u64,
    loss: Option<String>,
    last_saved: Option<u64>,
    micro_batch: usize,
    last_trouble: Option<String>,
    device: Option<String>,
    gpu: Option<GpuFacts>,
}

pub(super) struct Status {
    path: PathBuf,
    facts: Facts,
    written: Option<Instant>,
    failing: bool,
    /// A reader sees the old one or the new one, never a part.
    atomic: bool,
}

impl Status {
    pub(super) fn new(layout: &Layout, guards: &Guards) -> Status {
        let facts = Facts { pid: std::process::id(), state: "idle", ..Facts::default() };
        let mut status = Status {
            path: layout.status(),
            facts,
            written: None,
            failing: false,
            atomic: guards.atomic_status,
        };
        status.write();
        status
    }

    pub(super) fn idle(&mut self) {
        (self.facts.state, self.facts.job) = ("idle", None);
        self.write();
    }

    pub(super) fn note(&mut self, job: &str, word: &Word, micro_batch: usize) {
        (self.facts.state, self.facts.micro_batch) = ("training", micro_batch);
        self.facts.job = Some(job.to_owned());
        match word {
            Word::Step { step, loss } => (self.facts.step, self.facts.loss) = (*step, Some(loss.clone())),
            Word::Saved { step } => self.facts.last_saved = Some(*step),
            Word::PutOff { why, .. } | Word::SaveFailed { why, .. } => {
                self.facts.last_trouble = Some(why.clone())
            }
            Word::Skipped { what, .. } | Word::RolledBack { what, .. } => {
                self.facts.last_trouble = Some(what.clone())
            }
            Word::On { device } => self.facts.device = Some(device.clone()),
            _ => {}
        }
        let only_a_step = matches!(word, Word::Step { .. } | Word::Saving { .. });
        if !only_a_step || self.written.is_none_or(|at| at.elapsed() > EVERY) {
            self.write();
        }
    }

    /// Told by the GPU, not by a worker.
    pub(super) fn trouble(&mut self, what: &str) {
        self.facts.last_trouble = Some(what.to_owned());
        self.write();
    }

    /// Written with the next word: it changes with every look.
    pub(super) fn gpu(&mut self, facts: Option<GpuFacts>) {
        self.facts.gpu = facts;
    }

    fn write(&mut self) {
        self.written = Some(Instant::now());
        let text = serde_json::to_vec_pretty(&self.facts).unwrap_or_default();
        let write = if self.atomic { durable::replace } else { durable::write_in_place };
        let written = write(&self.path, &text, Care::Unsynced);
        match (&written, self.failing) {
            (Err(error), false) => tracing::warn!("status.json is out of date from now on: {error}"),
            (Ok(()), true) => tracing::info!("status.json is up to date again"),
            _ => {}
        }
        self.failing = written.is_err();
    }
}
