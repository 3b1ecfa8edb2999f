# Hugging Face Trainer: GPT-2 shape, 8 steps, a save each 2, at most 2 kept.
import hashlib, os, sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

directory = sys.argv[1]
set_seed(7)
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2))
tokens = torch.randint(0, 64, (32, 8), generator=torch.Generator().manual_seed(7))
data = [{"input_ids": row, "labels": row} for row in tokens]
arguments = TrainingArguments(
    directory, max_steps=8, save_steps=2, save_total_limit=2, per_device_train_batch_size=4, use_cpu=True,
    report_to=[], disable_tqdm=True, logging_steps=100, dataloader_num_workers=0,
)
trainer = Trainer(model=model, args=arguments, train_dataset=data)
last = get_last_checkpoint(directory) if os.path.isdir(directory) else None
trainer.train(resume_from_checkpoint=last)
weights = b"".join(value.detach().numpy().tobytes() for value in model.parameters())
print("weights", hashlib.sha256(weights).hexdigest()[:16])
