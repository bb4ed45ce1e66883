"""A check of a device by folder finds what is computed wrong, and its results are a table."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import nn

import aap_hw.compile.gpu
from aap_hw.compile.families import FAMILIES
from aap_hw.compile.families.slow import LIBRARIES
from aap_hw.compile.gpu.cubin import kernels_of
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FP32
from aap_hw.device import load_profile
from aap_hw.device.facts import Facts
from aap_hw.device.profile import TargetSpec
from aap_hw.errors import UserError
from aap_hw.files import sha256_of
from aap_hw.models import zoo
from aap_hw.pack import timing
from aap_hw.pack.beside import module_of
from aap_hw.pack.checks import FAMILY_POINTS, pack_check
from aap_hw.pack.folder import Packed
from aap_hw.pack.lightening import lighten
from aap_hw.pack.programs import program_of
from aap_hw.pack.run import Refused, digest_of
from aap_hw.pack.tables import read_check
from tests.compile.running import randomise
from tests.device.pretended_gpu import NAME, pretended_gpu
from tests.lut import tiny

FEW = dict(list(FAMILY_POINTS.items())[:4])
# Of one spelling: code of a family's other operators is made in the same way.
ALIKE = {"relu6", "silu", "sigmoid", "hardsigmoid", "hardswish", "cast", "mul", "sum_pool2d", "l2_norm", "rnn_relu"}
ALIKE |= {"channel_slice"}


def test_every_family_that_a_gpu_has_is_checked() -> None:
    assert aap_hw.compile.gpu.KERNELS
    tried = {KernelKey.parse(f"{text} float32 batch=1").op for text in FAMILY_POINTS}
    of_bytes = {"quantize", "dequantize"}
    assert set(FAMILIES) - set(LIBRARIES) - of_bytes - ALIKE == tried


def small(name: str) -> zoo.ZooModel:
    """A network that is compiled in a second."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 24, 3, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    return zoo.ZooModel(name, randomise(module), (3, 9, 9), 4)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("check") / "pack"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "build", small)
        return pack_check(folder, tiny.device().profile, ["small"], precisions=(FP32,), families=FEW, workers=1)


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, folder / "run.py"], {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def returned(packed: Packed) -> Path:
    """A pack that was run where one of six outputs is wrong: it was packed so."""
    folder = packed.folder
    with np.load(folder / "values.npz") as archive:
        values = dict(archive)
    values["point_2"][..., 3] += 0.5
    stream = io.BytesIO()
    np.savez(stream, **values)
    (folder / "values.npz").write_bytes(stream.getvalue())
    pack = json.loads((folder / "pack.json").read_text())
    pack["sha256"]["values.npz"] = sha256_of(folder / "values.npz")
    pack["digest"] = digest_of(pack)
    (folder / "pack.json").write_text(json.dumps(pack))
    done = run(folder)
    assert done.returncode == 1, done.stderr
    wrong, *_, right, told = [
        line for line in done.stdout.splitlines() if line.split()[0] in ("WRONG:", "5", "everything")
    ]
    assert wrong.startswith("WRONG: linear - epilogue=bias float32 batch=1 at 64 -> 48 differs by 0.5, more than")
    assert right == "5 of 6 outputs are right"
    assert told == f"everything is timed; carry {folder / 'results.json'} back"
    return folder


def test_what_is_computed_wrong_has_no_latency(returned: Path) -> None:
    with pytest.raises(UserError, match="1 of 6 outputs are wrong there, linear"):
        read_check(returned / "results.json")


def test_results_of_a_check_are_a_table_that_can_be_merged(
    aap_hw: Callable[..., Any], returned: Path, tmp_path: Path
) -> None:
    results = json.loads((returned / "results.json").read_text())
    for check in results["checks"]:
        check["right"] = True
    path = tmp_path / "right.json"
    path.write_text(json.dumps(results))
    table = read_check(path)
    assert [(v.model, v.plan) for v in table.validation] == [("small", "dense"), ("small", "pruned")]
    dense, pruned = table.validation
    assert sum(pruned.widths.values()) < sum(dense.widths.values())
    assert table.device["provenance"] == "measured"
    merged = aap_hw("lut", "merge", str(path), str(path), "--out", str(tmp_path / "both.json"))
    assert merged.code == 0, merged.err
    assert f"both.json: {len(table)} points of {len(table.points)} kernels" in merged.out
    refused = aap_hw(
        "profile",
        "--device",
        "x86",
        "--model",
        "resnet20",
        "--unpack",
        str(returned),
        "--out",
        str(tmp_path / "table.json"),
    )
    assert refused.code == 2
    assert "was not packed by 'aap-hw profile --pack'" in refused.err


@pytest.mark.skipif(tvm.cuda(0).exist, reason="there is a GPU here")
def test_machine_without_a_gpu_is_told_what_it_takes() -> None:
    with pytest.raises(Refused, match=r"TVM cannot use a GPU here \(libcuda.so.1.*pip install nvidia-cuda-runtime"):
        timing._device_of({"accelerator": "cuda", "arch": "sm_90"})


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"facts": {"cpu": "another CPU", "emulated": False}}, "was begun on another CPU and this is a CPU; delete it"),
        ({"facts": {"cpu": "a CPU", "emulated": True}}, r"was begun on a CPU \(emulated\) and this is a CPU; delete"),
        ({"gpu": "a GPU"}, "was begun on a CPU with a GPU and this is a CPU; delete it to begin anew"),
    ],
)
def test_half_done_work_does_not_go_on_on_another_machine(tmp_path: Path, other: dict[str, Any], sentence: str) -> None:
    here, pack = Facts("a CPU", emulated=False, tvm=None, free_memory_mb=None), {"digest": "0"}
    results = timing._Results(tmp_path, pack)
    results.begin_on(here, None)
    results.write()
    timing._Results(tmp_path, pack).begin_on(here, None)
    results.document.update(other)
    results.write()
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(Refused, match=sentence):
        timing._Results(tmp_path, pack).begin_on(here, None)
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.slow  # tests/compile/test_gpu.py makes such code without a pack
def test_pack_for_a_gpu_holds_its_machine_code_and_says_what_it_takes(tmp_path: Path) -> None:
    fields = {"kind": "cuda", "arch": "sm_90", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"}
    profile = load_profile("cuda").model_copy(update={"target": TargetSpec(**fields)})
    few = dict(list(FEW.items())[:2])
    made = pack_check(tmp_path / "pack", profile, [], families=few, workers=1)
    pack = json.loads((made.folder / "pack.json").read_text())
    assert pack["requires"]["arch"] == "sm_90"
    assert pack["requires"]["cpu_features"] == [], "any server's CPU"
    (library,) = pack["libraries"]
    kernels = kernels_of(gzip.decompress((made.folder / library["cubin"]).read_bytes()))
    assert {name.split("_")[1] for name in kernels} == {str(i) for i in range(made.points)}
    in_half = [point["kernel"] for point in library["points"] if " float16 " in point["kernel"]]
    assert len(in_half) == 2
    # All but the kernels themselves: TVM's run time and virtual machine, machine code as it is asked for, CUDA's timer.
    pretended = pretended_gpu(tmp_path)
    done = run(made.folder, **pretended, PRETENDED_ARCH="80")
    assert done.stderr == (
        "refused: the pack is for a GPU of sm_90 and this machine's is of sm_80; pack it for sm_80\n"
    )
    done = run(made.folder, **pretended)
    assert done.returncode == 1, done.stderr
    assert f"0 of {made.points} outputs are right" in done.stdout
    results = json.loads((made.folder / "results.json").read_text())
    assert (results["finished"], results["gpu"]) == (True, NAME)


def test_lighter_network_computes_what_its_program_says_and_nearly_what_it_did() -> None:
    model = zoo.build("mobilenetv2_cifar")
    image = torch.randn(2, *model.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.module(image)
        lighten(model.module)
        after = model.module(image)
    weights = [m.weight for m in model.module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert all((torch.frexp(weight)[0] * 8 % 1 == 0).all() for weight in weights)
    assert torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1] > 0.8
    program = program_of(model.module, (image,), "float32")
    assert program is not None
    made = module_of(json.loads(json.dumps(program)))
    state = dict(model.module.named_parameters()) | dict(model.module.named_buffers())
    for buffer, tensor in zip(made.buffers(), of_shapes(program, state), strict=True):
        buffer.copy_(tensor)
    with torch.no_grad():
        torch.testing.assert_close(made(image)[0], after)


def of_shapes(program: dict[str, Any], state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The tensors of a state that the weights of its program are, found by their names."""
    by_name = {name.replace(".", "_").lower(): tensor.detach() for name, tensor in state.items()}
    names = [node["name"] for node in program["nodes"] if "shape" in node]
    return [by_name[name.split("_", 1)[1].lower()] for name in names]
