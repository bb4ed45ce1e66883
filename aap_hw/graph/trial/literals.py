"""Numbers that a model's code passes where it could have asked for a length: found among a module's attributes.

``x.split(self.width, 1)`` shows up in an exported program as a split by 26. Which attribute the 26 came from is read
off the source around the line that export recorded, and its value after a cut is set by `surgery`. That is a
conjecture: `trial` cuts a little and looks whether the program then is what was predicted. So it does with a number
that no attribute explains, as the code may have asked a tensor for it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from aap_hw.graph.cut.scaling import ScaleAttribute
from aap_hw.graph.groups.groups import Grouping
from aap_hw.graph.groups.widths import WidthExpr, width_along, width_of_ids
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.source import own_frames
from aap_hw.graph.program.syntax import functions_of, read_of_self, statement_at, with_self
from aap_hw.graph.trial.configs import enclosed, set_value, value_of
from aap_hw.graph.trial.surprises import PADS, SPLITS
from aap_hw.graph.trial.view_lengths import follower
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.noted import Divided, Literal

# An attribute may be this many times the number that is passed: ``x.split(self.expanded // 2, 1)``.
MULTIPLES = (2, 3, 4)
# What people call the factor of attention. Any other number that happens to be as large, as a share of dropout may be,
# must stay, while a factor by another name does harm only in code that the trace did not run.
_FACTOR = re.compile(r"(?!.*drop).*(scal|temper|factor|norm|sqrt|root)", re.IGNORECASE)
_COUNTS = {
    "batch_norm": ("num_features", nn.modules.batchnorm._NormBase),
    "instance_norm": ("num_features", nn.modules.batchnorm._NormBase),
    "group_norm": ("num_channels", nn.GroupNorm),
}


@dataclass(frozen=True)
class Attribute:
    """A whole number, or a sequence of them, that a module keeps and that counts channels.

    Parameters
    ----------
    module
        Path of the module.
    name
        Of the attribute, or of one of an object that is an attribute: ``"config.width"``.
    counts
        The number, or each of the numbers, as a function of group widths.
    sequence
        The type of a sequence, None for a single number.
    """

    module: str
    name: str
    counts: tuple[WidthExpr, ...]
    sequence: type[list[int]] | type[tuple[int, ...]] | None

    def set_in(self, model: nn.Module, widths: Mapping[str, int]) -> None:
        """Give the attribute the value that belongs to the widths."""
        numbers = [count.at(widths) for count in self.counts]
        set_value(model.get_submodule(self.module), self.name, self.sequence(numbers) if self.sequence else numbers[0])


def attributes_behind(literal: Literal, model: nn.Module, grouping: Grouping) -> tuple[Attribute, ...]:
    """The attributes that the numbers come from which change with a width; none if nothing is known of these.

    That of a length also if it does not change here: the same may count channels that can be cut elsewhere.
    """
    numbers = [(number, width_of_ids(ids, grouping)) for number, ids in literal.counts]
    if literal.dim is not None:
        return _of_length(literal, numbers[0][1], literal.dim, model)
    if not any(count.terms for _, count in numbers):
        return ()
    known = _derived(numbers)
    for path in modules_around(literal.node):
        if (module := _module_at(model, path)) is None:
            continue
        in_class = _names_in_class(type(module))  # type: ignore[arg-type] # mypy takes no class for hashable
        for names in [*_names_around(literal.node), in_class, enclosed(module)]:
            values = {name: value_of(module, name) for name in names}
            found = [_counting(path, name, value, known, numbers) for name, value in values.items()]
            if any(found):
                return tuple(filter(None, found))
    return ()


def is_guessed(literal: Literal, attributes: Sequence[Attribute], model: nn.Module, grouping: Grouping) -> bool:
    """Whether pieces are taken, or channels added, at numbers that change and that no attribute is behind."""
    numbers = {number for number, ids in literal.counts if width_of_ids(ids, grouping).terms}
    values = [value_of(model.get_submodule(each.module), each.name) for each in attributes]
    is_derived = any(each.sequence for each in attributes) or not numbers.issuperset(values)
    return Call(literal.node).name in SPLITS | PADS and not is_derived and bool(numbers.difference(values))


def scale_attributes(divided: Divided, width: WidthExpr, model: nn.Module) -> Iterable[ScaleAttribute]:
    """What the module around attention keeps as the root by which PyTorch divides, for code of its that passes it."""
    for path in modules_around(divided.node)[:1]:
        module = _module_at(model, path)
        for name, value in vars(module).items() if module is not None else ():
            if isinstance(value, float) and _FACTOR.match(name) and math.isclose(value, divided.ids.size**-0.5):
                yield ScaleAttribute(path, name, width)


def counts_of_bare_norms(labelling: Labelling, model: nn.Module, grouping: Grouping) -> Iterable[Attribute]:
    """How many channels, and groups of these, norms without any weights or statistics are for: no weight tells."""
    for node in labelling.labels:
        if Call(node).name not in _COUNTS or not (around := modules_around(node)):
            continue
        module, (name, kinds) = _module_at(model, around[0]), _COUNTS[Call(node).name]
        if module is None or not isinstance(module, kinds) or module.state_dict():
            continue
        source: Node = Call(node)["input"]
        size = source.meta["val"].shape[1]
        width = width_along(labelling.all_labels(source)[0], 1, size, grouping)
        if width.terms and getattr(module, name) == size:
            yield Attribute(around[0], name, (width,), None)
        if width.terms and isinstance(module, nn.GroupNorm) and Call(node)["num_groups"] == module.num_groups > 1:
            first_of_each = labelling.of(source).ids.reshape(module.num_groups, -1)[:, 0]
            yield Attribute(around[0], "num_groups", (width_of_ids(first_of_each, grouping),), None)


def _of_length(literal: Literal, count: WidthExpr, dim: int, model: nn.Module) -> tuple[Attribute, ...]:
    """The attribute that a length of a view comes from; if there is none, the length may follow by itself."""
    for path in modules_around(literal.node):
        module = _module_at(model, path)
        found = None if module is None else follower(literal.node, dim, literal.counts[0][1], count, module)
        if found is not None:
            return (Attribute(path, found.name, found.counts, found.sequence),)
    return ()


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _derived(numbers: Sequence[tuple[int, WidthExpr]]) -> dict[int, WidthExpr]:
    """What an attribute may count: the numbers, their sum, and multiples of them."""
    known: dict[int, WidthExpr] = {}
    for number, count in numbers:
        known.setdefault(number, count)
    known.setdefault(sum(number for number, _ in numbers), _sum([count for _, count in numbers]))
    for factor in MULTIPLES:
        for number, count in numbers:
            known.setdefault(factor * number, _sum([count] * factor))
    return known


def _counting(
    path: str, name: str, value: object, known: Mapping[int, WidthExpr], numbers: Sequence[tuple[int, WidthExpr]]
) -> Attribute | None:
    if type(value) is int and value in known:
        return Attribute(path, name, (known[value],), None) if known[value].terms else None
    if isinstance(value, (list, tuple)) and list(value) == [number for number, _ in numbers]:
        return Attribute(path, name, tuple(count for _, count in numbers), type(value))
    return None


def _sum(counts: Sequence[WidthExpr]) -> WidthExpr:
    terms: dict[str, int] = {}
    for count in counts:
        for name, multiplicity in count.terms:
            terms[name] = terms.get(name, 0) + multiplicity
    return WidthExpr(sum(count.constant for count in counts), tuple(terms.items()))


def modules_around(node: Node) -> list[str]:
    """Paths of the modules in whose code a node is, innermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in reversed(stack.values())]


def _names_around(node: Node) -> Iterable[list[str]]:
    """Names of attributes of ``self`` that the code reads: those of the statement first, then those of its function."""
    for path, line in own_frames(node):
        functions = [f for f in functions_of(path) if f.lineno <= line <= (f.end_lineno or f.lineno)]
        if functions:
            function = max(functions, key=lambda f: f.lineno)
            statement = statement_at(function, line)
            yield [name for call in _splits(statement) for each in call.args for name in read_of_self(each)]
            yield read_of_self(statement)
            yield read_of_self(function)


def _splits(code: ast.AST) -> Iterable[ast.Call]:
    for call in ast.walk(code):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr.startswith("split"):
            yield call


@functools.cache
def _names_in_class(kind: type[nn.Module]) -> list[str]:
    """What the methods of a class read of ``self``: export records no frames between ``forward`` and PyTorch.

    Python reads the class's whole file to find it, and it is asked for again for every number and trial.
    """
    try:
        tree = with_self(ast.parse(textwrap.dedent(inspect.getsource(kind))))
    except (OSError, TypeError, SyntaxError):
        return []
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name != "__init__"]
    return [name for method in methods for name in read_of_self(method)]
