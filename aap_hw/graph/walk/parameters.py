"""The parameters of a program: their names and axes, and which are the weights of layers.

A layer's weights are a parameter, a piece of one, one that is turned over, or what PyTorch or the code computes from
others. What a rule asks about a node that stands for any of these is answered here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.graph.program.call import Call, shape_of
from aap_hw.graph.program.kept import Kept
from aap_hw.graph.program.names import canonical_names
from aap_hw.graph.walk.absorbing import Rows
from aap_hw.graph.walk.code_weights import CodeWeight, code_weights
from aap_hw.graph.walk.computed import ComputedWeight, computed_weights
from aap_hw.graph.walk.labels import IntArray
from aap_hw.graph.walk.matrices import Matrix, matrices_of
from aap_hw.graph.walk.notes import Notes
from aap_hw.graph.walk.rules.filled import FILLED
from aap_hw.graph.walk.tables import tables_of

_TAKEN_APART = frozenset({"chunk", "split", "split_with_sizes"})
_ROLE_RANK = {"out": 0, "depthwise": 0, "in": 0, "norm": 1, "scale": 2, "bias": 3, "fixed": 4}


class Parameters(Notes):
    """Notes of a walk, and the parameters that it meets.

    Parameters
    ----------
    model
        Tells which parameters are one tensor under two names and which module owns them.
    kept
        Tensors beside the parameters that the model's code keeps, by the placeholder that stands for each.
    """

    def __init__(self, model: nn.Module, kept: Mapping[str, Kept]) -> None:
        super().__init__()
        self._model = model
        self._canonical = canonical_names(model)
        self._parameters: dict[str, str] = {}
        self._parameter_shapes: dict[str, tuple[int, ...]] = {}
        self._read: set[str] = set()
        self.computed: dict[str, ComputedWeight] = {}
        self._weights: dict[Node, ComputedWeight] = {}
        self.inside: set[Node] = set()
        self._with_inputs: set[Node] = set()
        self._tables: set[Node] = set()
        self._matrices: dict[Node, Matrix] = {}
        self._constants: set[str] = set()
        self._given: set[str] = set()
        self.kept = {each.name: each for each in kept.values()}

    def _read_parameters(self, program: ExportedProgram, kept: Mapping[str, str]) -> dict[Node, CodeWeight]:
        """Note what a program's nodes stand for; returns the weights that its code computes."""
        signature = program.graph_signature
        self._constants.update(signature.inputs_to_lifted_tensor_constants)
        self._given.update(signature.user_inputs)
        self._parameters.update(kept)
        for placeholder, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items():
            self._parameters[placeholder] = self._canonical.get(name, name)
        for node in program.graph.nodes:
            if (parameter := self.parameter_name(node)) is not None:
                self._parameter_shapes[parameter] = shape_of(node)
                self._read.update([parameter] if node.users else [])
        weights, inside = computed_weights(program, self._model, self._parameters)
        self._weights.update(weights)
        self.inside |= inside
        self.computed.update({each.source: each for each in weights.values()})
        self._tables |= tables_of(program.graph.nodes, self._parameters)
        stored = {key: name for key, name in self._parameters.items() if name not in {*self.kept, *self.computed}}
        self._matrices.update(matrices_of(program, stored))
        known = {*weights, *self._matrices}
        by_code = {each.weight: each for each in code_weights(program, self._parameters) if each.weight not in known}
        self._with_inputs.update(source for each in by_code.values() for source in each.sources)
        return by_code

    def unread_parameters(self) -> list[str]:
        """Parameters that the program never reads, such as those of heads that are there in training only."""
        names = {self._canonical.get(name, name) for name, _ in self._model.named_parameters()}
        return sorted(names - self._read)

    def parameter_name(self, node: object) -> str | None:
        """Canonical name of the parameter or buffer that a node stands for, or None if it is neither."""
        return self._parameters.get(node.name) if isinstance(node, Node) else None

    def is_made_by_code(self, node: Node) -> bool:
        """Whether the code computes a value of nothing that the network keeps or is given, such as position codes."""
        return all(each.name in self._constants for each in _made_of(node))

    def is_constant(self, node: Node) -> bool:
        """Whether a value is the same for every input."""
        return not any(each.name in self._given for each in _made_of(node))

    def axis_of(self, node: Node, dim: int) -> IntArray | None:
        """Atoms of an axis of a parameter, or of a weight and what it is computed from; None if it has none."""
        name = self._weights[node].source if node in self._weights else self.parameter_name(node)
        if name is None:
            return None
        for weight in self.computed.values():
            if name.startswith(weight.inside):
                name, ids = weight.source, self.axes.get((weight.source, dim))
                return ids if ids is not None and ids.size == shape_of(node)[dim] else None
        return self.axes.get((name, dim))

    def weight_name(self, node: object) -> str | None:
        """Name of the parameter that is the weights of a layer, or that these are computed from by PyTorch.

        A tensor that the code keeps makes no channels.
        """
        if isinstance(node, Node) and node in self._weights:
            return self._weights[node].source
        name = self.parameter_name(node)
        return None if name in self.kept else name

    def is_of_parameters(self, node: Node) -> bool:
        """Whether a node is a parameter or buffer, or is made of these alone without a layer or a product."""
        return self.parameter_name(node) is not None or node in self._tables

    def matrix(self, node: Node) -> tuple[str, int, int] | None:
        """The parameter that a product reads as a matrix, and which of its axes are the rows and columns."""
        found = self._matrices.get(node, Matrix(node))
        name = self.weight_name(found.source)
        return None if name is None or len(shape_of(node)) != 2 else (name, found.rows, found.columns)

    def parameter_axis(self, name: str, dim: int, role: str) -> IntArray:
        """Atoms of one axis of a parameter, which is used in `role` here."""
        key = (name, dim)
        if key not in self.axes:
            self.axes[key] = self.ties.new_atoms(self._parameter_shapes[name][dim])
            self.roles[key] = role
        elif _ROLE_RANK[role] < _ROLE_RANK[self.roles[key]]:
            self.roles[key] = role
        return self.axes[key]

    def made(self, filters: Rows, role: str) -> IntArray:
        """Atoms of filters, which are used in `role` here."""
        return self.parameter_axis(filters.parameter, filters.dim, role)[filters.places]

    def owner(self, parameter: str) -> nn.Module:
        """The module that holds a parameter, or the weight that is computed from it."""
        if parameter in self.computed:
            return self._model.get_submodule(self.computed[parameter].layer)
        return self._model.get_submodule(parameter.rpartition(".")[0])

    def module(self, path: str) -> nn.Module | None:
        """The model's module at a path; None if the code makes it anew, as ``self.layers[:2]``."""
        try:
            return self._model.get_submodule(path)
        except AttributeError:
            return None

    def is_read_once(self, node: Node) -> bool:
        """Whether a node is a parameter that nothing but one op reads, or such a piece of one that is taken apart."""
        if Call(node).name == "getitem" and Call(Call(node).first).name in _TAKEN_APART and len(node.users) == 1:
            node = Call(Call(node).first).first
        name = self.weight_name(node)
        if node in self._weights:
            return False
        return name is not None and len(node.users) == 1 and list(self._parameters.values()).count(name) == 1


def _made_of(node: Node) -> Iterator[Node]:
    """What the network keeps or is given that a value is made of. Of what `new_zeros` reads, only the type counts."""
    waiting, seen = [node], {node}
    for each in waiting:
        if each.op != "call_function":
            yield each
        read = [] if Call(each).name in FILLED else each.all_input_nodes
        new = [source for source in read if source not in seen]
        seen.update(new)
        waiting += new
