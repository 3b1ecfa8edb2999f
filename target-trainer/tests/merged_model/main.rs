//! Loads a merged model in `transformers`, and compares its logits with those of base and adapter here. Needs a
//! Python with torch and transformers: `TRAINER_TEST_PYTHON`, or `python3`. Without one, it is ignored.

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;
#[expect(dead_code, reason = "this test uses a part of it")]
#[path = "../support/trainer_root.rs"]
mod trainer_root;

use std::process::{Command, ExitCode};

use target_trainer::model::{AdapterLayout, BaseCheck, BaseModel, logits, relative_difference};
use target_trainer::store::read_adapter;
use trainer_root::{TrainerRoot, all_output, run, text};

/// The tolerance is that of `golden.rs`.
const MAX_DIFFERENCE: f32 = 1e-4;

const SCRIPT: &str = "
import json, sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
with torch.no_grad():
    logits = model(torch.tensor([json.loads(sys.argv[2])])).logits[0]
print(json.dumps(logits.flatten().tolist()))
";

fn main() -> ExitCode {
    support::trial::run(trials![missing_for_transformers(); transformers_computes_what_base_and_adapter_do])
}

fn python() -> String {
    std::env::var("TRAINER_TEST_PYTHON").unwrap_or_else(|_| "python3".into())
}

fn missing_for_transformers() -> Option<String> {
    let imported = Command::new(python()).args(["-c", "import torch, transformers"]).output();
    let is_there = imported.is_ok_and(|output| output.status.success());
    (!is_there).then(|| "a Python with torch and transformers (TRAINER_TEST_PYTHON)".into())
}

fn transformers_computes_what_base_and_adapter_do() -> Result<(), libtest_mimic::Failed> {
    let root = TrainerRoot::with_job(&["recipe.steps=40"]);
    root.drain();
    let job = root.job_id();
    let output = run(&["consolidate", root.path_str(), &job]);
    assert!(output.status.success(), "{}", all_output(&output));
    let base = BaseModel::read(&root.path().join("base"), BaseCheck::Full)?;
    let (recipe, tensors) = read_adapter(&root.path().join("done").join(&job))?;
    let layout = AdapterLayout::new(&base.config, &recipe);
    let params = layout.flat_params(&tensors, "")?;
    let tokens: Vec<u32> = std::iter::once(256).chain((0..60u32).map(|index| index * 37 % 256)).collect();
    let expected = logits(&base, &layout, &params, &tokens);
    let merged = root.path().join("merged").join(&job);
    let mut command = Command::new(python());
    command.args(["-c", SCRIPT]).arg(&merged).arg(serde_json::to_string(&tokens)?);
    let output = command.env("HF_HUB_OFFLINE", "1").output()?;
    assert!(output.status.success(), "{}", all_output(&output));
    let found: Vec<f32> = serde_json::from_str(text(&output.stdout).trim())?;
    let difference = relative_difference(&found, &expected);
    assert!(difference <= MAX_DIFFERENCE, "{difference:e} of the largest logit");
    Ok(())
}
