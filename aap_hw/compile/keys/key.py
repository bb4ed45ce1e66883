"""A kernel key: the canonical text of one compiled operator, without its channel counts.

A key and its widths (`address`) say everything that is needed to build the kernel again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from aap_hw.compile.keys.precision import FLOAT32, PRECISIONS, Precision
from aap_hw.errors import UserError

# Raised with every change that makes other code of the same key, or other kernels of the same network: an older table
# then says nothing of them.
SCHEDULES = 8

_TEXT = re.compile(
    r"(?P<op>\S+) (?P<size>\d+(x\d+)*|-)(?P<attributes>( \w+=\S+)*) (?P<precision>\w+) batch=(?P<batch>\d+)"
)
_NUMBERS = re.compile(r"\d+(x\d+)*")


@dataclass(frozen=True, order=True)
class KernelKey:
    """One fused operator of the compiled network.

    Attributes
    ----------
    op : ``conv2d``, ``depthwise_conv2d``, ``linear``, ``max_pool2d``, ...
    size : spatial size of the input, (H, W), or () for a linear layer.
    attributes : what shapes the code, as sorted (name, value) pairs: kernel, stride, padding, epilogue, ...
    precision : name of what it computes in; see `precision`.
    batch : images a call.
    """

    op: str
    size: tuple[int, ...]
    attributes: tuple[tuple[str, str], ...] = ()
    precision: str = FLOAT32
    batch: int = 1

    @classmethod
    def make(cls, op: str, size: Iterable[int], batch: int, **attributes: object) -> KernelKey:
        """Build a key; pairs of integers are written ``3x3``, empty values are left out."""
        return cls(op, tuple(size), _pairs(attributes), batch=batch)

    @classmethod
    def parse(cls, text: str) -> KernelKey:
        """Read a key from its text form.

        Raises
        ------
        UserError : it is nothing that ``str`` writes, or no kernel of this version computes in its precision.
        """
        if match := _TEXT.fullmatch(text):
            size = () if match["size"] == "-" else tuple(int(n) for n in match["size"].split("x"))
            pairs = [item.partition("=") for item in match["attributes"].split()]
            attributes = {name: value for name, _, value in pairs}
            key = cls(match["op"], size, tuple(sorted(attributes.items())), match["precision"], int(match["batch"]))
            if str(key) == text and key.precision in PRECISIONS:
                return key
        raise UserError(f"{text!r} is not a kernel key; the file was written by another version or is damaged")

    def __str__(self) -> str:
        size = "x".join(map(str, self.size)) or "-"
        pairs = "".join(f" {name}={value}" for name, value in self.attributes)
        return f"{self.op} {size}{pairs} {self.precision} batch={self.batch}"

    @property
    def types(self) -> Precision:
        """The types of its numbers."""
        return PRECISIONS[self.precision]

    def at_precision(self, name: str) -> KernelKey:
        """The key of a kernel that computes in another precision."""
        assert name in PRECISIONS, name
        return replace(self, precision=name)

    def having(self, **attributes: object) -> KernelKey:
        """The key with other values of some attributes; empty values take them away."""
        return replace(self, attributes=_pairs({**dict(self.attributes), **attributes}))

    def attribute(self, name: str, default: str = "") -> str:
        """The text of one attribute."""
        return dict(self.attributes).get(name, default)

    @property
    def image(self) -> tuple[int, int]:
        """Height and width of the input; a vector is an image of one pixel.

        Raises
        ------
        UserError : the input has another number of axes, as no kernel of this version has.
        """
        if not self.size:
            return 1, 1
        if len(self.size) != 2:
            raise UserError(f"the kernel {self} reads no image (H, W); it is not known to this version")
        height, width = self.size
        return height, width

    def along(self, name: str, default: int = 0) -> tuple[int, int]:
        """An attribute such as ``stride=2x1`` as a number for each axis of the image.

        Raises
        ------
        UserError : it is not of that form.
        """
        first, second = self.numbers(name, 2, default)
        return first, second

    def numbers(self, name: str, count: int, default: int = 0) -> tuple[int, ...]:
        """An attribute such as ``stride=2x1x1`` as so many numbers.

        Raises
        ------
        UserError : it is not of that form.
        """
        text = self.attribute(name) or "x".join([str(default)] * count)
        if _NUMBERS.fullmatch(text) is None or text.count("x") != count - 1:
            in_words = {2: "two", 3: "three"}[count]
            raise UserError(f"the kernel {self} is not known to this version: {name} is not {in_words} numbers")
        return tuple(map(int, text.split("x")))

    @property
    def epilogue(self) -> tuple[str, ...]:
        """Element-wise steps fused behind the operator, in order, such as ``("bias", "add", "relu")``."""
        return self._parts("epilogue")

    @property
    def pitched(self) -> tuple[str, ...]:
        """Those of ``input`` and ``output`` whose pixels may lie farther apart than they have channels."""
        return self._parts("pitched")

    def _parts(self, name: str) -> tuple[str, ...]:
        return tuple(filter(None, self.attribute(name).split("+")))


def _pairs(attributes: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    text = {name: _text(value) for name, value in attributes.items()}
    return tuple(sorted((name, value) for name, value in text.items() if value))


def _text(value: object) -> str:
    if isinstance(value, (tuple, list)):
        joint = "x" if all(isinstance(v, int) for v in value) else "+"
        return joint.join(map(str, value))
    return str(value)
