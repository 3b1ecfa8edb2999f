//! The command `bench`: measures training steps on a random model and prints one line of JSON.
//! `benches/gpu/run.sh` compares that line with PyTorch's.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use super::error::CliError;
use super::print;
use crate::device::{DeviceId, Precision, WaitTracker};
use crate::durable;
use crate::exit::Exit;
use crate::intake::{Sample, parse_line};
use crate::model::{BaseModel, Preset};
use crate::settings::{DeviceRequest, Guards};
use crate::state::Recipe;
use crate::store::{CheckpointStore, SaveOptions};
use crate::train::{Engine, EngineConfig, Saver, SaverEvent, StepOptions};

/// The options of `bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Size of the model
    #[arg(long, value_enum, default_value_t = Preset::Tiny)]
    shape: Preset,
    /// Tokens of a sample
    #[arg(long, default_value_t = 1024)]
    sequence: usize,
    /// Samples of a step; all of them are in memory at once
    #[arg(long, default_value = "8")]
    batch: NonZeroUsize,
    /// Rank of the LoRA matrices
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Number of measured steps
    #[arg(long, default_value = "20")]
    steps: NonZeroUsize,
    /// Number of steps before the measured ones
    #[arg(long, default_value_t = 8)]
    warm_up: usize,
    /// Device to train on: cpu or cuda:N
    #[arg(long, default_value = "cuda:0")]
    device: DeviceRequest,
    /// Number format of weights and activations on a GPU; the CPU always uses f32
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    precision: Precision,
    /// Saves a checkpoint in the background each time this many steps are done; 0: never
    #[arg(long, default_value_t = 0)]
    save_every: usize,
    /// Directory for the checkpoints; default: the temporary directory
    #[arg(long)]
    save_to: Option<PathBuf>,
    /// Prints the time of each GPU kernel instead; it waits after every kernel, so steps are slower
    #[arg(long)]
    profile: bool,
}

/// Runs the benchmark and prints its result.
pub(super) fn bench(args: &BenchArgs) -> Result<Exit, CliError> {
    let mut engine = build_engine(args)?;
    let mut saver = BenchSaver::start(args)?;
    let mut durations = Vec::new();
    let mut loss = f32::NAN;
    for number in 0..args.warm_up + args.steps.get() {
        if args.profile && number == args.warm_up {
            engine.start_profile();
        }
        let started = Instant::now();
        loss = engine.step(step_options(args))?.loss;
        if args.save_every > 0 && (number + 1).is_multiple_of(args.save_every) {
            saver.save(&mut engine)?;
        }
        if number >= args.warm_up {
            durations.push(started.elapsed());
        }
    }
    if args.profile {
        print::lines(&engine.profile());
        return Ok(Exit::Done);
    }
    let saved = saver.finish()?;
    print::line(&json_report(args, &engine, durations, loss, saved));
    Ok(Exit::Done)
}

fn build_engine(args: &BenchArgs) -> Result<Engine, CliError> {
    let device = match args.device {
        DeviceRequest::Cuda(number) => DeviceId::Cuda(number),
        DeviceRequest::Cpu => DeviceId::Cpu,
        DeviceRequest::Auto => return Err(CliError::BenchDevice),
    };
    let recipe = Recipe {
        batch: args.batch.get(),
        rank: args.rank,
        alpha: 2.0 * args.rank as f32,
        context: args.sequence,
        steps: u64::MAX,
        ..Recipe::default()
    };
    let samples: Result<Vec<Sample>, _> =
        (0..args.batch.get()).map(|number| sample(number, args.sequence)).collect();
    let config =
        EngineConfig { device, precision: args.precision, wait_tracker: Arc::new(WaitTracker::default()) };
    let base = BaseModel::random(args.shape.config(), 1);
    Ok(Engine::new_on_device(base, recipe, &samples?, &config)?)
}

/// A text of `sequence` tokens together with its begin and end tokens. All of it is trained on.
fn sample(number: usize, sequence: usize) -> Result<Sample, CliError> {
    let text: String = (0..sequence.saturating_sub(2))
        .map(|index| char::from(b'a' + ((index * 7 + number) % 26) as u8))
        .collect();
    parse_line(format!(r#"{{"text":"{text}"}}"#).as_bytes())
        .map_err(|error| CliError::BenchSample(error.problem))
}

fn step_options(args: &BenchArgs) -> StepOptions {
    StepOptions {
        micro_batch: args.batch,
        check_finite: true,
        recheck: false,
        in_order: true,
        empty_batches: true,
    }
}

/// The median, longest and mean step time, as one line of JSON.
fn json_report(
    args: &BenchArgs,
    engine: &Engine,
    mut durations: Vec<Duration>,
    loss: f32,
    saved: usize,
) -> String {
    durations.sort();
    let median = durations[durations.len() / 2].as_secs_f64();
    let longest = durations.last().map_or(0.0, Duration::as_secs_f64);
    let label = match args.save_every {
        0 => "target-trainer".to_owned(),
        every => format!("target-trainer, saving every {every} steps"),
    };
    serde_json::json!({
        "who": label,
        "version": env!("CARGO_PKG_VERSION"),
        "device": engine.device_name(),
        "tokens_per_step": args.batch.get() * args.sequence,
        "seconds_per_step": median,
        "longest_step": longest,
        "mean_step": durations.iter().sum::<Duration>().as_secs_f64() / durations.len() as f64,
        "saves": saved,
        "loss": loss,
    })
    .to_string()
}

/// Saves checkpoints on the trainer's saver thread, if `--save-every` asks for them.
struct BenchSaver {
    saver: Saver,
    /// Holds the checkpoints. Removed at the end.
    dir: PathBuf,
    /// Number of checkpoints written.
    saved: usize,
}

impl BenchSaver {
    fn start(args: &BenchArgs) -> Result<BenchSaver, CliError> {
        let dir = args.save_to.clone().unwrap_or_else(std::env::temp_dir);
        let dir = dir.join(format!("target-trainer-bench-{}", std::process::id()));
        if args.save_every == 0 {
            return Ok(BenchSaver { saver: Saver::Foreground, dir, saved: 0 });
        }
        let recipe = Recipe { rank: args.rank, ..Recipe::default() };
        let options = SaveOptions { guards: Guards::default(), keep: 2 };
        let checkpoints = CheckpointStore::new(dir.clone(), String::new(), recipe, options);
        let saver = Saver::start_background(Arc::new(checkpoints)).map_err(CliError::SaverThread)?;
        Ok(BenchSaver { saver, dir, saved: 0 })
    }

    /// Starts a save, after waiting for the one before.
    fn save(&mut self, engine: &mut Engine) -> Result<(), CliError> {
        self.wait()?;
        let step = engine.cursor().step;
        self.saver.start(step, engine.snapshot()?);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), CliError> {
        while let Some(event) = self.saver.next_event(true) {
            match event {
                SaverEvent::Saved { .. } => self.saved += 1,
                SaverEvent::Failed { error, .. } => return Err(error.into()),
                SaverEvent::CopyFailed { error } => return Err(error.into()),
                SaverEvent::ThreadEnded => return Err(CliError::SaverEnded),
                SaverEvent::Pruned => {}
            }
        }
        Ok(())
    }

    /// Waits for the last save and removes the checkpoints. Returns the number of those written.
    fn finish(mut self) -> Result<usize, CliError> {
        self.wait()?;
        durable::remove_tree(&self.dir)?;
        Ok(self.saved)
    }
}
