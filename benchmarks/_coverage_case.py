"""One network of the coverage benchmark: traced, cut, compared with the masked one, exported and compiled."""

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
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

KEPT = 0.6
EXACT = 1e-9
# Networks that compute in float32 inside, whatever they are given: rounding differs with the order of sums.
ROUNDED = 1e-5
COMPILED = 1e-4


def examine(kind: str, name: str) -> dict[str, Any]:
    """The row of one network."""
    from _coverage_sets import build, side_of
    from _liven import enliven

    from aap_hw.graph import ChannelGraph

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    side = side_of(kind, name)
    model, image = build(kind, name), torch.zeros(1, 3, side, side)
    row: dict[str, Any] = {"model": name, "status": "fails to trace", "input": f"3x{side}x{side}"}
    began = time.process_time()
    try:
        graph = ChannelGraph.trace(model, (image,))
        traced_s = time.process_time() - began
        random = np.random.default_rng(0)
        keep = {
            group.name: random.permutation(group.width)[: max(1, round(KEPT * group.width))].tolist()
            for group in graph.groups
            if group.frozen is None
        }
        frozen = [group for group in graph.groups if group.frozen is not None]
        reasons = Counter(_short(group.frozen) for group in frozen)
        row |= {
            "groups": len(graph.groups),
            "frozen": len(frozen),
            "prunable_share": _prunable_share(model, graph),
            "frozen_because": "; ".join(f"{count} {reason}" for reason, count in reasons.most_common()),
        }
        row["status"] = "fails to cut"
        enliven(model.double(), (torch.randn(4, 3, side, side, dtype=torch.float64),))
        began = time.process_time()
        smaller = graph.cut(model, keep)
        row["seconds"] = traced_s + time.process_time() - began
        images = torch.randn(2, 3, side, side, dtype=torch.float64)
        macs = _macs(model, images)
        row["status"] = "the cut network fails"
        row["achieved_macs"] = _macs(smaller, images) / macs
        actual = _outputs(smaller, images)
        _silence(model, graph, keep)  # from here on the whole network is the masked one
        expected = _outputs(model, images)
        largest = max(float(value.abs().max()) for value in expected)
        error = max(float((a - b).abs().max()) for a, b in zip(actual, expected, strict=True))
        row["max_error"] = error / max(1.0, largest)
        limit = ROUNDED if _rounds(graph) else EXACT
        if not row["max_error"] <= limit or not largest > 0:
            return {**row, "status": "wrong"}
        del model, graph, expected, actual
        smaller.float()
        row["status"] = "fails to export"
        torch.export.export(smaller, (image,), strict=False)
        row |= {"exported": True, "status": "fails to compile"}
        return row | _compiled(smaller, images[:1].float())
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return {**row, "reason": f"{type(error).__name__}: {first[:200]}"}


def _compiled(model: nn.Module, image: Tensor) -> dict[str, Any]:
    from aap_hw.compile.keys.target import CpuTarget, host_options
    from aap_hw.compile.library.lowering import compile_network
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice

    expected = _outputs(model, image)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "network.so"
        network = compile_network(model, image, CpuTarget.of(host_options(), 1), library)
        compile_s = time.process_time() - began
        loaded = LocalDevice(load_profile("x86").model_copy(update={"threads": 1})).load(library)
        loaded.set_inputs("main", [image.numpy()])
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


def _prunable_share(model: nn.Module, graph: Any) -> float:
    """Share of the convolutions' filters that are in a group that can be cut."""
    layers = (nn.modules.conv._ConvNd,)
    filters = {f"{name}.weight": m.out_channels for name, m in model.named_modules() if isinstance(m, layers)}
    roles = ("out", "depthwise")
    axes = [axis for group in graph.groups if group.frozen is None for axis in group.axes if axis.role in roles]
    return sum(axis.index.size for axis in axes if axis.parameter in filters) / max(1, sum(filters.values()))


@torch.no_grad()
def _silence(model: nn.Module, graph: Any, keep: dict[str, list[int]]) -> None:
    """Nothing reads the channels that were left out."""
    tensors = dict(model.named_parameters())
    for name, kept in keep.items():
        group = graph.group(name)
        gone = np.setdiff1d(np.arange(group.width), kept)
        for axis in group.axes:
            if axis.role == "in":
                tensors[axis.parameter].index_fill_(axis.dim, torch.from_numpy(axis.index[gone].ravel()), 0.0)


def _rounds(graph: Any) -> bool:
    """Whether the network converts to float32 somewhere inside."""
    return any(
        node.op == "call_function" and torch.float32 in (*node.args, *node.kwargs.values())
        for node in graph.program.graph.nodes
    )


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    from aap_hw.graph.outputs import output_tensors

    return output_tensors(model(images))


def _macs(model: nn.Module, images: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return int(counter.get_total_flops() // 2)


def _short(reason: str) -> str:
    """A reason without the node that it names, which differs from block to block."""
    sentence, _, place = reason.rpartition(" (")
    parts = [part for part in place.rstrip(")").split(", ") if not part.startswith("node ")]
    return f"{sentence} ({', '.join(parts)})"
