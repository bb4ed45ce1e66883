"""A network of layers in int8 and in half precision computes what PyTorch does with both roundings, and is deployed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.precision import INT8, INT8_HALF, MIXED_HALF, PRECISIONS
from aap_hw.compile.library.lowering import compile_network
from aap_hw.deploy import deployable, deploying
from aap_hw.deploy.run_form import form_of_run
from aap_hw.device import load_profile
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.prune.job import EMBEDDED, Job, Limit, start
from aap_hw.prune.run import RunFolder
from aap_hw.prune.task import PruneSettings
from aap_hw.quantize import calibrated, for_timing, rounded
from aap_hw.quantize.halved import halved_beside_int8
from aap_hw.train.settings import TrainSettings
from tests.compile.running import needs_bfloat16, randomise
from tests.prune.small import INPUTS, images, mixed_table, origin_in, show_few
from tests.synthetic import this_device


class Both(nn.Module):
    """Ways from bytes to half precision and back: dense and depthwise layers, gates, residuals, a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.one, self.two = nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 24, 1)
        self.deep, self.wide = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 70, 1)
        self.deeper, self.narrow = nn.Conv2d(70, 70, 3, padding=1, groups=70), nn.Conv2d(70, 24, 1)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.one(x) + x)
        x = F.hardswish(self.deep(F.relu(self.two(x))))
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = x + self.narrow(F.relu6(self.deeper(F.relu6(self.wide(x)))))
        x = torch.cat([F.softmax(x[:, :12], 1), F.max_pool2d(x[:, 12:], 3, 1, 1)], 1)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


# Layers in half precision, whose neighbours on either side are in int8.
HALVES = [("one", "wide", "excite", "head"), ("stem", "deep", "narrow", "squeeze")]


@needs_bfloat16
@pytest.mark.parametrize("floats", HALVES, ids="-".join)
def test_the_library_rounds_where_pytorch_does(floats: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = randomise(Both()), torch.randn(24, 1, 3, 16, 16)
    floating, quantisation = calibrated(model, INPUTS, [(image,) for image in images[8:]], floats).of(model, INPUTS)
    target = this_device().target
    network = compile_network(
        floating, INPUTS.zeros(), target, tmp_path / "both.so", (), quantisation, precision=INT8_HALF
    )
    types = {port.name: "float32" for port in network.inputs}
    for kernel in network.kernels:
        assert {types[name] for name in kernel.inputs} == {PRECISIONS[kernel.key.precision].read}, kernel.key
        types[kernel.name] = PRECISIONS[kernel.key.precision].made
    in_half = {kernel.weight for kernel in network.kernels if kernel.key.types.read == "bfloat16" and kernel.weight}
    assert in_half == {f"{layer}.weight" for layer in floats}
    assert network.precision == INT8_HALF

    both, bytes_alone = (
        halved_beside_int8((floating, quantisation), INPUTS.zeros(), target),
        rounded(floating, quantisation),
    )
    loaded = this_device().load(tmp_path / "both.so")
    apart, moved = 0.0, 0.0
    for image in images[:8]:
        loaded.set_inputs("main", [image.numpy()])
        made = torch.from_numpy(loaded.run("main")[0].copy())
        with torch.no_grad():
            expected, without = both(image), bytes_alone(image)
        apart += float((made - expected).square().mean())
        moved += float((expected - without).square().mean())
    assert apart < 0.01 * moved  # but for sums in another order, they are equal


@needs_bfloat16
def test_a_plan_of_int8_and_half_precision_is_pruned_and_deployed_as_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_few(monkeypatch)
    monkeypatch.setattr(deployable, "CHECKED_PIXELS", 40 * 16 * 16)
    origin = origin_in(tmp_path)
    graph = ChannelGraph.trace(origin.build(), INPUTS.zeros())
    table = mixed_table(graph, MIXED_HALF, target={"kind": "llvm", "mcpu": "znver4"})
    training = TrainSettings(epochs=1, batch_size=24)
    settings = PruneSettings(1, 32, precision=MIXED_HALF, training=training)
    done = start(Job(origin, EMBEDDED, {"latency": Limit(0.7, True)}, settings=settings), table, tmp_path / "run")
    record, summary = done.network.record, done.summary
    assert (summary["precision"], record["precision"], done.network.precision) == (MIXED_HALF, MIXED_HALF, INT8_HALF)
    assert record["quantisation"]["floats"] == ["3", "6"]
    lines = map(json.loads, (tmp_path / "run" / "journal.jsonl").read_text().splitlines())
    plan = next(line["value"]["plan"] for line in lines if line["name"] == "round/1/plan")
    assert plan["precisions"] == {"input of 0": "int8", "0": "half", "3": "half", "6": "int8"}

    deployed = deploying.deploy(RunFolder(tmp_path / "run"), this_device(), images(), tmp_path / "bundle", pixels=True)
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert deployed.precision == manifest["precision"] == INT8_HALF
    assert manifest["inputs"][0]["passed_as"] == "uint8"
    assert "avx512_bf16" in manifest["requires"]["cpu_features"]
    assert deployed.max_abs_diff < manifest["outputs"][0]["tolerance"] < 1
    # The library has the kernels that were planned.
    program, scales = for_timing(done.network.module, INPUTS, record["quantisation"]["floats"])
    network = partition(ChannelGraph.trace(program, INPUTS.zeros()), INT8_HALF, scales)
    planned = [(row["key"], row["width_in"], row["width_out"]) for row in plan["kernels"]]
    assert [(str(k.key), *k.at(network.dense).widths) for k in network.kernels] == planned
    with pytest.raises(UserError, match=r"a network in int8,half cannot be exported; give --precision fp32 or int8"):
        form_of_run(done.network, images(), None, None)
    assert form_of_run(done.network, images(), "int8", load_profile("rpi4")).precision == INT8
    with pytest.raises(UserError, match="has no instructions for half precision"):
        form_of_run(done.network, images(), None, load_profile("rpi4"))
