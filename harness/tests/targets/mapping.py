"""mapping.py DIR: a correct saver whose recovery works in a shared mapping of its checkpoint.

It checks everything that a state must have: the contents, the modes, the links of each file. A child of the
recovery stores into the mapping and is killed while the mapping exists; the stores must reach no other recovery.
"""

import mmap
import os
import sys
import time

SIZE = 40_000
STEPS = 3


def check(path, links):
    status = os.stat(path)
    assert status.st_nlink == links, f"{path} has {status.st_nlink} names"
    assert status.st_mode & 0o7777 == 0o640, f"{path} has mode {status.st_mode:o}"
    with open(path, "rb") as file:
        content = file.read()
    assert content == content[:1] * SIZE, f"{path} has the bytes {sorted(set(content))}, {len(content)} in all"
    return content[0]


def store_until_killed(paths):
    """Returns when a child has stored into a mapping of each file. The child holds the mappings for long."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        mappings = []
        for path in paths:
            fd = os.open(path, os.O_RDWR)
            mapping = mmap.mmap(fd, 0, mmap.MAP_SHARED)
            os.close(fd)
            # Pages that are read first are then written without a fault, so the modification time stays.
            assert len(bytes(mapping)) == SIZE
            mapping[100:20_000] = b"\xff" * 19_900
            mappings.append(mapping)
        os.write(writer, b"x")
        for fd in (0, 1, 2, reader, writer):
            os.close(fd)
        time.sleep(300)
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"x", "the child could not store"
    os.close(reader)


def save(directory, step):
    temporary = os.path.join(directory, "temporary")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    os.fchmod(fd, 0o640)
    os.write(fd, bytes([step]) * SIZE)
    os.fsync(fd)
    os.close(fd)
    os.rename(temporary, os.path.join(directory, "checkpoint"))
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    print(f"saved step {step}", flush=True)


def main():
    directory = sys.argv[1]
    checkpoint, twins = os.path.join(directory, "checkpoint"), [os.path.join(directory, name) for name in ("a", "b")]
    for twin in twins:
        check(twin, 2)
    assert os.path.samefile(*twins), "two names of one file have become two files"
    step, recovers = 0, os.path.exists(checkpoint)
    if recovers:
        # A rename that is half done leaves both names.
        temporary = os.path.join(directory, "temporary")
        is_half_renamed = os.path.exists(temporary) and os.path.samefile(temporary, checkpoint)
        step = check(checkpoint, 2 if is_half_renamed else 1)
    print(f"resumed from step {step}", flush=True)
    if recovers:
        store_until_killed([checkpoint, twins[0]])
    while step < STEPS:
        step += 1
        save(directory, step)
    print(f"final sum {step}", flush=True)


main()
