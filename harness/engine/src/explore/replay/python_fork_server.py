# A fork server: imports the given modules once, then forks a child for each request that it receives on its
# control socket. A child behaves like a fresh interpreter: it has its own arguments, outputs, main module and
# random states.
import atexit, builtins, gc, importlib, os, socket, sys, threading, types

control = socket.socket(fileno=int(sys.argv[1]))
working_directory = os.getcwd()
for name in sys.argv[2:]:
    importlib.import_module(name)
gc.collect()
gc.freeze()
control.send(b"ready")
request = None
while True:
    message, files, _, _ = socket.recv_fds(control, 1, 3)
    if not message:
        os._exit(0)
    child = os.fork()
    if child == 0:
        # The directory may have been mounted again since the start.
        os.chdir(working_directory)
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        arguments = os.pread(files[2], os.fstat(files[2]).st_size, 0)
        request = [os.fsdecode(argument) for argument in arguments.split(b"\0")[:-1]]
        control.close()
    for file in files:
        os.close(file)
    if child == 0:
        break
    control.send(b"pid %d" % child)
    _, status = os.waitpid(child, 0)
    control.send(b"status %d" % status)

if "random" in sys.modules:
    sys.modules["random"].seed()
if "numpy.random" in sys.modules:
    sys.modules["numpy.random"].seed()
kind, value, sys.argv = request[0], request[1], request[1:]
main = types.ModuleType("__main__")
main.__builtins__ = builtins


def run(kind, value, main):
    if kind == "module":
        import runpy

        sys.path[0] = os.getcwd()
        return runpy.run_module(value, run_name="__main__", alter_sys=True)
    if kind == "script":
        sys.path[0] = os.path.dirname(os.path.realpath(value))
        main.__file__ = value
        with open(value, "rb") as file:
            code = compile(file.read(), value, "exec")
    else:
        sys.path[0], sys.argv[0] = "", "-c"
        code = compile(value, "<string>", "exec")
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def finish(code, main, before):
    # Ends as an interpreter does, except for the modules that were imported before the fork: waits for
    # threads, runs the exit functions, and clears the names of the program so that the files that it left
    # open are closed.
    threading._shutdown()
    atexit._run_exitfuncs()
    for name in [name for name in sys.modules if name not in before]:
        vars(sys.modules[name]).clear()
    vars(main).clear()
    gc.collect()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or 120
    os._exit(code)


before, code = set(sys.modules), 0
try:
    run(kind, value, main)
except SystemExit as error:
    code = error.code
    if code is None:
        code = 0
    elif not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
except BaseException as error:
    trace = error.__traceback__
    while trace and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    del trace
    code = 1
finish(code & 0xFF, main, before)
