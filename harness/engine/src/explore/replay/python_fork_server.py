# A fork server: imports modules once, then forks a child for each request that it receives on its control
# socket. A child behaves like a fresh interpreter: it has its own arguments, outputs, main module and random
# states. Nothing but imports ever runs in the server itself.
#
# Arguments: the number of the control socket, then one of
#   NAME...               the modules to import
#   --note TOKEN LIB..    nothing to import; each child reports what it has imported, as a line `TOKEN ITEM...`
#   --noted ITEM...       what such a child has reported
# Items: m: a module of the standard library or of site-packages; u: the name of another module; s: a variable
# that the program has set, before the module that follows; v: a variable that a library has set; p: an entry of
# sys.path; w: a watched directory, whose modules are not imported; x: a module to leave out.
#
# Uses built-in modules only, so that no program meets a module here that it has not imported itself.
import sys

initial_modules, initial_path = set(sys.modules), list(sys.path)
import _socket, atexit, gc, posix, time

for name in {"_socket", "atexit", "gc", "posix", "time"} - initial_modules:
    del sys.modules[name]
initial_environment = dict(posix.environ)
MAX_PASSES = 12
control = _socket.socket(fileno=int(sys.argv[1]))
bootstrap = sys.modules["_frozen_importlib"]
working_directory = posix.getcwd()
main_module = sys.modules["__main__"]


def text_of(data):
    return bytes.fromhex(data).decode("utf-8", "surrogateescape")


