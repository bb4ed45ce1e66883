"""A cut network in one file, without pickle: weights, and in its header what rebuilds the network around them.

The file is a safetensors file whose metadata hold, as JSON, the source of the unpruned network, the channels that
were kept, who wrote it, and a few outputs for one seeded input. Loading makes the unpruned network anew, cuts
it, fills in the weights and refuses a network that computes something else: code that changed is found out,
wherever it is. A source that is Python code is run for this, if the caller trusts it; the others run none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from torch import nn

import aap_hw
from aap_hw.errors import UserError
from aap_hw.files import write_atomic
from aap_hw.foreign import reason
from aap_hw.graph import ChannelGraph
from aap_hw.graph.groups.groups import names_heads
from aap_hw.graph.program.outputs import output_tensors
from aap_hw.inputs import Given
from aap_hw.models import python_source
from aap_hw.models.origin import Origin, StoredInputs
from aap_hw.models.source import is_own, runs_code
from aap_hw.models.weights import WeightsFile
from aap_hw.validation import validated

# A file of another major version cannot be read; one of another minor version has fields more or fewer.
MAJOR, MINOR = 1, 0
OUTPUTS = 16
# Two machines may round differently; another network differs by more.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class SavedNetwork:
    """A cut network and where it came from.

    Parameters
    ----------
    kept
        For every cut group, the channels of the unpruned network that remain.
    """

    origin: Origin
    kept: dict[str, list[int]]
    module: nn.Module


class _Header(BaseModel):
    """What a file says of itself, but for its version. What a later minor version adds is ignored."""

    model: str = Field(description="the source of the unpruned network")
    weights: str | WeightsFile | None = Field(None, description="the name or the file of its weights or null")
    input: StoredInputs = Field(description="the shape of its input, or the text of its inputs")
    classes: int | None = Field(None, description="how many classes it was made for or null")
    folder: str = Field(description="the folder that a relative path or a module of the source starts from")
    kept_channels: dict[str, list[int]] = Field(description="a list of channels for every cut group")
    outputs: list[float] = Field(description="some outputs for the seeded input")


def save(
    model: nn.Module,
    plan: Mapping[str, Sequence[int]],
    path: str | Path,
    *,
    source: str | None = None,
    input_shape: Given | None = None,
) -> None:
    """Save a network that `ChannelGraph.cut` made, trained or not, so that `load` gives it back in any process.

    Parameters
    ----------
    model
        The cut network.
    plan
        The channels of the unpruned network that it keeps, as they were given to `cut`.
    path
        The file to write, usually ``NAME.safetensors``.
    source
        What makes the unpruned network, as for ``--model``: ``"torchvision:resnet18"``, ``"nets.py:make"``. By
        default the class of `model`, called without arguments.
    input_shape
        Shape of its input, such as (C, H, W), or the text of its inputs, as of ``--input``; by default what is usual
        for the source, if anything is.

    Raises
    ------
    UserError : the network cannot be rebuilt like this, or the file cannot be written.

    Examples
    --------
    >>> aap_hw.save(smaller, keep, "smaller.safetensors", source="torchvision:resnet18")  # doctest: +SKIP
    >>> aap_hw.load("smaller.safetensors")  # doctest: +SKIP
    """
    source = source or python_source.text_of(type(model))
    origin = Origin.of(source, input_shape)
    kept = {name: sorted(int(channel) for channel in channels) for name, channels in plan.items()}
    state = _state(model)
    try:
        rebuilt = _rebuilt(origin, kept, state)
        difference = _difference(_outputs(model, origin), _outputs(rebuilt, origin))
    except UserError as error:
        raise UserError(
            f"the network cannot be rebuilt from {source}: {error}; say what makes the unpruned network with "
            "source='torchvision:NAME' or 'FILE.py:FUNCTION', and keep to the plan that it was cut by"
        ) from error
    if not difference <= TOLERANCE:
        raise UserError(
            f"the network that {source} makes computes something else than the one to save (by {difference:.2g}); "
            "give the source and the plan that it was cut from"
        )
    write(SavedNetwork(origin, kept, model), Path(path))


def load(path: str | Path, *, source: str | None = None, trust_source: bool = False) -> nn.Module:
    """The network of a file that `save` wrote, or of a run folder, in evaluation mode.

    Parameters
    ----------
    source
        What makes the unpruned network, if that is not where it was when the file was written. The source that the
        file names is then not run.
    trust_source
        Run the Python code that the file names as its source. Whoever wrote the file chose the name, and the code has
        all your rights.

    Raises
    ------
    UserError : the file is missing, damaged or of another major version, its source makes another network now, or it
        names Python code that is not trusted.
    """
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    return read(path, source=source, trust_source=trust_source).module


def write(network: SavedNetwork, path: Path) -> None:
    """Write a file, whole or not at all. Raises UserError if that is impossible."""
    origin, state = network.origin, _state(network.module)
    text = json.dumps(
        {
            "version": f"{MAJOR}.{MINOR}",
            "written_by": {"aap_hw": aap_hw.__version__, "torch": torch.__version__},
            **origin.as_json(),
            "folder": origin.folder or str(Path.cwd()),
            "kept_channels": network.kept,
            "outputs": _outputs(network.module, origin),
        },
        sort_keys=True,
    )
    write_atomic(path, safetensors.torch.save(state, {"aap_hw": text, "sha256": _digest(text, state)}))


def read(path: Path, *, source: str | None = None, trust_source: bool = False) -> SavedNetwork:
    """Rebuild the network of a file; see `load`."""
    text, state = _checked(path)
    header = _parsed(text, path)
    if source is None:
        if runs_code(header.model) and not trust_source:
            raise UserError(
                f"{path} names Python code that makes its network, {header.model}, and that would be run; give "
                "trust_source=True if you trust who wrote the file, or name the code yourself with source="
            )
        folder = header.folder if is_own(header.model) else ""
        origin = Origin(header.model, header.weights, header.input, header.classes, folder)
    else:
        origin = replace(Origin.of(source, header.input, outputs=header.classes), weights=header.weights)
    try:
        module = _rebuilt(origin, header.kept_channels, state)
    except UserError as error:
        raise UserError(f"{path} cannot be rebuilt from {origin.model}: {error}") from error
    difference = _difference(header.outputs, _outputs(module, origin))
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path} computes something else than when it was saved (by {difference:.2g}): {origin.model} makes "
            "another network now; restore the code, or name what makes the same one with source="
        )
    return SavedNetwork(origin, header.kept_channels, module)


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    # Copied, as safetensors refuses one tensor under two names.
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}


def _rebuilt(origin: Origin, kept: Mapping[str, Sequence[int]], state: Mapping[str, torch.Tensor]) -> nn.Module:
    dense = origin.skeleton()
    heads = any(map(names_heads, kept))  # the plan counts what it was made for
    module = ChannelGraph.trace(dense, origin.inputs.zeros(), origin.inputs.names, heads=heads).cut(dense, kept)
    for tensor in state.values():
        if tensor.is_floating_point():
            module.to(tensor.dtype)
            break
    expected = module.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        shapes = [tuple(each[name].shape) if name in each else "missing" for each in (state, expected)]
        if shapes[0] != shapes[1]:
            raise UserError(f"'{name}' is {shapes[0]} in the saved network and {shapes[1]} in the one that is made now")
    module.load_state_dict(state)
    return module.eval()


@torch.no_grad()
def _outputs(module: nn.Module, origin: Origin) -> list[float]:
    """Some of the outputs for an input that is the same everywhere."""
    made = origin.inputs.random(1, seed=0)
    first = next(module.parameters(), made[0])
    inputs = tuple(each.to(first.device, first.dtype if each.is_floating_point() else None) for each in made)
    with _evaluating(module):
        outputs = output_tensors(origin.call(module, inputs))
    values = torch.cat([each.double().flatten().cpu() for each in outputs])
    places = torch.linspace(0, len(values) - 1, min(OUTPUTS, len(values))).long()
    return values[places].tolist()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    flags = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, flag in flags:
            each.training = flag


def _difference(expected: list[float], actual: list[float]) -> float:
    """Largest difference of two lists of outputs, as a share of the largest output."""
    if len(expected) != len(actual):
        return float("inf")
    left, right = (torch.tensor(values, dtype=torch.float64) for values in (expected, actual))
    if torch.equal(left.isfinite(), right.isfinite()):
        left, right = left.nan_to_num(), right.nan_to_num()
    return float((left - right).abs().max() / left.abs().max().clamp(min=1e-30))


def _digest(text: str, state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the description and of every tensor with its name, type and shape."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _checked(path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """The description and the tensors of a file, as they were written."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except OSError as error:
        raise UserError(f"cannot read the network {path}: {error.strerror or 'there is no such file'}") from error
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {reason(error)}") from error
    if "aap_hw" not in metadata:
        raise UserError(f"{path} holds weights only and not what they belong to; 'aap_hw.save' writes both")
    if _digest(metadata["aap_hw"], state) != metadata.get("sha256"):
        raise UserError(f"{path} is damaged: it is not as it was written (its checksum differs)")
    return metadata["aap_hw"], state


def _parsed(text: str, path: Path) -> _Header:
    try:
        values: dict[str, Any] = json.loads(text)
        version = str(values["version"])
        major = int(version.partition(".")[0])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: its description cannot be read ({reason(error)})") from error
    if major != MAJOR:
        raise UserError(
            f"{path} is of version {version} and this aap-hw reads {MAJOR}.x; "
            f"load it with the aap-hw that wrote it, {values.get('written_by', {}).get('aap_hw', 'an earlier one')}"
        )
    return validated(_Header, values, f"saved network {path}")
