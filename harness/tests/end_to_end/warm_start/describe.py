# Describes everything that a Python program can see of its start, and that must be the same in a fork.
import builtins, gc, locale, os, resource, signal, sys, threading, warnings

import beside

work = os.environ.get("WORK", "-")
for name, *value in [
    ("argv", sys.argv), ("orig_argv", getattr(sys, "orig_argv", None)), ("executable", sys.executable),
    ("path", sys.path), ("flags", sys.flags), ("warnoptions", sys.warnoptions), ("xoptions", sys._xoptions),
    ("prefix", sys.prefix), ("names", sorted(globals())), ("name", __name__), ("package", __package__),
    ("file", globals().get("__file__")), ("cached", globals().get("__cached__")), ("doc", __doc__),
    ("spec", getattr(__spec__, "name", None)), ("origin", getattr(__spec__, "origin", None)),
    ("loader", getattr(__loader__, "__name__", type(__loader__).__name__)), ("builtins", __builtins__ is builtins),
    ("main", sys.modules["__main__"].__dict__ is globals()), ("beside", beside.__file__, beside.value),
    ("cwd", os.getcwd()), ("environment", sorted(os.environ.items())), ("umask", oct(os.umask(0o22))),
    ("group", os.getpgrp(), os.getsid(0)), ("ids", os.getresuid(), os.getresgid()),
    ("files", sorted(set(os.listdir("/proc/self/fd")) & {"0", "1", "2", "3", "4", "5", "6"})), ("stdin", os.readlink("/proc/self/fd/0")),
    ("threads", threading.active_count(), len(os.listdir("/proc/self/task"))),
    ("main thread", threading.main_thread() is threading.current_thread(), threading.current_thread().name),
    ("signals", [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]),
    ("mask", signal.pthread_sigmask(signal.SIG_BLOCK, [])), ("nice", os.nice(0)),
    ("limits", [resource.getrlimit(number) for number in range(10)]), ("cpus", os.sched_getaffinity(0)),
    ("recursion", sys.getrecursionlimit()), ("interval", sys.getswitchinterval()), ("gc", gc.get_threshold()),
    ("debug", gc.isenabled(), gc.get_debug()), ("encoding", sys.getfilesystemencoding(), locale.getlocale()),
    ("filters", [str(entry[:3]) for entry in warnings.filters]), ("bytecode", sys.dont_write_bytecode),
    ("trace", sys.gettrace(), sys.getprofile()), ("hooks", sys.excepthook is sys.__excepthook__),
    ("meta path", [getattr(finder, "__name__", type(finder).__name__) for finder in sys.meta_path]),
    *((stream.name, stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.isatty(),
       stream.fileno(), stream.mode, stream.closed) for stream in (sys.stdin, sys.stdout, sys.stderr)),
]:
    print(name, value)
# What the programs that it starts get, whatever `os.environ` says.
with os.popen("/usr/bin/env") as lines:
    print("OpenMP of children", [line for line in lines if "OMP" in line], flush=True)
