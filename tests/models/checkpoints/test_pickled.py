"""Reading a pickle gives back plain values and runs nothing, whatever it asks for; Python's own reader is the judge."""

from __future__ import annotations

import collections
import contextlib
import datetime
import enum
import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aap_hw.models.checkpoints import pickled
from aap_hw.models.checkpoints.pickled import Made

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
plain = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner), max_leaves=20
)


def read(content: bytes) -> Any:
    return pickled.read(io.BytesIO(content))


@settings(max_examples=100, deadline=None)
@given(plain, st.sampled_from(PROTOCOLS[3:]))
def test_plain_values_come_back_as_they_were(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_is_read(protocol: int) -> None:
    shared = [1, 2.5, "é", -(2**70)]
    value = {"a": shared, "b": (shared, None, True, (), (1, 2, 3, 4)), "c": {}, "d": [[]]}
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_list_in_itself_is_one_list(protocol: int) -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    again = read(pickle.dumps(circle, protocol))
    assert again[1] is again


def test_what_follows_a_pickle_is_left() -> None:
    stream = io.BytesIO(pickle.dumps("one") + pickle.dumps("two") + b"rest")
    assert [pickled.read(stream), pickled.read(stream), stream.read()] == ["one", "two", b"rest"]


class Colour(enum.Enum):
    RED = 3


class Labelled(dict[str, int]):
    """A dictionary with an attribute."""


def test_objects_are_notes_of_what_they_would_be() -> None:
    labelled = Labelled(a=1)
    labelled.label = "x"  # type: ignore[attr-defined]
    by_name = Calls(getattr, Colour, "RED")  # as Python 3.11.0 to 3.11.3 write a member of an enumeration
    note = read(pickle.dumps([labelled, Calls(Colour, 3), datetime.date(2026, 1, 2), collections.deque([4, 5])]))
    assert (str(note[0].by).rpartition(".")[2], note[0].items, note[0].state) == ("Labelled", {"a": 1}, {"label": "x"})
    assert note[1].arguments == (3,)
    assert str(note[2].by) == "datetime.date"
    assert note[3].elements == [4, 5]
    named, colour, word = read(pickle.dumps(by_name)), f"{Colour.__module__}.Colour", "RED"
    assert (str(named.by), *map(str, named.arguments)) == ("builtins.getattr", colour, word)


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def by_hand(mark: Path) -> dict[str, bytes]:
    """Programs that make a file when Python's own reader runs them."""
    path = str(mark).encode()
    touch = b"touch " + path
    return {
        "shell": pickle.dumps(Calls(os.system, touch.decode())),
        "eval": pickle.dumps(Calls(eval, f"open({str(mark)!r}, 'w')")),
        "exec inside a list": pickle.dumps([1, {"a": Calls(exec, f"open({str(mark)!r}, 'w')")}]),
        "an old class": b"(S'" + touch + b"'\nios\nsystem\n.",
        "an object": b"(cos\nsystem\nS'" + touch + b"'\no.",
        "a name on the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R.",
        "an attribute of an attribute": b"\x80\x04\x8c\x02os\x8c\x0bpath.os.sep\x930cos\nsystem\n(V" + touch + b"\ntR.",
        "a state that is set by code": (b"\x80\x02cbuiltins\nopen\n(V" + path + b"\nVw\ntR}X\x01\x00\x00\x00aK\x01sb."),
        "through getattr": pickle.dumps(Calls(getattr, Calls(open, str(mark), "w"), "close")),
    }


@pytest.mark.parametrize("name", by_hand(Path("mark")))
def test_nothing_is_run(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    content = by_hand(mark)[name]
    read(content)
    assert not mark.exists()
    with contextlib.suppress(Exception):  # some fail after the harm is done
        pickle.loads(content)
    assert mark.exists(), "the pickle is harmless, so that the test shows nothing"


def test_nothing_is_imported() -> None:
    assert "antigravity" not in sys.modules
    assert isinstance(read(b"\x80\x02cantigravity\nopen\n)R."), Made)
    assert isinstance(read(b"\x80\x02cthis\nd\n)\x81."), Made)
    assert not {"antigravity", "this"} & sys.modules.keys()


def test_no_object_is_changed() -> None:
    """A state for something that exists already, which is how a class gets other methods."""
    before = torch.nn.Module.__call__
    content = b"\x80\x02ctorch.nn\nModule\n}X\x08\x00\x00\x00__call__K\x01sb."
    with pytest.raises(TypeError):
        read(content)
    assert torch.nn.Module.__call__ is before


def test_registered_extensions_are_not_looked_up() -> None:
    assert isinstance(read(b"\x80\x02\x82\x01)R."), Made)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02K\x01K\x02a.",  # append to a number
        b"\x80\x02h\x05.",  # what was never remembered
        b"\x80\x02K\x01K\x01b.",  # attributes of a number
        b"\x80\x05\x97.",  # bytes from elsewhere
        b"\x80\x02]]K\x01s.",  # a list as a key
        b"\x80\x02(K\x01K\x02K\x03d.",  # a key without a value
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # more bytes than there are
    ],
)
def test_what_makes_no_sense_is_an_exception(content: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError)):
        read(content)


def test_a_high_place_in_the_memory_takes_no_memory() -> None:
    assert read(b"\x80\x02K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == 7
