"""Proves that random kernels of the families that do not convolve images equal PyTorch in float64.

As many of each family, all of them compiled into few libraries; see `test_random_kernels`, which has the convolutions
of images. A few are tried with the other tests, and as many as you like, also those of a GPU, with

    python -m pytest tests/compile/test_random_families.py --random-kernels 300
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import tvm
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from aap_hw.compile.gpu.series import in_series
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.target import DeviceTarget, device_target
from aap_hw.compile.library.build import build_kernel
from tests.compile import drawn, drawn_places
from tests.compile.drawn import Case, rounding
from tests.compile.drawn_expressions import expressions
from tests.compile.drawn_order import orders
from tests.compile.random_kernels import GUARD, guarded, linear
from tests.compile.running import Convolution, target
from tests.compile.transposed import Transposed

FAMILIES = {
    "normalisations": drawn.normalisations(),
    "reductions": drawn.reductions(),
    "products": drawn.products(),
    "attentions": drawn.attentions(),
    "resizings": drawn_places.resizings(),
    "samplings": drawn_places.samplings(),
    "recurrent layers": drawn_places.recurrent_layers(),
    "copies": drawn_places.copies(),
    "paddings": drawn_places.paddings(),
    "lines": drawn_places.lines(),
    "volumes": drawn_places.volumes(),
    "transposed": drawn_places.transposed(),
    "expressions": expressions(),
    "orders": orders(),
}
OF_EACH = 3
GPU = device_target({"kind": "cuda", "arch": "sm_80"}, 1)


@pytest.mark.slow
def test_random_kernels_of_all_families_equal_pytorch(pytestconfig: pytest.Config) -> None:
    libraries = math.ceil(pytestconfig.getoption("random_kernels") / OF_EACH / len(FAMILIES))

    # The same kernels in every run. A failure names its kernel; to shrink a library would mean to compile hundreds.
    @settings(max_examples=libraries, derandomize=True, database=None, phases=[Phase.generate])
    @given(st.tuples(*[st.lists(f, min_size=OF_EACH, max_size=OF_EACH, unique_by=str) for f in FAMILIES.values()]))
    def compiled_and_compared(library: tuple[list[Case], ...]) -> None:
        for on in (target(), GPU) if libraries > 1 else (target(),):
            assert wrong([case for family in library for case in family], on) == []

    compiled_and_compared()


def test_a_single_value_left_out_of_a_sum_is_told() -> None:
    values = torch.randn(1, 300, 1, generator=torch.Generator().manual_seed(0))
    key, error = KernelKey.make("reduce", (), 1, of="sum", shape="1,300,1"), rounding(300) * values.abs().sum(1)
    right, other = (Case.of(key, (1, 1), [values], values[:, first:].sum(1), error) for first in (0, 1))
    (told,) = wrong([right, other], target())
    assert told.startswith(f"{key} at 1, 1 is wrong by")


def test_a_gpu_adds_a_bias_once_to_a_sum_of_one_term() -> None:
    one = Convolution(1, 8, (5, 6), (1, 1), padding=(0, 0), epilogue=("bias", "relu"))
    each = Convolution(7, 7, (5, 6), (1, 1), padding=(0, 0), depthwise=True)
    cases = [one, each, linear(1, 9), Transposed(1, 6, (4, 5), (1, 1), padding=(0, 0))]
    assert wrong([drawn.of_convolution(case) for case in cases], GPU) == []


def wrong(cases: Sequence[Case], on: DeviceTarget) -> list[str]:
    """Compile the kernels into one library, call each, and say of each that is wrong what is wrong with it."""
    functions = [build_kernel(case.address, on) for case in cases]
    code = {f"k{i}": in_series(f.code).with_attr("global_symbol", f"k{i}") for i, f in enumerate(functions)}
    library, found = tvm.compile(tvm.IRModule(code), target=target().tvm).jit(), []
    for i, (case, function) in enumerate(zip(cases, functions, strict=True)):
        memory, output = guarded(np.full(function.output_shape, np.nan, "float32"))
        operands = [*case.operands(function), *function.literals]
        shapes = [argument.shape for argument in function.arguments]
        given = [array.reshape(shape) for array, shape in zip(operands, shapes, strict=True)]
        library[f"k{i}"](*[guarded(array)[1] for array in given], output)
        result = memory[GUARD:-GUARD][: output.numpy().size].reshape(function.output_shape)
        if result.size != case.expected.size:
            found.append(f"{case} makes {result.shape}, not {case.expected.shape}")
            continue
        error = abs(result.reshape(case.expected.shape) - case.expected)
        if not all(np.isnan(untouched).all() for untouched in (memory[:GUARD], memory[-GUARD:])):
            found.append(f"{case} writes beside its output")
        elif not (error <= case.tolerance).all():
            found.append(f"{case} is wrong by {np.nanmax(error / (case.tolerance + 1e-30)):.3g} tolerances")
    return found
