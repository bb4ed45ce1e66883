"""Runs on the emulated board: one inference by one engine between two marks, which a plugin of QEMU counts.

    python3 _arm_guest.py ours|onnxruntime|litert NETWORK IMAGE.npy FOLDER

One thread. The outputs go to ``outputs.npy`` in the folder, and where files lie in memory to ``maps``. It needs nothing
of aap-hw, which the board has not got.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

MARK = 0x5AA50000  # as in _count_blocks.c
# The first call also arranges weights and memory.
CALLS_BEFORE = 1

Call = Callable[[], np.ndarray]


def main() -> None:
    engine, network, image, folder = sys.argv[1], sys.argv[2], np.load(sys.argv[3]), Path(sys.argv[4])
    call = {"ours": ours, "onnxruntime": onnxruntime, "litert": litert}[engine](network, image)
    for _ in range(CALLS_BEFORE):
        call()
    mark(0)
    outputs = call()
    mark(1)
    np.save(folder / "outputs.npy", outputs)
    (folder / "maps").write_text(Path("/proc/self/maps").read_text())


def mark(number: int) -> None:
    with suppress(ProcessLookupError):
        os.getpriority(os.PRIO_PROCESS, MARK + number)


def ours(network: str, image: np.ndarray) -> Call:
    """A library that aap-hw has compiled."""
    import tvm
    from tvm.runtime.vm import VirtualMachine

    machine = VirtualMachine(tvm.runtime.load_module(network), tvm.cpu())
    machine.set_input("main", tvm.runtime.tensor(image))

    def call() -> np.ndarray:
        machine.invoke_stateful("main")
        outputs: Any = machine.get_outputs("main")
        return np.asarray((outputs if hasattr(outputs, "numpy") else outputs[0]).numpy())

    return call


def onnxruntime(network: str, image: np.ndarray) -> Call:
    """An ONNX file, with all graph optimisations."""
    import onnxruntime as runtime

    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = runtime.InferenceSession(network, settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image}
    return lambda: np.asarray(session.run(None, feed)[0])


def litert(network: str, image: np.ndarray) -> Call:
    """A LiteRT file, which XNNPACK runs; its image is (N, H, W, C)."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=network, num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(taken["index"], quantised(np.ascontiguousarray(image.transpose(0, 2, 3, 1)), taken))

    def call() -> np.ndarray:
        interpreter.invoke()
        return np.asarray(interpreter.get_tensor(made["index"]))

    return call


def quantised(values: np.ndarray, place: dict[str, Any]) -> np.ndarray:
    """Values as an engine's input wants them."""
    if place["dtype"] == np.float32:
        return values
    scale, zero = place["quantization"]
    limits = np.iinfo(place["dtype"])
    return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(place["dtype"])


main()
