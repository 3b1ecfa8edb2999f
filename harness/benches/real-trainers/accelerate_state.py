# accelerate: save_state with automatic names, at most 2 kept.
import hashlib, os, sys

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed

directory = sys.argv[1]
accelerator = Accelerator(
    cpu=True, project_config=ProjectConfiguration(directory, automatic_checkpoint_naming=True, total_limit=2)
)
set_seed(7)
model = torch.nn.Linear(8, 4)
optimizer = torch.optim.Adam(model.parameters())
model, optimizer = accelerator.prepare(model, optimizer)
saves = os.path.join(directory, "checkpoints")
kept = sorted(os.listdir(saves), key=lambda name: int(name.split("_")[1])) if os.path.isdir(saves) else []
step = 0
if kept:
    accelerator.load_state(os.path.join(saves, kept[-1]))
    step = (int(kept[-1].split("_")[1]) + 1) * 2
    accelerator.project_configuration.iteration = step // 2
while step < 8:
    torch.manual_seed(step)
    loss = model(torch.randn(4, 8)).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    step += 1
    if step % 2 == 0:
        accelerator.save_state()
weights = b"".join(value.detach().numpy().tobytes() for value in model.parameters())
print("weights", hashlib.sha256(weights).hexdigest()[:16])
