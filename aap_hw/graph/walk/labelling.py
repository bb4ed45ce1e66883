"""The walk through an exported program that gives every tensor its labels.

The rules in `rules` ask it about tensors, and about parameters (`parameters`). What they say is kept in `notes`, and
`groups` groups the result.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import JOINS, Call, is_empty, is_static, is_tensor, shape_of
from aap_hw.graph.program.kept import Kept
from aap_hw.graph.program.source import explain, op_name, own_frames
from aap_hw.graph.walk.absorbing import Rows
from aap_hw.graph.walk.code_weights import INPUTS, label_inputs
from aap_hw.graph.walk.labels import NO_ATOM, IntArray, Labels, parts_of
from aap_hw.graph.walk.notes import Notes
from aap_hw.graph.walk.parameters import Parameters
from aap_hw.graph.walk.places import Place, places_of
from aap_hw.graph.walk.rules import RULES, Result
from aap_hw.graph.walk.rules.filled import FILLED
from aap_hw.graph.walk.rules.pointwise import SCALARS, passes_number, pointwise
from aap_hw.graph.walk.tables import axes_met, fills_of, tables_late

# Notes about the nodes of one program, which do not outlast it; those about parameters and their atoms do.
_OF_ONE_PROGRAM = [
    "labels",
    "across",
    "producers",
    "doubtful",
    "numbers",
    "literals",
    "divided",
    "products",
    "splits",
    "whole_heads",
    "unsupported",
]


class Labelling(Parameters):
    """Labels of all the tensors of a program.

    Parameters
    ----------
    program
        What `torch.export` made of the model.
    model
        The model itself: tells which parameters are one tensor under two names and which module owns them.
    kept
        Tensors beside the parameters that the model's code keeps, by the placeholder that stands for each.
    heads
        Views that take heads apart and of which whole heads are to be cut, each with the axis of its heads. Views are
        told by their places, see `places_of`.
    """

    def __init__(
        self,
        program: ExportedProgram,
        model: nn.Module,
        kept: Mapping[str, Kept] | None = None,
        heads: Mapping[Place, int] | None = None,
    ) -> None:
        super().__init__(model, kept or {})
        self._heads: Mapping[Place, int] = heads or {}
        self._places: dict[Node, Place] = {}
        self._fills: set[Node] = set()
        self._walk(program, {placeholder: each.name for placeholder, each in (kept or {}).items()})

    def add_training(self, program: ExportedProgram) -> None:
        """Walk what the model computes in training, too: what more it reads is cut along with the rest.

        Filters of which only training knows are frozen, as are channels that meet numbers which only training passes:
        nothing is tried out here.
        """
        kept = {name: copy.copy(vars(self)[name]) for name in _OF_ONE_PROGRAM}
        known, lines = set(self.axes), {next(own_frames(node), None) for node in self.doubtful}
        self._walk(program, {})
        for key, atoms in self.axes.items():
            if key not in known and self.roles[key] == "out":
                self.ties.freeze(atoms, f"is made by {key[0]}, which is there in training only")
        for node in self.doubtful[len(kept["doubtful"]) :]:
            if next(own_frames(node), None) not in lines:
                for source in (node, *node.all_input_nodes):
                    self.ties.freeze(self.of(source).ids, explain("meets a number in training only", node))
        vars(self).update(kept)

    # What the rules ask.

    def of(self, node: Node, beside: Sequence[Labels] = ()) -> Labels:
        """Labels of a node that yields one tensor, a parameter that takes part in arithmetic included.

        Such a parameter is followed along the axis that meets the channels of what is `beside` it.
        """
        name = self.parameter_name(node)
        if name in self.computed:
            return Labels.none(len(shape_of(node)))
        if name is not None:
            return self._plain_parameter(node, beside)
        labels = self.labels[node]
        return labels if isinstance(labels, Labels) else Labels.none(len(shape_of(node)))

    def channels(self, node: Node, dim: int, call: Call) -> IntArray:
        """Atoms of a tensor along one axis, `NO_ATOM` where there are none.

        Channels that run along another axis of the tensor are frozen, because `call` mixes them.
        """
        labels = self.of(node)
        size = shape_of(node)[dim]
        if labels.dims == {dim}:
            return labels.ids.ravel()
        self.freeze(labels, "mixes channels that run along another axis", call)
        return np.full(size, NO_ATOM, dtype=np.int64)

    def filters(self, weight: Node) -> Rows | None:
        """Where the filters of `weight` are in a parameter: itself, one of which it is a piece or is computed from."""
        if self.parameter_name(weight) in self.kept:
            return None
        if (name := self.weight_name(weight)) is not None:
            return Rows(name, np.arange(shape_of(weight)[0]))
        if weight in self._matrices and (matrix := self.matrix(weight)) is not None:
            return Rows(matrix[0], np.arange(shape_of(weight)[0]), matrix[1])
        labels = self.of(weight)
        ids = labels.ids.ravel() if labels.dims == {0} else np.empty(0, dtype=np.int64)
        is_piece = weight in self._tables
        for (name, dim), atoms in self.axes.items():
            if dim == 0 and ids.size and (np.isin(ids, atoms).all() if is_piece else np.array_equal(ids, atoms)):
                return Rows(name, ids - atoms[0])
        return None

    def inside_of_weights(self, labels: dict[Node, Result]) -> Labelling:
        """The same state for operators that compute weights, in which parameters are tensors like any others."""
        inner = copy.copy(self)
        inner._parameters, inner._weights, inner._tables, inner.across, inner.labels = {}, {}, set(), {}, labels
        return inner

    def apart(self, labels: dict[Node, Result]) -> Labelling:
        """The same, but for a look ahead: nothing that the rules note there counts."""
        inner = self.inside_of_weights({})
        Notes.__init__(inner)
        inner.labels = labels
        return inner

    def all_labels(self, node: Node) -> list[tuple[Labels, ...]]:
        """For each tensor that a node yields its labels, and those across if it has channels along a second axis.

        Inputs of weights that the code computes are across, and the columns of products of channels with channels.
        """
        found = (self.labels[node], self.across.get(node))
        return list(zip(*[parts_of(each) for each in found if each is not None], strict=True))

    def tie_parameter(self, node: Node | None, ids: IntArray, role: str, call: Call, dim: int = 0) -> None:
        """Let an axis of a per-channel parameter follow `ids`; None as a parameter is no parameter."""
        if node is None:
            return
        name = self.parameter_name(node)
        if name is not None:
            self.tie(ids, self.parameter_axis(name, dim, role), call)
        elif len(self.of(node).dims) == 1:
            self.tie(ids, self.of(node).ids.ravel(), call)
        else:
            self.freeze(ids, "meets a weight that the model computes", call)

    def axes_met(self, node: Node) -> set[int]:
        """The axes of a parameter, or of a new tensor, along which what is made of it meets channels."""
        return axes_met(self, node, self._tables | self._fills)

    def place(self, node: Node) -> Place:
        """The place of a call in the model's code."""
        return self._places[node]

    def heads_axis(self, call: Call) -> int | None:
        """Along which axis of a view whole heads are to be cut, if they are."""
        return self._heads.get(self._places[call.node])

    def not_understood(
        self, call: Call, sentence: str = "reaches an operation that aap-hw does not understand"
    ) -> Result:
        """Freeze all that goes into an op, for the reason `sentence`, and label nothing that comes out."""
        reached = False
        for node in call.node.all_input_nodes:
            result = self.labels.get(node)
            parts = result if isinstance(result, tuple) else (self.of(node),) if is_tensor(node) else ()
            for labels in (*parts, *parts_of(self.across.get(node))):
                reached = reached or bool(labels.dims)
                self.freeze(labels, sentence, call)
        if reached:
            self.unsupported[op_name(call.node)] += 1
        value = call.node.meta.get("val")
        if isinstance(value, (tuple, list)):
            return tuple(Labels.none(item.dim() if isinstance(item, torch.Tensor) else 0) for item in value)
        return Labels.none(value.dim()) if isinstance(value, torch.Tensor) else None

    # The walk.

    def _walk(self, program: ExportedProgram, kept: Mapping[str, str]) -> None:
        self._places |= places_of(program)
        self._fills |= fills_of(program.graph.nodes)
        by_code = self._read_parameters(program, kept)
        for node in tables_late(program.graph.nodes, self._tables | self._fills):
            self.labels[node] = self._visit(node)
            if node in by_code:
                self.across.update(label_inputs(self, by_code[node]))

    def _visit(self, node: Node) -> Result:
        if node.op == "placeholder":
            return Labels.none(len(shape_of(node))) if is_tensor(node) else None
        if node.op == "output":
            for source in node.all_input_nodes:
                if is_tensor(source):
                    self.ties.freeze(self.of(source).ids, explain("reaches the network's output", source))
            return None
        if node.op != "call_function":
            return None
        if node in self.inside:
            value = node.meta.get("val")
            parts = value if isinstance(value, (tuple, list)) else [value]
            labels = tuple(Labels.none(each.dim() if isinstance(each, torch.Tensor) else 0) for each in parts)
            return labels if isinstance(value, (tuple, list)) else labels[0]
        call = Call(node)
        is_new = not node.all_input_nodes or call.name in FILLED
        if is_new and is_tensor(node) and is_static(node) and (node.meta["val"].numel() > 1 or call.name in SCALARS):
            self.doubt(call)  # its lengths, or the number in it, may be counts of channels
        elif passes_number(call):
            self.number(call)
        if any(self.parameter_name(source) in self.kept or source.name in self._constants for source in call.tensors):
            self.doubt(call)  # a model that keeps no such tensor yet, or keeps none, will make one
        if is_empty(node):  # as long as that is right, which a trial tells, none of the channels is in it
            self.doubt(call)
            return Labels.none(len(call.out_shape))
        # Some encoders stand in for a missing map with one of no channels.
        joined = [each for each in node.all_input_nodes if not (call.name in JOINS and is_empty(each))]
        if not is_static(node) or not all(map(is_static, joined)):
            return self.not_understood(call)
        if node in self._matrices and (matrix := self.matrix(node)) is not None:
            name, *dims = matrix
            rows, columns = (self.parameter_axis(name, dim, "fixed") for dim in dims)
            self.across[node] = Labels.along(2, 1, columns)
            return Labels.along(2, 0, rows)
        function = RULES.get(call.name) or (pointwise if call.pointwise else None)
        return function(self, call) if function else self.not_understood(call)

    def _plain_parameter(self, node: Node, beside: Sequence[Labels]) -> Labels:
        """Labels of a parameter that an op reads as an ordinary tensor.

        A vector (in any orientation) is one value per channel, unless it is beside them. Anything larger is followed
        along one axis, and frozen along the others: the axis that meets other channels, here or once it was moved, or
        else the first, that of filters, or if there is but one the last of a table (1, N, C) and the second of a map
        (1, C, H, W).
        """
        shape, name = shape_of(node), self.parameter_name(node)
        assert name is not None
        long = [dim for dim, size in enumerate(shape) if size > 1]
        met = {dim - each.rank + len(shape) for each in beside for dim in each.dims}
        usual = 0 if shape[:1] != (1,) else len(shape) - 1 if len(shape) == 3 else 1
        followed = next((dim for dim in long if len(long) == 1 or dim == usual), None)
        if not met and len(long) > 1 and node not in self._with_inputs:
            met = self.axes_met(node)
        if len(met.intersection(long)) == 1:
            (followed,) = met.intersection(long)
        elif met and len(long) == 1:
            followed = None  # such as the nodes of a grid, each of which meets all channels
        for dim in long:
            if dim != followed and not (dim == INPUTS and node in self._with_inputs):
                reason = f"depends on {name}, which is also used outside of its layer"
                self.ties.freeze(self.parameter_axis(name, dim, "fixed"), reason)
        if followed is None:
            return Labels.none(len(shape))
        return Labels.along(len(shape), followed, self.parameter_axis(name, followed, "scale"))
