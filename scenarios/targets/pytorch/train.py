"""A small PyTorch training script of the usual kind, to be explored: see docs/explore.md.

Usage: train.py FOLDER [STEPS]. Saves every tenth step with `torch.save` into FOLDER/checkpoint-N.pt, then rewrites
FOLDER/latest, and resumes from what `latest` names. Nothing in it is wrong on purpose; it is how it is done.
"""

import hashlib
import os
import sys

import torch

folder, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 30
os.makedirs(folder, exist_ok=True)
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
start = 0

latest = os.path.join(folder, "latest")
if os.path.exists(latest):
    with open(latest) as file:
        state = torch.load(os.path.join(folder, file.read()), weights_only=True)
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
        torch.save(state, os.path.join(folder, name))
        with open(latest, "w") as file:
            file.write(name)
        print(f"saved step {step}", flush=True)

weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print(f"weights {hashlib.sha256(weights).hexdigest()}", flush=True)
