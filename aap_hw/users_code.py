"""The user's Python code, imported as Python itself would in the folder that the command is started in.

Modules are looked for beside a file first, as for a script, and then in the working folder, as with ``python -m``. Each
is run once, with all the rights of this process, until its file changes or code from another folder takes its place.
Calling a function in it is up to the caller.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from aap_hw.errors import UserError, closest
from aap_hw.foreign import own_line, reason

# Names of packages that stand for folders, for files that Python could not import by name.
_PREFIX = "_aap_hw_source_"


@contextmanager
def _importable(folders: Sequence[Path], argument: str) -> Iterator[None]:
    """Let modules be imported from some folders, in this order, and see ``[argument]`` as their command line.

    Afterwards they are still found if no other module has their name: a network may import when it is called.
    """
    _LOADED.forget_what_differs(folders)
    finder, here, arguments = _Finder(folders), os.getcwd(), sys.argv
    sys.meta_path.insert(sys.meta_path.index(PathFinder), finder)
    sys.argv = [argument]
    importlib.invalidate_caches()  # a file may be new
    try:
        yield
    finally:
        sys.argv = arguments
        os.chdir(here)
        sys.meta_path[:] = [each for each in sys.meta_path if each is not finder and each is not _LOADED.finder]
        sys.meta_path.append(finder)
        finder.is_last, _LOADED.finder = True, finder
        _LOADED.note()


@contextmanager
def told(what: str, advice: str = "") -> Iterator[None]:
    """Turn a failure of the user's code into a sentence that names its line.

    Parameters
    ----------
    what
        The beginning of the sentence: what could not be done.
    advice
        How the code is called, if that helps.

    Raises
    ------
    UserError : the block failed, or ended the program.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and "; install it, or start in the folder that has it"
        raise UserError(f"{what}: {reason(error)}{own_line(error)}{missing or ''}{advice and f'; {advice}'}") from error


@contextmanager
def loaded(place: str, what: str, words: Iterable[str] = ()) -> Iterator[ModuleType]:
    """Run a file (``DIR/FILE.py``) or import a module (``PACKAGE.MODULE``), which may import others in the block, too.

    Parameters
    ----------
    what
        The beginning of the sentence if that fails, as of `told`.
    words
        What may have been meant instead of a module, if there is none of this name.

    Raises
    ------
    UserError : its code fails, or there is no such module.
    """
    file = Path(place).absolute() if place.endswith(".py") else None
    with _importable([Path.cwd()] if file is None else _folders_of(file), place if file is None else str(file)):
        with told(what):
            try:
                module = importlib.import_module(place) if file is None else _run(file)
            except ModuleNotFoundError as error:
                if error.name == place and (near := closest(place, words)):
                    raise UserError(f"{what}: there is no module of that name{near}") from error
                raise
        yield module


def named_in(module: ModuleType, name: str, place: str) -> Any:
    """What a name, which may have points, means in a module that the user calls ``place``.

    Raises
    ------
    UserError : it means nothing.
    """
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [each for each, value in vars(found).items() if callable(value) and not each.startswith("_")]
            raise UserError(f"there is no '{part}' in {place}{closest(part, known)}")
        found = getattr(found, part)
    return found


def _folders_of(file: Path) -> list[Path]:
    """The folders in which the imports of a file are looked up."""
    return list(dict.fromkeys([file.parent, Path.cwd(), _root_of(file), file.resolve().parent]))


def _run(file: Path) -> ModuleType:
    """Run a file as a module, under the name that other modules import it by if it has one."""
    name = _name_of(file)
    if name is not None:
        return importlib.import_module(name)
    package = f"{_PREFIX}{hashlib.sha256(str(file.parent).encode()).hexdigest()[:12]}"
    if package not in sys.modules:
        # Relative imports take a package, and this one is its folder.
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(file.parent)]
        sys.modules[package] = importlib.util.module_from_spec(spec)
        _LOADED.places[package] = file.parent
    name = ".".join([package, re.sub(r"\W", "_", file.stem)])
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, file)
        assert found is not None
        assert found.loader is not None
        # Dataclasses and torch look the module of a class up here.
        sys.modules[name] = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def place_of(module: str) -> str:
    """How a loaded module is named from the working folder: by its name, or else by its file."""
    if _LOADED.places.get(module.partition(".")[0]) == Path.cwd() and not module.startswith(_PREFIX):
        return module
    return _LOADED.files.get(module, module)


