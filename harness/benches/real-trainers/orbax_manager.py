# Orbax: CheckpointManager, synchronous, at most 2 kept. No finding is expected.
import hashlib, os, sys

import numpy
import orbax.checkpoint as ocp

directory = os.path.abspath(sys.argv[1])
options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
weights, step = numpy.arange(16.0), 0
with ocp.CheckpointManager(os.path.join(directory, "saves"), options=options) as manager:
    if manager.latest_step() is not None:
        step = manager.latest_step()
        weights = manager.restore(step, args=ocp.args.StandardRestore({"w": weights}))["w"]
    while step < 3:
        step += 1
        weights = weights * 1.5 + step
        manager.save(step, args=ocp.args.StandardSave({"w": weights}))
        manager.wait_until_finished()
print("weights", hashlib.sha256(numpy.asarray(weights).tobytes()).hexdigest()[:16])
