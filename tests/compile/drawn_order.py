"""Random kernels that sort, pick by number, add up as they go, and find the places of extreme values; see `drawn`."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from aap_hw.compile.keys.key import KernelKey
from tests.compile.drawn import ODD, Case, numbers, rounding


@st.composite
def orders(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["argsort", "take_along", "cumsum", "argmax", "argmin"]))
    inner = draw(st.one_of(st.just(1), ODD))
    shape = draw(st.integers(1, 5)), draw(st.one_of(ODD, st.integers(1, 2000 // inner + 1))), inner
    random, text = numbers(draw), ",".join(map(str, shape))
    # Few different ones, so that several are equal.
    x = (3 * torch.randn(shape, generator=random)).round()
    if kind == "argsort":
        count, order = draw(st.integers(1, shape[1])), draw(st.sampled_from(["", "descending"]))
        made = torch.sort(x, dim=1, descending=bool(order), stable=True)[1][:, :count]
        return Case.of(KernelKey.make(kind, (), 1, shape=text, count=count, order=order), (1, 1), [x], made, 0.0)
    if kind == "take_along":
        taken, by_row = draw(ODD), draw(st.booleans())
        index = torch.randint(0, shape[1], (shape[0], taken, 1 if by_row else inner), generator=random)
        made = x.gather(1, index.expand(shape[0], taken, inner))
        key = KernelKey.make(kind, (), 1, shape=text, taken=taken, each="row" if by_row else "")
        return Case.of(key, (1, 1), [x, index.float()], made, 0.0)
    if kind == "cumsum":
        x = x + torch.rand(shape, generator=random)
        error = rounding(shape[1]) * x.double().abs().cumsum(1)
        return Case.of(KernelKey.make(kind, (), 1, shape=text), (1, 1), [x], x.double().cumsum(1), error)
    places = torch.sort(x, dim=1, descending=kind == "argmax", stable=True)[1][:, 0]
    return Case.of(KernelKey.make("reduce", (), 1, of=kind, shape=text), (1, 1), [x], places, 0.0)
