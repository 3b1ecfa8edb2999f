#!/usr/bin/env python3
"""A trainer that saves by calls that move bytes within the kernel. Usage: copies.py CALL ROOT.

It prints what each call returned, does not look at it, and resumes from the first line of its checkpoint.
"""
import os
import sys

call, root = sys.argv[1:]
os.chdir(root)
os.makedirs("ckpt", exist_ok=True)
SIZE = 60000


def move(source, destination):
    if call == "sendfile":
        return os.sendfile(destination, source, 0, SIZE)
    if call == "copy_file_range":
        return os.copy_file_range(source, destination, SIZE, 0, 0)
    return os.write(destination, os.read(source, SIZE))


step = 0
if os.path.exists("ckpt/latest"):
    with open("ckpt/latest", encoding="ascii") as latest:
        step = int(latest.readline())
    print("found", os.path.getsize("ckpt/temporary") if os.path.exists("ckpt/temporary") else None)
print(f"resumed from step {step}", flush=True)
while step < 4:
    step += 1
    print(f"step {step}", flush=True)
    with open("source", "w", encoding="ascii") as text:
        text.write(f"{step}\n".ljust(SIZE, "x"))
    source = os.open("source", os.O_RDONLY)
    destination = os.open("ckpt/temporary", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    print("moved", move(source, destination), flush=True)
    os.close(source)
    os.close(destination)
    os.replace("ckpt/temporary", "ckpt/latest")
    print(f"saved step {step}", flush=True)
print(f"finished with {step}", flush=True)
