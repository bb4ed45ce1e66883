"""Proves that kernels for GPUs equal PyTorch's operators and are valid CUDA, on a machine without a GPU.

What dlight made of them is run on the CPU, its blocks and threads one after the other (`series`). That no two threads
disturb each other, and that the GPU is quick, is not shown here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
import tvm_ffi
from torch import nn
from tvm import tirx

from aap_hw.compile.code.function import KernelFunction
from aap_hw.compile.front.partition import partition
from aap_hw.compile.gpu import cubin
from aap_hw.compile.gpu.cubin import compile_cubin, kernels_of
from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import GpuTarget, device_target
from aap_hw.compile.library.build import build_kernel, cubin_beside
from aap_hw.compile.library.footprint import moments
from aap_hw.compile.library.lowering import compile_network, lower_network
from aap_hw.errors import Fault, UserError
from aap_hw.graph import ChannelGraph
from aap_hw.lut.compiling import compile_batch
from aap_hw.pack.checks import FAMILY_POINTS
from tests.compile.light import BATCH, CASES, HEIGHT, LIGHT_KERNELS, WIDTH, Case, nhwc, random_images
from tests.compile.running import Convolution, assert_convolutions_equal_pytorch, compiled, target

CHANNELS = 13
ORIN = device_target({"tag": "nvidia/jetson-agx-orin-64gb"}, 1)
# Its library is for this machine's CPU: nothing has to be linked for another.
HERE = device_target({"kind": "cuda", "arch": "sm_80"}, 1)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def has_threads(code: tirx.PrimFunc) -> bool:
    return "threadIdx" in code.script()


def expected_of(case: Case) -> tuple[list[torch.Tensor], torch.Tensor]:
    images = [image - 3 * (case.name == "max_pool2d") for image in random_images(case.inputs, CHANNELS)]
    return images, case.operator(*[image.double() for image in images])


def function_of(case: Case) -> KernelFunction:
    key = KernelKey.make(case.name, (HEIGHT, WIDTH), BATCH, **case.attributes)
    made = expected_of(case)[1].shape[1]
    return build_kernel(Address(key, (made if case.name == "interleave" else CHANNELS, made)), ORIN)


def run(kernel: Any, function: KernelFunction, inputs: Sequence[np.ndarray]) -> np.ndarray:
    output = tvm.runtime.tensor(np.full(function.output_shape, np.nan, "float32"))
    kernel(*[tvm.runtime.tensor(np.ascontiguousarray(array, dtype="float32")) for array in inputs], output)
    result: np.ndarray = output.numpy()
    return result


def test_light_kernels_equal_pytorch() -> None:
    functions = [function_of(case) for case in CASES]
    for case, function, kernel in zip(CASES, functions, compiled(functions), strict=True):
        assert has_threads(function.code), case
        images, expected = expected_of(case)
        actual = run(kernel, function, [x.numpy() if case.name == "to_nhwc" else nhwc(x).numpy() for x in images])
        actual = actual if case.name == "to_nchw" else actual.transpose(0, 3, 1, 2)
        assert actual.shape == expected.shape, case
        assert np.abs(actual - expected.numpy()).max() <= 1e-5, case


def test_kernels_with_several_kinds_of_arguments_equal_pytorch() -> None:
    size, widths = (HEIGHT, WIDTH), (7, 1, 13)
    image, other = random_images(2, CHANNELS)
    parts = [random_images(1, width)[0] for width in widths]
    gate, scale, shift = torch.rand(BATCH, CHANNELS, 1, 1), torch.rand(21), torch.randn(21)
    few = scale[:CHANNELS], shift[:CHANNELS]
    vectors = 60 * torch.randn(BATCH, 17, 1, 1)

    def factors(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.relu(x.double() * a[:, None, None] + b[:, None, None])

    shuffled = torch.stack([image, other], 1).flatten(1, 2)
    cases: list[tuple[KernelKey, int, list[torch.Tensor], torch.Tensor]] = [
        (KernelKey.make("scale_channels", size, BATCH), 13, [nhwc(image), nhwc(gate)], image.double() * gate),
        (KernelKey.make("affine", size, BATCH, epilogue=("relu",)), 13, [nhwc(image), *few], factors(image, *few)),
        (KernelKey.make("concat", size, BATCH, parts=3), 21, [nhwc(x) for x in parts], torch.cat(parts, 1)),
        (
            KernelKey.make("concat", size, BATCH, parts=3, epilogue=("affine", "relu")),
            21, [*[nhwc(x) for x in parts], scale, shift], factors(torch.cat(parts, 1), scale, shift),
        ),
        (
            KernelKey.make("channel_shuffle", size, BATCH, groups=2),
            26, [nhwc(shuffled)], torch.nn.ChannelShuffle(2)(shuffled),
        ),
        (KernelKey.make("softmax", (), BATCH), 17, [nhwc(vectors)], vectors.double().softmax(1)),
    ]  # fmt: skip
    functions = [build_kernel(Address(key, (width, width)), ORIN) for key, width, *_ in cases]
    kernels = compiled(functions)
    for i, (key, _, inputs, expected) in enumerate(cases):
        actual = run(kernels[i], functions[i], [tensor.numpy() for tensor in inputs]).transpose(0, 3, 1, 2)
        assert np.abs(actual - expected.numpy()).max() <= 1e-5, key
    tried = {case.name for case in CASES} | {key.op for key, *_ in cases}
    assert tried == LIGHT_KERNELS


CONVOLUTIONS = [
    Convolution(24, 40, kernel=(1, 1), padding=(0, 0), epilogue=("bias", "relu6")),
    Convolution(7, 13, batch=2, epilogue=("bias", "add", "relu")),
    Convolution(3, 16, stride=(2, 2), planar=True, epilogue=("bias", "relu")),
    Convolution(9, 5, (7, 9), (5, 3), (1, 2), (2, 0), (2, 1)),
    Convolution(3, 5, kernel=(1, 1), padding=(0, 0), planar=True),
    Convolution(13, 13, depthwise=True, epilogue=("bias", "relu6")),
    Convolution(9, 9, (9, 9), (5, 5), (2, 2), (2, 2), batch=2, depthwise=True, epilogue=("bias", "add")),
    Convolution(40, 30, (1, 1), (1, 1), padding=(0, 0)),
]  # fmt: skip


def test_convolutions_equal_pytorch() -> None:
    assert_convolutions_equal_pytorch(CONVOLUTIONS, on=ORIN)


class Branching(nn.Module):
    """Convolutions of all kinds, a residual, a concatenation of two widths and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem, self.grouped = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 1, 1, groups=4)
        self.depthwise, self.narrow = nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.Conv2d(12, 6, 1)
        self.linear = nn.Linear(18, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.grouped(x) + x)
        x = torch.cat([self.narrow(self.depthwise(x)), x], 1)
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="module")
def branching() -> nn.Module:
    return Branching().eval()


