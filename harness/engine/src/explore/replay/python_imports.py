# The first part of the fork server: imports the modules that its children share. `python_fork_server.py` follows it in
# one program, and describes the arguments.
#
# Uses built-in modules only, so that no program meets a module here that it has not imported itself.
import sys

initial_modules, initial_path = set(sys.modules), list(sys.path)
import _socket, atexit, gc, posix, time

for name in {"_socket", "atexit", "gc", "posix", "time"} - initial_modules:
    del sys.modules[name]
initial_environment = dict(posix.environ)
# The server has a process group of its own. Its children are in the one that a new process would be in.
group = posix.getpgid(posix.getppid())
MAX_PASSES = 12
WAIT_POLICY = b"OMP_WAIT_POLICY"
control = _socket.socket(fileno=int(sys.argv[1]))
bootstrap = sys.modules["_frozen_importlib"]
working_directory = posix.getcwd()
main_module = sys.modules["__main__"]
# The main module of the program, which is empty until it runs.
main = type(sys)("__main__")


def text_of(data):
    return bytes.fromhex(data).decode("utf-8", "surrogateescape")


def hex_of(text):
    return (text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")).hex()


def absolute(value):
    is_kept = value.startswith("/") or sys.version_info < (3, 9)
    return value if is_kept else posix.getcwd() + "/" + value


def library_dirs():
    stdlib = getattr(sys, "_stdlib_dir", None)
    if stdlib is None:
        import os

        stdlib = os.path.dirname(os.__file__)
    names = ("lib-dynload", "site-packages", "dist-packages")
    return [entry for entry in initial_path if entry == stdlib or entry.rsplit("/", 1)[-1] in names]


def items_of(kind):
    return [text_of(item[2:]) for item in sys.argv[2:] if item.startswith(kind + ":")]


def real_path(path):
    file = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
    try:
        return posix.readlink("/proc/self/fd/%d" % file)
    finally:
        posix.close(file)


def resolved(path):
    # Also if its last names do not exist.
    try:
        return real_path(path)
    except (OSError, ValueError):
        parent, _, name = path.rstrip("/").rpartition("/")
        return resolved(parent or "/").rstrip("/") + "/" + name if name else path


def is_inside(path, dirs):
    return any(path == directory or path.startswith(directory + "/") for directory in dirs)


libraries = [resolved(entry) for entry in library_dirs() if entry.startswith("/")]
watched = [entry for path in items_of("w") for entry in dict.fromkeys((path, resolved(path)))]
request = items_of("q")
# The package that is started is the user's own, wherever it is installed.
own_package = request[1].split(".")[0] if request[:1] == ["module"] else None


def is_library_file(path):
    # Where the file really is: a link in site-packages may lead to the user's own source.
    path = resolved(path)
    is_installed = is_inside(path, libraries) or "/site-packages/" in path or "/dist-packages/" in path
    return is_installed and not is_inside(path, watched)


def is_library(spec):
    if own_package and str(getattr(spec, "name", "")).split(".")[0] == own_package:
        return False
    # Modules without a file come with others.
    origin = getattr(spec, "origin", None)
    if not isinstance(origin, str) or not origin.startswith("/"):
        places = getattr(spec, "submodule_search_locations", None)
        return places is None or all(is_library_file(str(place) + "/") for place in places)
    return is_library_file(origin)


class SeenFunction:
    """A function of `posix` that tells at which path it looks. In all else it is that function."""

    def __init__(self, function, on_path):
        self.function, self.on_path = function, on_path

    def __call__(self, *arguments, **options):
        if arguments and options.get("dir_fd") is None:
            self.on_path(arguments[0])
        return self.function(*arguments, **options)

    def __getattr__(self, name):
        return getattr(self.function, name)

    def __repr__(self):
        return repr(self.function)

    def __hash__(self):
        return hash(self.function)

    def __eq__(self, other):
        return self is other or self.function == other


class WatchedLooks:
    """Notices whether something looks at a watched directory."""

    # They have no audit event.
    SILENT = ("stat", "lstat", "access", "readlink", "statvfs", "pathconf")
    TWO_PATHS = ("os.rename", "os.link", "os.symlink")

    def __init__(self):
        self.found = self.is_off = False
        # The import system looks in each directory of sys.path.
        self.finder_names = vars(sys.modules["_frozen_importlib_external"])
        self.functions = {name: SeenFunction(getattr(posix, name), self.on_call) for name in self.SILENT}

    def begin(self):
        self.replace({name: (seen.function, seen) for name, seen in self.functions.items()})
        if hasattr(sys, "addaudithook"):
            sys.addaudithook(self.on_event)

    def end(self):
        self.is_off = True
        self.replace({name: (seen, seen.function) for name, seen in self.functions.items()})

    @staticmethod
    def replace(functions):
        for module in list(sys.modules.values()):
            names = vars(module) if isinstance(module, type(sys)) else {}
            for name, (old, new) in functions.items():
                if names.get(name) is old:
                    names[name] = new

    def on_call(self, path):
        if sys._getframe(2).f_globals is not self.finder_names:
            self.on_path(path)

    def on_event(self, event, arguments):
        if self.is_off or not (event == "open" or event.startswith("os.") or event == "sqlite3.connect"):
            return
        if event not in ("os.putenv", "os.unsetenv") and sys._getframe(1).f_globals is not self.finder_names:
            for path in arguments[: 2 if event in self.TWO_PATHS else 1]:
                self.on_path(path)

    def on_path(self, path):
        if self.is_off or self.found:
            return
        # What follows looks at paths too.
        self.is_off = True
        try:
            path = posix.fspath(path)
            if isinstance(path, bytes):
                path = path.decode("utf-8", "surrogateescape")
            path = path if path.startswith("/") else posix.getcwd() + "/" + path
            self.found = is_inside(path, watched) or is_inside(resolved(path), watched)
        except (TypeError, ValueError, OSError):
            # Such as the number of an open file.
            pass
        finally:
            self.is_off = False


class LeftOut(BaseException):
    """Ends the import of a module that is left out, and of those that import it."""


class Importer:
    """Imports what was noted, and nothing after whose import a fork would not be like a fresh interpreter."""

    def __init__(self, items, is_named):
        # Modules that the user has named are imported whatever they do but look at a watched directory.
        self.items, self.is_named = items, is_named
        self.others = {item[2:] for item in items if item.startswith("u:")}
        self.known_left_out = {item[2:] for item in items if item.startswith("x:")}
        self.left_out, self.is_spoiled = [], False
        self.loading, self.looks = [], WatchedLooks()
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
        paths = [text_of(item[2:]) for item in self.items if item.startswith("p:")]
        with_paths, sys.path[:] = list(sys.path), paths or sys.path
        set_arguments(request)
        sys.modules["__main__"] = main
        script = [absolute(request[1])] if request[0] == "script" else []
        for name in ([text_of(item[2:]) for item in self.items if item.startswith("f:")] or script)[:1]:
            main.__file__ = name
        self.looks.begin()
        for item in self.items:
            if self.is_spoiled:
                return
            if item.startswith("s:"):
                self.set_variable(*self.variable(item))
            elif item.startswith("a:"):
                sys.argv = [text_of(word) for word in item[2:].split(",")[:-1]]
            elif item.startswith(("m:", "n:")):
                self.import_module(item[2:])
        self.looks.end()
        bootstrap._load_unlocked = self.original_load
        sys.modules["__main__"] = main_module
        vars(main).pop("__file__", None)
        self.reset_variables()
        if paths:
            sys.path[:] = with_paths
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
            if self.is_named and not self.left_out:
                raise
            # It may have been half imported; or it cannot be imported by its name at all.
            if "." not in name:
                self.left_out.append(name)
                self.is_spoiled = True

    def load(self, spec):
        name = spec.name
        is_shared = self.is_named or (name not in self.others and is_library(spec))
        if name in self.known_left_out or not is_shared:
            self.leave_out(name)
        # A module that is imported while another has a file open is not to blame for it.
        was_changed = self.has_side_effect()
        self.loading.append(name)
        found_before, self.looks.found = self.looks.found, False
        try:
            module = self.original_load(spec)
        finally:
            self.loading.pop()
            found, self.looks.found = self.looks.found, found_before
        if found:
            self.leave_out(name)
        if self.is_spoiled or (self.has_side_effect() and not was_changed):
            self.is_spoiled = True
            self.leave_out(name)
        return module

    def leave_out(self, name):
        self.left_out += [name] + self.loading
        raise LeftOut

    def has_side_effect(self):
        if self.is_named:
            return False
        self.looks.is_off = True
        try:
            return self.has_changed()
        finally:
            self.looks.is_off = False

    def has_changed(self):
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


def set_arguments(request):
    # As they are when the program begins to run.
    kind, sys.argv = request[0], request[1:]
    if hasattr(sys, "orig_argv"):
        options = original_arguments[: original_arguments.index("-c")]
        sys.orig_argv = options + {"module": ["-m"], "code": ["-c"]}.get(kind, []) + request[1:]
    if kind != "script":
        sys.argv[0] = "-m" if kind == "module" else "-c"


def import_items(items, is_named):
    # Several recoveries at once share the processors, so a thread of OpenMP that waits for another one must sleep, not
    # spin. The library reads this while it is loaded; no program ever sees it.
    is_ours = posix.environ.get(WAIT_POLICY) is None
    if is_ours:
        posix.putenv(WAIT_POLICY, b"passive")
    importer = Importer(items, is_named)
    importer.run()
    if is_ours and WAIT_POLICY.decode() not in importer.environ():
        posix.unsetenv(WAIT_POLICY)
    if importer.left_out:
        # Starts over without them: what they have changed is undone in no other way.
        if sum(item == "x:" for item in items) >= MAX_PASSES:
            sys.exit("too many modules have side effects")
        with open("/proc/self/cmdline", "rb") as file:
            arguments = file.read().split(b"\0")[:-1]
        left_out = [b"x:"] + [b"x:" + name.encode() for name in dict.fromkeys(importer.left_out)]
        posix.chdir(working_directory)
        posix.execve(sys.executable, arguments + left_out, initial_environment)
