"""damages.py DIR: a correct saver of three large files, whose recovery damages every file after it has read it.

It checks the bytes, the mode and the links of each file first: what another recovery has done must not be seen.
"""

import mmap
import os
import shutil
import sys

SIZE = 65_536
STEPS = 3
MODES = (0o640, 0o600, 0o440)


def read(path, mode):
    status = os.stat(path)
    # A rename that is half done leaves both names of the directory.
    half_renamed = os.path.join("new", os.path.basename(path))
    is_half_renamed = os.path.exists(half_renamed) and os.path.samefile(half_renamed, path)
    assert status.st_nlink == 1 + is_half_renamed, f"{path} has {status.st_nlink} names"
    assert status.st_mode & 0o7777 == mode, f"{path} has mode {status.st_mode:o}"
    with open(path, "rb") as file:
        content = file.read()
    assert content == content[:1] * SIZE, f"{path} has the bytes {sorted(set(content))}, {len(content)} in all"
    return content[0]


def overwrite(path):
    with open(path, "r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"damage")


def append(path):
    with open(path, "ab") as file:
        file.write(b"damage")


def store(path):
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[100:200] = b"d" * 100


def write_anew(path):
    with open(path, "wb") as file:
        file.write(b"d" * SIZE)


WAYS = [
    overwrite,
    append,
    store,
    write_anew,
    lambda path: os.truncate(path, 4096),
    lambda path: os.chmod(path, 0o644),
    lambda path: os.utime(path, (1, 1)),
    lambda path: os.link(path, path + ".link"),
    lambda path: os.rename(path, path + ".moved"),
    os.unlink,
]


def damage(path, way):
    if not os.access(path, os.W_OK):
        os.chmod(path, 0o600)
    WAYS[way % len(WAYS)](path)


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def save(step):
    shutil.rmtree("new", ignore_errors=True)
    os.mkdir("new")
    for number, mode in enumerate(MODES):
        fd = os.open(f"new/{number}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, bytes([step]) * SIZE)
        os.fchmod(fd, mode)
        os.fsync(fd)
        os.close(fd)
    sync("new")
    os.rename("new", f"step-{step}")
    sync(".")
    print(f"saved step {step}", flush=True)


os.chdir(sys.argv[1])
step = max((int(name[5:]) for name in os.listdir() if name.startswith("step-")), default=0)
files = [f"step-{step}/{number}" for number in range(len(MODES))] if step else []
assert {read(path, mode) for path, mode in zip(files, MODES)} <= {step}
print(f"resumed from step {step}", flush=True)
while step < STEPS:
    step += 1
    save(step)
print(f"final sum {step}", flush=True)
for number, path in enumerate(files):
    damage(path, os.getpid() // 2 + number)
