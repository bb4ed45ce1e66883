"""Weights that PyTorch computes from other parameters, by a parametrisation or by one of the older hooks.

At inference such a weight is the same for every input, so that it is cut like one that is stored: filters and inputs.
What it is computed from is cut along, and where the same weight comes out, the parametrisation stays: that of values
one by one and of masks, and weight norm, of which the lengths are set so that the filters that are left do not change.
Where it does not, as with spectral norm, whose largest singular value would be another one, the weight is stored as it
is, cut, and its parametrisation goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from aap_hw.graph.program.call import Call, is_tensor, shape_of
from aap_hw.graph.program.copying import copied
from aap_hw.graph.walk.labels import IntArray

_READERS = frozenset({"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))})
_LIST = ".parametrizations."
_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)
# By how much rounding may change a weight that is computed from shorter parameters, as a share of the largest value.
_ROUNDED = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class ComputedWeight:
    """A weight that is computed.

    Parameters
    ----------
    layer
        Path of the layer that it belongs to.
    name
        Of the layer's attribute.
    source
        Name of the parameter of the same shape that it is computed from.
    """

    layer: str
    name: str
    source: str

    @property
    def inside(self) -> str:
        """What the names of all that it is computed from begin with."""
        prefix = f"{self.layer}." if self.layer else ""
        return f"{prefix}parametrizations.{self.name}." if _LIST in f".{self.source}" else f"{prefix}{self.name}_"


def computed_weights(
    program: ExportedProgram, model: nn.Module, parameters: Mapping[str, str]
) -> tuple[dict[Node, ComputedWeight], set[Node]]:
    """The computed weights of a program's layers, and all nodes that do nothing but compute them.

    Parameters
    ----------
    parameters
        Names of the parameters and buffers that placeholders stand for.
    """
    found: dict[Node, ComputedWeight] = {}
    inside: set[Node] = set()
    for weight, members, read in weights_from(program, parameters, _READERS):
        alike = [each for each in read if shape_of(each) == shape_of(weight) and set(each.users) <= members]
        sources = [parameters[each.name] for each in alike]
        known = [each for each in (_of_layer(model, source) for source in sources) if each is not None]
        if len(known) == 1:
            found[weight] = known[0]
            inside |= members | {user for member in members for user in member.users if is_assertion(user)}
    return found, inside


def weights_from(
    program: ExportedProgram, parameters: Mapping[str, str], readers: Collection[str]
) -> Iterator[tuple[Node, set[Node], set[Node]]]:
    """Each weight that operators compute from parameters alone and for layers alone; these operators and parameters.

    Only weights of the layers that ``readers`` names are looked at.
    """
    seen: set[Node] = set()
    for node in program.graph.nodes:
        if node.op != "call_function" or Call(node).name not in readers:
            continue
        weight = Call(node)["weight"]
        if weight in seen or weight.op != "call_function" or not is_tensor(weight):
            continue
        seen.add(weight)
        members = _made_from(weight)
        read = {source for member in members for source in member.all_input_nodes if source not in members}
        if {source.name for source in read} <= parameters.keys() and _only_for_layers(members, weight):
            yield weight, members, read


def _made_from(weight: Node) -> set[Node]:
    """The operators that a value is computed by, the one that makes it among them."""
    members, waiting = {weight}, [weight]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source.op == "call_function" and source not in members:
                members.add(source)
                waiting.append(source)
    return members


def is_assertion(node: Node) -> bool:
    """Whether a node is a check that export inserts."""
    return node.op == "call_function" and Call(node).name == "_assert_tensor_metadata"


def _only_for_layers(members: set[Node], weight: Node) -> bool:
    """Whether nothing but layers reads a weight, and nothing but the weight what it is computed from.

    Of pieces of one parameter each is a weight.
    """
    users = {user for member in members if member is not weight for user in member.users if user not in members}
    return _is_weight(weight) and all(
        is_assertion(user) or (Call(user).name == "getitem" and _is_weight(user)) for user in users
    )


def _is_weight(node: Node) -> bool:
    """Whether layers alone read a value, as their weight."""
    return all(Call(each).name in _READERS and Call(each)["weight"] is node for each in node.users)


def _of_layer(model: nn.Module, source: str) -> ComputedWeight | None:
    """The layer and the weight that a parameter is the source of."""
    if not isinstance(_tensor(model, source), nn.Parameter):
        return None
    if _LIST in f".{source}":
        layer, _, rest = f".{source}".rpartition(_LIST)
        return ComputedWeight(layer.removeprefix("."), rest.split(".")[0], source)
    layer, _, leaf = source.rpartition(".")
    for hook in model.get_submodule(layer)._forward_pre_hooks.values():
        name = _hooked(hook)
        if name is not None and leaf in (f"{name}_v", f"{name}_orig"):
            return ComputedWeight(layer, name, source)
    return None


def _hooked(hook: object) -> str | None:
    """Name of the tensor that one of PyTorch's own hooks computes."""
    if isinstance(hook, prune.BasePruningMethod):
        return str(hook._tensor_name)
    return hook.name if isinstance(hook, (WeightNorm, SpectralNorm)) else None


