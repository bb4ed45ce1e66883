"""One network of the coverage benchmark: traced, cut, compared with the uncut one, exported and compiled."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _multiply_accumulates import multiply_accumulates, share_in_groups
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.silenced import Silenced
from aap_hw.graph.program.exporting import export
from aap_hw.graph.program.outputs import output_tensors

KEPT = 0.6
EXACT = 1e-9
# Networks that compute in float32 inside, whatever they are given: rounding differs with the order of sums.
ROUNDED = 1e-5
COMPILED = 1e-4


def examine(kind: str, name: str, *, to_compile: bool = True) -> dict[str, Any]:
    """The row of one network; without its kernels if they are not to be compiled."""
    from _coverage_sets import network
    from _liven import enliven

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    found = network(kind, name)
    model, example = found.build().eval(), tuple(torch.zeros_like(each) for each in found.inputs())
    row: dict[str, Any] = {
        "model": name,
        "status": "fails to trace",
        "input": ",".join("x".join(map(str, shape)) for shape in found.shapes),
    }
    try:
        enliven(model, found.inputs(4))  # first, as some networks keep what they compute of their weights
        began = time.process_time()
        graph = ChannelGraph.trace(model, example)
        traced_s = time.process_time() - began
        row |= _groups(model, graph) | {"status": "fails to cut"}
        model.double()
        random = np.random.default_rng(0)
        keep = {
            group.name: random.permutation(group.width)[: max(1, round(KEPT * group.width))].tolist()
            for group in graph.groups
            if group.frozen is None
        }
        began = time.process_time()
        smaller = graph.cut(model, keep)
        row["seconds"] = traced_s + time.process_time() - began
        row["status"] = "the cut network fails"
        samples = [_in(torch.float64, found.inputs()) for _ in range(2)]
        row["max_error"], is_alive = _difference(smaller, Silenced(graph, model, keep), samples)
        if not row["max_error"] <= (ROUNDED if _rounds(graph) else EXACT) or not is_alive:
            return {**row, "status": "wrong"}
        row["status"] = "fails to partition"
        row |= _in_groups(graph.frozen(partition(graph).fixed))
        macs = sum(multiply_accumulates(graph.program).values())
        del model, graph
        smaller.float()
        row["status"] = "fails to export"
        program = export(smaller, example)
        row["achieved_macs"] = sum(multiply_accumulates(program).values()) / macs
        row |= {"exported": True, "status": "fails to compile"}
        return row | (_compiled(smaller, _in(torch.float32, samples[0])) if to_compile else {"status": "ok"})
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return {**row, "reason": f"{type(error).__name__}: {first[:200]}"}


def _groups(model: nn.Module, graph: ChannelGraph) -> dict[str, Any]:
    """How many groups can be cut, and why others cannot."""
    frozen = [group for group in graph.groups if group.frozen is not None]
    reasons = Counter(_short(str(group.frozen)) for group in frozen)
    return {
        "groups": len(graph.groups),
        "frozen": len(frozen),
        "prunable_share": _prunable_share(model, graph),
        "frozen_because": "; ".join(f"{count} {reason}" for reason, count in reasons.most_common()),
    }


def _in_groups(graph: ChannelGraph) -> dict[str, Any]:
    """How many of the multiply-accumulates are in groups that can be cut, and why others are not."""
    share = share_in_groups(graph)
    reasons: Counter[str] = Counter()
    for reason, part in share.frozen.items():
        reasons[_short(reason)] += part  # type: ignore[assignment]
    return {
        "cuttable_macs_pct": 100 * share.cuttable,
        "frozen_macs_because": "; ".join(f"{part:.1%} {reason}" for reason, part in reasons.most_common()),
    }


def _in(precision: torch.dtype, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs with floats of a precision; whole numbers stay what they are."""
    return tuple(each.to(precision) if each.is_floating_point() else each for each in inputs)


def _difference(smaller: nn.Module, whole: nn.Module, samples: list[tuple[Tensor, ...]]) -> tuple[float, bool]:
    """By how much the outputs differ, as a share of the largest one, and whether there are any but zeros."""
    pairs = [pair for each in samples for pair in zip(_outputs(smaller, each), _outputs(whole, each), strict=True)]
    largest = max(float(expected.abs().max()) for _, expected in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / (largest or 1.0), largest > 0


def _compiled(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    from aap_hw.compile.keys.target import CpuTarget, host_options
    from aap_hw.compile.library.lowering import compile_network
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice

    expected = _outputs(model, inputs)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "network.so"
        network = compile_network(model, inputs, CpuTarget.of(host_options(), 1), library)
        compile_s = time.process_time() - began
        loaded = LocalDevice(load_profile("x86").model_copy(update={"threads": 1})).load(library)
        loaded.set_inputs("main", [each.numpy() for each in inputs])
        actual = [torch.from_numpy(output) for output in loaded.run("main")]
    largest = max(float(output.abs().max()) for output in expected)
    difference = max(float((a - b).abs().max()) for a, b in zip(actual, expected, strict=True)) / largest
    right = difference <= COMPILED
    return {
        "status": "ok" if right else "wrong",
        "compiled": right,
        "compiled_difference": difference,
        "kernels": len(network.kernels),
        "slow_path": network.slow_path,
        "compile_s": compile_s,
    }


def _prunable_share(model: nn.Module, graph: ChannelGraph) -> float:
    """Share of the filters of convolutions and linear layers that are in a group that can be cut."""
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    filters = {
        f"{name}.weight": m.out_features if isinstance(m, nn.Linear) else m.out_channels
        for name, m in model.named_modules()
        if isinstance(m, layers)
    }
    roles = ("out", "depthwise")
    axes = [axis for group in graph.groups if group.frozen is None for axis in group.axes if axis.role in roles]
    return sum(axis.index.size for axis in axes if axis.parameter in filters) / max(1, sum(filters.values()))


def _rounds(graph: ChannelGraph) -> bool:
    """Whether the network converts to float32 somewhere inside."""
    return any(
        node.op == "call_function" and torch.float32 in (*node.args, *node.kwargs.values())
        for node in graph.program.graph.nodes
    )


@torch.no_grad()
def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return output_tensors(model(*inputs))


def _short(reason: str) -> str:
    """A reason without the node that it names, which differs from block to block."""
    sentence, _, place = reason.rpartition(" (")
    parts = [part for part in place.rstrip(")").split(", ") if not part.startswith("node ")]
    return f"{sentence} ({', '.join(parts)})"
