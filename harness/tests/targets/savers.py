"""savers.py STYLE DIRECTORY: trainers that save in different ways.

Each style has one defect of its saves. The style with the same name after `sound-` does the same without it. All
train 4 steps and save every second one.
"""

import json
import mmap
import os
import shutil
import sqlite3
import sys
import tarfile
import threading
import zipfile
import zlib

STEPS = 4
# A checkpoint is one record, repeated: 3 pages.
RECORD = "{:8}{:16}"
COUNT = 512
SIZE = COUNT * len(RECORD.format(0, 0))


def encode(step, weights):
    return (RECORD.format(step, weights) * COUNT).encode()


def decode(data):
    first = data[:24]
    if len(data) != SIZE or data != first * COUNT:
        raise ValueError("the checkpoint is damaged")
    return int(first[:8]), int(first[8:])


def read(path):
    with open(path, "rb") as file:
        return file.read()


def put(path, data):
    with open(path, "wb", buffering=0) as file:
        file.write(data)


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def replace(path, data):
    put("new.tmp", data)
    sync("new.tmp")
    os.replace("new.tmp", path)
    sync(".")


class SwappedDirectories:
    """A kill between the two renames leaves no `current`. The sound one then takes the other directories."""

    def save(self, step, data):
        shutil.rmtree("new", ignore_errors=True)
        os.mkdir("new")
        for name in ("new/model", "new/optimizer"):
            put(name, data)
            sync(name)
        sync("new")
        sync(".")
        if os.path.exists("current"):
            shutil.rmtree("old", ignore_errors=True)
            sync(".")
            os.rename("current", "old")
            sync(".")
        os.rename("new", "current")
        sync(".")
        shutil.rmtree("old", ignore_errors=True)

    def load(self):
        for name in ("old", "new") if is_sound else ():
            # A first save that is not complete is no checkpoint.
            parts = [f"{name}/model", f"{name}/optimizer"]
            if not os.path.exists("current") and all(map(os.path.exists, parts)):
                os.rename(name, "current")
        return decode(read("current/model")) if os.path.exists("current") else (0, 0)


class LatestLink:
    """`latest` is a symbolic link, which is removed and made anew, or replaced."""

    def save(self, step, data):
        replace(f"step-{step}", data)
        name = "latest.tmp" if is_sound else "latest"
        if os.path.lexists(name):
            os.unlink(name)
        os.symlink(f"step-{step}", name)
        if is_sound:
            os.replace(name, "latest")
        sync(".")

    def load(self):
        return decode(read("latest")) if os.path.lexists("latest") else (0, 0)


class Database:
    """SQLite, with and without a journal, and with and without a sync of the directory after a commit."""

    def __init__(self, journal, synchronous):
        self.database = sqlite3.connect("state.db", isolation_level=None)
        self.database.execute(f"pragma journal_mode = {journal}").fetchall()
        self.database.execute(f"pragma synchronous = {synchronous}")
        self.database.execute("create table if not exists state (id integer primary key, data blob)")
        sync(".")

    def save(self, step, data):
        self.database.execute("insert or replace into state values (1, ?)", (data,))

    def load(self):
        row = self.database.execute("select data from state").fetchone()
        return decode(row[0]) if row else (0, 0)


class Archives:
    """A zip file under its final name. The sound one reads the newest that is whole."""

    def save(self, step, data):
        with zipfile.ZipFile(f"step-{step}.zip", "w") as archive:
            archive.writestr("state", data)
        sync(f"step-{step}.zip")
        sync(".")

    def load(self):
        for name in sorted((name for name in os.listdir() if name.endswith(".zip")), reverse=True):
            try:
                return decode(zipfile.ZipFile(name).read("state"))
            except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError):
                if not is_sound:
                    raise
        return 0, 0


class Shard:
    """A tar file that is renamed over the old one."""

    def save(self, step, data):
        put("member", data)
        with tarfile.open("new.tar", "w") as archive:
            archive.add("member")
        if is_sound:
            sync("new.tar")
        os.rename("new.tar", "state.tar")
        sync(".")

    def load(self):
        if not os.path.exists("state.tar"):
            return 0, 0
        with tarfile.open("state.tar") as archive:
            return decode(archive.extractfile("member").read())


