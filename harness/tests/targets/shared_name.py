"""A sound trainer that holds something which only one process of a machine can have at a time.

Usage: shared_name.py KINDS DIR; KINDS are names of functions below, with commas. It trains 3 steps, saves each
by an atomic rename, and resumes from the newest save. The known-bad kinds leave a lock behind in DIR if they are
killed, and refuse to start when they find it.
"""
import ctypes
import fcntl
import mmap
import os
import re
import socket
import sys
import time

PORT = 29_517
NAME = "trainwreck-test-shared-name"
KEY = 0x5452_4e57
libc = ctypes.CDLL(None, use_errno=True)
held = []


def tcp():
    # Without SO_REUSEADDR. The side that closes first keeps the port for a minute.
    listener = socket.socket()
    listener.bind(("127.0.0.1", PORT))
    listener.listen()
    client = socket.create_connection(("127.0.0.1", PORT))
    server, _ = listener.accept()
    server.sendall(b"x")
    assert client.recv(1) == b"x"
    server.close()
    assert client.recv(1) == b""
    client.close()
    held.append(listener)


def tcp_any():
    listener = socket.socket()
    listener.bind(("0.0.0.0", PORT + 1))
    listener.listen()
    held.append(listener)


def udp():
    receiver = socket.socket(type=socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", PORT))
    receiver.settimeout(5)
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"%d" % os.getpid(), ("127.0.0.1", PORT))
    assert receiver.recv(99) == b"%d" % os.getpid()
    held.append(receiver)


def abstract_socket():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + NAME)
    listener.listen()
    held.append(listener)


def socket_file():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/tmp/{NAME}.socket")
    listener.listen()
    held.extend([listener, f"/tmp/{NAME}.socket"])


def locked_file():
    file = open(f"/tmp/{NAME}.lock", "w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    held.append(file)


def record_lock():
    file = open(f"/tmp/{NAME}.record-lock", "w")
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    held.append(file)


def exclusive_file(path=f"/tmp/{NAME}.exclusive"):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    held.append(path)


def var_tmp():
    exclusive_file(f"/var/tmp/{NAME}.exclusive")


def working_directory():
    exclusive_file("trainer.lock")


def home():
    exclusive_file(os.path.expanduser(f"~/.{NAME}"))


def pid_file():
    path = f"/tmp/{NAME}.pid"
    if os.path.exists(path):
        with open(path) as file:
            os.kill(int(file.read()), 0)
        sys.exit("another trainer is running")
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    held.append(path)


def shared_memory():
    # As shm_open does.
    exclusive_file(f"/dev/shm/{NAME}")


def system_v():
    flags = 0o1600 | 0o2000
    memory = libc.shmget(KEY, 4096, flags)
    assert memory >= 0, os.strerror(ctypes.get_errno())
    semaphores = libc.semget(KEY, 1, flags)
    assert semaphores >= 0, os.strerror(ctypes.get_errno())
    queue = libc.msgget(KEY, flags)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    held.append((memory, semaphores, queue))


def message_queue():
    name = f"/{NAME}".encode()
    queue = libc.mq_open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, ctypes.c_uint(0o600), None)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    held.append(name)


def mapped_file(directory):
    """Marks the checkpoint that it has resumed from through a mapping. On some file systems this moves no time."""
    def mark(file):
        with mmap.mmap(file.fileno(), 0) as view:
            view[4096] = 1
            view.flush()
    mark_resumed_checkpoint(directory, mark)


def restored_time(directory):
    """Marks the checkpoint that it has resumed from, and sets its time back."""
    def mark(file):
        before = os.fstat(file.fileno())
        os.pwrite(file.fileno(), b"\1", 4096)
        os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
    mark_resumed_checkpoint(directory, mark)


def mark_resumed_checkpoint(directory, mark):
    """Nobody resumes from a marked checkpoint, because there is a newer one before it is marked."""
    generations = [int(name[6:]) for name in os.listdir(directory) if re.fullmatch("state-[0-9]+", name)]
    newest = max(generations, default=-1)
    state = b"\0" * (1 << 20)
    if newest >= 0:
        with open(f"{directory}/state-{newest}", "rb") as file:
            state = file.read()
        assert len(state) == 1 << 20 and state[4096] == 0, "this checkpoint was resumed from before"
    replace(f"{directory}/state-{newest + 1}", state)
    if newest >= 0:
        with open(f"{directory}/state-{newest}", "r+b") as file:
            mark(file)


def stale(directory):
    """Known bad: a lock in the watched directory that nobody removes after a kill."""
    try:
        exclusive_file(f"{directory}/lock")
    except FileExistsError:
        sys.exit("another trainer is running")


def replace(path, data):
    with open(f"{path}.new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
    sync(os.path.dirname(path))


def sync(directory):
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def release():
    for resource in held:
        if isinstance(resource, tuple):
            memory, semaphores, queue = resource
            libc.shmctl(memory, 0, None)
            libc.semctl(semaphores, 0, 0)
            libc.msgctl(queue, 0, None)
        elif isinstance(resource, bytes):
            libc.mq_unlink(resource)
        elif isinstance(resource, str):
            os.unlink(resource)


def main():
    kinds, directory = sys.argv[1:3]
    for kind in kinds.split(","):
        hold = globals()[kind]
        if kind in ("stale", "mapped_file", "restored_time"):
            hold(directory)
        else:
            hold()
    path = f"{directory}/checkpoint"
    step = 0
    if os.path.exists(path):
        with open(path) as file:
            step = int(file.read())
    print(f"resumed from step {step}", flush=True)
    # Long enough that recoveries side by side hold it at the same time.
    time.sleep(0.05)
    while step < 3:
        step += 1
        replace(path, b"%d" % step)
        print(f"saved step {step}", flush=True)
    release()
    print(f"final sum {step}", flush=True)


main()
