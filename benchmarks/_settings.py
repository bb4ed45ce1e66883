"""Each engine at its best setting of a precision: the files that it needs, and the call that is timed.

int8 is quantisation after training on the same images for all. ONNX Runtime gets quantize and dequantize operators
around each operator (unsigned values, signed weights with a scale for each channel), OpenVINO what nncf makes of the
network. What stays float there runs in the precision that the engine picks itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _deployed_set import network
from _engines import Call, device_of, onnx_file, onnxruntime_call, openvino_call, our_call
from _turns import Failure
from torch import nn

from aap_hw.graph.program.outputs import output_tensors

IMAGES = 8
OURS, OWN_FP32 = "ours", "ours_fp32"


@dataclass(frozen=True)
class Case:
    """A network, and a folder for what engines make of it.

    Attributes
    ----------
    name : as `_deployed_set.network` takes it.
    side : of the image where the name leaves that open.
    folder : for its own files.
    """

    name: str
    side: int
    folder: Path

    def prepare(self) -> None:
        """Make the weights, and what PyTorch computes with them."""
        from _liven import enliven

        torch.manual_seed(0)
        found = network(self.name, self.side)
        model = found.build().eval()
        enliven(model, tuple(torch.rand(2, *shape) for shape in found.shapes))
        torch.save(model.state_dict(), self.folder / "weights.pt")
        with torch.no_grad():
            outputs = output_tensors(model(*self.inputs()))
        np.savez(self.folder / "expected.npz", *[each.numpy() for each in outputs])

    def model(self) -> nn.Module:
        """The network with its weights."""
        model = network(self.name, self.side).build().eval()
        model.load_state_dict(torch.load(self.folder / "weights.pt"))
        return model

    def inputs(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """One sample."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.rand(1, *shape, generator=generator) for shape in network(self.name, self.side).shapes)

    def arrays(self) -> list[np.ndarray]:
        """The sample that is timed."""
        return [each.numpy() for each in self.inputs()]

    def calibration(self) -> list[tuple[torch.Tensor, ...]]:
        """The samples that ranges of values are measured on."""
        return [self.inputs(seed) for seed in range(1, IMAGES + 1)]

    def onnx(self) -> Path:
        """The network as ONNX."""
        with torch.no_grad():
            return onnx_file(self.model(), self.inputs(), self.folder)

    def correlation(self, outputs: Sequence[np.ndarray]) -> float | None:
        """Of an engine's outputs with PyTorch's, the worst of several; None if each is a single value."""
        expected = np.load(self.folder / "expected.npz").values()
        pairs = [(np.ravel(one), np.ravel(other)) for one, other in zip(outputs, expected, strict=True)]
        if not all(np.isfinite(one).all() for one, _ in pairs):
            raise Failure("not all of its outputs are numbers")
        # What is the same everywhere is correlated with nothing.
        found = [
            float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 else 0.0 for one, other in pairs if other.std() > 0
        ]
        return min(found, default=None)


@dataclass(frozen=True)
class Setting:
    """An engine at a precision.

    Attributes
    ----------
    build : makes files, for each of some numbers of threads; None if it needs nothing but ONNX.
    load : the call, with so many threads.
    packages : what must be installed, as Python imports it.
    refusal : why there is nothing to time.
    """

    build: Callable[[Case, Sequence[int]], Any]
    load: Callable[[Case, int], Call]
    packages: tuple[str, ...] = ()
    refusal: str = ""

    @property
    def missing(self) -> str:
        """Why it cannot be timed here; empty if it can."""
        absent = [name for name in self.packages if find_spec(name) is None]
        return self.refusal or (f"{', '.join(absent)} not installed" if absent else "")