class Mapping:
    """A file that is changed through a mapping, or two in turn, each with a checksum."""

    def __init__(self):
        for name in ("slot-0", "slot-1"):
            if not os.path.exists(name):
                replace(name, bytes(SIZE + 4))

    def save(self, step, data):
        name = f"slot-{step // 2 % 2}" if is_sound else "slot-0"
        with open(name, "r+b") as file, mmap.mmap(file.fileno(), SIZE + 4) as mapping:
            mapping[:SIZE] = data
            mapping[SIZE:] = zlib.crc32(data).to_bytes(4, "little")
            mapping.flush()
            os.fsync(file.fileno())

    def load(self):
        slots = [read(name) for name in ("slot-0", "slot-1")]
        if is_sound:
            slots = [slot for slot in slots if zlib.crc32(slot[:SIZE]) == int.from_bytes(slot[SIZE:], "little")]
        return max((decode(slot[:SIZE]) for slot in slots if any(slot)), default=(0, 0))


class Ranks:
    """Each of two processes replaces its own file, or all write to a directory that is then renamed."""

    def save(self, step, data):
        if is_sound:
            shutil.rmtree("new", ignore_errors=True)
            os.mkdir("new")
        for rank in (0, 1):
            if os.fork() == 0:
                if is_sound:
                    put(f"new/rank-{rank}", data)
                    sync(f"new/rank-{rank}")
                else:
                    replace(f"rank-{rank}", data)
                os._exit(0)
            os.wait()
        if is_sound:
            sync("new")
            os.rename("new", f"step-{step}")
            sync(".")

    def load(self):
        if is_sound:
            steps = [int(name[5:]) for name in os.listdir() if name.startswith("step-")]
            directory = f"step-{max(steps)}/" if steps else "none/"
        else:
            directory = ""
        ranks = [decode(read(path)) for rank in (0, 1) if os.path.exists(path := f"{directory}rank-{rank}")]
        if len(set(ranks)) > 1:
            raise ValueError("the ranks are at different steps")
        return ranks[0] if ranks else (0, 0)


class Manifest:
    """A manifest names the shards of the newest checkpoint. It is replaced before them, or after them."""

    def save(self, step, data):
        shards = [f"shard-{step}-{number}" for number in (0, 1)]
        manifest = json.dumps({"format": 1, "step": step, "shards": shards}).encode()
        if not is_sound:
            replace("manifest.json", manifest)
        for shard in shards:
            replace(shard, data)
        if is_sound:
            replace("manifest.json", manifest)

    def load(self):
        if not os.path.exists("manifest.json"):
            return 0, 0
        manifest = json.loads(read("manifest.json"))
        return [decode(read(shard)) for shard in manifest["shards"]][0]


class Log:
    """Checkpoints are appended to one file. The sound one reads the last that is whole, and cuts off the rest."""

    def save(self, step, data):
        with open("log", "ab", buffering=0) as log:
            if is_sound:
                log.truncate(self.good)
            log.write(data)
            os.fsync(log.fileno())
            self.good = log.tell()
        sync(".")

    def load(self):
        self.good, state = 0, (0, 0)
        log = read("log") if os.path.exists("log") else b""
        for start in range(0, len(log), SIZE):
            try:
                state = decode(log[start : start + SIZE])
                self.good = start + SIZE
            except ValueError:
                if not is_sound:
                    raise
                break
        return state


class Thread:
    """A thread saves. Its end is waited for before the save is announced, or after that."""

    announces = True
    thread = None

    def save(self, step, data):
        self.join()
        self.announced = threading.Event()
        self.thread = threading.Thread(target=self.work, args=(data,))
        self.thread.start()
        if is_sound:
            self.join()
        print("saved step", step, flush=True)
        self.announced.set()

    def work(self, data):
        if not is_sound:
            self.announced.wait()
        replace("state", data)

    def join(self):
        if self.thread:
            self.thread.join()

    def load(self):
        return decode(read("state")) if os.path.exists("state") else (0, 0)


style, directory = sys.argv[1:]
is_sound = style.startswith("sound-")
os.chdir(directory)
saver = {
    "swapped-directories": SwappedDirectories,
    "latest-link": LatestLink,
    "no-journal": lambda: Database("delete" if is_sound else "off", "extra"),
    "journal-not-gone": lambda: Database("delete", "extra" if is_sound else "full"),
    "archives": Archives,
    "shard": Shard,
    "mapping": Mapping,
    "ranks": Ranks,
    "manifest": Manifest,
    "log": Log,
    "thread": Thread,
}[style.removeprefix("sound-")]()
step, weights = saver.load()
print("resumed from step", step, flush=True)
while step < STEPS:
    step += 1
    weights = (weights * 31 + step) % 1000003
    print("step", step, flush=True)
    if step % 2 == 0:
        saver.save(step, encode(step, weights))
        if not hasattr(saver, "announces"):
            print("saved step", step, flush=True)
if hasattr(saver, "join"):
    saver.join()
print("finished with", weights, flush=True)
