"""A network in the precision that it is deployed in: what PyTorch computes, and what is compiled to compute the same.

In int8 these are two: PyTorch runs the float network with its values and weights rounded, and kernels that read bytes
are made of the float network and its scales. In half precision both are the float network, and a third one says how far
its roundings move the outputs. Where layers in int8 stand beside others in half precision, it has both roundings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from aap_hw.compile.keys.precision import FP32, HALF, INT8, INT8_HALF, NetworkPrecision
from aap_hw.deploy.pixels import Preprocessing, of_pixels
from aap_hw.errors import UserError
from aap_hw.graph.program.call import Call
from aap_hw.graph.program.calling import Names, called
from aap_hw.graph.program.inputs import Batch, Tensors
from aap_hw.graph.program.outputs import output_tensors
from aap_hw.inputs import Inputs
from aap_hw.models.exported import is_quantised

if TYPE_CHECKING:
    from aap_hw.compile.front.quantisation import Quantisation
    from aap_hw.compile.keys.precision import Scale
    from aap_hw.compile.keys.target import DeviceTarget

# As a share of a step: with noise of up to so much, every 32nd value is rounded to the next step.
NOISE = 1 / 16


@dataclass(frozen=True)
class Form:
    """A network to deploy.

    Attributes
    ----------
    reference : what PyTorch computes with; takes each input under its name in ``names``.
    compiled : the float network that is compiled.
    names : how both are called.
    quantisation : the scales of its values and weights; None in float.
    pixels : how it normalises its image, which it takes as pixels; None if it takes what it was trained with.
    precision : what most of it is computed in.
    halved : where kernels are in half precision, what `reference` computes if all that they store so is rounded; takes
        inputs by place. None in other precisions, and if it is only timed.
    """

    reference: nn.Module
    compiled: nn.Module
    names: Names = ()
    quantisation: Quantisation | None = None
    pixels: Preprocessing | None = None
    precision: NetworkPrecision = FP32
    halved: nn.Module | None = None

    def taken(self, samples: Tensors) -> Tensors:
        """Samples as PyTorch takes them, of what the network was trained with."""
        return samples if self.pixels is None else (self.pixels.undone(samples[0]),)

    def passed(self, taken: Tensors) -> list[np.ndarray]:
        """The same as the compiled network takes them: pixels as bytes (N, H, W, C), all else as float32."""
        if self.pixels is None:
            return [each.float().numpy() for each in taken]
        return [taken[0].permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()]

    def call(self, tensors: Tensors) -> Any:
        """What PyTorch computes for a batch of inputs."""
        return called(self.reference, tensors, self.names)

    def input_scales(self) -> list[Scale | None]:
        """What the bytes stand for that each input is stored as before anything is computed; None in float32."""
        if self.quantisation is None:
            return [None] * len(self.names)
        from aap_hw.quantize.quantizer import name_of

        assert isinstance(self.compiled, torch.fx.GraphModule), "only programs are quantised"
        taken = [node for node in self.compiled.graph.nodes if node.op == "placeholder"]
        return [self.quantisation.values.get(name_of(node)) for node in taken]

    def swayed(self, tensors: Tensors, seed: int) -> list[Tensor]:
        """The outputs if values are rounded otherwise; in half precision, if they are rounded at all.

        In int8, every 32nd of them is rounded to the next step instead of the nearest. PyTorch adds up in float32 what
        kernels add up in whole numbers, so that values halfway between two steps may be rounded to either. Those are
        one in ten thousand, and more only where few values are averaged.
        """
        program = self.reference if self.halved is None else self.halved
        with torch.no_grad():
            if self.quantisation is None:
                return output_tensors(program(*tensors))
            assert isinstance(program, torch.fx.GraphModule), "only programs are quantised"
            return output_tensors(_Swayed(program, seed).run(*tensors))


def in_int8_for_timing(module: nn.Module, inputs: Inputs, floats: Collection[str]) -> Form:
    """A float network in int8 with made-up scales and some layers in float32: as fast as with the right ones."""
    from aap_hw.quantize import for_timing

    floating, quantisation = for_timing(module, inputs, floats)
    return Form(floating, floating, (), quantisation, precision=FP32 if quantisation is None else INT8)


def beside_half(form: Form, sample: Tensors, target: DeviceTarget) -> Form:
    """A network in int8 whose other layers are in half precision in place of float32.

    Raises
    ------
    UserError : the device has no half precision.
    """
    from aap_hw.quantize.halved import halved_beside_int8

    assert isinstance(form.compiled, torch.fx.GraphModule), "only programs are quantised"
    assert form.quantisation is not None
    halved = halved_beside_int8((form.compiled, form.quantisation), sample, target)
    return replace(form, precision=INT8_HALF, halved=halved)


def taking_pixels(form: Form, inputs: Inputs, how: Preprocessing) -> Form:
    """A network in int8 that takes pixels in place of its image.

    Raises
    ------
    UserError : it is in float, or takes something else than one image.
    """
    if form.quantisation is None or inputs.image is None:
        raise UserError(
            "only a network in int8 that takes one image takes pixels as bytes; give --precision int8, or leave "
            "--pixels out"
        )
    assert isinstance(form.reference, torch.fx.GraphModule), "only programs are quantised"
    return replace(form_of(of_pixels(form.reference, how, inputs.image), ()), pixels=how)


def form_of(module: nn.Module, names: Names) -> Form:
    """A network as it is: in float, or quantised already."""
    if not is_quantised(module):
        return Form(module, module, names)
    from aap_hw.quantize import read_quantised  # torchao takes a second to load

    assert isinstance(module, torch.fx.GraphModule)
    floating, quantisation = read_quantised(module)
    return Form(module, floating, names, quantisation, precision=INT8)


def in_int8(module: nn.Module, names: Names, calibration: Iterable[Batch], floats: Collection[str] = ()) -> Form:
    """A float network, quantised by samples of what it will see, one a batch; some layers may stay in float32."""
    from aap_hw.quantize import quantise
    from aap_hw.quantize.form import by_place, inside

    return form_of(quantise(by_place(module, names), calibration, inside(floats, names)), ())


def in_half(module: nn.Module, inputs: Inputs, target: DeviceTarget) -> Form:
    """A float network in the half precision of a device.

    Raises
    ------
    UserError : the device has none.
    """
    from aap_hw.quantize.halved import halved

    return replace(in_half_for_timing(module, inputs), halved=halved(module, inputs, target))


def in_half_for_timing(module: nn.Module, inputs: Inputs) -> Form:
    """A float network in half precision, of which nobody asks what it computes."""
    return Form(module, module, inputs.names, precision=HALF)


class _Swayed(Interpreter):
    """Runs a quantised program with noise on each value that is rounded."""

    def __init__(self, module: torch.fx.GraphModule, seed: int) -> None:
        super().__init__(module)
        self._generator = torch.Generator().manual_seed(seed)

    def run_node(self, n: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if "quantize_per_tensor" in str(n.target) and not str(n.target).startswith("quantized_decomposed.de"):
            value, scale, *others = args
            if Call(n).first.op != "get_attr":
                noise = torch.rand(value.shape, generator=self._generator) * 2 - 1
                args = (value + NOISE * scale * noise, scale, *others)
            return n.target(*args, **kwargs)  # type: ignore[operator]
        return super().run_node(n)
