"""A script or a module, run in this process as `python` itself would run it."""

import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

from optwatch.cli.errors import Wrong


def run_script(path: str, arguments: Sequence[str]) -> None:
    """As `python path arguments…`. What it raises is shown as there, and raised.

    Raises:
        Wrong: there is no such script.
    """
    file = Path(path)
    if not file.is_file():
        raise Wrong(f"there is no script {path}")
    name = str(file.absolute())
    main = _main(None, name, SourceFileLoader("__main__", name))
    _look_first_in(str(file.resolve().parent))
    sys.argv = [path, *arguments]
    _execute(main, lambda: compile(file.read_bytes(), name, "exec", dont_inherit=True))


def run_module(name: str, arguments: Sequence[str]) -> None:
    """As `python -m name arguments…`. What it raises is shown as there, and raised.

    Raises:
        Wrong: there is no such module, or it is a package without a `__main__`.
    """
    _look_first_in(str(Path.cwd()))
    sys.argv = ["-m", *arguments]  # as long as packages around it are imported
    spec = _find(name)
    loader: Any = spec.loader
    main = _main(spec, spec.origin or name, loader)
    sys.argv[0] = spec.origin or name
    _execute(main, lambda: loader.get_code(spec.name))


def when_imported(name: str, call: Callable[[], None]) -> None:
    """Call once, when a module has been imported for the first time. Nothing is imported for it."""
    sys.meta_path.insert(0, _Awaiting(name, call))


def _main(spec: ModuleSpec | None, file: str, loader: Any) -> types.ModuleType:
    """A new `__main__` in the place of ours, where classes of the script are pickled and looked for."""
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __annotations__={},
        __builtins__=__builtins__,
        __file__=file,
        __cached__=spec.cached if spec else None,
        __loader__=loader,
        __package__=spec.parent if spec else None,
        __spec__=spec,
    )
    sys.modules["__main__"] = main
    return main


def _look_first_in(directory: str) -> None:
    if not sys.flags.safe_path:  # else nothing of ours stands there, and python would put nothing there
        sys.path[0] = directory


def _find(name: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError) as error:  # of a package around it
        raise Wrong(f"there is no module {name}: {error}") from None
    if spec is None or not hasattr(spec.loader, "get_code"):
        raise Wrong(f"there is no module {name}")
    return spec


def _execute(main: types.ModuleType, code: Callable[[], Any]) -> None:
    try:
        exec(code(), main.__dict__)  # noqa: S102 - this is what it is for
    except SystemExit:
        raise
    except BaseException as error:
        # Shown here, from the script's own first frame on; above, python only ends as it would.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.excepthook = lambda *_: None
        raise


class _Awaiting(MetaPathFinder):
    """Lets the other finders find a module, and tells when it has been executed."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self._name = name
        self._call = call

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                self._follow(spec.loader)
                return spec
        return None

    def _follow(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._call()

        loader.exec_module = exec_module
