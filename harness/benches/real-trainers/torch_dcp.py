# torch.distributed.checkpoint on one process: a directory for each save, the newest with a .metadata file counts.
import hashlib, os, sys

import torch
import torch.distributed.checkpoint as dcp

directory = sys.argv[1]
torch.manual_seed(7)
model = torch.nn.Linear(8, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
step = 0
names = [name for name in os.listdir(directory) if os.path.exists(os.path.join(directory, name, ".metadata"))]
if names:
    name = max(names, key=lambda name: int(name.split("-")[1]))
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=os.path.join(directory, name))
    model.load_state_dict(state["model"])
    step = int(name.split("-")[1])
while step < 6:
    torch.manual_seed(step)
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    step += 1
    if step % 2 == 0:
        dcp.save({"model": model.state_dict()}, checkpoint_id=os.path.join(directory, f"step-{step}"))
weights = b"".join(value.detach().numpy().tobytes() for value in model.parameters())
print("weights", hashlib.sha256(weights).hexdigest()[:16])
