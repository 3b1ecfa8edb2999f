"""A sound trainer that insists on modes, owners, links, attributes and times of the files beside its checkpoint.

Usage: particular.py prepare DIR, once, and then particular.py train DIR. It trains 3 steps, saves each by an
atomic rename, and resumes from the newest save. Where something is not as it was left, it says what and
exits with 7.
"""
import os
import stat
import subprocess
import sys

TIME_NS = 1_000_000_000_123_456_789
HAS_OWNERS = os.geteuid() == 0


def write(name, data, mode=0o644):
    with open(name, "wb") as file:
        file.write(data)
    os.chmod(name, mode)


def prepare():
    # Over 16 KiB, as most programs are.
    write("helper", b"#!/bin/sh\n" + b"# padding\n" * 2000 + b"echo helped\n", 0o755)
    write("secret", b"key", 0o600)
    write("fixed", b"read only", 0o444)
    write("first", b"linked" * 4000)
    os.link("first", "second")
    os.mkdir("shared")
    os.chmod("shared", 0o2775)
    os.mkdir("private")
    os.chmod("private", 0o700)
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    write("old", b"old" * 9000)
    os.utime("old", ns=(TIME_NS, TIME_NS))
    os.symlink("old", "link")
    os.utime("link", ns=(TIME_NS, TIME_NS), follow_symlinks=False)
    write("noted", b"noted" * 9000)
    try:
        os.setxattr("noted", "user.note", b"\0mine\xff")
    except OSError:
        os.unlink("noted")
    if HAS_OWNERS:
        write("given", b"given")
        os.chown("given", 1234, 2345)
    with open("sparse", "wb") as file:
        file.truncate(8 << 20)
    os.mkdir("olddir")
    write("olddir/file", b"x")
    os.utime("olddir", ns=(TIME_NS, TIME_NS))


def check(condition, what):
    if not condition:
        print(f"not as it was left: {what}", flush=True)
        sys.exit(7)


def check_mode(name, mode):
    is_mode = stat.S_IMODE(os.lstat(name).st_mode)
    check(is_mode == mode, f"mode of {name} is {is_mode:o}, not {mode:o}")


def check_prepared():
    modes = {"helper": 0o755, "secret": 0o600, "fixed": 0o444, "shared": 0o2775, "private": 0o700,
             "sticky": 0o1777}
    for name, mode in modes.items():
        check_mode(name, mode)
    check(subprocess.check_output(["./helper"]) == b"helped\n", "helper")
    first, second = os.stat("first"), os.stat("second")
    check(first.st_ino == second.st_ino and first.st_nlink == 2, "hard links of first")
    for name in ("old", "link", "olddir"):
        check(os.lstat(name).st_mtime_ns == TIME_NS, f"mtime of {name}")
    if os.path.exists("noted"):
        names = os.listxattr("noted")
        check("user.note" in names and os.getxattr("noted", "user.note") == b"\0mine\xff", f"xattrs {names}")
    if HAS_OWNERS:
        given = os.stat("given")
        check((given.st_uid, given.st_gid) == (1234, 2345), f"owner is {given.st_uid}:{given.st_gid}")
    check(os.stat("sparse").st_size == 8 << 20, "length of sparse")
    check(os.stat("sparse").st_blocks < 2048, "holes of sparse")


def make():
    """Makes files of its own. `made` is last: if it is there, all others must be."""
    os.umask(0o077)
    with open("made-secret", "w") as file:
        file.write("key")
    os.umask(0o022)
    write("made-program", b"#!/bin/sh\nexit 0\n", 0o750)
    os.link("made-program", "made-link")
    os.mkdir("made-dir", 0o700)
    os.utime("made-secret", ns=(TIME_NS, TIME_NS))
    if os.path.exists("noted"):
        os.setxattr("made-secret", "user.made", b"yes")
    if HAS_OWNERS:
        os.chown("made-link", 1234, 2345)
    write("made", b"")


def check_made():
    # From its first moment on.
    if os.path.exists("made-secret"):
        check_mode("made-secret", 0o600)
    if os.path.exists("made-dir"):
        check_mode("made-dir", 0o700)
    if not os.path.exists("made"):
        return False
    check_mode("made-program", 0o750)
    program = os.stat("made-program")
    check(program.st_ino == os.stat("made-link").st_ino and program.st_nlink == 2, "hard links of made-program")
    check(os.stat("made-secret").st_mtime_ns == TIME_NS, "mtime of made-secret")
    if os.path.exists("noted"):
        check(os.listxattr("made-secret") == ["user.made"], "xattrs of made-secret")
    if HAS_OWNERS:
        check((program.st_uid, program.st_gid) == (1234, 2345), "owner of made-program")
    return True


def start_again():
    for name in ("made-secret", "made-program", "made-link"):
        if os.path.lexists(name):
            os.unlink(name)
    if os.path.isdir("made-dir"):
        os.rmdir("made-dir")
    make()


def train():
    check_prepared()
    if not check_made():
        start_again()
    step = 0
    if os.path.exists("checkpoint"):
        with open("checkpoint") as file:
            step = int(file.read())
    print(f"resumed from step {step}", flush=True)
    while step < 3:
        step += 1
        with open("new", "w") as file:
            file.write(str(step))
            file.flush()
            os.fsync(file.fileno())
        os.rename("new", "checkpoint")
        directory = os.open(".", os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        print(f"saved step {step}", flush=True)
    check_prepared()
    check_made()
    print(f"final sum {step}", flush=True)


os.chdir(sys.argv[2])
prepare() if sys.argv[1] == "prepare" else train()