def test_whole_network_equals_pytorch(branching: nn.Module, tmp_path: Path) -> None:
    """The Relax module that calls the GPU's kernels, with their threads one after the other, and the CPU's runtime."""
    image = torch.randn(1, 3, 12, 12)
    graph = ChannelGraph.trace(branching, (image,))
    network = partition(graph)
    state = {name: tensor.detach() for name, tensor in graph.program.state_dict.items()}
    module = lower_network(network, network.dense, state, HERE)
    assert {moment.held[-1].step for moment in moments(network, target())} == {1, 8}
    assert {moment.held[-1].step for moment in moments(network, HERE)} == {1}  # a GPU's images have no gaps
    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            module.update_func(name, in_series(function))
    machine = tvm.relax.VirtualMachine(tvm.compile(module, target=target().tvm), tvm.cpu())
    actual = machine["main"](tvm.runtime.tensor(image.numpy())).numpy()
    with torch.no_grad():
        expected = branching(image).numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_kernels_of_a_network_are_compiled_to_machine_code_and_all_there(branching: nn.Module, tmp_path: Path) -> None:
    network = compile_network(branching, torch.zeros(1, 3, 12, 12), HERE, tmp_path / "net.so")
    code = cubin_beside(tmp_path / "net.so").read_bytes()
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 190, "an ELF file for CUDA"
    operators = {name.rpartition("_")[0].rstrip("0123456789").rstrip("_") for name in kernels_of(code)}
    assert operators - {"reshape"} == {kernel.key.op for kernel in network.kernels}


