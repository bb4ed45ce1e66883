"""Exceptions raised by other people's code, in words for the user: the message, and the line of their code to blame.

The first line of a library's message for its users is passed on. Messages for the library's own developers (asserts,
guards, advice on how to extend it) are replaced: they do not help somebody who only has a network, and ``--debug``
shows them. The sentence around the message is up to the caller, who knows what was tried.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import PurePath

DETAILS = "run again with --debug for the details"
LONGEST = 300

# Libraries whose frames are not the user's code. Their types of exceptions mean nothing to the user either.
_LIBRARIES = {"torch": "PyTorch", "torchgen": "PyTorch", "functorch": "PyTorch", "tvm": "TVM", "tvm_ffi": "TVM"}
_FOR_DEVELOPERS = re.compile(
    r"INTERNAL ASSERT|Check failed|report (a|this) (bug|issue)|file an issue|TORCH_LOGS|torch\._|torch\.fx|\baten\W|"
    r"weights_only|pytree|data-dependent|unbacked|FakeTensor|FunctionalTensor|tensor subclass|__torch_|TorchDispatch|"
    r"c10::|at::|\.(cc|cpp|cu|h):\d|functorch|ScriptModule|TS2EP|sock\.|relax\.|tirx?\.|Undefined symbol|0x[0-9a-f]{6,}"
)
_STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def reason(error: BaseException) -> str:
    """What an exception says, on one line, with its type: ``"ValueError: bad shape"``.

    If it speaks to a library's developers, only the library is named.
    """
    text = next((part for line in str(error).splitlines() if (part := line.strip())), "")
    if is_raised_by_user(error):
        return _with_type(error, text)
    library = _LIBRARIES.get(type(error).__module__.partition(".")[0])
    if is_for_developers(text) or (library and not text):
        return internal_error(library or _raised_in(error) or "a library")
    return shortened(text, LONGEST) if library else _with_type(error, text)


def is_for_developers(text: str) -> bool:
    """Whether a library's message is for its own developers."""
    return _FOR_DEVELOPERS.search(text) is not None


def internal_error(library: str) -> str:
    """The sentence that replaces such a message."""
    return f"an internal error of {library} ({DETAILS})"


def _with_type(error: BaseException, text: str) -> str:
    return ": ".join(part for part in (type(error).__name__, shortened(text, LONGEST)) if part)


def own_line(error: BaseException) -> str:
    """The user's line that raised an exception or led to it: ``" (net.py:14: return self.head(x))"``, or "".

    "" for a syntax error, whose message has the line.
    """
    if isinstance(error, SyntaxError):
        return ""
    for frame in reversed(list(_frames(error))):
        if is_own_file(frame.filename) and not _is_ours(frame.filename):
            where = f"{PurePath(frame.filename).name}:{frame.lineno}"
            return f" ({where}: {shortened(frame.line)})" if frame.line else f" ({where})"
    return ""


def is_raised_by_user(error: BaseException) -> bool:
    """Whether the innermost code that an exception came from is the user's."""
    frames = list(_frames(error))
    return bool(frames) and is_own_file(frames[-1].filename) and not _is_ours(frames[-1].filename)


def is_own_file(path: str) -> bool:
    """Whether a file of code is neither Python's own nor part of PyTorch or TVM."""
    if not path or path.startswith("<"):
        return False
    in_python = path.startswith(_STANDARD_LIBRARY) and not {"site-packages", "dist-packages"} & {*PurePath(path).parts}
    return not in_python and not any(map(path.startswith, _folders(_LIBRARIES)))


def shortened(text: str, length: int = 100) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= length else f"{text[: length - 3].rstrip()}..."


def _is_ours(path: str) -> bool:
    return any(map(path.startswith, _folders(["aap_hw"])))


def _raised_in(error: BaseException) -> str:
    """The library whose code is innermost in an exception's traceback; "" if there is none."""
    for frame in reversed(list(_frames(error))):
        for library, name in _LIBRARIES.items():
            if any(map(frame.filename.startswith, _folders([library]))):
                return name
    return ""


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    """The frames of an exception, outermost first, then those of the exceptions that it was raised from."""
    yield from traceback.extract_tb(error.__traceback__)
    if error.__cause__ is not None and error.__cause__ is not error:
        yield from _frames(error.__cause__)


def _folders(packages: Iterable[str]) -> Iterator[str]:
    for package in packages:
        for folder in getattr(sys.modules.get(package), "__path__", ()):
            yield f"{folder}/"