def hex_of(text):
    return (text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")).hex()


def library_dirs():
    stdlib = getattr(sys, "_stdlib_dir", None)
    if stdlib is None:
        import os

        stdlib = os.path.dirname(os.__file__)
    names = ("lib-dynload", "site-packages", "dist-packages")
    return [entry for entry in initial_path if entry == stdlib or entry.rsplit("/", 1)[-1] in names]


libraries = tuple(entry + "/" for entry in library_dirs() if entry.startswith("/"))
watched = tuple(text_of(item[2:]) + "/" for item in sys.argv[2:] if item.startswith("w:"))


def is_library_file(path):
    return path.startswith(libraries) and not (watched and path.startswith(watched))


def is_library(spec):
    # Modules without a file come with others.
    origin = getattr(spec, "origin", None)
    if not isinstance(origin, str) or not origin.startswith("/"):
        places = getattr(spec, "submodule_search_locations", None)
        return places is None or all(is_library_file(str(place) + "/") for place in places)
    return is_library_file(origin)


class LeftOut(BaseException):
    """Ends the import of a module that is left out, and of those that import it."""


class Importer:
    """Imports what was noted, and nothing after whose import a fork would not be like a fresh interpreter."""

    def __init__(self, items):
        self.items = items
        self.others = {item[2:] for item in items if item.startswith("u:")}
        self.known_left_out = {item[2:] for item in items if item.startswith("x:")}
        self.left_out, self.is_spoiled = [], False
        self.loading = []
        self.library_values = dict(self.variable(item) for item in items if item.startswith("v:"))
        self.program_values = {}
        self.environment = dict(self.environ())
        self.files = set(self.open_files())
        self.original_load = bootstrap._load_unlocked

    @staticmethod
    def environ():
        os = sys.modules.get("os")
        return os.environ if os else {}

    @staticmethod
    def variable(item):
        name, _, value = item[2:].partition("=")
        return text_of(name), text_of(value[1:]) if value else None

    def run(self):
        bootstrap._load_unlocked = self.load
        sys.path[:] = [text_of(item[2:]) for item in self.items if item.startswith("p:")] or sys.path
        for item in self.items:
            if self.is_spoiled:
                return
            if item.startswith("s:"):
                self.set_variable(*self.variable(item))
            elif item.startswith("m:"):
                self.import_module(item[2:])
        bootstrap._load_unlocked = self.original_load
        self.reset_variables()
        sys.path[:] = initial_path
        for path in [path for path in sys.path_importer_cache if not is_library_file(path + "/")]:
            del sys.path_importer_cache[path]

    def import_module(self, name):
        parts = name.split(".")
        parents = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        if name in sys.modules or not self.known_left_out.isdisjoint(parents):
            return
        try:
            __import__(name)
        except LeftOut:
            pass
        except BaseException:
            # It may have been half imported; or it cannot be imported by its name at all.
            if "." not in name:
                self.left_out.append(name)
                self.is_spoiled = True

    def load(self, spec):
        name = spec.name
        if name in self.known_left_out or name in self.others or not is_library(spec):
            self.left_out += [name] + self.loading
            raise LeftOut
        # A module that is imported while another has a file open is not to blame for it.
        was_changed = self.has_side_effect()
        self.loading.append(name)
        try:
            module = self.original_load(spec)
        finally:
            self.loading.pop()
        if self.is_spoiled or (self.has_side_effect() and not was_changed):
            self.is_spoiled = True
            self.left_out += [name] + self.loading
            raise LeftOut
        return module

    def has_side_effect(self):
        if len(sys._current_frames()) > 1 or posix.getcwd() != working_directory:
            return True
        if len(posix.listdir("/proc/self/task")) > 1:
            # Numeric libraries end their threads before a fork.
            child = posix.fork()
            if child == 0:
                posix._exit(0)
            posix.waitpid(child, 0)
            if len(posix.listdir("/proc/self/task")) > 1:
                return True
        return self.has_new_file() or self.has_new_variable()

    @staticmethod
    def open_files():
        files = {}
        for number in posix.listdir("/proc/self/fd"):
            try:
                files[number] = posix.readlink("/proc/self/fd/" + number)
            except OSError:
                # What listed them.
                pass
        return files

    def has_new_file(self):
        harmless = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero")
        files = self.open_files().items()
        return any(number not in self.files and target not in harmless for number, target in files)

    def has_new_variable(self):
        current = dict(self.environ())
        if current == self.environment:
            return False
        if not self.environment:
            # The module with the environment has just been imported.
            self.environment = current
            return False
        for name in set(current) | set(self.environment):
            value = current.get(name)
            if value != self.environment.get(name):
                if name not in self.library_values or self.library_values[name] != value:
                    return True
        self.environment = current
        return False

    def set_variable(self, name, value):
        import os

        self.environment = self.environment or dict(os.environ)
        self.program_values.setdefault(name, self.environment.get(name))
        self.put(name, value)

    def reset_variables(self):
        for name, value in self.program_values.items():
            self.put(name, value)

    def put(self, name, value):
        environ = self.environ()
        if value is None:
            environ.pop(name, None)
            self.environment.pop(name, None)
        else:
            environ[name] = self.environment[name] = value


def import_noted(items):
    importer = Importer(items)
    importer.run()
    if importer.left_out:
        # Starts over without them: what they have changed is undone in no other way.
        if sum(item == "x:" for item in items) >= MAX_PASSES:
            sys.exit("too many modules have side effects")
        with open("/proc/self/cmdline", "rb") as file:
            arguments = file.read().split(b"\0")[:-1]
        left_out = [b"x:"] + [b"x:" + name.encode() for name in dict.fromkeys(importer.left_out)]
        posix.chdir(working_directory)
        posix.execve(sys.executable, arguments + left_out, initial_environment)


class Notes:
    """Notes in a child what it imports, and which variables it sets."""

    def __init__(self, token):
        # Out of the way of a program that counts its files.
        import fcntl

        self.file = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 700)
        sys.modules.pop("fcntl", None)
        self.token, self.process = token, posix.getpid()
        self.events, self.of_libraries, self.loaded = [], {}, set()
        if hasattr(sys, "addaudithook"):
            sys.addaudithook(self.on_event)

    def on_event(self, event, arguments):
        if event == "import":
            self.loaded.add(arguments[0])
        elif event in ("os.putenv", "os.unsetenv"):
            item = hex_of(arguments[0]) + ("=." + hex_of(arguments[1]) if event == "os.putenv" else "=")
            frame = sys._getframe(1)
            while frame:
                spec = frame.f_globals.get("__spec__")
                if frame.f_code.co_name == "<module>" and spec and is_library(spec):
                    self.of_libraries[arguments[0]] = "v:" + item
                    return
                frame = frame.f_back
            self.events.append((len(sys.modules), "s:" + item))

    def write(self):
        if posix.getpid() != self.process:
            return
        items, events = [], list(self.events)
        for index, (name, module) in enumerate(list(sys.modules.items())):
            while events and events[0][0] <= index:
                items.append(events.pop(0)[1])
            spec = getattr(module, "__spec__", None)
            if name == "__main__" or not name.isprintable() or " " in name:
                continue
            if name in initial_modules and is_library(spec):
                continue
            if spec is not None:
                items.append(("m:" if is_library(spec) else "u:") + name)
            elif name not in self.loaded:
                # Put there by somebody, so that importing it would give another module.
                items.append("u:" + name)
        items += self.of_libraries.values()
        items += ["p:" + hex_of(entry) for entry in sys.path if isinstance(entry, str)]
        line = ("\n" + " ".join([self.token] + items) + "\n").encode("utf-8", "surrogateescape")
        while line:
            line = line[posix.write(self.file, line) :]


