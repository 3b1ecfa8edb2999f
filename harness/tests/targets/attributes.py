"""Runs a program of file operations in the working directory, or describes a directory tree.

attributes.py run PROGRAM: a JSON list of operations. Prints the result of each. System calls are made by number,
so that each form of a call is really that form.
attributes.py describe DIR: a line of JSON for each file, with everything but times that nobody has set.
"""

import ctypes
import errno
import hashlib
import json
import os
import platform
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
CALLS = {"fchmodat2": 452, "setxattrat": 463, "removexattrat": 466}
if X86:
    CALLS |= {
        "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "utime": 132, "setxattr": 188,
        "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
        "utimes": 235, "fchownat": 260, "futimesat": 261, "fchmodat": 268, "utimensat": 280,
    }
else:
    CALLS |= {
        "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
        "fremovexattr": 16, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88,
    }
NOFOLLOW, EMPTY_PATH, CWD = 0x100, 0x1000, -100
# Times that are set lie before this one, and all others after it.
SET_TIMES_END_S = 1_000_000_000
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def call(name, *arguments):
    """Makes a system call. Returns the name of its error, or `ok`."""
    converted = []
    for argument in arguments:
        if isinstance(argument, str):
            argument = argument.encode()
        converted.append(argument if isinstance(argument, (bytes, ctypes.Array, ctypes.Structure)) or argument is None
                         else ctypes.c_long(argument))
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(CALLS[name]), *converted) < 0:
        return errno.errorcode.get(ctypes.get_errno(), "unknown")
    return "ok"


