"""A small, ordinary PyTorch training script, as a target for `trainwreck explore`: see docs/explore.md.

Usage: train.py DIRECTORY [STEPS]. Saves every tenth step with `torch.save` to DIRECTORY/checkpoint-N.pt,
then rewrites DIRECTORY/latest. Resumes from the checkpoint that `latest` names. It contains no deliberate
mistake: many scripts save like this.
"""

import hashlib
import os
import sys

import torch

directory, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 30
os.makedirs(directory, exist_ok=True)
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
start = 0

latest = os.path.join(directory, "latest")
if os.path.exists(latest):
    with open(latest) as file:
        state = torch.load(os.path.join(directory, file.read()), weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    start = state["step"]
print(f"resumed from step {start}", flush=True)

for step in range(start + 1, steps + 1):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(64, 16, generator=generator)
    loss = ((model(x).squeeze(1) - x.sum(1)) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        name = f"checkpoint-{step}.pt"
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(state, os.path.join(directory, name))
        with open(latest, "w") as file:
            file.write(name)
        print(f"saved step {step}", flush=True)

weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print(f"weights {hashlib.sha256(weights).hexdigest()}", flush=True)
