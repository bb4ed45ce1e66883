"""Kernels of bytes on an emulated Arm board equal an integer reference.

On a cortex-a72, which the board is, and on a cortex-a76, which has dot products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from aap_hw.compile.code.quantized import Quantized
from aap_hw.compile.cpu.int8.gated import TABLE, Gated, Lines, largest_error
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import INT8, Scale
from aap_hw.compile.keys.target import CpuTarget
from aap_hw.compile.library.build import build_kernel
from aap_hw.device import load_profile
from aap_hw.device.connection import Device
from tests.board.board import on_board
from tests.compile.quantized import (
    UNSURE,
    Case,
    Numbers,
    Transposed,
    images_of,
    library_of,
    library_of_kernels,
    random_numbers,
    reference,
    wrong,
)

pytestmark = pytest.mark.board

CLIPPED = ("bias", "relu6")
OF_BYTES = [
    Case(33, 18, (5, 6), epilogue=CLIPPED, exact=True),
    Case(70, 41, (4, 5), (1, 1), padding=(0, 0), epilogue=("bias", "add", "relu"), exact=True),
    Case(57, 57, (9, 11), depthwise=True, epilogue=CLIPPED, exact=True),
    Case(24, 24, (9, 8), (5, 5), (2, 2), (2, 2), depthwise=True, epilogue=CLIPPED, exact=True),
    Case(128, 10, (1, 1), (0, 0), exact=True),
    Case(64, 64, (5, 3), exact=True, epilogue=("bias", "add", "relu")),
    Case(16, 96, (9, 9), (1, 1), padding=(0, 0), epilogue=CLIPPED, exact=True),
    Case(24, 12, (7, 3), (1, 1), padding=(0, 0), epilogue=CLIPPED, exact=True),
    Case(24, 28, (7, 3), (1, 1), padding=(0, 0), epilogue=("bias", "add", "hardswish")),
    Case(40, 40, (5, 12), depthwise=True, epilogue=("bias", "silu")),
    Case(40, 20, (3, 3), (1, 1), padding=(0, 0), epilogue=("bias", "silu")),
    Case(150, 33, (3, 3), (1, 1), padding=(0, 0), epilogue=("bias", "hardswish")),
    Case(3, 24, (19, 21), (7, 7), (2, 2), (3, 3), epilogue=CLIPPED, exact=True, planar=True, batch=2),
    Case(3, 16, (9, 11), (3, 3), (2, 2), (1, 1), epilogue=CLIPPED, exact=True),
    Case(57, 113, (4, 5), (1, 1), padding=(0, 0), epilogue=("bias", "add"), exact=True),
    Case(28, 140, (6, 5), dilation=(2, 2), padding=(2, 2), groups=2, epilogue=CLIPPED, exact=True),
    Transposed(21, 30, (5, 6), (4, 4), (2, 2), (1, 1), epilogue=CLIPPED, exact=True),
]


STEEPEST = 1.5
"""The largest slope of a swish or hard-swish."""


def wrong_on_arm(case: Case, numbers: Numbers, made: np.ndarray, target: CpuTarget) -> str:
    """What is wrong with what a kernel made; some functions are approximate there, and may cross a middle."""
    scale, unsure = numbers.model.made, UNSURE
    assert scale is not None
    gated = Gated.of(case.key(), math.prod(case.kernel) * case.read)
    if gated is not None and TABLE in build_kernel(case.address(), target).arguments:
        assert numbers.model.weight_scales is not None
        of_sums = numbers.model.read[0].scale * float(numbers.model.weight_scales.max())
        rounded = 0.75 * of_sums * STEEPEST if gated.is_small else 0.0
        unsure = (largest_error(scale.scale) + rounded) / scale.scale
    assert unsure < 0.5, "nothing would be held to a byte"
    return wrong(made.transpose(0, 3, 1, 2), reference(case, numbers), scale, exact=case.exact, unsure=unsure)


def test_kernels_of_bytes_equal_an_integer_reference_on_the_board(device: Device, tmp_path: Path) -> None:
    assert isinstance(device.target, CpuTarget)
    library_of(OF_BYTES, device.target, tmp_path / "kernels.so")
    loaded = device.load(tmp_path / "kernels.so")
    for i, case in enumerate(OF_BYTES):
        numbers = random_numbers(case)
        loaded.set_inputs(f"kernel_{i}", [np.ascontiguousarray(image) for image in images_of(case, numbers)])
        (made,) = loaded.run(f"kernel_{i}")
        assert wrong_on_arm(case, numbers, made, device.target) == "", case


# Steps and zero points at which 16 bits have least room for what is made.
OF_GATED = {
    Case(40, 20, (9, 9), (1, 1), padding=(0, 0), epilogue=("bias", "silu")): [Scale(1.0, 248), Scale(0.1, 238)],
    Case(150, 33, (9, 9), (1, 1), padding=(0, 0), epilogue=("bias", "hardswish")): [
        Scale(0.0517, 196),
        Scale(0.1, 242),
        Scale(0.0517, 230),
    ],
    Case(40, 40, (5, 12), depthwise=True, epilogue=("bias", "silu")): [],
}
GATED_STEPS = (0.01, 0.02, 0.05, 0.1, 0.3)


def test_swish_and_hard_swish_are_right_at_any_zero_point(device: Device, tmp_path: Path) -> None:
    assert isinstance(device.target, CpuTarget)
    tried = []
    for case, scales in OF_GATED.items():
        several = [Scale(step, zero) for i, step in enumerate(GATED_STEPS) for zero in range(5 * i, 256, 25)]
        numbers = random_numbers(case)
        tried += [(case, replace(numbers, model=replace(numbers.model, made=made))) for made in [*scales, *several]]
    kernels = [(case.address(), numbers.model) for case, numbers in tried]
    library_of_kernels(kernels, device.target, tmp_path / "kernels.so")
    loaded = device.load(tmp_path / "kernels.so")
    for i, (case, numbers) in enumerate(tried):
        loaded.set_inputs(f"kernel_{i}", [np.ascontiguousarray(image) for image in images_of(case, numbers)])
        (made,) = loaded.run(f"kernel_{i}")
        scale = numbers.model.made
        assert scale is not None
        assert wrong_on_arm(case, numbers, made, device.target) == "", (case, scale)
        # What is proved of `Lines` holds for the code, but for float32 that rounds x to another unit.
        x = reference(replace(case, epilogue=("bias",)), numbers)
        off = np.abs(Lines.of(case.epilogue[-1], scale).evaluated(x, scale).astype(int) - made.transpose(0, 3, 1, 2))
        assert off.max() <= 1, (case, scale)
        assert np.mean(off) < 0.01, (case, scale)


@dataclass(frozen=True)
class Light:
    """A kernel without weights, and what it makes of images (N, H, W, C), as real numbers."""

    address: Address
    model: Quantized
    images: list[np.ndarray]
    expected: np.ndarray
    unsure: float = UNSURE


def light_kernels() -> list[Light]:
    """Those that compute otherwise on Arm: sums in 16 bits that must be emptied, and products in 16 bits."""
    random, read, made, found = np.random.default_rng(0), Scale(0.05, 131), Scale(0.061, 77), []
    for width in (19, 150):
        image = random.integers(128, 256, (1, 20, 30, width), np.uint8)
        key = KernelKey.make("global_avg_pool2d", (20, 30), 1).at_precision(INT8)
        mean = (read.scale * (image.astype("f8") - read.zero_point)).mean((1, 2), keepdims=True)
        found.append(Light(Address(key, (width, width)), Quantized((read,), made), [image], mean))
    # A step of the image makes up to 0.8 steps, 6.5, and, with a gate that may be negative, 1.8.
    products = [(read, Scale(2.0**p / 256, zero), made, power) for p, zero, power in ((0, 0, 0), (3, 0, 3), (1, 60, 2))]
    # With a gate that may be negative, what is added to a product may be more than the largest byte.
    products.append((Scale(0.05, 250), Scale(1 / 512, 230), Scale(0.05, 200), 1))
    for _ in range(24):
        zeros = (int(zero) for zero in random.integers(0, 256, 3))
        one, gate, many = (Scale(step, zero) for step, zero in zip((0.05, 1 / 512, 0.05), zeros, strict=True))
        products.append((one, gate, many, int(gate.zero_point > 0)))
    for read, gate, made, power in products:
        images = [random.integers(0, 256, shape, np.uint8) for shape in ((2, 6, 9, 70), (2, 1, 1, 70))]
        images[0][:, 0, 0], images[1][0, 0, 0, :2] = 200, (0, 255)
        one, other = (s.scale * (x.astype("f8") - s.zero_point) for x, s in zip(images, (read, gate), strict=True))
        key = KernelKey.make("scale_channels", (6, 9), 2).at_precision(INT8)
        model = Quantized((read, gate), made)
        found.append(Light(Address(key, (70, 70)), model, images, one * other, unsure=2**power / 85))
    return found


# Runs the kernels of a library on the images beside it.
RUNNING = """
import sys
from pathlib import Path

