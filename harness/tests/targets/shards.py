"""shards.py DIR FILES SAVES SYNC: checkpoints of FILES shards, which are written aside and renamed as a whole.

With SYNC=1 all is synced. Without it, nothing ever is, as with most trainers: what a power loss can leave grows with
every save.
"""

import os
import shutil
import sys

SIZE = 4096

directory, files, saves, is_synced = sys.argv[1], *map(int, sys.argv[2:])
os.chdir(directory)


def sync(path):
    if is_synced:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


step = max((int(name[5:]) for name in os.listdir() if name.startswith("step-")), default=0)
for number in range(files if step else 0):
    with open(f"step-{step}/{number}", "rb") as shard:
        assert shard.read() == bytes([step]) * SIZE, f"shard {number} of step {step} is damaged"
print("resumed from step", step, flush=True)
while step < saves:
    step += 1
    shutil.rmtree("new", ignore_errors=True)
    os.mkdir("new")
    for number in range(files):
        with open(f"new/{number}", "wb", buffering=0) as shard:
            shard.write(bytes([step]) * SIZE)
        sync(f"new/{number}")
    sync("new")
    os.rename("new", f"step-{step}")
    sync(".")
    print("saved step", step, flush=True)
