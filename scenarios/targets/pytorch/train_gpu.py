#!/usr/bin/env python3
"""A small PyTorch training script for a GPU, as a target: see docs/gpu.md. Without a GPU it uses the CPU.

Usage: train_gpu.py DIRECTORY [STEPS]. Saves every fifth step to a temporary file, then renames it to
DIRECTORY/latest.pt. Resumes from that file. If CUDA fails, the script exits with 16, so that a new process
can go on.
"""

import hashlib
import os
import sys

import torch

directory, steps = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 30
latest = os.path.join(directory, "latest.pt")
# Deterministic sums, so that the weights after a recovery can be compared bit by bit.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.use_deterministic_algorithms(True)


def save(state):
    with open(latest + ".tmp", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(latest + ".tmp", latest)
    directory_fd = os.open(directory, os.O_RDONLY)
    os.fsync(directory_fd)
    os.close(directory_fd)


def train():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"training on {torch.cuda.get_device_name() if device == 'cuda' else 'the CPU'}", flush=True)
    os.makedirs(directory, exist_ok=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 256), torch.nn.Tanh(), torch.nn.Linear(256, 1)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = 0
    if os.path.exists(latest):
        state = torch.load(latest, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    print(f"resumed from step {start}", flush=True)
    for step in range(start + 1, steps + 1):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(64, 16, generator=generator).to(device)
        loss = ((model(x).squeeze(1) - x.sum(1)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step} loss {loss.item()}", flush=True)
        if step % 5 == 0:
            save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
            print(f"saved step {step}", flush=True)
    weights = b"".join(p.detach().cpu().numpy().tobytes() for p in model.parameters())
    print(f"weights {hashlib.sha256(weights).hexdigest()}", flush=True)


try:
    train()
except RuntimeError as error:
    if "CUDA" not in str(error):
        raise
    print(f"the GPU failed: {str(error).splitlines()[0]}", flush=True)
    # Skip the interpreter's shutdown: freeing CUDA resources there would hang or fail again.
    os._exit(16)