import numpy as np
import tvm
from tvm.runtime.vm import VirtualMachine

folder = Path(sys.argv[1])
machine = VirtualMachine(tvm.runtime.load_module(str(folder / "kernels.so")), tvm.cpu())
for path in folder.glob("kernel_*.npz"):
    machine.set_input(path.stem, *(tvm.runtime.tensor(image) for image in np.load(path).values()))
    machine.invoke_stateful(path.stem)
    np.save(path.with_suffix(".npy"), machine.get_outputs(path.stem).numpy())
"""


def test_kernels_for_a_cpu_with_dot_products_equal_an_integer_reference(tmp_path: Path) -> None:
    """On a cortex-a76; the board that serves RPC has no such instructions."""
    target, light = CpuTarget.of(load_profile("rpi5").target_config(), threads=1), light_kernels()
    dense = [(case.address(), random_numbers(case).model) for case in OF_BYTES]
    library_of_kernels([*dense, *((each.address, each.model) for each in light)], target, tmp_path / "kernels.so")
    read = [*(images_of(case, random_numbers(case)) for case in OF_BYTES), *(each.images for each in light)]
    for i, images in enumerate(read):
        np.savez(tmp_path / f"kernel_{i}.npz", *[np.ascontiguousarray(image) for image in images])
    (tmp_path / "running.py").write_text(RUNNING)
    program = ("python3", tmp_path / "running.py", tmp_path)
    on_board(*program, AAP_HW_EMULATED_CPU="cortex-a76", TVM_USE_RUNTIME_LIB="1")
    for i, case in enumerate(OF_BYTES):
        numbers, made = random_numbers(case), np.load(tmp_path / f"kernel_{i}.npy")
        assert wrong_on_arm(case, numbers, made, target) == "", case
    for i, each in enumerate(light, len(OF_BYTES)):
        made = np.load(tmp_path / f"kernel_{i}.npy")
        assert wrong(made, each.expected, each.model.made, unsure=each.unsure) == "", each.address