class XattrArguments(ctypes.Structure):
    _fields_ = [("value", ctypes.c_char_p), ("size", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


def times_of(values, unit):
    """The two times as an array of (seconds, fraction); `now` and `omit` only in nanoseconds."""
    if values is None:
        return None
    special = {"now": (0, UTIME_NOW), "omit": (0, UTIME_OMIT)}
    pairs = [special[value] if isinstance(value, str) else (value, 0) for value in values]
    return (ctypes.c_long * 4)(*[number for pair in pairs for number in pair])


def with_forms(path, form, by_path, by_fd, at_path, on_link):
    """Makes one call in a form: by path, by descriptor, relative to a directory, or on the link itself."""
    if form == "path":
        return by_path(path)
    if form == "slash":
        return by_path(path + "/")
    if form == "dot":
        return by_path(os.path.join(path, "."))
    if form == "absolute":
        return by_path(os.path.join(os.getcwd(), path))
    if form == "link":
        return on_link(path)
    if form == "at":
        directory = os.open(os.path.dirname(path) or ".", os.O_PATH)
        result = at_path(directory, os.path.basename(path), 0)
        os.close(directory)
        return result
    flags = os.O_PATH | os.O_NOFOLLOW if form in ("empty", "procfd") else os.O_RDONLY | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError as error:
        return "open:" + errno.errorcode[error.errno]
    try:
        if form == "empty":
            return at_path(fd, "", EMPTY_PATH)
        if form == "procfd":
            return by_path(f"/proc/self/fd/{fd}")
        return by_fd(fd)
    finally:
        os.close(fd)


def chmod(path, form, mode):
    return with_forms(
        path, form,
        lambda path: call("chmod", path, mode) if X86 else call("fchmodat", CWD, path, mode),
        lambda fd: call("fchmod", fd, mode),
        lambda fd, name, flags: call("fchmodat2", fd, name, mode, flags) if flags else call("fchmodat", fd, name, mode),
        lambda path: call("fchmodat2", CWD, path, mode, NOFOLLOW))


def chown(path, form, uid, gid):
    return with_forms(
        path, form,
        lambda path: call("chown", path, uid, gid) if X86 else call("fchownat", CWD, path, uid, gid, 0),
        lambda fd: call("fchown", fd, uid, gid),
        lambda fd, name, flags: call("fchownat", fd, name, uid, gid, flags),
        lambda path: call("lchown", path, uid, gid) if X86 else call("fchownat", CWD, path, uid, gid, NOFOLLOW))


def utimes(path, form, values):
    seconds = values is None or all(isinstance(value, int) for value in values)
    if form in ("utime", "utimes", "futimesat") and X86 and seconds:
        if form == "utime":
            return call("utime", path, None if values is None else (ctypes.c_long * 2)(*values))
        if form == "utimes":
            return call("utimes", path, times_of(values, "microseconds"))
        return call("futimesat", CWD, path, times_of(values, "microseconds"))
    array = times_of(values, "nanoseconds")
    return with_forms(
        path, "path" if form in ("utime", "utimes", "futimesat") else form,
        lambda path: call("utimensat", CWD, path, array, 0),
        lambda fd: call("utimensat", fd, None, array, 0),
        lambda fd, name, flags: call("utimensat", fd, name, array, flags),
        lambda path: call("utimensat", CWD, path, array, NOFOLLOW))


def setxattr(path, form, name, value):
    value = value.encode()
    def at(fd, path, flags):
        arguments = XattrArguments(value, len(value), 0)
        return call("setxattrat", fd, path, flags, name, (XattrArguments * 1)(arguments), 16)
    return with_forms(
        path, form,
        lambda path: call("setxattr", path, name, value, len(value), 0),
        lambda fd: call("fsetxattr", fd, name, value, len(value), 0),
        at,
        lambda path: call("lsetxattr", path, name, value, len(value), 0))


def removexattr(path, form, name):
    return with_forms(
        path, form,
        lambda path: call("removexattr", path, name),
        lambda fd: call("fremovexattr", fd, name),
        lambda fd, path, flags: call("removexattrat", fd, path, flags, name),
        lambda path: call("lremovexattr", path, name))


def create(path, mode, size):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    os.write(fd, path.encode() * (size // len(path) + 1))
    os.close(fd)


def append(path, text):
    with open(path, "a") as file:
        file.write(text)


def sparse(path, size):
    with open(path, "w") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write("middle")


OPERATIONS = {
    "chmod": chmod, "chown": chown, "utimes": utimes, "setxattr": setxattr, "removexattr": removexattr,
    "create": create, "append": append, "sparse": sparse, "umask": os.umask, "mkdir": os.mkdir,
    "symlink": os.symlink, "link": os.link, "rename": os.rename, "unlink": os.unlink, "rmdir": os.rmdir,
    "truncate": os.truncate, "mkfifo": os.mkfifo,
}


def run(program):
    for name, *arguments in json.loads(program):
        try:
            result = OPERATIONS[name](*arguments)
        except OSError as error:
            result = errno.errorcode[error.errno]
        print(name, *arguments, result, flush=True)


def describe(top):
    first_names = {}
    def visit(path):
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        name = os.path.relpath(path, top)
        known = lambda time: time if time < SET_TIMES_END_S * 10**9 else "now"
        entry = {
            "name": name, "mode": oct(status.st_mode), "owner": [status.st_uid, status.st_gid],
            "modified": known(status.st_mtime_ns),
            "xattrs": {key: os.getxattr(path, key, follow_symlinks=False).hex()
                       for key in sorted(os.listxattr(path, follow_symlinks=False)) if key != "security.selinux"},
        }
        if kind != stat.S_IFDIR:
            entry["links"] = status.st_nlink
            entry["first"] = first_names.setdefault((status.st_dev, status.st_ino), name)
        if kind == stat.S_IFLNK:
            entry["target"] = os.readlink(path)
        if kind == stat.S_IFREG:
            entry["accessed"] = known(status.st_atime_ns)
            entry["sparse"] = status.st_size > 2**20 and status.st_blocks * 512 < status.st_size // 2
            with open(os.open(path, os.O_RDONLY | os.O_NOATIME), "rb") as file:
                entry["bytes"] = [status.st_size, hashlib.sha256(file.read()).hexdigest()]
        print(json.dumps(entry, sort_keys=True))
        if kind == stat.S_IFDIR:
            for child in sorted(os.listdir(path)):
                visit(os.path.join(path, child))
    visit(top)


if __name__ == "__main__":
    {"run": run, "describe": describe}[sys.argv[1]](sys.argv[2])
