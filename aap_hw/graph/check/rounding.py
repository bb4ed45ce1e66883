"""What a network computes, and by how much rounding alone may change the outputs of an equal network.

In double precision, rounding changes about 1e-15, and everything above a fixed share is a fault. Not every network runs
in it: one that names float32 itself (``x.float()``, a grid or a constant made in float32) fails, or rounds on the way.
Such a network is compared in its own precision, and the effect of rounding is measured: each weight is moved at random
by as much as rounding a sum in its layer would do, and the change of the outputs is taken.

Why by so much: in any order of summation, a rounded sum of n products is the exact one for factors that are each off by
a share of at most sqrt(n) u, with u half the distance from 1 to the next number, up to a small constant and with high
probability (Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5),
2019, theorem 3.1). Cutting leaves out zeros, which changes the order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aap_hw.errors import UserError
from aap_hw.foreign import own_line, reason
from aap_hw.graph.program.calling import Names, called
from aap_hw.graph.program.inputs import Batch, Tensors, tensors_of
from aap_hw.graph.program.outputs import output_tensors
from aap_hw.graph.program.surroundings import unchanged

# In double precision, as a share of an output's largest value. A channel taken for its neighbour is far above.
TOLERANCE = 1e-8
# In another precision: this many times what moved weights make of it. Two networks are rounded, and in more places.
SAFETY = 4.0
DRAWS = 3
# If rounding moves an output further than this, a wrong channel could hide in it.
LARGEST_TOLERANCE = 1e-2
# An output with values below this share of another's may be nothing but rounding errors.
SMALLEST = 1e-6
_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Outputs = list[torch.Tensor]


@dataclass(frozen=True)
class Reference:
    """What a network computes for some batches of its inputs, and what another one may differ by.

    Parameters
    ----------
    precision
        In which the network is run, and its inputs are.
    batches, names
        The inputs, and the parameters that they are given as; see `calling.called`.
    outputs
        Those of all batches, one after the other.
    tolerances
        For each output, as a share of its largest value; infinite for one that proves nothing.
    unit
        By how much a value is rounded, as a share of it, where that was measured; 0 in double precision.
    """

    precision: torch.dtype
    batches: list[Tensors]
    names: Names
    outputs: Outputs
    tolerances: list[float]
    unit: float = 0.0

    def of(self, make: Callable[[], nn.Module]) -> Reference:
        """What another network computes, in the same precision.

        Raises
        ------
        UserError
            If rounding changes its outputs so much that a wrong cut could not be seen.
        """
        if self.unit:
            return _measured(make, self.precision, self.unit, self.batches, self.names)
        return _exact(_run(make().to(self.precision), self.batches, self.names), self.batches, self.names)

    def difference(self, network: nn.Module) -> float:
        """The largest relative difference above the tolerance: 0 if there is none, infinite if the network fails."""
        try:
            outputs = _run(network.to(self.precision), self.batches, self.names)
        except Exception:
            # Whatever the model's code raises when its numbers no longer fit together.
            return math.inf
        if [each.shape for each in outputs] != [each.shape for each in self.outputs]:
            return math.inf
        shares = zip(_shares(self.outputs, outputs), self.tolerances, strict=True)
        found = [
            math.inf if math.isnan(share) else share for share, most in shares if most < math.inf and not share <= most
        ]
        return max(found, default=0.0)


def reference(
    make: Callable[[], nn.Module],
    batches: Iterable[Batch],
    names: Names = (),
    same: Callable[[], nn.Module] | None = None,
) -> Reference:
    """Run a network in double precision if possible, or else as it is.

    Parameters
    ----------
    make
        Makes the network, each time anew.
    same
        Makes another form of it, which must compute the same in the precision that is chosen.

    Raises
    ------
    UserError
        If it fails, rounding changes its outputs so much that a wrong cut could not be seen, or its other form
        computes something else.
    """
    doubled = [_in(torch.float64, tensors_of(each)) for each in batches]
    with _Narrowing() as narrowing:
        try:
            outputs = _run(make().double(), doubled, names)
        except Exception:
            outputs = None
    if outputs is not None and not narrowing.types:
        exact = _exact(outputs, doubled, names)
        if same is None or not exact.difference(same()):
            return exact
    own = _in_own_precision(make, doubled, names)
    if same is not None and (difference := own.difference(same())):
        by = f"by {difference:.2g} of an output's largest value" if difference < math.inf else "altogether"
        raise UserError(
            f"the network computes something else than the program that was traced from it, {by}, so that no cut of it "
            "can be compared with it; take out what changes its answer from one call to the next, such as random "
            "numbers or what it keeps of earlier calls"
        )
    return own


def _exact(outputs: Outputs, batches: list[Tensors], names: Names) -> Reference:
    tolerances = [TOLERANCE if each.isfinite().all() else math.inf for each in outputs]
    return Reference(torch.float64, batches, names, outputs, tolerances)


def _in_own_precision(make: Callable[[], nn.Module], samples: Iterable[Tensors], names: Names) -> Reference:
    whole = make()
    floats = [each.dtype for each in whole.parameters() if each.is_floating_point()]
    own = floats[0] if floats else torch.get_default_dtype()
    batches = [_in(own, each) for each in samples]
    with _Narrowing() as narrowing:
        try:
            _run(whole, batches, names)
        except Exception as error:
            sizes = ", ".join("x".join(map(str, each.shape)) for each in batches[0])
            raise UserError(
                f"the network fails on inputs of {sizes}: {reason(error)}{own_line(error)}; correct it, or give it "
                "inputs that it takes"
            ) from error
    unit = max(torch.finfo(each).eps for each in {own, *narrowing.types}) / 2
    return _measured(make, own, unit, batches, names)


def _measured(
    make: Callable[[], nn.Module], own: torch.dtype, unit: float, batches: list[Tensors], names: Names
) -> Reference:
    """A reference whose tolerances are measured."""
    outputs = _run(make(), batches, names)
    tolerances = [SAFETY * unit] * len(outputs)
    for seed in range(DRAWS):
        shares = _shares(outputs, _run(_moved(make(), unit, seed), batches, names))
        tolerances = [max(most, SAFETY * share) for most, share in zip(tolerances, shares, strict=True)]
    # Outputs of decisions prove nothing: rounding leaves them as they are, or tips them over.
    useful = [
        each.is_floating_point() and bool(each.isfinite().all()) and most <= LARGEST_TOLERANCE
        for each, most in zip(outputs, tolerances, strict=True)
    ]
    if not any(useful):
        types = {own, *(each for each in _TYPES if torch.finfo(each).eps / 2 == unit)}
        rounded = " and ".join(sorted(str(each).removeprefix("torch.") for each in types))
        raise UserError(
            f"rounding to {rounded} alone changes what the network computes too much for a wrong cut to be told from "
            "a right one; leave out casts such as x.float(), x.half() and autocast, and return scores, not decisions"
        )
    found = [most if use else math.inf for most, use in zip(tolerances, useful, strict=True)]
    return Reference(own, batches, names, outputs, found, unit)


def _in(precision: torch.dtype, batch: Tensors) -> Tensors:
    """A batch with its floating-point tensors in this precision."""
    return tuple(each.to(precision) if each.is_floating_point() else each for each in batch)


@torch.no_grad()
def _run(network: nn.Module, batches: Iterable[Tensors], names: Names) -> Outputs:
    network.eval()
    with unchanged(network):  # what a run keeps outside of the network is of its precision
        made = [output_tensors(called(network, [each.clone() for each in batch], names)) for batch in batches]
    return [each for tensors in made for each in tensors if each.numel()]


def _shares(expected: Outputs, actual: Outputs) -> list[float]:
    """By how much each output differs from the expected one, as a share of its largest value."""
    scales = [float(each.double().abs().max()) for each in expected]
    least = max(SMALLEST * max(filter(math.isfinite, scales), default=0.0), 1e-300)
    shares = [
        float((here.double() - there.double()).abs().max()) / max(scale, least)
        for there, here, scale in zip(expected, actual, scales, strict=True)
    ]
    return [math.inf if math.isnan(share) else share for share in shares]


@torch.no_grad()
def _moved(network: nn.Module, unit: float, seed: int) -> nn.Module:
    """The network with each weight moved by about as much as rounding changes the sums that it is in."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.is_floating_point():
            terms = parameter.numel() / max(1, len(parameter)) if parameter.dim() else 1
            factors = torch.empty(parameter.shape).normal_(1, math.sqrt(terms) * unit, generator=generator)
            parameter.mul_(factors.to(parameter.device))
    return network


class _Narrowing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the floating-point types that wider values are rounded to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        widest = min((torch.finfo(each).eps for each in _float_types((args, kwargs))), default=1.0)
        self.types.update(each for each in _float_types(result) if torch.finfo(each).eps > widest)
        return result


def _float_types(value: Any) -> set[torch.dtype]:
    return {each.dtype for each in tree_leaves(value) if isinstance(each, torch.Tensor) and each.is_floating_point()}
