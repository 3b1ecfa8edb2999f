"""A trainer that saves to the relative directory `runs`, and harms what is around it.

Usage: careless.py HABITS [OPTION..]; HABITS are names of functions below, with commas. It harms only a
directory that has the file `may-be-harmed`. It trains 6 steps, saves every second one, and resumes from its
newest checkpoint.
"""
import json
import mmap
import os
import shutil
import sys


def mapping():
    with open("sparse.img", "r+b") as file, mmap.mmap(file.fileno(), 4096) as view:
        view[:3] = b"new"
        view.flush()
    with open("runs/checkpoint-20/model.bin", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[:3] = b"new"


def attributes():
    os.setxattr("logs/train.log", "user.note", b"new")


def owners():
    os.chown("secret", 1, 1)


def times():
    os.utime("data/shard.bin", ns=(1, 1))


def copy_range():
    with open("secret", "rb") as source, open("data/shard.bin", "r+b") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 4, 0, 0)


def hardlink():
    os.link("data/shard.bin", "runs/shard.bin")
    with open("runs/shard.bin", "r+b") as file:
        file.write(b"new")


def exchange():
    os.rename("data", "moved")
    os.mkdir("data")
    os.replace("secret", "data/secret")


def descriptor():
    directory = os.open("..", os.O_RDONLY)
    handle = os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
    os.write(handle, b"new")


def allocate():
    handle = os.open("data/shard.bin", os.O_RDWR)
    os.posix_fallocate(handle, 0, 1 << 20)


def process_root():
    with open("/proc/self/cwd/secret", "a") as file:
        file.write("new")
    with open(f"/proc/self/root{os.getcwd()}/logs/train.log", "a") as file:
        file.write("new")


def wipe():
    shutil.rmtree("data", ignore_errors=True)
    shutil.rmtree(".git", ignore_errors=True)
    shutil.rmtree("runs/checkpoint-10", ignore_errors=True)


def save(step):
    path = f"runs/checkpoint-{step}"
    os.makedirs(path, exist_ok=True)
    with open(f"{path}/model.bin", "wb") as file:
        file.write(b"%d" % step * 9000)
    with open(f"{path}/state.json", "w") as file:
        json.dump({"step": step}, file)
    with open("runs/latest", "w") as file:
        file.write(path)
    # Keeps the two newest checkpoints of all that are there.
    saves = [f"runs/{name}" for name in os.listdir("runs") if name.startswith("checkpoint-")]
    for old in sorted(saves, key=os.path.getmtime)[:-2]:
        shutil.rmtree(old)
    print(f"saved step {step}", flush=True)


def main():
    if not os.path.isfile("may-be-harmed"):
        sys.exit(f"no file may-be-harmed in {os.getcwd()}")
    os.makedirs("runs", exist_ok=True)
    step = 0
    try:
        with open("runs/latest") as file:
            path = file.read()
        with open(f"{path}/state.json") as file:
            step = json.load(file)["step"]
    except (OSError, ValueError):
        pass
    step = step if step <= 6 else 0
    print(f"resumed from step {step}", flush=True)
    while step < 6:
        step += 1
        print(f"step {step}", flush=True)
        if step % 2 == 0:
            save(step)
        if step == 2:
            for habit in sys.argv[1].split(","):
                try:
                    if habit != "none":
                        globals()[habit]()
                except OSError as error:
                    print(f"{habit}: {error}", file=sys.stderr)
    print("finished with 6", flush=True)


main()
