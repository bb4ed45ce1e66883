"""Lets mkdocstrings read our docstrings, whose items are often one line: ``UserError : the device cannot be reached``.

numpydoc takes what follows the colon for a type. Ours repeat no types, so it is the description. Parameters with one
description each get it, as they would share the first one's type, too.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Parameters|Attributes|Raises|Returns|Yields)\n-{3,}\n", re.MULTILINE)
NEXT_SECTION = re.compile(r"^\S[^\n]*\n-{3,}$", re.MULTILINE)
ITEM = re.compile(r"^(?P<names>\w[\w., ]*) : (?P<text>.+)$", re.MULTILINE)
SHARED = re.compile(r"^(?P<names>\w+(?:, \w+)+)\n(?P<text>(?: +.*\n?|\n(?= ))+)", re.MULTILINE)


class ShortItems(griffe.Extension):
    """Puts the description of each item below its name."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object as soon as it is known."""
        if obj.docstring is not None:
            obj.docstring.value = in_long_form(obj.docstring.value)


def in_long_form(text: str) -> str:
    """The docstring with items of two lines or more."""
    begin = SECTION.search(text)
    if begin is None:
        return text
    rest = text[begin.end() :]
    following = NEXT_SECTION.search(rest)
    end = len(rest) if following is None else following.start()
    items = ITEM.sub(lambda item: f"{item['names']}\n    {item['text'][0].upper()}{item['text'][1:]}", rest[:end])
    items = SHARED.sub(lambda item: "".join(f"{name}\n{item['text']}" for name in item["names"].split(", ")), items)
    return text[: begin.end()] + items + in_long_form(rest[end:])
