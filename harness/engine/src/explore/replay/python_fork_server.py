# A fork server: imports modules once, then forks a child for each request that it receives on its control
# socket. A child behaves like a fresh interpreter: it has its own arguments, outputs, main module and random
# states. Nothing but imports ever runs in the server itself. A request `s` puts the child into a session of its own.
#
# Arguments: the number of the control socket, then one of
#   --named ITEM...        the modules to import
#   --note TOKEN ITEM...   nothing to import; each child reports what it has imported, as a line `TOKEN ITEM...`
#   --noted ITEM...        what such a child has reported
# Items: n: a module that the user has named; m: a module of the standard library or of site-packages; u: the name
# of another module; s: a variable that the program has set, before the module that follows; v: a variable that a
# library has set; p: an entry of sys.path; a: the arguments of the program from there on; f: the file of its main
# module; q: a word of the request; w: a watched directory; x: a module to leave out.
#
# A module is left out if its import looks at a watched directory: what is there differs from child to child.
#
# `python_imports.py` precedes this file in one program.


class Notes:
    """Notes in a child what it imports, and which variables it sets."""

    def __init__(self, token):
        # Out of the way of a program that counts its files.
        import fcntl

        self.file = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 700)
        sys.modules.pop("fcntl", None)
        self.token, self.process = token, posix.getpid()
        self.events, self.of_libraries, self.loaded = [], {}, set()
        self.arguments = None
        if hasattr(sys, "addaudithook"):
            sys.addaudithook(self.on_event)

    def on_event(self, event, arguments):
        if event == "import":
            self.loaded.add(arguments[0])
            self.note_arguments()
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

    def note_arguments(self):
        current = getattr(sys, "argv", None)
        if isinstance(current, list) and current != self.arguments:
            self.arguments = list(current)
            if all(isinstance(word, str) for word in current):
                self.events.append((len(sys.modules), "a:" + "".join(hex_of(word) + "," for word in current)))

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
        file = getattr(sys.modules.get("__main__"), "__file__", None)
        items += ["f:" + hex_of(file)] if isinstance(file, str) else []
        items += self.of_libraries.values()
        items += ["p:" + hex_of(entry) for entry in sys.path if isinstance(entry, str)]
        line = ("\n" + " ".join([self.token] + items) + "\n").encode("utf-8", "surrogateescape")
        while line:
            line = line[posix.write(self.file, line) :]


token = None
original_arguments = getattr(sys, "orig_argv", None)
if sys.argv[2:3] == ["--note"]:
    token = sys.argv[3]
else:
    import_items(sys.argv[3:], sys.argv[2] == "--named")
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
        if message == b"s":
            posix.setsid()
        else:
            posix.setpgid(0, group)
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
kind, value = request[0], request[1]
set_arguments(request)
main.__builtins__ = sys.modules["builtins"]
if sys.version_info < (3, 14):
    main.__annotations__ = {}
notes = Notes(token) if token else None
sys.modules["__main__"] = main
# With -I or -P nothing is put before the modules of the installation.
has_own_path = not (sys.flags.isolated or getattr(sys.flags, "safe_path", False))
before = set(sys.modules)


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
