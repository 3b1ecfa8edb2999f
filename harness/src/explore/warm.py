# Imports what is asked for once, then forks a child for each recovery: started by the harness, spoken to over a socket.
# The child is what a fresh interpreter would be: its own arguments, outputs, main module and random states.
import array, builtins, gc, importlib, json, os, socket, sys, types

control = socket.socket(fileno=int(sys.argv[1]))
for name in sys.argv[2:]:
    importlib.import_module(name)
gc.collect()
gc.freeze()
control.send(b'{"ready": %d}' % len(os.listdir("/proc/self/task")))
request = None
while True:
    message, files, _, _ = socket.recv_fds(control, 1 << 20, 2)
    if not message:
        os._exit(0)
    child = os.fork()
    if child == 0:
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        request = json.loads(message)
        control.close()
    for file in files:
        os.close(file)
    if child == 0:
        break
    control.send(b'{"pid": %d}' % child)
    _, status = os.waitpid(child, 0)
    control.send(b'{"status": %d}' % status)

if "random" in sys.modules:
    sys.modules["random"].seed()
if "numpy.random" in sys.modules:
    sys.modules["numpy.random"].seed()
kind, value, sys.argv = request[0], request[1], request[1:]
main = types.ModuleType("__main__")
main.__builtins__ = builtins
gc.unfreeze()


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


keep = [main, run]
for name in [name for name in globals() if name not in ("keep", "kind", "value", "main", "run", "sys", "__builtins__")]:
    if not name.startswith("__"):
        del globals()[name]
import builtins, os

try:
    run(kind, value, main)
except SystemExit:
    raise
except BaseException as error:
    trace = error.__traceback__
    while trace and trace.tb_frame.f_globals.get("keep") is keep:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    sys.exit(1)