token = None
if sys.argv[2:3] == ["--note"]:
    token = sys.argv[3]
elif sys.argv[2:3] == ["--noted"]:
    import_noted(sys.argv[3:])
else:
    for name in sys.argv[2:]:
        __import__(name)
for stream in (sys.stdout, sys.stderr):
    try:
        stream.flush()
    except (AttributeError, OSError, ValueError):
        pass
# What is written here later reaches nobody, and is not kept for the children.
posix.dup2(1, 2)
gc.collect()
gc.freeze()
control.send(b"ready")
request = None
while True:
    message, ancillary, _, _ = control.recvmsg(1, 1024)
    files = [
        int.from_bytes(data[offset : offset + 4], sys.byteorder)
        for _, _, data in ancillary
        for offset in range(0, len(data) - 3, 4)
    ]
    if not message:
        posix._exit(0)
    child = posix.fork()
    if child == 0:
        # The directory may have been mounted again since the start.
        posix.chdir(working_directory)
        posix.dup2(files[0], 1)
        posix.dup2(files[1], 2)
        arguments = posix.pread(files[2], posix.fstat(files[2]).st_size, 0)
        request = [
            argument.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
            for argument in arguments.split(b"\0")[:-1]
        ]
        control.close()
    for file in files:
        posix.close(file)
    if child == 0:
        break
    control.send(b"pid %d" % child)
    _, status = posix.waitpid(child, 0)
    control.send(b"status %d" % status)

if "random" in sys.modules:
    sys.modules["random"].seed()
if "numpy.random" in sys.modules:
    sys.modules["numpy.random"].seed()
start = getattr(sys.modules.get("logging"), "_startTime", None)
if start is not None:
    sys.modules["logging"]._startTime = time.time_ns() if isinstance(start, int) else time.time()
kind, value, sys.argv = request[0], request[1], request[1:]
if hasattr(sys, "orig_argv"):
    options = sys.orig_argv[: sys.orig_argv.index("-c")]
    sys.orig_argv = options + {"module": ["-m"], "code": ["-c"]}.get(kind, []) + request[1:]
main = type(sys)("__main__")
main.__builtins__ = sys.modules["builtins"]
if sys.version_info < (3, 14):
    main.__annotations__ = {}
notes = Notes(token) if token else None
sys.modules["__main__"] = main
# With -I or -P nothing is put before the modules of the installation.
has_own_path = not (sys.flags.isolated or getattr(sys.flags, "safe_path", False))
before = set(sys.modules)


def absolute(value):
    is_kept = value.startswith("/") or sys.version_info < (3, 9)
    return value if is_kept else posix.getcwd() + "/" + value


def run_script(value):
    bootstrap_files = sys.modules["_frozen_importlib_external"]
    path = absolute(value)
    with open(value, "rb") as file:
        code = compile(file.read(), path, "exec")
    if has_own_path:
        sys.path[0] = real_path(value).rsplit("/", 1)[0] or "/"
    main.__file__, main.__cached__ = path, None
    main.__loader__ = bootstrap_files.SourceFileLoader("__main__", path)
    exec(code, main.__dict__)


def real_path(value):
    file = posix.open(value, posix.O_PATH | posix.O_CLOEXEC)
    try:
        return posix.readlink("/proc/self/fd/%d" % file)
    finally:
        posix.close(file)


