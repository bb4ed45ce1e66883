"""Views: values that are only moved, as walks through the memory of the value that they come from.

A chain of views, permutations, slices, flips, rolls and repetitions is one walk: for each axis some loops, each with a
length and a stride. Nothing is copied until something reads the value in another order; then one kernel does it all.
Lengths and strides may depend on widths, the number of loops does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from aap_hw.compile.front.lengths import NoLength, length_text, product, quotient, settled, total
from aap_hw.graph import WidthExpr

ONE = WidthExpr(1)


@dataclass(frozen=True)
class Wrap:
    """What makes loops cyclic: their common position plus ``shift`` is taken modulo ``modulus``."""

    shift: WidthExpr
    modulus: WidthExpr

    def moved(self, way: WidthExpr) -> Wrap:
        """The same with a start that is ``way`` further on."""
        shift = total(self.shift, way)
        # Both are multiples of one stride, so that any one of their terms gives their quotient.
        known = dict(self.modulus.terms) or {"": self.modulus.constant}
        name = next(iter(known))
        times = (dict(shift.terms).get(name, 0) if name else shift.constant) // known[name]
        return replace(self, shift=total(shift, product(WidthExpr(-times), self.modulus)))


@dataclass(frozen=True)
class Loop:
    """Equal steps through memory; ``size`` is their number in the uncut network."""

    length: WidthExpr
    stride: WidthExpr
    size: int
    wrap: Wrap | None = None


Axis = tuple[Loop, ...]


class NoView(Exception):  # noqa: N818 - an answer
    """The result would not be a walk through the memory of one value."""


@dataclass(frozen=True)
class View:
    """A value as a walk through the memory of another.

    Attributes
    ----------
    name : of the value in whose memory it lies.
    values : how many values that memory holds.
    axes : the loops of each axis, outermost first.
    width : the one length of its axes that depends on widths; 1 if there is none.
    offset : where the first value is.
    kind : ``x``, or the letter of a constant in the text of a key.
    """

    name: str
    values: WidthExpr
    axes: tuple[Axis, ...]
    width: WidthExpr = ONE
    offset: WidthExpr = WidthExpr(0)  # noqa: RUF009 - frozen
    kind: str = "x"

    @staticmethod
    def of(name: str, lengths: Sequence[WidthExpr], sizes: Sequence[int], order: Sequence[int], kind: str) -> View:
        """A value that lies in memory without gaps, with its axes in some order.

        Raises
        ------
        NoView : the lengths of several axes depend on widths.
        """
        axes, stride, lengths = {}, ONE, [total(length) for length in lengths]
        for axis in reversed(order):
            axes[axis] = _trimmed([Loop(lengths[axis], stride, sizes[axis])])
            stride = _times(stride, lengths[axis])
        width = next((length for length in lengths if length.terms), ONE)
        return View(name, stride, tuple(axes[axis] for axis in range(len(lengths))), width, kind=kind)

    def permuted(self, order: Iterable[int]) -> View:
        """Axes in another order."""
        return replace(self, axes=tuple(self.axes[axis] for axis in order))

    def reshaped(self, lengths: Sequence[WidthExpr], sizes: Sequence[int]) -> View:
        """The same values in row-major order under another shape."""
        waiting = fused([loop for axis in self.axes for loop in axis])
        axes = list[Axis]()
        for length, size in reversed(list(zip(lengths, sizes, strict=True))):
            axis, left, left_length = list[Loop](), size, total(length) if size > 1 else ONE
            while left > 1:
                if not waiting:
                    raise NoView
                loop = waiting.pop()
                if left % loop.size == 0:
                    axis.insert(0, loop)
                    left, left_length = left // loop.size, _share(left_length, loop.length)
                elif loop.size % left == 0:
                    axis.insert(0, replace(loop, length=left_length, size=left))
                    outer = _share(loop.length, left_length)
                    stride = _times(loop.stride, left_length)
                    waiting.append(replace(loop, length=outer, stride=stride, size=loop.size // left))
                    left, left_length = 1, ONE
                else:
                    raise NoView
            if left_length != ONE:
                raise NoView
            axes.insert(0, tuple(axis))
        if waiting:
            raise NoView
        return replace(self, axes=tuple(axes))

    def sliced(self, axis: int, start: WidthExpr, length: WidthExpr, size: int, step: int = 1) -> View:
        """A slice along an axis; backwards with a negative step."""
        if size == 1 and not self.axes[axis]:
            return self
        loop, length, view = self._only(axis), total(length), self
        way = _times(start, loop.stride)
        if loop.wrap is None:
            view = replace(self, offset=total(self.offset, way))
        elif step > 0:
            wrap = loop.wrap.moved(way)
            view = self._rewrapped(loop.wrap, wrap)
            loop = replace(loop, wrap=wrap)
        else:
            raise NoView
        made = _trimmed([replace(loop, length=length, size=size, stride=_times(loop.stride, WidthExpr(step)))])
        view = view.with_axis(axis, made)
        if loop.wrap is not None and all(each.wrap != loop.wrap for each in view._loops()):
            view = replace(view, offset=total(view.offset, loop.wrap.shift))
        return view

    def selected(self, axis: int, index: int) -> View:
        """One index of an axis, which is dropped."""
        view, rest, loops = self, index, self.axes[axis]
        if any(loop.wrap is not None for loop in loops):
            view, loops = self.sliced(axis, WidthExpr(index), ONE, 1), ()
        for loop in reversed(loops):
            view = replace(view, offset=total(view.offset, _times(loop.stride, WidthExpr(rest % loop.size))))
            rest //= loop.size
        return replace(view, axes=(*view.axes[:axis], *view.axes[axis + 1 :]))

    def rolled(self, axis: int, shift: int, size: int) -> View:
        """An axis of ``size`` places rolled by ``shift``; the last ones move to the beginning."""
        if not shift % size:
            return self
        loop = self._only(axis)
        if loop.wrap is not None or loop.length.terms:
            raise NoView
        if loop.stride == WidthExpr(0):
            return self
        wrap = Wrap(_times(WidthExpr(-shift % size), loop.stride), _times(loop.length, loop.stride))
        if any(each.wrap is not None and each.wrap.modulus == wrap.modulus for each in self._loops()):
            raise NoView  # loops with the same wrap count as one
        return self.with_axis(axis, (replace(loop, wrap=wrap),))

    def repeated(self, axis: int, times: int, each: bool = False, length: WidthExpr | None = None) -> View:
        """An axis repeated, either as a whole or each of its places; ``length`` is what ``times`` is at any widths."""
        length = total(length or WidthExpr(times))
        if length.terms and self.width not in (ONE, length):
            raise NoView
        again = _trimmed([Loop(length, WidthExpr(0), times)])
        loops = self.axes[axis]
        view = replace(self, width=length) if length.terms else self
        return view.with_axis(axis, (*loops, *again) if each else (*again, *loops))

    def windows(self, axis: int, count: int, size: int, step: int, dilation: int = 1) -> View:
        """Windows along an axis, which may overlap; the places within them are a new last axis."""
        loop = self._only(axis)
        if loop.wrap is not None or loop.length.terms:
            raise NoView
        starts = Loop(WidthExpr(count), _times(loop.stride, WidthExpr(step)), count)
        view = self.with_axis(axis, _trimmed([starts]))
        stride = _times(loop.stride, WidthExpr(dilation))
        within = _trimmed([replace(loop, length=WidthExpr(size), size=size, stride=stride)])
        return replace(view, axes=(*view.axes, within))

    def with_axis(self, axis: int, loops: Axis) -> View:
        """The view with other loops along an axis."""
        return replace(self, axes=(*self.axes[:axis], loops, *self.axes[axis + 1 :]))

    @property
    def contiguous_axis(self) -> int | None:
        """The axis along which the values are contiguous, if there is one."""
        inner = [axis[-1].stride if axis else None for axis in self.axes]
        return inner.index(ONE) if ONE in inner else None

    def is_everything(self, order: Iterable[int]) -> bool:
        """Whether the view, with its axes in this order, is its whole memory from end to end."""
        loops = self._merged(order)
        whole = [(self.values, ONE, None)]
        found = [(loop.length, loop.stride, loop.wrap) for loop in loops]
        return self.offset == WidthExpr(0) and (found == whole or (not found and self.values == ONE))

    def text(self, order: Iterable[int], read: WidthExpr, made: WidthExpr, fixed: Mapping[str, int]) -> str:
        """The text of the walk in a key (see `families.strided`), with its axes in some order.

        Raises
        ------
        TooManyWidths : it depends on more widths than these two.
        """

        def said(length: WidthExpr) -> str:
            return length_text(settled(length, fixed), read, made)

        loops = []
        for loop in self._merged(order):
            around = f"%{said(loop.wrap.shift)}%{said(loop.wrap.modulus)}" if loop.wrap is not None else ""
            loops.append(f"{said(loop.length)}:{said(loop.stride)}{around}")
        offset = said(self.offset)
        return f"{self.kind}[{said(self.values)};{','.join(loops)}{f';{offset}' if offset != '0' else ''}]"

    def _loops(self) -> Iterator[Loop]:
        return (loop for axis in self.axes for loop in axis)

    def _only(self, axis: int) -> Loop:
        """The one loop of an axis."""
        loops = fused(self.axes[axis])
        if len(loops) != 1:
            raise NoView
        return loops[0]

    def _rewrapped(self, old: Wrap, new: Wrap) -> View:
        """The view with another wrap for all its loops that have the old one."""
        axes = tuple(
            tuple(replace(loop, wrap=new) if loop.wrap == old else loop for loop in axis) for axis in self.axes
        )
        return replace(self, axes=axes)

    def _merged(self, order: Iterable[int]) -> list[Loop]:
        return fused([loop for axis in order for loop in self.axes[axis]])


def fused(loops: Iterable[Loop]) -> list[Loop]:
    """The same loops, merged where possible."""
    found = list[Loop]()
    for loop in loops:
        outer = found[-1] if found else None
        if outer is not None and outer.wrap == loop.wrap and _is_product(outer.stride, loop.length, loop.stride):
            length = _times(outer.length, loop.length)
            found[-1] = replace(loop, length=length, size=outer.size * loop.size)
        else:
            found.append(loop)
    return found


def _trimmed(loops: Iterable[Loop]) -> Axis:
    return tuple(loop for loop in loops if loop.size > 1)


def _is_product(whole: WidthExpr, one: WidthExpr, other: WidthExpr) -> bool:
    try:
        return total(whole) == product(one, other)
    except NoLength:
        return False


def _times(one: WidthExpr, other: WidthExpr) -> WidthExpr:
    try:
        return product(one, other)
    except NoLength as problem:
        raise NoView from problem


def _share(whole: WidthExpr, part: WidthExpr) -> WidthExpr:
    try:
        return quotient(whole, part)
    except NoLength as problem:
        raise NoView from problem


def size_of(axis: Iterable[Loop]) -> int:
    """Length of an axis in the uncut network."""
    return math.prod(loop.size for loop in axis)
