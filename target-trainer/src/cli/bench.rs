//! `bench`: how fast steps are on a random model, as one line of JSON; what `benches/gpu/run.sh` sets beside PyTorch.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args;

use super::{CommandResult, exit_with, print};
use crate::device::{DeviceId, Precision, WaitTracker};
use crate::exit::Exit;
use crate::intake::{Sample, parse_line};
use crate::model::{BaseModel, Preset};
use crate::settings::{DeviceRequest, Guards};
use crate::store::{CheckpointStore, SaveOptions};
use crate::train::{Engine, EngineConfig, Recipe, Snapshot, StepOptions};

/// What is measured.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Size of the model
    #[arg(long, value_enum, default_value_t = Preset::Tiny)]
    shape: Preset,
    /// Tokens of a sample
    #[arg(long, default_value_t = 1024)]
    sequence: usize,
    /// Samples of a step, all in memory at a time
    #[arg(long, default_value = "8")]
    batch: NonZeroUsize,
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Steps that are measured
    #[arg(long, default_value = "20")]
    steps: NonZeroUsize,
    /// Steps before that
    #[arg(long, default_value_t = 8)]
    warm_up: usize,
    /// cpu or cuda:N
    #[arg(long, default_value = "cuda:0")]
    device: DeviceRequest,
    /// Of weights and activations on a GPU
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    precision: Precision,
    /// Saves a checkpoint, in the background, after every so many steps; 0: never
    #[arg(long, default_value_t = 0)]
    save_every: usize,
    /// Where it saves to; the temporary folder where it is not said
    #[arg(long)]
    save_to: Option<PathBuf>,
    /// Prints where the time goes instead: every kernel is waited for, so steps are slower
    #[arg(long)]
    profile: bool,
}

pub(super) fn bench(args: &BenchArgs) -> CommandResult {
    let mut engine = build_engine(args)?;
    let saves = BenchSaver::start(args)?;
    let mut seconds = Vec::new();
    let mut loss = f32::NAN;
    for number in 0..args.warm_up + args.steps.get() {
        if args.profile && number == args.warm_up {
            engine.start_profile();
        }
        let began = Instant::now();
        loss = engine.step(step_options(args)).map_err(exit_with(Exit::GpuFailed))?.loss;
        if args.save_every > 0 && (number + 1).is_multiple_of(args.save_every) {
            saves.save(&mut engine)?;
        }
        if number >= args.warm_up {
            seconds.push(began.elapsed());
        }
    }
    if args.profile {
        print::line(&engine.profile());
        return Ok(Exit::Done);
    }
    let saved = saves.finish()?;
    print::line(&json_report(args, &engine, seconds, loss, saved));
    Ok(Exit::Done)
}

fn build_engine(args: &BenchArgs) -> Result<Engine, (Exit, String)> {
    let place = match args.device {
        DeviceRequest::Cuda(number) => DeviceId::Cuda(number),
        DeviceRequest::Cpu => DeviceId::Cpu,
        DeviceRequest::Auto => {
            return Err((Exit::Usage, "a benchmark names its device: cpu or cuda:N".into()));
        }
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
    let spec = EngineConfig {
        device: place,
        precision: args.precision,
        wait_tracker: Arc::new(WaitTracker::default()),
    };
    Engine::new_on_device(BaseModel::random(args.shape.config(), 1), recipe, &samples?, &spec)
        .map_err(exit_with(Exit::GpuFailed))
}

/// A text that is just as long as the sequence with its two marks, all of it learned.
fn sample(number: usize, sequence: usize) -> Result<Sample, (Exit, String)> {
    let text: String =
        (0..sequence.saturating_sub(2)).map(|at| char::from(b'a' + ((at * 7 + number) % 26) as u8)).collect();
    parse_line(format!(r#"{{"text":"{text}"}}"#).as_bytes()).map_err(|error| (Exit::Usage, error.1))
}

fn step_options(args: &BenchArgs) -> StepOptions {
    StepOptions { micro_batch: args.batch, check_finite: true, recheck: false }
}

/// Median and largest step.
fn json_report(
    args: &BenchArgs,
    engine: &Engine,
    mut seconds: Vec<Duration>,
    loss: f32,
    saved: usize,
) -> String {
    seconds.sort();
    let middle = seconds[seconds.len() / 2].as_secs_f64();
    let longest = seconds.last().map_or(0.0, Duration::as_secs_f64);
    let who = match args.save_every {
        0 => "target-trainer".to_owned(),
        every => format!("target-trainer, saving every {every} steps"),
    };
    serde_json::json!({
        "who": who,
        "version": env!("CARGO_PKG_VERSION"),
        "device": engine.device_name(),
        "tokens_per_step": args.batch.get() * args.sequence,
        "seconds_per_step": middle,
        "longest_step": longest,
        "mean_step": seconds.iter().sum::<Duration>().as_secs_f64() / seconds.len() as f64,
        "saves": saved,
        "loss": loss,
    })
    .to_string()
}

/// Writes what it is given, and counts.
type WriterThread = JoinHandle<Result<usize, String>>;

/// A thread that writes, where saves are asked for.
struct BenchSaver {
    thread: Option<(Sender<Snapshot>, WriterThread)>,
}

impl BenchSaver {
    fn start(args: &BenchArgs) -> Result<BenchSaver, (Exit, String)> {
        if args.save_every == 0 {
            return Ok(BenchSaver { thread: None });
        }
        let folder = args.save_to.clone().unwrap_or_else(std::env::temp_dir);
        let folder = folder.join(format!("target-trainer-bench-{}", std::process::id()));
        let (sender, snapshots) = channel::<Snapshot>();
        let recipe = Recipe { rank: args.rank, ..Recipe::default() };
        let rules = SaveOptions { guards: Guards::default(), keep: 2 };
        let thread = std::thread::spawn(move || {
            let checkpoints = CheckpointStore::new(folder.clone(), String::new(), recipe, rules);
            let mut count = 0;
            for snapshot in snapshots {
                let state = snapshot.finish().map_err(|error| error.to_string())?;
                checkpoints.save(&state).map_err(|error| error.to_string())?;
                count += 1;
            }
            crate::durable::remove_tree(&folder).map_err(|error| error.to_string())?;
            Ok(count)
        });
        Ok(BenchSaver { thread: Some((sender, thread)) })
    }

    fn save(&self, engine: &mut Engine) -> Result<(), (Exit, String)> {
        let Some((sender, _)) = &self.thread else { return Ok(()) };
        // A thread that has failed tells why at the end.
        let _ = sender.send(engine.snapshot().map_err(exit_with(Exit::GpuFailed))?);
        Ok(())
    }

    /// How many were written.
    fn finish(self) -> Result<usize, (Exit, String)> {
        let Some((sender, thread)) = self.thread else { return Ok(0) };
        drop(sender);
        let written = thread.join().unwrap_or_else(|_| Err("the saver's thread died".into()));
        written.map_err(|why| (Exit::Disk, why))
    }
}
