"""Proves that a user's file finds what it would find in Python, hides nothing from others, and names its faults."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch  # as in every command

from aap_hw.errors import UserError
from aap_hw.users_code import loaded


@pytest.fixture(autouse=True)
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command is started in."""
    folder = tmp_path / "start"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def running(file: Path) -> contextlib.AbstractContextManager[ModuleType]:
    return loaded(str(file), f"cannot run {file.name}")


# What is in the working folder, the file, how it imports its neighbour, and whether Python could do so.
IMPORTS = {
    "a neighbour": ([], "nets/net.py", "from layers import WIDTH"),
    "a neighbour at the start": ([], "net.py", "from layers import WIDTH"),
    "from the start": ([], "nets/net.py", "from nets.layers import WIDTH"),
    "relative": ([], "nets/net.py", "from .layers import WIDTH"),
    "relative at the start": ([], "net.py", "from .layers import WIDTH"),
    "the whole neighbour": ([], "nets/net.py", "from . import layers; WIDTH = layers.WIDTH"),
    "in a package": (["nets/__init__.py"], "nets/net.py", "from .layers import WIDTH"),
    "in a package, from the start": (
        ["nets/__init__.py"],
        "nets/net.py",
        "import nets.layers as it; WIDTH = it.WIDTH",
    ),
    "of a package above": (["a/__init__.py", "a/b/__init__.py"], "a/b/net.py", "from .layers import WIDTH"),
    "in a folder of a package, without a file of its own": (
        ["a/__init__.py"],
        "a/b/net.py",
        "from ..b.layers import WIDTH",
    ),
    "in folders of a package, from the start": (["a/__init__.py"], "a/b/c/net.py", "from a.b.c.layers import WIDTH"),
    "in a folder that is no name": ([], "my-nets/net.py", "from .layers import WIDTH"),
    "in a file that is no name": ([], "nets/net-2.0.py", "from .layers import WIDTH"),
    "in a file called as its folder": ([], "nets/nets.py", "from .layers import WIDTH"),
    "a package itself": ([], "nets/__init__.py", "from .layers import WIDTH"),
    "a package itself, from the start": ([], "nets/__init__.py", "from nets.layers import WIDTH"),
    "elsewhere": ([], "../elsewhere/nets/net.py", "from .layers import WIDTH"),
    "elsewhere in a package": (["../lib/nets/__init__.py"], "../lib/nets/net.py", "from nets.layers import WIDTH"),
    "beside a module of its folder's name": (["nets.py"], "nets/net.py", "from .layers import WIDTH"),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_file_imports_as_it_would_in_python(name: str, start: Path) -> None:
    others, file, statement = IMPORTS[name]
    for other in others:
        write(start / other, "")
    write((start / file).parent / "layers.py", "WIDTH = 24")
    path = list(sys.path)
    with running(write(start / file, f"{statement}\nif __name__ == '__main__': raise SystemExit")) as net:
        assert net.WIDTH == 24
    assert sys.path == path


def test_link_to_a_file_imports_what_is_beside_either(start: Path) -> None:
    write(start / "nets/net.py", "from layers import WIDTH\nfrom more_layers import DEPTH")
    write(start / "nets/layers.py", "WIDTH = 24")
    write(start / "links/more_layers.py", "DEPTH = 2")
    (start / "links/net.py").symlink_to("../nets/net.py")
    with running(start / "links/net.py") as net:
        assert (net.WIDTH, net.DEPTH) == (24, 2)


def test_two_levels_of_relative_imports_are_those_of_a_package(start: Path) -> None:
    for package in ("repo/__init__.py", "repo/nets/__init__.py"):
        write(start / package, "")
    write(start / "repo/common.py", "WIDTH = 12")
    os.chdir(start / "repo" / "nets")
    with running(write(start / "repo/nets/net.py", "from ..common import WIDTH")) as net:
        assert (net.WIDTH, net.__name__) == (12, "repo.nets.net")


def test_package_itself_is_run_once(start: Path) -> None:
    write(start / "nets/layers.py", "import nets\nRUNS = []")
    write(start / "nets/__init__.py", "from .layers import RUNS\nRUNS.append('run')")
    with running(start / "nets/__init__.py") as nets:
        assert (nets.RUNS, nets.__name__) == (["run"], "nets")


def test_module_is_run_once_whichever_way_it_is_named(start: Path) -> None:
    write(start / "nets/registry.py", "print('registry is run')\nKNOWN = []")
    write(start / "nets/net.py", "import nets.registry\nfrom .registry import KNOWN\nKNOWN.append('net')")
    for _ in range(2):
        with running(start / "nets/net.py") as net:
            assert net.KNOWN == sys.modules["nets.registry"].KNOWN == ["net"]


@pytest.mark.parametrize("file", ["torch.py", "types.py", "nets/types.py", "json.py", "nets/code.py", "profile.py"])
def test_file_that_is_called_as_another_module_hides_it_from_nobody(file: str, start: Path) -> None:
    name = Path(file).stem
    write((start / file).parent / "layers.py", f"import {name}")
    before = sys.modules.get(name)
    assert name != "torch" or before is torch
    with running(write(start / file, "MINE = True\nimport layers")) as module:
        assert module.MINE
    assert sys.modules.get(name) is before
    assert not hasattr(importlib.import_module(name), "MINE")
    with running(start / file) as module:  # loaded once more it is the same
        assert module.MINE


def test_files_of_one_name_in_different_folders_have_their_own_neighbours(start: Path) -> None:
    for folder, width in (("a", 8), ("b", 16)):
        write(start / folder / "layers.py", f"WIDTH = {width}")
        write(start / folder / "net.py", "from layers import WIDTH")
    for folder, width in (("a", 8), ("b", 16), ("a", 8)):
        with running(start / folder / "net.py") as net:
            assert width == net.WIDTH
    for folder, width in (("a", 8), ("b", 16)):
        os.chdir(start / folder)
        with running(Path("net.py")) as net:
            assert width == net.WIDTH


@pytest.mark.parametrize("changed", ["net.py", "layers.py"])
def test_file_that_has_changed_is_run_again(changed: str, start: Path) -> None:
    write(start / "layers.py", "WIDTH = 8")
    write(start / "net.py", "import layers\nWIDTH = layers.WIDTH")
    with running(start / "net.py") as net:
        assert net.WIDTH == 8
    write(start / changed, "WIDTH = 1024")
    with running(start / "net.py") as net:
        assert net.WIDTH == 1024


@pytest.mark.parametrize("file", ["net.py", "nets/net.py", "my nets/net.py"])
def test_classes_are_found_by_the_names_of_their_modules(file: str, start: Path) -> None:
    text = "from dataclasses import dataclass\n@dataclass\nclass Net:\n    width: 'int' = 4\n"
    with running(write(start / file, text)) as net:
        assert pickle.loads(pickle.dumps(net.Net(7))) == net.Net(7)


def test_code_has_a_command_line_and_a_working_folder_of_its_own(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["aap-hw", "plan", "--budget", "60%"])
    text = "import argparse, os\noptions = argparse.ArgumentParser()\noptions.add_argument('--width', default=3)\n"
    with running(write(start / "net.py", f"{text}WIDTH = options.parse_args().width\nos.chdir('/')")) as net:
        assert net.WIDTH == 3
    assert (Path.cwd(), sys.argv[0]) == (start, "aap-hw")


def test_network_may_import_when_it_is_called(start: Path) -> None:
    write(start / "nets/late_layers.py", "WIDTH = 48")
    write(start / "nets/net.py", "def width():\n    import late_layers\n    return late_layers.WIDTH")
    (start / "results_of_a_library").mkdir()
    with running(start / "nets/net.py") as net:
        pass
    assert net.width() == 48
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("results_of_a_library")


FAULTS = {
    "an error": ("\n1 / 0", r"cannot run net.py: ZeroDivisionError: division by zero \(net.py:2"),
    "an error in a neighbour": ("import wrong", r"ValueError: too wide \(wrong.py:3"),
    "an error in a library": ("\n\nimport json; json.loads('')", r"JSONDecodeError: .* \(net.py:3"),
    "no Python": ("def f(:", r"SyntaxError: .* \(net.py, line 1\)$"),
    "a neighbour that is no Python": ("import no_python", r"SyntaxError: .* \(no_python.py, line 2\)$"),
    "a package that is not installed": (
        "import flash_attention_9",
        r"No module named 'flash_attention_9' \(net.py:1.*; install it, or start in the folder that has it$",
    ),
    "an end of the program": ("import sys\nsys.exit('no GPU')", r"SystemExit: no GPU \(net.py:2"),
    "a command line that it wants": (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('data')\np.parse_args()",
        r"SystemExit: 2 \(net.py:4",
    ),
    "a package above that is not there": ("from ..common import WIDTH", r"ImportError: .* \(net.py:1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_of_the_code_is_told_with_its_line(name: str, start: Path) -> None:
    text, sentence = FAULTS[name]
    write(start / "wrong.py", "\n\nraise ValueError('too wide')")
    write(start / "no_python.py", "\nclass\n")
    with pytest.raises(UserError, match=sentence) as refused, running(write(start / "net.py", text)):
        pass
    assert "\n" not in str(refused.value)
