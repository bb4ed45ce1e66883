"""What is checked before a model is traced: wrappers that come off, and weights that cannot be cut.

Each refusal says what the model is and what to do about it. What tracing itself finds is in `exporting`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from aap_hw.errors import UserError

# Where the model is in what training or compiling wrapped around it, by the name of the wrapper's class.
_INSIDE = {
    **dict.fromkeys(("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "AveragedModel"), "module"),
    "OptimizedModule": "_orig_mod",
}
# Of PyTorch's three libraries for it, by module and by class.
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized", "torchao.")
_OBSERVERS = {"ObserverBase", "FakeQuantizeBase", "FakeQuantizerBase", "AffineQuantizedObserverBase"}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of `nn.DataParallel`, `torch.compile` and their like."""
    while (name := next((_INSIDE[each] for each in _ancestry(model) if each in _INSIDE), None)) is not None:
        model = getattr(model, name)
    return model


def require_traceable(model: nn.Module, inputs: Iterable[object] = (), *, has_run: bool = True) -> None:
    """Refuse a model whose weights or layers are of a kind that no trace can follow.

    Layers that find their shapes when they run for the first time are refused only if they ``has_run``.

    Raises
    ------
    UserError
        If it is TorchScript, quantized or prepared for it, or its weights lack values or are not of the inputs' type.
    """
    what = type(model).__name__
    for path, module in model.named_modules():
        part = f"the part '{path}' of this {what}" if path else f"this {what}"
        _require_python(module, part)
        _require_float(module, part)
    given = [each for each in inputs if isinstance(each, torch.Tensor)]
    for name, weight in model.named_parameters():
        if has_run or not is_lazy(weight):
            _require_values(name, weight, given)


def _require_python(module: nn.Module, part: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            f"{part} is TorchScript, whose code cannot be followed; give the Python model that it was made from"
        )


def _require_float(module: nn.Module, part: str) -> None:
    """Refuse layers that quantisation made or prepared."""
    cut_first = "cut the floating-point model first, and quantize the result"
    if _OBSERVERS & _ancestry(module):
        raise UserError(f"{part} is prepared for quantization, so nothing in the model can be cut; {cut_first}")
    weights = [weight for weight in module.parameters(recurse=False) if not is_lazy(weight)]
    kinds = [type(module).__module__, *(type(weight).__module__ for weight in weights)]
    if any(kind.startswith(_QUANTIZED) for kind in kinds) or any(weight.is_quantized for weight in weights):
        raise UserError(f"{part} is quantized, so nothing in the model can be cut; {cut_first}")


def _require_values(name: str, weight: nn.Parameter, inputs: list[torch.Tensor]) -> None:
    if is_lazy(weight):
        raise UserError(f"the weights '{name}' have no shape yet; call the model once before it is traced")
    if weight.layout != torch.strided:
        raise UserError(f"the weights '{name}' are sparse, which cannot be cut; make them dense with .to_dense()")
    if weight.device.type == "meta":
        raise UserError(
            f"the weights '{name}' are on the meta device, where they have no values; make the model on the CPU, or "
            "call .to_empty(device='cpu') and load its weights"
        )
    if weight.is_complex():
        raise UserError(f"the weights '{name}' are complex numbers, and only real ones can be cut")
    for each in inputs:
        if each.device != weight.device:
            raise UserError(
                f"the weights '{name}' are on {weight.device} and the input is on {each.device}; move the model with "
                f".to('{each.device}')"
            )
    types = {each.dtype for each in inputs if each.is_floating_point()}
    if weight.is_floating_point() and len(types) == 1 and weight.dtype not in types:
        (wanted,) = types
        names = [str(each).removeprefix("torch.") for each in (weight.dtype, wanted)]
        raise UserError(
            f"the weights '{name}' are {names[0]} and the input is {names[1]}; convert the model with "
            f".to(torch.{names[1]})"
        )


def _ancestry(module: nn.Module) -> set[str]:
    return {kind.__name__ for kind in type(module).__mro__}
