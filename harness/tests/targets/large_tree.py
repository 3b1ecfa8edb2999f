"""Makes, changes and describes a tree: `large_tree.py make|change|describe DIRECTORY`.

`change` does to files that were there before what a trainer does, in all ways that the system has. `describe`
prints each entry with everything that a program can see of it, and ends with 3, which a test counts as a documented
refusal.
"""

import hashlib
import mmap
import os
import shutil
import stat
import sys

SMALL = 3_000
LARGE = 40_000


def put(path, data, mode=0o644):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def make():
    for step in (1, 2):
        put(f"checkpoints/{step}/model", bytes([step]) * LARGE)
        put(f"checkpoints/{step}/optimizer", bytes([step]) * SMALL)
        put(f"checkpoints/{step}/state.json", b'{"step": %d}' % step)
    put("base/model.bin", bytes(range(200)) * 400)
    put("base/tokens/odd \udcff name", b"odd")
    put("base/tokens/never", b"never touched" * 5000)
    put("gone/nested/deep", b"gone")
    put("becomes-file/inner", b"inner")
    put("becomes-directory", b"file")
    put("log", b"one\n", 0o640)
    put("linked", b"linked" * 1000)
    put("mapped", bytes(8192))
    put("locked", b"read only", 0o400)
    os.symlink("checkpoints/1", "latest")
    os.mkfifo("pipe")
    os.mkdir("empty")
    os.chmod("empty", 0o700)
    os.setxattr("base/model.bin", "user.origin", b"hub")
    for directory, _, files in os.walk("."):
        for name in files:
            os.utime(os.path.join(directory, name), ns=(10**18, 10**18 + len(name)), follow_symlinks=False)
    for directory, _, _ in os.walk(".", topdown=False):
        os.utime(directory, ns=(10**18, 10**18 + 77))


def sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def save(path, data):
    with open(path + ".tmp", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".tmp", path)
    sync(os.path.dirname(path) or ".")


def change():
    with open("log", "ab") as file:
        file.write(b"two\n")
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open("base/model.bin", os.O_RDWR)
    os.pwrite(descriptor, b"written in place" * 100, 5_000)
    os.fdatasync(descriptor)
    os.ftruncate(descriptor, 70_001)
    os.posix_fallocate(descriptor, 0, 71_000)
    os.close(descriptor)
    put("checkpoints/1/state.json", b'{"step": 3}')
    save("checkpoints/2/model", b"3" * LARGE)
    os.truncate("checkpoints/2/optimizer", 100)
    os.rename("checkpoints/1/model", "checkpoints/2/model.old")
    os.unlink("checkpoints/1/optimizer")
    os.link("linked", "linked again")
    with open("linked again", "r+b") as file:
        file.write(b"through the new name")
    os.unlink("linked")
    shutil.rmtree("gone")
    os.mkdir("gone")
    put("gone/new", b"new" * 20_000)
    shutil.rmtree("becomes-file")
    put("becomes-file", b"a file now")
    os.unlink("becomes-directory")
    put("becomes-directory/inner", b"a directory now")
    os.unlink("latest")
    os.symlink("checkpoints/2", "latest")
    os.chmod("empty", 0o750)
    os.chmod("locked", 0o600)
    os.utime("checkpoints/1/state.json", ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_123))
    os.setxattr("base/model.bin", "user.note", b"changed")
    descriptor = os.open("mapped", os.O_RDWR)
    with mmap.mmap(descriptor, 8192) as mapping:
        mapping[100:106] = b"stored"
        mapping.flush()
        os.fsync(descriptor)
    os.close(descriptor)
    os.rename("checkpoints/2/state.json", "state.json")
    os.unlink("pipe")
    os.makedirs("checkpoints/3.tmp")
    put("checkpoints/3.tmp/model", b"3" * LARGE)
    sync("checkpoints/3.tmp/model")
    os.rename("checkpoints/3.tmp", "checkpoints/3")
    sync("checkpoints")
    os.rmdir("empty")
    # What a first save of a program that knows the file already does.
    save("log", b"a new log\n")
    sys.stdout.write("done\n")


def line_of(path):
    facts = os.lstat(path)
    kind = stat.S_IFMT(facts.st_mode)
    fields = [oct(facts.st_mode), str(facts.st_uid), str(facts.st_gid)]
    if kind != stat.S_IFDIR:
        fields += [str(facts.st_nlink), str(facts.st_size)]
    if kind != stat.S_IFLNK:
        fields.append(str(facts.st_mtime_ns))
        fields += [f"{name}={os.getxattr(path, name)}" for name in sorted(os.listxattr(path))]
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            fields.append(hashlib.sha256(file.read()).hexdigest()[:8])
    if kind == stat.S_IFLNK:
        fields.append(os.readlink(path))
    return f"{path!r} " + " ".join(fields)


def describe():
    lines = [line_of(".")]
    for directory, directories, files in os.walk("."):
        lines += [line_of(os.path.join(directory, name)) for name in directories + files]
    text = "\n".join(sorted(lines)) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    sys.stdout.write(f"tree {digest}\n")
    # A recovery also changes what it finds: no other one may see that.
    with open("base/tokens/never", "ab") as file:
        file.write(b"touched by a recovery")
    shutil.rmtree("checkpoints", ignore_errors=True)
    sys.exit(3)


os.chdir(sys.argv[2])
{"make": make, "change": change, "describe": describe}[sys.argv[1]]()
