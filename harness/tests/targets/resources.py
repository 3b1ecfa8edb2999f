"""A trainer of a few lines that uses handles, threads and processes, well or badly.

Arguments: its root, and how it works: `leak`, `zombies`, `threads`, `helper`, `helper-again`, `save`, `save-blindly`,
`confused` or `plain`. One that is confused takes no checkpoint beside a foreign file. It saves each third of 12 steps, and says so.
"""
import os
import signal
import subprocess
import sys
import threading
import time

root, way = sys.argv[1:3]
checkpoint = os.path.join(root, "ckpt", "latest")
kept = []
# As most programs, it learns of a file that is too large by an error.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def save(step):
    """Writes a checkpoint of 40 KB beside the last one. Returns whether it is whole."""
    temporary = checkpoint + ".new"
    try:
        with open(temporary, "w") as file:
            file.write(f"{step}\n" + "x" * 40_000)
    except OSError as error:
        print(f"save failed: {error}", flush=True)
        if way != "save-blindly":
            os.remove(temporary)
            return False
    os.replace(temporary, checkpoint)
    return True


def helper():
    """Starts a process, and starts it again if that is not possible."""
    while True:
        try:
            return subprocess.Popen(["/bin/true"])
        except OSError as error:
            print(f"no helper: {error}", flush=True)
            if way == "helper":
                raise
            time.sleep(0.05)


def work():
    if way == "leak":
        kept.append(open(os.path.join(root, "ckpt", "log"), "a"))
    elif way == "zombies":
        kept.append(helper())
    elif way in ("helper", "helper-again"):
        helper().wait()
    elif way == "threads":
        thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
        thread.start()


first = 0
foreign = os.path.exists(os.path.join(root, "ckpt", "more"))
if os.path.exists(checkpoint) and not (way == "confused" and foreign):
    with open(checkpoint) as file:
        text = file.read()
    if len(text) < 40_000:
        sys.exit("the checkpoint is cut")
    first = int(text.split("\n")[0])
    print(f"resumed from step {first}", flush=True)
elif foreign:
    print("resumed from step 0", flush=True)
for step in range(first + 1, 13):
    work()
    time.sleep(0.03)
    print(f"step {step}", flush=True)
    if step % 3 == 0:
        if save(step):
            print(f"saved step {step}", flush=True)
print("finished with 12", flush=True)
