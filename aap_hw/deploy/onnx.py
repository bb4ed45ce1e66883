"""Export of a run as an ONNX file, checked against PyTorch by ONNX Runtime before it is kept.

In int8 the file has QuantizeLinear and DequantizeLinear around each operator, and weights as int8.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from aap_hw.activity import doing
from aap_hw.deploy.form import Form
from aap_hw.deploy.onnx_file import FIRST_OF_NEWER, Format, Session, fixed_batch, opset_of, write
from aap_hw.deploy.reference import Reference, by_output
from aap_hw.deploy.run_form import form_of_run
from aap_hw.errors import Fault, UserError
from aap_hw.files import make_folder, require_writable_file, scratch_folder, write_atomic
from aap_hw.graph.program.calling import ByPlace, input_names
from aap_hw.graph.program.outputs import output_tensors
from aap_hw.prune.run import RunFolder
from aap_hw.train.samples import Samples

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The second batch size that is compared, beside 1; PyTorch writes the file from another one.
BATCH = 3


@dataclass(frozen=True)
class Exported:
    """An ONNX file that computes what PyTorch does, up to ``max_abs_diff``, on ``images`` images.

    Attributes
    ----------
    precision : ``fp32`` or ``int8``.
    agreement : share of the images that get PyTorch's class by ONNX Runtime's own kernels of bytes, in percent; None in
        float, and for a network that scores no classes.
    """

    path: Path
    size: int
    opset: int
    max_abs_diff: float
    images: int
    precision: str = "fp32"
    agreement: float | None = None


def export_onnx(
    run: RunFolder, data: Samples, path: Path, file_format: Format | None = None, precision: str | None = None
) -> Exported:
    """Write a finished run's network as ONNX: ``image`` (1, C, H, W) to ``logits``, or what a bundle calls them.

    Code that makes the run's network is run again, with all your rights.

    Parameters
    ----------
    file_format
        The opset, and whether the file takes any number of images; by default PyTorch's own opset and one image.
    precision
        ``"fp32"`` or ``"int8"``, for which ranges of values are measured on training samples; by default what the run
        was pruned for.

    Raises
    ------
    UserError : a package is missing, the network cannot be written like this, or the file cannot be written.
    Fault : ONNX Runtime computes something else than PyTorch.
    """
    file_format = file_format or Format()
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"exporting takes packages that are not installed: {', '.join(missing)}; "
            "install them with: pip install 'aap-hw[onnx]'"
        )
    require_writable_file(path)
    network = run.load()
    computed = form_of_run(network, data, precision, None, is_retrained=run.trained is not None)
    taken = network.origin.inputs
    if computed.quantisation is not None and (file_format.any_batch or file_format.is_old):
        raise UserError(
            f"a network in int8 is written for one sample and opset {FIRST_OF_NEWER} or more; leave --dynamic-batch "
            "out, and give no lower --opset"
        )
    reference = Reference.of(computed, taken, data)
    inputs = dict(zip(input_names(network.module, taken), reference.samples, strict=True))
    with scratch_folder("export") as scratch:
        file = scratch / "model.onnx"
        difference = _written(_to_write(computed), inputs, reference, file_format, file)
        agreement = None
        if computed.quantisation is not None:
            # Its kernels of bytes round biases, and sums in other places than the file says.
            session = Session(file)
            agreement = reference.agreement(
                by_output([session.run(_part(inputs, i, 1)) for i in range(reference.count)])
            )
        opset, content = opset_of(file), file.read_bytes()
    make_folder(path.parent)
    write_atomic(path, content)
    return Exported(path, len(content), opset, difference, reference.count, computed.precision, agreement)


def _to_write(form: Form) -> nn.Module:
    """The network with its inputs by place and, if it is quantised, with its weights as the numbers that are stored."""
    if form.quantisation is None:
        return ByPlace(form.reference, form.names)
    from aap_hw.quantize.storing import with_stored_weights  # torchao takes a second to load

    assert isinstance(form.reference, GraphModule), "only programs are quantised"
    return with_stored_weights(form.reference)


def _written(
    module: nn.Module, inputs: Mapping[str, Tensor], reference: Reference, file_format: Format, file: Path
) -> float:
    """Write the file and return by how much it differs from PyTorch."""
    checks = [(reference, [_part(inputs, i, 1) for i in range(reference.count)])]
    if file_format.any_batch:
        together = _part(inputs, 0, BATCH)
        checks.append((_of_batch(module, reference, together), [together]))
    write(module, inputs, list(reference.outputs), file_format, file)
    try:
        with doing("comparing the ONNX file with PyTorch"):
            # In int8 the file says to the letter what is computed, and where it is rounded.
            session = Session(file, node_by_node=bool(reference.swayed))
            return max(
                expected.compare(by_output([session.run(call) for call in calls]), "the ONNX file")
                for expected, calls in checks
            )
    except Fault as fault:
        if not file_format.is_old:
            raise
        if file_format.any_batch and _is_right_for_one(module, inputs, reference, file_format, file):
            why = f"its code turns the batch size into a number, which opsets below {FIRST_OF_NEWER} keep as a constant"
            raise UserError(fixed_batch(why)) from fault
        raise UserError(
            f"an ONNX file of opset {file_format.opset} does not compute what this network does, because operators of "
            "that opset differ from PyTorch's; give a higher --opset"
        ) from fault


def _is_right_for_one(
    module: nn.Module, inputs: Mapping[str, Tensor], reference: Reference, file_format: Format, file: Path
) -> bool:
    try:
        _written(module, inputs, reference, Format(file_format.opset), file)
    except UserError:
        return False
    return True


def _part(inputs: Mapping[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
    """So many samples from one on, beginning again after the last."""
    return {name: each[torch.arange(first, first + count) % len(each)] for name, each in inputs.items()}


def _of_batch(module: nn.Module, reference: Reference, inputs: Mapping[str, Tensor]) -> Reference:
    """What PyTorch computes for several samples at once. Raises UserError if it is not as much more than for one."""
    count = len(next(iter(inputs.values())))
    try:
        with torch.no_grad():
            outputs = [output.numpy() for output in output_tensors(module(*inputs.values()))]
    except Exception as error:
        raise UserError(fixed_batch(f"PyTorch itself fails at {count} samples")) from error
    for (name, alone), output in zip(reference.outputs.items(), outputs, strict=True):
        of_one = alone[0]
        is_constant = output.shape == of_one.shape and np.array_equal(output, of_one)
        grown = (count * of_one.shape[0], *of_one.shape[1:]) if of_one.shape else None
        if not is_constant and output.shape != grown:
            raise UserError(
                fixed_batch(f"its {name} has the shape {of_one.shape} for one and {output.shape} for {count}")
            )
    return replace(
        reference,
        samples=tuple(inputs.values()),
        outputs={name: output[None] for name, output in zip(reference.outputs, outputs, strict=True)},
    )