def setting_of(engine: str, precision: str) -> Setting:
    """How an engine is run at a precision."""
    if engine == OURS:
        return _ours(precision)
    if engine == OWN_FP32:
        return _ours("fp32")
    return {
        ("onnxruntime", "fp32"): Setting(_onnx, _onnxruntime("model.onnx"), ("onnx", "onnxscript", "onnxruntime")),
        ("onnxruntime", "half"): Setting(_onnx, _onnxruntime(""), refusal="it has no kernels in half precision here"),
        ("onnxruntime", "int8"): Setting(
            _onnxruntime_int8, _onnxruntime("onnxruntime_int8.onnx"), ("onnx", "onnxscript", "onnxruntime")
        ),
        ("openvino", "fp32"): Setting(_onnx, _openvino("model.onnx", "f32"), ("onnxscript", "openvino")),
        ("openvino", "half"): Setting(_onnx, _openvino_half, ("onnxscript", "openvino")),
        ("openvino", "int8"): Setting(
            _openvino_int8, _openvino("openvino_int8.xml", None), ("onnxscript", "openvino", "nncf")
        ),
    }[engine, precision]


def _ours(precision: str) -> Setting:
    def path(case: Case, threads: int) -> Path:
        return case.folder / f"ours_{precision}_{threads}.so"

    def build(case: Case, threads: Sequence[int]) -> None:
        from aap_hw.compile.library.lowering import compile_network
        from aap_hw.quantize import quantise, read_quantised

        model, quantisation = case.model(), None
        if precision == "int8":
            model, quantisation = read_quantised(quantise(model, case.calibration()))
        for count in threads:
            target = device_of(count).target
            computed = "half" if precision == "half" else "fp32"
            compile_network(
                model, case.inputs(), target, path(case, count), quantisation=quantisation, precision=computed
            )

    return Setting(build, lambda case, count: our_call(path(case, count), case.arrays(), count))


def _onnx(case: Case, threads: Sequence[int]) -> None:
    case.onnx()


def _onnxruntime(file: str) -> Callable[[Case, int], Call]:
    return lambda case, threads: onnxruntime_call(case.folder / file, case.arrays(), threads)


def _onnxruntime_int8(case: Case, threads: Sequence[int]) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, ready = case.onnx(), case.folder / "onnxruntime_ready.onnx"
    names = [each.name for each in onnx.load(source, load_external_data=False).graph.input]

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(case.calibration())

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self._left, None)
            return None if sample is None else {n: each.numpy() for n, each in zip(names, sample, strict=True)}

    # All shapes are known: symbolic inference would add nothing, and fails for some networks.
    quant_pre_process(source, ready, skip_symbolic_shape=True)
    quantize_static(
        ready,
        case.folder / "onnxruntime_int8.onnx",
        Samples(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        # Without VNNI, sums of two products would saturate at 16 bits: its documentation asks for 7 bits there.
        reduce_range=os.uname().machine == "x86_64" and "vnni" not in Path("/proc/cpuinfo").read_text(),
    )


def _openvino(file: str, precision: str | None) -> Callable[[Case, int], Call]:
    return lambda case, threads: openvino_call(case.folder / file, case.arrays(), threads, precision)


def _openvino_half(case: Case, threads: int) -> Call:
    """In bfloat16 or float16, whichever the CPU has instructions for."""
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = next((kind for kind in ("BF16", "FP16") if kind in able), None)
    if precision is None:
        raise Failure("this CPU has no instructions for half precision")
    return openvino_call(case.folder / "model.onnx", case.arrays(), threads, precision.replace("FP", "f").lower())


def _openvino_int8(case: Case, threads: Sequence[int]) -> None:
    import nncf
    import openvino

    samples = [{i: each.numpy() for i, each in enumerate(sample)} for sample in case.calibration()]
    model = openvino.convert_model(case.onnx())
    quantised = nncf.quantize(
        model, nncf.Dataset(samples), subset_size=len(samples), target_device=nncf.TargetDevice.CPU
    )
    openvino.save_model(quantised, case.folder / "openvino_int8.xml", compress_to_fp16=False)
