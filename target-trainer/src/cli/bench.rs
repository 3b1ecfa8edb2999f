//! The command `bench`: measures training steps on a random model and prints one line of JSON.
//! `benches/gpu/run.sh` compares that line with PyTorch's.

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
use crate::state::Recipe;
use crate::store::{CheckpointStore, SaveOptions};
use crate::train::{Engine, EngineConfig, Snapshot, StepOptions};

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
pub(super) fn bench(args: &BenchArgs) -> CommandResult {
    let mut engine = build_engine(args)?;
    let saver = BenchSaver::start(args)?;
    let mut durations = Vec::new();
    let mut loss = f32::NAN;
    for number in 0..args.warm_up + args.steps.get() {
        if args.profile && number == args.warm_up {
            engine.start_profile();
        }
        let started = Instant::now();
        loss = engine.step(step_options(args)).map_err(exit_with(Exit::GpuFailed))?.loss;
        if args.save_every > 0 && (number + 1).is_multiple_of(args.save_every) {
            saver.save(&mut engine)?;
        }
        if number >= args.warm_up {
            durations.push(started.elapsed());
        }
    }
    if args.profile {
        print::line(&engine.profile());
        return Ok(Exit::Done);
    }
    let saved = saver.finish()?;
    print::line(&json_report(args, &engine, durations, loss, saved));
    Ok(Exit::Done)
}

fn build_engine(args: &BenchArgs) -> Result<Engine, (Exit, String)> {
    let device = match args.device {
        DeviceRequest::Cuda(number) => DeviceId::Cuda(number),
        DeviceRequest::Cpu => DeviceId::Cpu,
        DeviceRequest::Auto => {
            return Err((Exit::Usage, "`bench` needs a device: `--device cpu` or `--device cuda:N`".into()));
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
    let config =
        EngineConfig { device, precision: args.precision, wait_tracker: Arc::new(WaitTracker::default()) };
    Engine::new_on_device(BaseModel::random(args.shape.config(), 1), recipe, &samples?, &config)
        .map_err(exit_with(Exit::GpuFailed))
}

/// A text of `sequence` tokens together with its begin and end tokens. All of it is trained on.
fn sample(number: usize, sequence: usize) -> Result<Sample, (Exit, String)> {
    let text: String = (0..sequence.saturating_sub(2))
        .map(|index| char::from(b'a' + ((index * 7 + number) % 26) as u8))
        .collect();
    parse_line(format!(r#"{{"text":"{text}"}}"#).as_bytes()).map_err(|error| (Exit::Usage, error.1))
}

fn step_options(args: &BenchArgs) -> StepOptions {
    StepOptions { micro_batch: args.batch, check_finite: true, recheck: false }
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

/// Returns the number of checkpoints that it wrote.
type WriterThread = JoinHandle<Result<usize, String>>;

/// Saves checkpoints on a thread of its own, if `--save-every` asks for them.
struct BenchSaver {
    thread: Option<(Sender<Snapshot>, WriterThread)>,
}

impl BenchSaver {
    fn start(args: &BenchArgs) -> Result<BenchSaver, (Exit, String)> {
        if args.save_every == 0 {
            return Ok(BenchSaver { thread: None });
        }
        let dir = args.save_to.clone().unwrap_or_else(std::env::temp_dir);
        let dir = dir.join(format!("target-trainer-bench-{}", std::process::id()));
        let (sender, snapshots) = channel::<Snapshot>();
        let recipe = Recipe { rank: args.rank, ..Recipe::default() };
        let rules = SaveOptions { guards: Guards::default(), keep: 2 };
        let thread = std::thread::spawn(move || {
            let checkpoints = CheckpointStore::new(dir.clone(), String::new(), recipe, rules);
            let mut count = 0;
            for snapshot in snapshots {
                let state = snapshot.finish().map_err(|error| error.to_string())?;
                checkpoints.save(&state).map_err(|error| error.to_string())?;
                count += 1;
            }
            crate::durable::remove_tree(&dir).map_err(|error| error.to_string())?;
            Ok(count)
        });
        Ok(BenchSaver { thread: Some((sender, thread)) })
    }

    fn save(&self, engine: &mut Engine) -> Result<(), (Exit, String)> {
        let Some((sender, _)) = &self.thread else { return Ok(()) };
        // If the thread has failed, `finish` reports its error.
        let _ = sender.send(engine.snapshot().map_err(exit_with(Exit::GpuFailed))?);
        Ok(())
    }

    /// Waits for the thread. Returns the number of checkpoints written.
    fn finish(self) -> Result<usize, (Exit, String)> {
        let Some((sender, thread)) = self.thread else { return Ok(0) };
        drop(sender);
        let written = thread.join().unwrap_or_else(|_| Err("the saver thread panicked".into()));
        written.map_err(|reason| (Exit::Disk, reason))
    }
}
