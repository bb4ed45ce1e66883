"""The engines that benchmarks time in turn, each as a call that runs a network on inputs that are in place already.

fp32, one image a call unless the inputs hold more. Outputs come as NumPy arrays, in the order in which PyTorch returns
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from aap_hw.device.connection import LocalDevice

SAMPLE_S = 0.05
SPINNING_S = 0.1

Inputs = tuple[torch.Tensor, ...]
Call = Callable[[], list[np.ndarray]]
Engine = Callable[[nn.Module, Inputs, int, Path], Call]
"""From a network, its inputs, a number of threads and a folder to keep files in."""


def ours(model: nn.Module, inputs: Inputs, threads: int, folder: Path) -> Call:
    """The network compiled for this machine by aap-hw."""
    from aap_hw.compile.library.lowering import compile_network

    device = device_of(threads)
    compile_network(model, inputs, device.target, folder / "ours.so")
    return our_call(folder / "ours.so", [each.numpy() for each in inputs], threads)


def our_call(path: Path, inputs: Sequence[np.ndarray], threads: int) -> Call:
    """A network that aap-hw has compiled for this machine."""
    library = device_of(threads).load(path)
    library.set_inputs("main", list(inputs))
    return lambda: library.run("main")


def device_of(threads: int) -> LocalDevice:
    """This machine with so many threads."""
    from aap_hw.device import load_profile
    from aap_hw.device.connection import LocalDevice

    return LocalDevice(load_profile("x86").model_copy(update={"threads": threads}))


def kernel_times(library: Path, inputs: Inputs, calls: int) -> dict[str, float]:
    """Seconds that each kernel of a compiled library takes in some calls, by the names of its functions."""
    import tvm
    from tvm.runtime.vm import VirtualMachine

    machine, took, began = VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu()), dict[str, float](), [0.0]

    def timed(function: object, name: str, before: bool, result: object, *arguments: object) -> None:
        if before:
            began[0] = time.perf_counter()
        else:
            took[name] = took.get(name, 0.0) + time.perf_counter() - began[0]

    machine.set_input("main", *[tvm.runtime.tensor(each.numpy()) for each in inputs])
    machine.invoke_stateful("main")
    machine.set_instrument(timed)
    for _ in range(calls):
        machine.invoke_stateful("main")
    return took


def onnxruntime(model: nn.Module, inputs: Inputs, threads: int, folder: Path) -> Call:
    """ONNX Runtime, with all graph optimisations."""
    return onnxruntime_call(onnx_file(model, inputs, folder), [each.numpy() for each in inputs], threads)


def onnxruntime_call(path: Path, inputs: Sequence[np.ndarray], threads: int) -> Call:
    """ONNX Runtime running a file, with all graph optimisations."""
    import onnxruntime as runtime

    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feed = {place.name: each for place, each in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)


def openvino(model: nn.Module, inputs: Inputs, threads: int, folder: Path) -> Call:
    """OpenVINO, told to compute in float32: on a CPU with AVX512-BF16 it would not."""
    return openvino_call(onnx_file(model, inputs, folder), [each.numpy() for each in inputs], threads, "f32")


def openvino_call(path: Path, inputs: Sequence[np.ndarray], threads: int, precision: str | None) -> Call:
    """OpenVINO running a file; what is float in it is computed in ``precision``, by default as OpenVINO likes."""
    import openvino as runtime

    core = runtime.Core()
    hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    hints |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    request = core.compile_model(core.read_model(path), "CPU", hints).create_infer_request()
    for i, each in enumerate(inputs):
        request.set_input_tensor(i, runtime.Tensor(each))
    count = len(request.model_outputs) if hasattr(request, "model_outputs") else len(request.output_tensors)

    def call() -> list[np.ndarray]:
        request.infer()
        return [request.get_output_tensor(i).data for i in range(count)]

    return call


def onnx_file(model: nn.Module, inputs: Inputs, folder: Path) -> Path:
    """The network as ONNX, in the folder; made if it is not there yet."""
    path = folder / "model.onnx"
    if not path.exists():
        torch.onnx.export(model, inputs, str(path), dynamo=True, verbose=False, external_data=False)
    return path


def torch_eager(model: nn.Module, inputs: Inputs, threads: int, folder: Path) -> Call:
    """PyTorch as it is, channels last, batch normalisation folded."""
    from torch.fx.experimental.optimization import fuse

    folded = fuse(model).to(memory_format=torch.channels_last)
    pixels = [each.to(memory_format=torch.channels_last) for each in inputs]
    return lambda: [folded(*pixels).numpy()]


def torch_compile(model: nn.Module, inputs: Inputs, threads: int, folder: Path) -> Call:
    """PyTorch's own compiler."""
    compiled = torch.compile(model)
    return lambda: [compiled(*inputs).numpy()]


def tvm_default(model: nn.Module, inputs: Inputs, threads: int, folder: Path) -> Call:
    """TVM without schedules of ours."""
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    with torch.no_grad():
        module = from_exported_program(torch.export.export(model, inputs), keep_params_as_input=False)
    target = device_of(threads).target.tvm
    machine = relax.VirtualMachine(tvm.compile(module, target=target), tvm.cpu())
    tensors = [tvm.runtime.tensor(each.numpy()) for each in inputs]
    return lambda: [each.numpy() for each in machine["main"](*tensors)]


ENGINES: dict[str, Engine] = {
    "ours": ours,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "torch": torch_eager,
    "torch_compile": torch_compile,
    "tvm_default": tvm_default,
}


def milliseconds(call: Call) -> float:
    """Mean time of calls for about a twentieth of a second, after one that warms the caches.

    Thread pools of whoever was called before go on spinning for a while, on the cores that this one needs.
    """
    time.sleep(SPINNING_S)
    call()
    began = time.perf_counter()
    count = 0
    while count == 0 or time.perf_counter() - began < SAMPLE_S:
        call()
        count += 1
    return (time.perf_counter() - began) / count * 1e3