def _root_of(file: Path) -> Path:
    """The folder that a file's package is in, or else the working folder if the file is below it."""
    folder = file.parent
    if not (folder / "__init__.py").is_file():
        return Path.cwd() if file.is_relative_to(Path.cwd()) else folder
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _name_of(file: Path) -> str | None:
    """The name by which a file below its root is imported; None if that name means another file."""
    parts = file.relative_to(_root_of(file)).with_suffix("").parts
    if file.name == "__init__.py":
        parts = parts[:-1]
    elif len(parts) == 1:
        return None
    if not all(part.isidentifier() for part in parts):
        return None
    path: Sequence[str] | None = [*map(str, _folders_of(file)), *sys.path]
    spec: ModuleSpec | None = None
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        loaded = sys.modules.get(name)
        # Without the parents in its name, which need not be loaded.
        spec = PathFinder.find_spec(parts[count - 1], path) if loaded is None else getattr(loaded, "__spec__", None)
        if spec is None or (count < len(parts) and spec.submodule_search_locations is None):
            return None
        if spec.loader is None:  # a folder without __init__.py, whose spec looks it up anew in sys.path
            folders = [Path(each, parts[count - 1]) for each in path or ()]
            path = [str(folder) for folder in folders if folder.is_dir()]
        else:
            path = spec.submodule_search_locations
    return ".".join(parts) if spec is not None and spec.origin == str(file) else None


class _Finder(MetaPathFinder):
    """Finds modules in the folders of the user's code before installed ones, and records which."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders, self.is_last = list(folders), False

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if path is not None:  # a package says itself where its modules are
            return None
        spec = PathFinder.find_spec(name, [*map(str, self._folders), *sys.path])
        if spec is None or _parent(spec) not in self._folders:
            return None
        if spec.loader is None:  # a folder without __init__.py
            if self.is_last:  # what a library tries to import, such as wandb, is not the folder of its results
                return None
            # Python would look for it anew in sys.path.
            spec.submodule_search_locations = list(spec.submodule_search_locations or ())
        _LOADED.places[name] = _parent(spec)
        return spec


def _parent(spec: ModuleSpec) -> Path:
    """The folder that a module or package is in."""
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    return Path(spec.origin or "").parent


@dataclass
class _Loaded:
    """The user's modules that are loaded: there is one ``sys.modules``, so there is one of these.

    Attributes
    ----------
    start : the working folder when they were loaded.
    places : the folder of each top-level module, by name.
    stamps : time (ns) and size (bytes) of each file when it was loaded.
    files : the file of each module that is or was loaded, by name.
    hidden : modules with the name of a standard module, which other code must find.
    """

    start: Path | None = None
    places: dict[str, Path] = field(default_factory=dict)
    stamps: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, ModuleType] = field(default_factory=dict)
    finder: _Finder | None = None

    def forget_what_differs(self, folders: Sequence[Path]) -> None:
        """Forget all of them, as they import each other, if any would now be loaded from elsewhere or has changed."""
        start, self.start = self.start, Path.cwd()
        if start != self.start or self._changed() or any(self._is_elsewhere(top, folders) for top in self.places):
            for name in self._names():
                del sys.modules[name]
            self.places, self.stamps, self.hidden = {}, {}, {}
        sys.modules.update(self.hidden)

    def note(self) -> None:
        """Record what was loaded, and give names of standard modules back to Python."""
        for name in self._names():
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and file not in self.stamps:
                self.stamps[file], self.files[name] = _stamp(file), file
            if name.partition(".")[0] in sys.stdlib_module_names:
                self.hidden[name] = sys.modules.pop(name)

    def _names(self) -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in self.places]

    def _changed(self) -> bool:
        return any(_stamp(file) != stamp for file, stamp in self.stamps.items())

    def _is_elsewhere(self, top: str, folders: Sequence[Path]) -> bool:
        spec = PathFinder.find_spec(top, [*map(str, folders)])
        return spec is not None and _parent(spec) != self.places[top]


_LOADED = _Loaded()


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
