# How Python programs end, and what they leave: each section is a program of `main.rs`. `WORK` is a directory of its
# own.

#== returns
print("out"); import sys; print("err", file=sys.stderr)
#== exits_with_a_number
import sys; print("unflushed", end=""); sys.exit(3)
#== exits_with_a_large_number
import sys; sys.exit(256 + 7)
#== exits_with_minus_one
import sys; sys.exit(-1)
#== exits_with_true
import sys; sys.exit(True)
#== exits_with_text
import sys; sys.exit("no checkpoint")
#== exits_with_nothing
raise SystemExit
#== quits
quit(4)
#== raises
def load(): raise ValueError("truncated")
def main(): load()
main()
#== raises_from
try: {}["step"]
except KeyError as error: raise RuntimeError("no step") from error
#== raises_in_a_library
import json; json.loads("{")
#== is_interrupted
raise KeyboardInterrupt
#== is_interrupted_by_a_signal
import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)
#== asserts
assert 1 == 2, "loss is nan"
#== recursion
def deeper(): deeper()
try: deeper()
except RecursionError as error: print("recursion", error)
#== leaves_at_once
import os; print("lost", end=""); os._exit(5)
#== is_killed
import os, signal; print("flushed", flush=True); os.kill(os.getpid(), signal.SIGKILL)
#== is_terminated
import os, signal; os.kill(os.getpid(), signal.SIGTERM)
#== aborts
import os; os.abort()
#== handles_a_signal
import signal, sys, os
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75)); os.kill(os.getpid(), signal.SIGTERM)
#== closed_pipe
import signal, os; print(signal.getsignal(signal.SIGPIPE))
read, write = os.pipe(); os.close(read)
try: os.write(write, b"x")
except BrokenPipeError: print("EPIPE")
#== exit_functions
import atexit
atexit.register(print, "first registered"); atexit.register(print, "second"); print("end")
#== exit_function_raises
import atexit
def fail(): raise OSError("in exit")
atexit.register(fail); print("end")
#== exit_function_of_a_failing_program
import atexit; atexit.register(print, "exit function"); raise ValueError("x")
#== unflushed_file
file = open("WORK/log", "w"); file.write("kept")
#== unflushed_file_in_a_cycle
class Run: pass
run = Run(); run.self = run; run.file = open("WORK/log", "w"); run.file.write("kept in a cycle")
#== unflushed_file_of_a_library
import json; json.log = open("WORK/log", "w"); json.log.write("kept by a library"); del json
#== unflushed_file_and_an_error
file = open("WORK/log", "w"); file.write("kept"); raise ValueError("x")
#== deleted_objects
class Last:
    def __del__(self): print("deleted", type(self).__name__)
last = Last(); _private = Last()
#== temporary_file_goes
import tempfile, os; file = tempfile.NamedTemporaryFile(dir="WORK"); file.write(b"x"); print(os.path.exists(file.name))
#== temporary_directory_goes
import tempfile; directory = tempfile.TemporaryDirectory(dir="WORK")
#== finalizer
import weakref
class Run: pass
run = Run(); weakref.finalize(run, print, "finalized")
#== logging
import logging; logging.basicConfig(filename="WORK/log", format="%(levelname)s %(message)s"); logging.warning("logged")
#== logging_to_stderr
import logging; logging.warning("careful")
#== warning
import warnings; warnings.warn("old"); warnings.warn("older", DeprecationWarning)
#== thread_is_waited_for
import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
#== daemon_thread_is_not
import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); print("end")
#== thread_raises
import threading
thread = threading.Thread(target=lambda: 1 / 0, name="loader"); thread.start(); thread.join()
#== own_excepthook
import sys; sys.excepthook = lambda kind, value, trace: print("hook", kind.__name__, value); raise ValueError("x")
#== forked_child
import os
if os.fork() == 0: print("child", flush=True); os._exit(0)
os.wait(); print("parent")
#== forked_child_runs_on
import os
pid = os.fork()
if pid: os.waitpid(pid, 0)
print("child" if pid == 0 else "parent")
#== at_fork_functions
import os
os.register_at_fork(before=lambda: print("before", flush=True), after_in_child=lambda: print("in child", flush=True))
if os.fork() == 0: os._exit(0)
os.wait()
#== subprocess
import subprocess, sys
print(subprocess.run([sys.executable, "-c", "import sys; print(sys.argv, sys.flags.isolated)", "x"], stdout=-1).stdout)
#== pool
import multiprocessing
def double(x): return 2 * x
if __name__ == "__main__":
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool: print(method, pool.map(double, range(4)))
#== executor
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool: print(list(pool.map(len, ["a", "bb"])))
#== event_loop
import asyncio
async def main(): await asyncio.sleep(0.01); print("loop")
asyncio.run(main())
#== pickles_its_own_class
import pickle
class Step: pass
print(type(pickle.loads(pickle.dumps(Step()))), Step.__module__)
#== input
print(repr(input()) if __import__("sys").stdin.read(1) else "empty")
#== large_output
import sys; sys.stdout.write("line\n" * 40000); sys.stderr.write("e" * 20000)
#== output_is_closed
import sys; sys.stdout.close()
#== descriptor_is_closed
import os, sys; print("lost"); sys.stderr.flush(); os.close(1)
#== output_is_replaced
import io, sys; sys.stdout = io.StringIO(); print("nowhere")
#== encodings
import sys; print("\u00e4\u20ac"); print(sys.stdout.encoding, sys.stderr.errors); print("\udc80")
#== unraisable
class Bad:
    def __del__(self): raise ValueError("in del")
Bad(); print("end")
#== syntax_error
def broken(:
#== looks_at_its_modules
import sys; print([name for name in ("socket", "selectors", "runpy", "argparse", "fcntl", "array") if name in sys.modules])
#== looks_at_its_stack
import sys, inspect; print(sys._getframe().f_code.co_filename[-8:], __name__, inspect.currentframe().f_globals is globals())
#== changes_its_path
import os, sys
os.mkdir("WORK/late"); open("WORK/late/late_module.py", "w").write("value = 5"); sys.path.insert(0, "WORK/late")
import late_module; print(late_module.value)