def shorten(model: nn.Module, weight: ComputedWeight, removed: Mapping[int, IntArray]) -> None:
    """Take positions out of axes of a computed weight, in place: what else comes out stays as it was.

    Parameters
    ----------
    removed
        The positions by axis.
    """
    layer = model.get_submodule(weight.layer)
    stored = _value(copied(layer), weight.name)
    wanted = stored
    for dim, positions in removed.items():
        wanted = _without(wanted, dim, positions)
    trial = copied(layer)
    if _shortened_at_source(trial, weight, removed, stored, wanted):
        _shortened_at_source(layer, weight, removed, stored, wanted)
    else:
        _store(layer, weight.name, wanted)


def _shortened_at_source(
    layer: nn.Module,
    weight: ComputedWeight,
    removed: Mapping[int, IntArray],
    stored: torch.Tensor,
    wanted: torch.Tensor,
) -> bool:
    """Cut what a weight is computed from, and say whether it comes out as it should."""
    own = ComputedWeight("", weight.name, weight.source.removeprefix(f"{weight.layer}." if weight.layer else ""))
    named = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    for name, tensor in named.items():
        if name.startswith(own.inside) and tensor.dim() == stored.dim():
            for dim, positions in removed.items():
                if tensor.shape[dim] == stored.shape[dim]:
                    _shorten_tensor(layer, name, dim, positions)
    try:
        found = _value(layer, weight.name)
        lengths = _lengths(layer, weight.name)
        if lengths is not None and found.shape == wanted.shape:
            dims = [dim for dim in range(wanted.dim()) if lengths.shape[dim] == 1]
            wanted_lengths, found_lengths = (
                torch.linalg.vector_norm(w, dim=dims, keepdim=True) for w in (wanted, found)
            )
            lengths.data.mul_(wanted_lengths / found_lengths)
            found = _value(layer, weight.name)
    except Exception:  # whatever a parametrisation raises whose tensors do not fit together
        return False
    limit = _ROUNDED.get(wanted.dtype, 1e-2) * float(wanted.abs().max())
    return found.shape == wanted.shape and bool(((found - wanted).abs() <= limit).all())


def _lengths(layer: nn.Module, name: str) -> torch.Tensor | None:
    """What weight norm multiplies filters by that were brought to a length of 1."""
    if any(isinstance(each, WeightNorm) and each.name == name for each in _hooks(layer)):
        return _tensor(layer, f"{name}_g")
    if parametrize.is_parametrized(layer, name):
        steps = layer.get_submodule(f"parametrizations.{name}")
        if [type(step) for step in steps.children()] == [_WeightNorm]:
            return _tensor(layer, f"parametrizations.{name}.original0")
    return None


def _hooks(layer: nn.Module) -> list[object]:
    return [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, _HOOKS)]


@torch.no_grad()
def _value(layer: nn.Module, name: str) -> torch.Tensor:
    """The weight as it is at inference."""
    was_training = layer.training
    layer.eval()
    for hook in _hooks(layer):
        if _hooked(hook) == name:
            hook(layer, ())  # type: ignore[operator]
    value: torch.Tensor = getattr(layer, name).detach().clone()
    layer.train(was_training)
    return value


def _store(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    """Let a layer have its weight as a parameter, and compute it no longer."""
    requires_grad = any(each.requires_grad for each in layer.parameters())
    if parametrize.is_parametrized(layer, name):
        _without_parametrization(layer, name)
    for hook in _hooks(layer):
        if _hooked(hook) == name:
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(layer, name)  # type: ignore[no-untyped-call]
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(layer, name)
            else:
                remove_spectral_norm(layer, name)
    setattr(layer, name, nn.Parameter(value, requires_grad=requires_grad))


def _without_parametrization(layer: nn.Module, name: str) -> None:
    """As PyTorch removes it, but for the class, which the copy of a layer shares with it."""
    kind, left = type(layer), layer.get_submodule("parametrizations")
    del left._modules[name]
    if left._modules:
        own = {key: value for key, value in vars(kind).items() if key not in (name, "__dict__", "__weakref__")}
        layer.__class__ = type(kind.__name__, kind.__bases__, own)
    else:
        del layer._modules["parametrizations"]
        layer.__class__ = kind.__bases__[0]


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    path, _, leaf = name.rpartition(".")
    tensor: torch.Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


def _shorten_tensor(model: nn.Module, name: str, dim: int, removed: IntArray) -> None:
    path, _, leaf = name.rpartition(".")
    module, old = model.get_submodule(path), _tensor(model, name)
    new = _without(old, dim, removed)
    if isinstance(old, nn.Parameter):
        module._parameters[leaf] = nn.Parameter(new, requires_grad=old.requires_grad)
    else:
        module._buffers[leaf] = new


def _without(tensor: torch.Tensor, dim: int, removed: IntArray) -> torch.Tensor:
    kept = torch.ones(tensor.shape[dim], dtype=torch.bool)
    kept[torch.from_numpy(removed)] = False
    return tensor.detach().index_select(dim, kept.nonzero().ravel().to(tensor.device))
