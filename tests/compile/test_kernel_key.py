"""Proves that a kernel key and its text say the same, and that no other text is taken for a key."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aap_hw.compile.keys.key import KernelKey
from aap_hw.errors import UserError

words = st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True)
values = st.one_of(
    st.integers(0, 999),
    st.tuples(st.integers(0, 99), st.integers(0, 99)),
    st.lists(words, min_size=1, max_size=4).map(tuple),
)
keys = st.builds(
    lambda op, size, batch, attributes: KernelKey.make(op, size, batch, **attributes),
    words,
    st.one_of(st.just(()), st.tuples(st.integers(1, 999), st.integers(1, 999))),
    st.integers(1, 64),
    st.dictionaries(words.filter(lambda word: word not in ("op", "size", "batch", "cls")), values, max_size=5),
)


@given(keys)
def test_reading_what_was_written_gives_the_key(key: KernelKey) -> None:
    assert KernelKey.parse(str(key)) == key


@given(keys, keys)
def test_different_keys_have_different_texts(one: KernelKey, other: KernelKey) -> None:
    assert (str(one) == str(other)) == (one == other)


@given(st.text(), keys, st.integers(0, 200))
def test_what_is_read_is_written_the_same_or_refused(junk: str, key: KernelKey, position: int) -> None:
    text = str(key)
    for candidate in (junk, text[:position], text[:position] + junk + text[position:]):
        with contextlib.suppress(UserError):
            assert str(KernelKey.parse(candidate)) == candidate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "conv2d",
        "conv2d 7x7 float32",
        "conv2d 7x7 float32 batch=1\n",
        "conv2d 07x7 float32 batch=1",
        "conv2d 7x٧ float32 batch=1",
        "conv2d 7x7 stride=1x1 kernel=3x3 float32 batch=1",
        "conv2d 7x7 kernel=3x3 kernel=3x3 float32 batch=1",
        "conv2d  7x7 float32 batch=1",
        "conv2d 7x7 float32 batch=one",
        "relu 4x4 int4 batch=1",  # nothing computes in it
    ],
)
def test_text_that_no_key_has_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a kernel key"):
        KernelKey.parse(text)


def test_text_of_a_key_is_the_one_in_the_tables() -> None:
    key = KernelKey.make(
        "conv2d", (14, 7), 2, stride=(2, 1), kernel=(3, 3), layout="", epilogue=("bias", "add", "relu"), padding=(0, 0)
    )
    text = "conv2d 14x7 epilogue=bias+add+relu kernel=3x3 padding=0x0 stride=2x1 float32 batch=2"
    assert str(key) == text
    assert key.epilogue == ("bias", "add", "relu")
    assert key.along("stride") == (2, 1)
    assert key.along("dilation", 1) == (1, 1)
    assert str(KernelKey.make("linear", (), 1, epilogue=("bias",))) == "linear - epilogue=bias float32 batch=1"