def is_archive(value):
    # A directory, or a zip file, with a module `__main__`.
    try:
        if posix.stat(value).st_mode & 0o170000 == 0o040000:
            return True
        with open(value, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def run(kind, value):
    if kind == "module" or (kind == "script" and is_archive(value)):
        if kind == "module" and has_own_path:
            sys.path[0] = posix.getcwd()
        elif kind == "script":
            sys.path[: 1 if has_own_path else 0] = [absolute(value)]
        else:
            pass
        if kind == "module":
            sys.argv[0] = "-m"
        import runpy

        runpy._run_module_as_main(*((value, True) if kind == "module" else ("__main__", False)))
    elif kind == "script":
        try:
            run_script(value)
        except FileNotFoundError as error:
            if error.filename != value or main.__dict__.get("__file__"):
                raise
            program = getattr(sys, "orig_argv", [sys.executable])[0]
            what = (program, absolute(value), error.errno, error.strerror)
            sys.stderr.write("%s: can't open file %r: [Errno %d] %s\n" % what)
            raise SystemExit(2) from None
    else:
        if has_own_path:
            sys.path[0] = ""
        sys.argv[0] = "-c"
        main.__loader__ = sys.modules["_frozen_importlib"].BuiltinImporter
        exec(compile(value, "<string>", "exec"), main.__dict__)


def flush_output(code):
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BaseException as error:
            if stream is sys.stdout and sys.stderr is not None and code != 120:
                what = "in: %r" % stream if sys.version_info < (3, 13) else "on flushing sys.stdout:"
                print("Exception ignored %s\n%s: %s" % (what, type(error).__name__, error), file=sys.stderr)
            code = code or 120
    return code


def clear_names(module):
    # As an interpreter does at its end: the private names first. Not every entry of sys.modules is a module.
    if not isinstance(module, type(sys)):
        return
    names = vars(module)
    for is_private in (True, False):
        for name in list(names):
            if isinstance(name, str) and name != "__builtins__":
                if not is_private or (name.startswith("_") and not name.startswith("__")):
                    names[name] = None


def flush_files():
    # Files that modules imported before the fork hold open are not closed by clearing the program's names.
    io = sys.modules.get("_io")
    for kept in gc.get_objects() if io else ():
        try:
            if isinstance(kept, (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)) and not kept.closed:
                kept.flush()
        except BaseException:
            pass
    # What libraries in C have printed.
    ctypes = sys.modules.get("ctypes")
    if ctypes:
        try:
            ctypes.CDLL(None).fflush(None)
        except BaseException:
            pass


def finish(code, signal):
    # Ends as an interpreter does, except for the modules that were imported before the fork: waits for
    # threads, runs the exit functions, and clears the names of the program so that the files that it left
    # open are closed.
    if notes:
        try:
            notes.write()
        except BaseException:
            pass
    threading = sys.modules.get("threading")
    if threading:
        try:
            threading._shutdown()
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
    try:
        sys.modules.get("atexit", atexit)._run_exitfuncs()
    except BaseException:
        # It has been printed.
        pass
    code = flush_output(code)
    # Threads that are still there would meet the cleared names; an interpreter stops them.
    if len(sys._current_frames()) == 1:
        own = [sys.modules.pop(name) for name in list(sys.modules) if name not in before]
        gc.collect()
        while own:
            clear_names(own.pop())
        clear_names(main)
        gc.collect()
    flush_files()
    code = flush_output(code)
    if signal:
        import _signal

        _signal.signal(signal, _signal.SIG_DFL)
        posix.kill(posix.getpid(), signal)
    posix._exit(code)


def show(error):
    trace = error.__traceback__
    while trace and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)


code, signal = 0, 0
try:
    run(kind, value)
except SystemExit as error:
    code = error.code
    if code is None:
        code = 0
    elif not isinstance(code, int):
        sys.stderr.write(str(code) + "\n")
        code = 1
except KeyboardInterrupt as error:
    show(error)
    code, signal = 130, 2
except BaseException as error:
    show(error)
    code = 1
finish(code & 0xFF, signal)
