"""Does one operation for each right that a policy can deny, below its root and outside, and prints which are denied.

Usage: denied_calls.py ROOT OUTSIDE. The first start makes what the operations need, and waits to be killed.
"""

import os
import stat
import sys
import time


def create(path, mode):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def open_and_close(path, flags):
    os.close(os.open(path, flags))


OPERATIONS = {
    "read-file": lambda dir: open_and_close(f"{dir}/file", os.O_RDONLY),
    "write-file": lambda dir: open_and_close(f"{dir}/file", os.O_WRONLY),
    "truncate": lambda dir: os.truncate(f"{dir}/file", 1),
    "truncate-open": lambda dir: open_and_close(f"{dir}/other", os.O_WRONLY | os.O_TRUNC),
    "read-dir": lambda dir: open_and_close(dir, os.O_RDONLY | os.O_DIRECTORY),
    "make-dir": lambda dir: os.mkdir(f"{dir}/new-dir"),
    "make-file": lambda dir: create(f"{dir}/new-file", 0o600),
    "make-file-node": lambda dir: os.mknod(f"{dir}/new-node", stat.S_IFREG | 0o600),
    "make-file-link": lambda dir: os.link(f"{dir}/file", f"{dir}/new-name"),
    "make-link": lambda dir: os.symlink("file", f"{dir}/new-link"),
    "make-pipe": lambda dir: os.mkfifo(f"{dir}/new-pipe"),
    "make-socket": lambda dir: os.mknod(f"{dir}/new-socket", stat.S_IFSOCK | 0o600),
    "remove-file": lambda dir: os.unlink(f"{dir}/removed"),
    "remove-file-rename": lambda dir: os.rename(f"{dir}/renamed", f"{dir}/renamed-file"),
    "remove-dir": lambda dir: os.rmdir(f"{dir}/removed-dir"),
    "rename-across": lambda dir: os.rename(f"{dir}/moved", f"{dir}/sub/moved"),
    "rename-across-link": lambda dir: os.link(f"{dir}/file", f"{dir}/sub/link"),
}


def prepare(dir):
    for name in ["", "removed-dir", "sub"]:
        os.makedirs(f"{dir}/{name}")
    for name in ["file", "other", "removed", "renamed", "moved"]:
        with open(f"{dir}/{name}", "w") as file:
            file.write("content")


def denied(dir):
    for name, operation in OPERATIONS.items():
        try:
            operation(dir)
        except (PermissionError, OSError) as error:
            yield f"{name} {error.strerror}"


def main():
    below, outside = f"{sys.argv[1]}/below", sys.argv[2]
    if not os.path.exists(below):
        prepare(below)
        prepare(outside)
        print("step 1", flush=True)
        time.sleep(0.3)
    else:
        print("below: " + ", ".join(denied(below)))
        print("outside: " + ", ".join(denied(outside)))
    print("step 2\nsaved step 2\nfinished with 9", flush=True)


main()
