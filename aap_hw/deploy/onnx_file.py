"""A network as an ONNX file: written by PyTorch's exporters, run by ONNX Runtime.

Covers networks of any inputs, by name, whose first axis is the batch, for one sample or for any number of them. Not
covered: whether the file computes what it should; see `aap_hw.deploy.onnx`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aap_hw.activity import doing
from aap_hw.descriptors import sent
from aap_hw.errors import Fault, UserError
from aap_hw.graph.program.outputs import output_tensors

# What PyTorch writes: from the first of its older exporter to the last of its newer one.
OPSETS = range(9, 24)
# The newer exporter begins here, and writes files of this one if it is asked for less.
FIRST_OF_NEWER = 18
BATCH = "batch"
_ITS_CODE = "its code fixes the number of samples"


@dataclass(frozen=True)
class Format:
    """What kind of ONNX file is wanted.

    Attributes
    ----------
    opset : version of ONNX's operators; None leaves it to PyTorch.
    any_batch : whether the file takes any number of samples, or one.

    Raises
    ------
    UserError : PyTorch writes no such opset.
    """

    opset: int | None = None
    any_batch: bool = False

    @property
    def is_old(self) -> bool:
        """Whether only PyTorch's older exporter writes it."""
        return self.opset is not None and self.opset < FIRST_OF_NEWER

    def __post_init__(self) -> None:
        if self.opset is not None and self.opset not in OPSETS:
            raise UserError(
                f"PyTorch {torch.__version__.partition('+')[0]} writes ONNX opsets {OPSETS[0]} to {OPSETS[-1]}, not "
                f"{self.opset}; give --opset one of these, or leave it out"
            )


@doing("writing the ONNX file")
def write(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], file_format: Format, file: Path
) -> None:
    """Write a network as an ONNX file.

    Parameters
    ----------
    inputs
        Samples for each of the network's inputs, in their order, under the names that the file is to give them.
    outputs
        A name for each tensor that the network returns.

    Raises
    ------
    UserError : PyTorch cannot write it like this.
    """
    flat = _Flat(module).eval()
    try:
        _export(flat, inputs, outputs, file_format, file)
    except Exception as error:
        if file_format.any_batch and _is_writable(flat, inputs, outputs, Format(file_format.opset), file):
            raise UserError(fixed_batch(_ITS_CODE)) from error
        opset = f" of opset {file_format.opset}" if file_format.opset else ""
        operator = _operator_in(error)
        why = f": it has no translation of '{operator}' as this network uses it" if operator else ""
        first = re.search(r"added in version (\d+)", str(error))
        other = f"--opset {first[1]} or more" if first else f"another --opset ({OPSETS[0]} to {OPSETS[-1]})"
        raise UserError(
            f"PyTorch cannot write this network as an ONNX file{opset}{why}; give {other}, or use other operators"
        ) from error
    if file_format.any_batch and not _takes_any_batch(file):
        # PyTorch's newer exporter does not fail then, but writes the number of the samples that it was shown.
        raise UserError(fixed_batch(_ITS_CODE))


def opset_of(file: Path) -> int:
    """The version of ONNX's own operators that a file uses."""
    import onnx  # heavy, and an extra

    versions = {each.domain: each.version for each in onnx.load(file, load_external_data=False).opset_import}
    return int(versions[""])


def _takes_any_batch(file: Path) -> bool:
    import onnx

    inputs = onnx.load(file, load_external_data=False).graph.input
    return all(each.type.tensor_type.shape.dim[0].dim_param for each in inputs)


def fixed_batch(why: str) -> str:
    """The sentence for a network that cannot be written for any number of samples."""
    return (
        f"the network cannot be written for any number of samples: {why}; leave --dynamic-batch out, or write "
        "x.shape[0] in its code where it has a number"
    )


class Session:
    """An ONNX file that ONNX Runtime has loaded, to run it node by node or, as it usually does, several nodes at once.

    Raises UserError if it cannot.
    """

    def __init__(self, file: Path, *, node_by_node: bool = False) -> None:
        import onnxruntime  # heavy, and an extra

        options = onnxruntime.SessionOptions()
        if node_by_node:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what goes wrong is raised, too
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # each kind of its own
            raise UserError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run the file, so that it could not be checked and was "
                "not kept; give another --opset"
            ) from error

    def run(self, inputs: Mapping[str, Tensor]) -> list[np.ndarray]:
        """Its outputs. Raises Fault if ONNX Runtime fails."""
        # The exporter leaves out inputs that the network does not look at.
        read = [each.name for each in self._session.get_inputs()]
        try:
            return list(self._session.run(None, {name: inputs[name].numpy() for name in read}))
        except Exception as error:  # each kind of its own
            count = len(next(iter(inputs.values())))
            raise Fault(f"ONNX Runtime fails at the file that was written, for a batch of {count}") from error


def _is_writable(
    flat: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], file_format: Format, file: Path
) -> bool:
    try:
        _export(flat, inputs, outputs, file_format, file)
    except Exception:
        return False
    return True


def _export(
    flat: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], file_format: Format, file: Path
) -> None:
    # From one sample PyTorch would learn that there is one.
    samples = tuple(each[torch.arange(2 if file_format.any_batch else 1) % len(each)] for each in inputs.values())
    with warnings.catch_warnings(action="ignore"), _unlogged():
        if file_format.is_old:
            axes = {name: {0: BATCH} for name in (*inputs, *outputs)} if file_format.any_batch else None
            with _silent():
                torch.onnx.export(
                    flat,
                    samples,
                    file,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    opset_version=file_format.opset,
                    dynamic_axes=axes,
                    dynamo=False,
                )
            return
        # A tuple in a tuple, as `forward` takes them all as one.
        shapes = (tuple({0: torch.export.Dim(BATCH, min=1)} for _ in inputs),) if file_format.any_batch else None
        torch.onnx.export(
            flat,
            samples,
            file,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=file_format.opset,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


class _Flat(nn.Module):
    """A network that returns its tensors and nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output_tensors(self.network(*inputs)))


def _operator_in(error: BaseException) -> str | None:
    """The operator that an exporter failed at, as PyTorch's documentation calls it, if it says so."""
    cause: BaseException | None = error
    found = None
    while cause is not None:
        # The last of them is nearest to what happened.
        found = next(iter(re.findall(r"aten(?:\.|::)_?(\w+)", str(cause))), found)
        cause = cause.__cause__
    return found


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the exporters' logs, which are for their authors, from the terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what is written to standard output, also by C++: the older exporter prints whole networks there."""
    sys.stdout.flush()
    with ExitStack() as afterwards, open(os.devnull, "wb") as nowhere:
        with suppress(OSError):  # it is closed
            afterwards.enter_context(sent(1, to=nowhere.fileno()))
        yield
