"""What PyTorch's tracer is helped with while a model is exported, so that it follows more of what people write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from aap_hw.graph.program.inputs import Tensors

# What PyTorch says where a value was made out of its sight, as by ``x.data``.
_DATA_READ = "fake tensor in the exported program constant's list"


@contextlib.contextmanager
def helped() -> Iterator[None]:
    """All that is always done."""
    with _masks_as_given(), _layers_that_may_raise():
        yield


def exported(model: nn.Module, by_place: Tensors, by_name: Mapping[str, torch.Tensor]) -> ExportedProgram:
    """What PyTorch exports, with ``x.detach()`` where the code reads ``x.data``, which PyTorch does not follow."""
    try:
        return torch.export.export(model, by_place, by_name, strict=False)
    except RuntimeError as error:
        if _DATA_READ not in str(error):
            raise
    with _DataIsDetached():
        return torch.export.export(model, by_place, by_name, strict=False)


class _DataIsDetached(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach()
        if function == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            raise RuntimeError("what is assigned to x.data is not in the program")
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def _masks_as_given() -> Iterator[None]:
    """Let PyTorch's transformers apply the masks that they are given, without a look at their values.

    They look whether a mask is causal, as a hint to compute the same faster: a program has no values yet.
    """
    library, name = torch.nn.modules.transformer, "_detect_is_causal_mask"
    before = getattr(library, name)
    setattr(library, name, lambda mask, is_causal=None, size=None: bool(is_causal))
    try:
        yield
    finally:
        setattr(library, name, before)


@contextlib.contextmanager
def _layers_that_may_raise() -> Iterator[None]:
    """Let code go on that catches what a layer raises, as speechbrain's does: ``except TypeError: x = layer(x)``.

    PyTorch's tracer would take all that follows for a part of that layer.
    """
    kind, name = torch.fx.Tracer, "call_module"
    before = kind.call_module

    def call_module(tracer: Any, *args: Any, **kwargs: Any) -> Any:
        depth = len(tracer.module_stack)
        try:
            return before(tracer, *args, **kwargs)
        except Exception:
            while len(tracer.module_stack) > depth:
                tracer.module_stack.popitem()
            raise

    setattr(kind, name, call_module)
    try:
        yield
    finally:
        setattr(kind, name, before)
