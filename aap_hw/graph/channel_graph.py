"""The channel graph of a model: its channel groups, and models cut down along them.

This is the package's front door; each step behind it has a room of its own: `program` is what `torch.export` makes
of the model, `walk` labels its tensors, `groups` reads off what belongs together, `cut` cuts, `trial` checks what the
program alone cannot show, and `check` compares every network that was cut with the uncut one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from aap_hw.activity import doing
from aap_hw.errors import UserError, closest
from aap_hw.graph.cut import surgery
from aap_hw.graph.groups.blocks import Block, find_blocks
from aap_hw.graph.groups.gone import Gone
from aap_hw.graph.groups.groups import ChannelGroup, held_by, positions
from aap_hw.graph.groups.kinds import kinds_of
from aap_hw.graph.groups.widths import WidthExpr, width_along, width_of_ids
from aap_hw.graph.program.call import is_tensor
from aap_hw.graph.program.calling import Names, called
from aap_hw.graph.program.copying import copied
from aap_hw.graph.program.exporting import export, traced
from aap_hw.graph.program.inputs import Tensors
from aap_hw.graph.program.kept import kept_tensors
from aap_hw.graph.program.readiness import require_traceable, unwrapped
from aap_hw.graph.program.surroundings import undisturbed
from aap_hw.graph.trial.heads import WholeHeads, with_whole_heads
from aap_hw.graph.trial.removing import removable_blocks
from aap_hw.graph.trial.surprises import Settled
from aap_hw.graph.trial.trial import settle
from aap_hw.graph.walk.labelling import Labelling
from aap_hw.graph.walk.labels import IntArray
from aap_hw.graph.walk.noted import Meeting
from aap_hw.graph.walk.places import Place


class ChannelGraph:
    """Which channels of a network must be cut together. Made by `trace`.

    Attributes
    ----------
    program
        The exported program (aten ops, not decomposed) that everything was read from. Shares the weights of
        the model that was traced.
    groups
        In the order in which the network first makes their channels.
    blocks
        Residual branches that `cut` can remove.
    names
        The parameter of the model's ``forward`` that each input is given as; None gives it by its place.
    heads
        Where whole heads of attention can be cut, if that was asked for; otherwise None.
    """

    def __init__(
        self,
        program: ExportedProgram,
        labelling: Labelling,
        settled: Settled,
        shapes: Mapping[str, tuple[int, ...]],
        names: Names = (),
        blocks: Sequence[Block] = (),
        heads: WholeHeads | None = None,
    ) -> None:
        self.program = program
        self.names = names
        self.blocks = tuple(blocks)
        self.heads = heads
        self.groups: list[ChannelGroup] = list(settled.grouping.groups)
        self._labelling = labelling
        self._grouping = settled.grouping
        self._attributes = settled.attributes
        self._rescalings = settled.rescalings
        self._shapes = dict(shapes)
        self._nodes: dict[str, Node] = {node.name: node for node in program.graph.nodes}

    def _blocks_if(self, stay: Collection[str]) -> tuple[Block, ...]:
        """The residual branches that can be removed if some modules must stay."""
        signature = self.program.graph_signature
        return find_blocks(
            list(self._nodes.values()),
            self.groups,
            {**signature.inputs_to_parameters, **signature.inputs_to_buffers},
            self.width_of,
            self._labelling.module,
            stay,
        )

    @staticmethod
    @doing("tracing the network")
    def trace(
        model: nn.Module,
        example_inputs: tuple[torch.Tensor, ...],
        names: Names = (),
        *,
        heads: bool | WholeHeads | None = None,
    ) -> ChannelGraph:
        """Run and export a copy of a model in eval mode, and find the model's channel groups.

        The model is left as it was.

        Parameters
        ----------
        model
            Any model that `torch.export` accepts; what `nn.DataParallel` or `torch.compile` put around it comes off.
        example_inputs
            One tensor per argument of the model; only their shapes and types matter.
        names
            The parameter of ``forward`` that each of them is; None gives it by its place, as all are by default.
        heads
            True cuts whole heads of attention wherever the code follows, instead of the widths of all heads of a block
            alike. A network that was cut along another graph is traced with that graph's ``heads``.

        Raises
        ------
        UserError
            If the model fails, cannot be copied or exported, or is of a kind that cannot be cut.
        """
        if not isinstance(example_inputs, (tuple, list)):
            raise UserError("example_inputs must be a tuple with one tensor per input of the model")
        inputs, model = tuple(example_inputs), unwrapped(model)
        require_traceable(model, inputs)
        with undisturbed(model):
            twin = copied(model)
            program = traced(twin, inputs, names)
            _require_whole(model, twin)
            kept = kept_tensors(program, twin)

            def walked(views: Mapping[Place, int]) -> Labelling:
                labelling = Labelling(program, model, kept, views)
                if labelling.unread_parameters():
                    in_training = None
                    with suppress(Exception):  # a model that cannot be traced in training has no say in it
                        # Batch norm in training takes more than one value of each channel.
                        twice = tuple(torch.cat([each, each]) for each in inputs)
                        in_training = export(copied(model), twice, names, training=True)
                    if in_training is not None:
                        labelling.add_training(in_training)
                return labelling

            def settled(labelling: Labelling) -> Settled:
                return settle(labelling, program, model, twin, lambda trial: export(trial, inputs, names))

            where = heads if isinstance(heads, WholeHeads) else None
            if heads is True:
                labelling, found, where = with_whole_heads(walked, settled)
            else:
                labelling = walked({} if where is None else where.axes)
                found = settled(labelling)
            graph = ChannelGraph(program, labelling, found, _shapes(model), names)
            blocks = removable_blocks(graph._blocks_if, model, inputs, names)
        _share_tensors(program, model)
        return ChannelGraph(program, labelling, found, _shapes(model), names, blocks, where)

    def call(self, model: nn.Module, inputs: Tensors) -> Any:
        """What the traced model, or one that was cut along this graph, returns for a batch."""
        return called(model, inputs, self.names)

    @property
    def computes_weights(self) -> bool:
        """Whether weights that can be cut are computed from other parameters."""
        return bool(self._labelling.computed)

    @property
    def widths(self) -> dict[str, int]:
        """Width of every group, frozen ones included."""
        return {group.name: group.width for group in self.groups}

    @property
    def has_factors(self) -> bool:
        """Whether a cut multiplies weights, as attention that divides by the root of a width needs it."""
        return bool(self._rescalings)

    @cached_property
    def kinds(self) -> dict[str, str]:
        """What kind of channels each group holds: one of the words of `aap_hw.graph.groups.kinds`."""
        inputs = frozenset(self.program.graph_signature.user_inputs)
        return kinds_of(self._nodes.values(), self.groups, inputs, self.groups_at)

    @property
    def batch(self) -> int:
        """How many images the network was traced with at a time."""
        inputs = set(self.program.graph_signature.user_inputs)
        return int(next(node.meta["val"].shape[0] for node in self._nodes.values() if node.name in inputs))

    def group(self, name: str) -> ChannelGroup:
        """The group called `name`.

        Raises
        ------
        UserError
            If there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise UserError(f"the network has no channel group '{name}'{closest(name, self.widths)}")

    def frozen(self, reasons: Mapping[str, str], *, with_branches: bool = False) -> ChannelGraph:
        """The same graph with more groups frozen, each with a reason; those that are frozen already stay so.

        A residual branch can be removed as long as one of its groups is free, or all are ``with_branches``.
        """
        groups = tuple(
            replace(group, frozen=reasons[group.name]) if group.frozen is None and group.name in reasons else group
            for group in self.groups
        )
        settled = Settled(replace(self._grouping, groups=groups), self._attributes, self._rescalings)
        left = {group.name for group in groups if group.frozen is None}
        blocks = [
            replace(block, groups=tuple(name for name in block.groups if name in left))
            for block in self.blocks
            if (left.issuperset if with_branches else left.intersection)(block.groups)
        ]
        return ChannelGraph(self.program, self._labelling, settled, self._shapes, self.names, blocks, self.heads)

    def groups_at(self, node_name: str) -> dict[str, frozenset[int]]:
        """Names of the groups whose channels a node's value holds, each with the axes that they run along.

        Raises
        ------
        UserError
            If there is no such node.
        """
        if (node := self._nodes.get(node_name)) is None:
            raise UserError(f"the graph has no node '{node_name}'{closest(node_name, self._nodes)}")
        return held_by(self._labelling, self._grouping, node)

    def width_of(self, node_name: str, dim: int = 1, part: slice = slice(None)) -> WidthExpr:
        """How long an axis of a node's output is, as a function of the widths of the groups.

        Parameters
        ----------
        node_name
            Name of a node of `program.graph` that yields one tensor.
        dim
            Which axis; negative counts from the last.
        part
            Which positions of the uncut network count.

        Raises
        ------
        UserError
            If there is no such node, it yields no tensor, or its tensor has no such axis.
        """
        node = self._tensor(node_name)
        shape = node.meta["val"].shape
        if not -len(shape) <= dim < len(shape):
            raise UserError(f"node '{node_name}' has {len(shape)} axes, so there is no axis {dim}")
        dim %= len(shape)
        if self._labelling.parameter_name(node) is None and self._labelling.weight_name(node) is None:
            return width_along(self._labelling.all_labels(node)[0], dim, shape[dim], self._grouping, part)
        ids = self._labelling.axis_of(node, dim)
        return WidthExpr(len(range(shape[dim])[part])) if ids is None else width_of_ids(ids[part], self._grouping)

    @property
    def meetings(self) -> tuple[Meeting, ...]:
        """Where channels of two activations are multiplied and summed over, as those of queries and keys."""
        return tuple(self._labelling.products.values())

    def positions_of(self, node_name: str, group_name: str) -> tuple[int, IntArray]:
        """Where the channels of a group are in a node's output.

        Returns
        -------
        tuple
            The axis that they run along, and an array of shape (width, multiplicity) with the positions of
            each channel on it. For a node in the group's `observed` the positions are mostly just 0 to width
            - 1, but not where its layer makes channels of several groups.

        Raises
        ------
        UserError
            If the node or the group does not exist, or the group's channels do not run along one axis of the
            node.
        """
        labels = self._labelling.of(self._tensor(node_name))
        number = self.groups.index(self.group(group_name))
        if len(labels.dims) == 1:
            (dim,) = labels.dims
            index = positions(labels.ids.ravel(), self._grouping.member, self._grouping.rank, number)
            if index.size:
                return dim, index
        raise UserError(f"the channels of '{group_name}' do not run along one axis of node '{node_name}'")

    def gone(self, keep: Mapping[str, Sequence[int]]) -> Gone:
        """Where the channels that `keep` leaves out are in the values of the uncut network."""
        return Gone(self._labelling, self._grouping, keep)

    def cut(self, model: nn.Module, keep: Mapping[str, Sequence[int]]) -> nn.Module:
        """Copy `model` with only the channels in `keep`; groups that are not in it keep all of theirs.

        Parameters
        ----------
        model
            The traced model, or one with the same parameters. It stays as it is.
        keep
            For each group that is cut, the channels that stay, in any order (they keep the network's). None of a
            group of `blocks` stay if its block is removed, which removes the block's other groups too.

        Raises
        ------
        UserError
            If a group is unknown or frozen, its indices are not whole numbers, out of range, not distinct or empty
            where there is no block to remove, or `model` is not of the shape that was traced.
        """
        model = unwrapped(model)
        removed = surgery.removed_blocks(self.blocks, keep) if any(map(surgery.is_empty, keep.values())) else ()
        gone = {name for block in removed for name in block.groups}
        checked = surgery.checked_keep(self.groups, {name: kept for name, kept in keep.items() if name not in gone})
        shapes = _shapes(model)
        for name, shape in self._shapes.items():
            if shapes.get(name) != shape:
                found = f"is of shape {shapes[name]}" if name in shapes else "does not exist"
                raise UserError(
                    f"the model is not the one that was traced: its parameter '{name}' {found}, "
                    f"not {shape}; trace it anew"
                )
        smaller = surgery.cut(
            model,
            checked.values(),
            self._attributes,
            self.widths,
            self._labelling.kept,
            self._rescalings,
            self._labelling.computed,
        )
        surgery.remove(smaller, (path for block in removed for path in block.modules))
        return smaller

    def unsupported_ops(self) -> dict[str, int]:
        """How often channels reached an op without a rule, by op; those channels are frozen."""
        return dict(self._labelling.unsupported)

    def _tensor(self, node_name: str) -> Node:
        node = self._nodes.get(node_name)
        if node is None:
            raise UserError(f"the graph has no node '{node_name}'{closest(node_name, self._nodes)}")
        if not is_tensor(node):
            raise UserError(f"node '{node_name}' does not yield one tensor")
        return node


def _require_whole(model: nn.Module, ran: nn.Module) -> None:
    """Refuse a model that makes parameters when it is first called: there is nothing of them to cut yet."""
    known = dict(model.named_parameters())
    if late := [name for name, _ in ran.named_parameters() if name not in known]:
        raise UserError(
            f"this {type(model).__name__} makes its weights '{late[0]}' when it is first called; "
            "call it once before it is traced"
        )


def _share_tensors(program: ExportedProgram, model: nn.Module) -> None:
    """Let a copy's program read the model's own weights."""
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for tensors in (program.state_dict, program.constants):
        tensors.update({name: own[name] for name in tensors.keys() & own.keys()})


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in tensors}
