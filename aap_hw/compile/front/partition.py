"""Partition: an exported network becomes a list of kernels, each with what is fused into it.

The program is visited in order. The rule of each operator (`rules`) adds its kernels, and takes along later operators
that are the only readers of its result. An operator without a rule, or in a case that its rule refuses, becomes a
kernel on the slow path (`rules.slow`). Channel counts stay functions of the group widths, so that one partition serves
every width plan. What rules can ask and do is in `making`. Nothing is compiled here, and TVM is not needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch.fx import Node

from aap_hw.compile.front.aliases import writes_in_place
from aap_hw.compile.front.checks import check_calls, check_random, check_sizes, ends
from aap_hw.compile.front.half import in_half, with_half
from aap_hw.compile.front.lengths import TooManyWidths
from aap_hw.compile.front.making import Partition
from aap_hw.compile.front.network import Network, Port, with_layout_changes
from aap_hw.compile.front.pitch import with_pitched_images
from aap_hw.compile.front.precision import with_int8
from aap_hw.compile.front.program import NoKernel, is_identity, is_transparent, nodes_that_matter, state_names
from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.compile.front.rules import RULES
from aap_hw.compile.front.rules.slow import slow_kernel
from aap_hw.compile.keys.precision import BFLOAT16, FP32, OTHERS, NetworkPrecision, Scale, is_with_half
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups.blocks import Block
from aap_hw.graph.program.call import Call, is_same_view, is_tensor, shape_of
from aap_hw.graph.program.source import explain, op_name


def partition(
    graph: ChannelGraph,
    precision: NetworkPrecision = FP32,
    quantisation: Quantisation | None = None,
    without: Sequence[Block] = (),
    floats: Collection[str] = (),
    half: str = BFLOAT16,
) -> Network:
    """Split a traced network into kernels.

    With the precision `INT8`, kernels that have a form in int8 are in it where what they read is quantised. Without a
    ``quantisation``, which says what is, that is everything that lets a kernel be in int8 that gains by it, but for the
    layers ``floats``, whose weights stay in float32. Layers are named as in the model, such as ``layer1.0.conv1``. With
    the precision `HALF` they are in ``half``, ``bfloat16`` or ``float16``, where they have a form in it, and with
    `INT8_HALF` those are that are not in int8. The residual branches ``without`` are left out, as if they had been cut.

    Raises
    ------
    UserError : an operator can have no kernel; the sentence names it and its source line.
    """
    scaled = quantisation.values if quantisation is not None else ()
    return Split(graph, scaled, without).at(precision, quantisation, floats, half)


class Split:
    """A traced network as kernels in float32, from which those in other precisions are made, as often as is asked for.

    Parameters
    ----------
    scaled
        Names of values whose scales are known, which must be values of the network then.
    without
        As of `partition`, which says what is refused.
    """

    def __init__(self, graph: ChannelGraph, scaled: Collection[str] = (), without: Sequence[Block] = ()) -> None:
        nodes = nodes_that_matter(graph.program)
        inputs, self._outputs = ends(nodes, state_names(graph.program))
        check_sizes(nodes)
        check_random(nodes)
        check_calls(nodes, graph.program.graph_module)
        making = Partition(graph, nodes, inputs, scaled, without)
        taken = tuple(Port(node.name, shape_of(node), _is_image(node)) for node in inputs)
        for node, port in zip(inputs, taken, strict=True):
            # It comes in PyTorch's order: `with_layout_changes` turns it, or has its kernels read it so.
            making.placement.place(node, node.name, is_image=port.is_image)
        for node in nodes:
            if node.op == "call_function" and not making.is_void(node) and not making.is_constant(node):
                _visit(making, node)
                if writes_in_place(node) and making.placement.held_by(node):
                    _overwrite(making, node)
        returned = tuple(_returned(making, output) for output in self._outputs)
        if not making.kernels:
            raise UserError("the network computes nothing that takes time: there is no kernel in it")
        dense = {group.name: group.width for group in making.graph.groups}
        self._making, self._nodes = making, nodes
        self.floating = Network(tuple(making.kernels), taken, returned, dense, making.fixed)

    def at(
        self,
        precision: NetworkPrecision,
        quantisation: Quantisation | None = None,
        floats: Collection[str] = (),
        half: str = BFLOAT16,
    ) -> Network:
        """The network in a precision, as of `partition`."""
        network, making, placement = self.floating, self._making, self._making.placement
        named = {**{node.name: node.name for node in self._nodes}, **making.moved_behind}
        able = in_half(network) if is_with_half(precision) else frozenset[str]()
        if precision in OTHERS:
            held = None if quantisation is None else _as_held(making, self._nodes, quantisation)
            network = with_int8(network, named, held, floats)
        if able:
            network = with_half(network, named, half, able)
        # What is behind the name of an output that has to be turned.
        to_turn = [
            ""
            if placement.is_plain(output) or placement.is_moved(output)
            else placement.name_of_copy(value := placement.held_by(output), "nchw", output).removeprefix(value)
            for output in self._outputs
        ]
        network = with_pitched_images(with_layout_changes(network, to_turn))
        _require_unique_names(network)
        return network


def _require_unique_names(network: Network) -> None:
    """Refuse a network of which two values have one name: kernels read what others make by its name alone."""
    names = Counter([*(port.name for port in network.inputs), *(kernel.name for kernel in network.kernels)])
    if twice := [name for name, count in names.items() if count > 1]:
        raise UserError(
            f"two values of the compiled network would be called '{twice[0]}'; if an input of forward has that name, "
            "rename it, or else please report the network"
        )


def _visit(making: Partition, node: Node) -> None:
    """Add the kernels of one operator, unless an earlier kernel took it along."""
    making.reach(node)
    if making.is_taken(node):
        return
    if is_transparent(node) or is_identity(node):
        making.placement.same_value(node, Call(node).first)
        return
    before = making.saved()
    try:
        rule = RULES.get(Call(node).name)
        if rule is None or not rule.is_for(_tensors(making, node)):
            raise making.refused(f"the operator {op_name(node)} has no kernel yet", node)
        rule.make(making, node)
    except NoKernel:
        making.restore(before)
        if is_tensor(node):
            _slow(making, node)
        elif any(Call(user).name != "getitem" for user in node.users):
            raise


def _slow(making: Partition, node: Node) -> None:
    """Add a kernel on the slow path; if it cannot follow some widths, these are fixed, and the rule is tried again."""
    try:
        slow_kernel(making, node)
    except TooManyWidths as problem:
        making.fix(problem.groups, explain("meets a kernel that depends on more widths", node))
        _visit(making, node)


def _tensors(making: Partition, node: Node) -> list[torch.Tensor]:
    """All that an operator reads and makes, but for weights."""
    nodes = [each for each in (node, *node.all_input_nodes) if is_tensor(each) and not making.is_parameter(each)]
    return [each.meta["val"] for each in nodes]


def _overwrite(making: Partition, node: Node) -> None:
    """Let later readers of the memory that an in-place operator wrote to read its result."""
    for other in making.memory.stale_after(node):
        if not is_same_view(other, node):
            problem = "writes into a tensor of which another view is read later"
        elif making.is_constant(other):
            problem = "writes what depends on the input into a tensor of constants that is read later"
        else:
            making.placement.same_value(other, node)
            continue
        raise making.refused(f"{op_name(node)} {problem}", node, "use the form that does not work in place")


def _returned(making: Partition, output: Node) -> Port:
    placement = making.placement
    placement.make(output)
    if not placement.is_made(output):
        problem = f"the network returns {making.constant(output)}, which does not depend on the input"
        raise making.refused(problem, output, "leave it out of what forward returns")
    read = placement.value_in_order if placement.is_moved(output) else placement.value_as_it_lies
    return Port(read(output, output), shape_of(output))


def _as_held(making: Partition, nodes: Sequence[Node], quantisation: Quantisation) -> Quantisation:
    """The quantisation with the names of what holds the values, in place of those of the program's nodes."""
    by_name, scales = {node.name: node for node in nodes}, dict[str, Scale]()
    before_moving = {node: kernel for kernel, node in making.moved_behind.items()}
    for name, scale in quantisation.values.items():
        held = making.placement.held_by(by_name[name]) if name in by_name else ""
        held = held or before_moving.get(name, "")
        if not held:
            raise UserError(f"the value {name} is quantised, but no kernel of the network makes it")
        if scales.setdefault(held, scale) != scale:
            raise UserError(f"the value {name} is quantised in two ways, and a kernel makes only one")
    return replace(quantisation, values=scales)


def _is_image(node: Node) -> bool:
    return len(shape_of(node)) == 4 and bool(node.meta["val"].dtype == torch.float32)