@pytest.mark.slow
def test_points_of_a_table_are_compiled_for_a_gpu_like_any_other(tmp_path: Path) -> None:
    points = [Address(KernelKey.parse(f"{key} float32 batch=1"), widths) for key, widths in FAMILY_POINTS.items()]
    batch = compile_batch(points, HERE, 2, tmp_path / "batch.so")
    kernels = kernels_of(cubin_beside(batch.library).read_bytes())
    assert {name.split("_")[1] for name in kernels} == {str(i) for i in range(len(points))}


@pytest.fixture
def source() -> str:
    text = 'extern "C" __global__ void __launch_bounds__(32) one(float* x) { x[threadIdx.x] = 1.0f; }\n'
    return text + text.replace("one(", "two(")


def test_broken_source_is_a_fault_of_ours_with_the_compilers_words(source: str) -> None:
    with pytest.raises(Fault, match=r'do not compile for sm_87: kernels.cu\(1\): error: identifier "y" is undefined'):
        compile_cubin(source.replace("x[threadIdx.x]", "y[threadIdx.x]", 1), "sm_87")


def test_a_compiler_that_is_not_installed_is_named_with_what_installs_it(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(UserError, match=r"is not installed here .*pip install cuda-bindings nvidia-cuda-nvrtc"):
        compile_cubin(source.replace("1.0f", "3.0f"), "sm_87")


def test_what_was_compiled_once_is_not_compiled_again(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_cubin(source, "sm_87")
    assert kernels_of(first) == ("one", "two")
    monkeypatch.setattr(cubin, "_compiled", None)
    assert compile_cubin(source, "sm_87") == first
    with pytest.raises(TypeError):
        compile_cubin(source, "sm_86")
    with pytest.raises(TypeError):
        compile_cubin(source + " ", "sm_87")


def test_machine_code_that_lacks_a_kernel_is_noticed(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    less = compile_cubin(source.splitlines()[0], "sm_87")
    monkeypatch.setattr(cubin, "_compiled", lambda *_: less)
    source = source.replace("1.0f", "2.0f")
    with pytest.raises(Fault, match="has the kernels one and its source one, two"):
        compile_cubin(source, "sm_87")


def test_source_broken_on_its_way_stops_the_whole_compilation(branching: nn.Module, tmp_path: Path) -> None:
    name = "tvm_callback_cuda_postproc"  # TVM's own hook for changing a source
    tvm_ffi.register_global_func(name, lambda source, target: source.replace("blockIdx", "blokIdx"), override=True)
    try:
        with pytest.raises(Fault, match='identifier "blokIdx" is undefined'):
            compile_network(branching, torch.zeros(1, 3, 12, 12), HERE, tmp_path / "net.so")
    finally:
        tvm_ffi.registry.remove_global_func(name)
    assert not list(tmp_path.iterdir())


def test_gpu_elsewhere_is_described_without_it() -> None:
    assert isinstance(ORIN, GpuTarget)
    assert (ORIN.arch, ORIN.host.lanes, ORIN.threads) == ("sm_87", 4, 1)
    assert str(ORIN.host.tvm.attrs["mtriple"]) == "aarch64-linux-gnu"
