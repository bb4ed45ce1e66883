"""A model is its owner's: whatever its code keeps, it is the same after it was traced and cut.

And the answer is the same whether it had run before, or trained, or been traced; what it keeps is in no cut's way.
"""

from __future__ import annotations

import functools
import random
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut

IMAGES = (2, 3, 8, 8)
Contents = list[tuple[str, Any]]
GRIDS: dict[tuple[int, ...], Tensor] = {}
SEEN: dict[str, Tensor] = {}
CALLS = 0


class Net(nn.Module):
    """Two convolutions whose channels can be cut, and a head; subclasses keep something in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def kept(self, x: Tensor) -> Tensor:
        """What `b` reads of the output of `a`."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.kept(self.a(x).relu())).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class ShadowsItsClass(Net):
    seen, grid = None, torch.empty(0)

    def kept(self, x: Tensor) -> Tensor:
        if self.seen != x.shape:
            self.seen, self.grid = x.shape, torch.linspace(0, 1, x.shape[3])
        return x.chunk(2, 1)[0].repeat(1, 2, 1, 1) + x * self.grid


class KeepsMaps(Net):
    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Any] = []
        self.by_name: dict[str, Any] = {}

    def kept(self, x: Tensor) -> Tensor:
        self.last = x.sigmoid()
        self.maps.append((x, [self.last]))
        self.by_name["inner"] = {"x": x}
        return x * self.last


class CachesInItsClass(Net):
    grids: dict[tuple[int, ...], Tensor] = {}  # noqa: RUF012 - as people write it

    def kept(self, x: Tensor) -> Tensor:
        if x.shape[2:] not in self.grids:
            self.grids[x.shape[2:]] = torch.linspace(0, 1, x.shape[3])
        type(self).latest = self.grids[x.shape[2:]]  # type: ignore[attr-defined]
        return x + self.grids[x.shape[2:]]


@functools.lru_cache(maxsize=2)
def grid_of(width: int) -> Tensor:
    return torch.linspace(0, 1, width)


class CachesOutside(Net):
    def kept(self, x: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        if x.shape not in GRIDS:
            GRIDS[x.shape] = torch.linspace(0, 1, x.shape[3])
        return x + GRIDS[x.shape] + grid_of(x.shape[3])


class Registry(OrderedDict[str, Any]):
    """Makes an object for each name that it is asked for, as libraries keep their activations."""

    def __getitem__(self, name: str) -> nn.Module:
        return super().__getitem__(name)()  # type: ignore[no-any-return]


ACTIVATIONS = Registry(relu=nn.ReLU, sigmoid=nn.Sigmoid)


class LooksUp(Net):
    def kept(self, x: Tensor) -> Tensor:
        return ACTIVATIONS["sigmoid"](x)  # type: ignore[no-any-return]


class CachesItsOwnCalls(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((8, 1, 1), 0.7))
        self.grid = functools.lru_cache(maxsize=4)(self._grid)
        self.scaled, self.me = lambda x: x * self.gain, weakref.ref(self)
        self.by_name, self.known = weakref.WeakValueDictionary({"me": self}), weakref.WeakKeyDictionary({self: 0.5})
        self.lock = threading.Lock()

    def _grid(self, width: int) -> Tensor:
        return torch.linspace(0, 1, width) + len(self.gain) - self.gain.shape[0]

    def kept(self, x: Tensor) -> Tensor:
        with self.lock:
            shares = [each.gain * share for each, share in self.known.items()]
            return self.scaled(x) * self.by_name["me"].gain * shares[0] + self.me().grid(x.shape[3])  # type: ignore


class IsWatched(Net):
    """As every tutorial on features has it: hooks write into a dictionary of the script's, or of a function's."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}
        self.a.register_forward_hook(lambda module, inputs, output: SEEN.__setitem__("a", output.detach()))
        self.b.register_forward_hook(lambda module, inputs, output: self.found.__setitem__("b", output))
        self.head.register_forward_pre_hook(Watcher())


class Watcher:
    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.inputs.append(inputs[0])


class CountsAndBuffers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def kept(self, x: Tensor) -> Tensor:
        self.calls += 1
        if not hasattr(self, "positions"):
            self.register_buffer("positions", torch.linspace(0, 1, x.shape[3]), persistent=False)
        return x + self.positions  # type: ignore[no-any-return]


class ConstrainsWeights(Net):
    """As EEGNet does: weights are brought to a norm whenever they are used."""

    def kept(self, x: Tensor) -> Tensor:
        self.b.weight.data = torch.renorm(self.b.weight.data, 2, 0, maxnorm=0.1)
        return x


class DrawsInTraining(Net):
    """With a head that is there in training only, so that training is traced, too."""

    def __init__(self) -> None:
        super().__init__()
        self.aside, self.dropout, self.norm = nn.Linear(8, 4), nn.Dropout(0.5), nn.BatchNorm2d(8)

    def kept(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(x))
        if self.training:
            self.drawn = random.random() + np.random.rand()
            self.aux = self.aside(x.mean((2, 3)))
        return x


NETS = (
    ShadowsItsClass, KeepsMaps, CachesInItsClass, CachesOutside, LooksUp, CachesItsOwnCalls, IsWatched,
    CountsAndBuffers, DrawsInTraining,
)  # fmt: skip


def contents(model: nn.Module) -> Contents:
    """All that can be found in and around a model: what is which object, and the values of tensors."""
    found: Contents = []

    def look(path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found.append((path, (id(value), type(value), value.detach().clone())))
        elif isinstance(value, (dict, list, tuple)):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                look(f"{path}.{key}", inner)
        elif isinstance(value, (nn.Module, Watcher)):
            look(path, vars(value))
        else:
            found.append((path, value))

    look("model", model)
    look("class", {name: value for name, value in vars(type(model)).items() if not name.startswith("__")})
    look("globals", (GRIDS, SEEN, CALLS, tuple(OrderedDict.items(ACTIVATIONS))))
    _, numbers, *place = np.random.get_state()
    look("random", (torch.get_rng_state(), random.getstate(), numbers.tobytes(), place))
    return found


def assert_same(before: Contents, after: Contents) -> None:
    assert [path for path, _ in before] == [path for path, _ in after]
    for (path, old), (_, new) in zip(before, after, strict=True):
        if isinstance(old, tuple) and isinstance(old[-1], Tensor):
            assert path.startswith("random") or old[:2] == new[:2], path
            assert torch.equal(old[-1], new[-1]), path
        else:
            assert old is new or old == new, path


def answers(graph: ChannelGraph) -> list[tuple[str, int, str | None]]:
    return [(group.name, group.width, group.frozen) for group in graph.groups]


def forgotten() -> None:
    """Nothing is in a cache that others would find."""
    global CALLS
    CALLS = 0
    GRIDS.clear()
    SEEN.clear()
    CachesInItsClass.grids.clear()
    grid_of.cache_clear()


def trained(model: nn.Module) -> None:
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    model.train()(torch.rand(IMAGES)).square().sum().backward()
    optimiser.step()
    model.eval()


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_model_is_as_it_was_and_its_answer_is_always_the_same(kind: type[Net]) -> None:
    forgotten()
    torch.manual_seed(0)
    model, images = kind(), torch.rand(IMAGES)
    model.b.eval()
    first: list[tuple[str, int, str | None]] = []
    for happens in (None, lambda: model.eval()(images), lambda: trained(model)):
        if happens is not None:
            happens()
        before = contents(model)
        graph = ChannelGraph.trace(model, (torch.zeros(IMAGES),))
        keep = {group.name: [0, 2, 3] for group in graph.groups if group.frozen is None}
        assert_same(before, contents(model))
        first = first or answers(graph)
        assert answers(graph) == first
        assert [name for name, _, frozen in first if frozen is None] == ["a", "b"]
        smaller = graph.cut(model, keep)
        assert_same(before, contents(model))
        for output in (model.eval()(images), smaller.eval()(images)):
            assert (type(output), output.shape) == (Tensor, (2, 4))
            assert output.isfinite().all()
        assert isinstance(checked_cut(graph, model, keep, images), nn.Module)


def masked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    prune.ln_structured(net[0], "weight", amount=0.5, n=2, dim=0)
    prune.l1_unstructured(net[2], "bias", amount=0.5)
    return net


def normed(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(
        norm(nn.Conv2d(3, 8, 3, padding=1)), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )  # fmt: skip


COMPUTED: dict[str, tuple[Callable[[], nn.Module], dict[str, int], dict[str, tuple[int, ...]]]] = {
    # groups that can be cut, and shapes when 3 channels of each are kept
    "masks": (masked, {"0": 8, "2": 6}, {"0.weight_orig": (3, 3, 3, 3), "2.bias_mask": (3,)}),
    "old weight norm": (
        lambda: normed(torch.nn.utils.weight_norm), {"0": 8}, {"0.weight_g": (3, 1, 1, 1), "0.weight_v": (3, 3, 3, 3)},
    ),
    "weight norm": (
        lambda: normed(parametrizations.weight_norm), {"0": 8},
        {"0.parametrizations.weight.original0": (3, 1, 1, 1)},
    ),
    "old spectral norm": (lambda: normed(torch.nn.utils.spectral_norm), {"0": 8}, {"0.weight": (3, 3, 3, 3)}),
    "spectral norm": (lambda: normed(parametrizations.spectral_norm), {"0": 8}, {"0.weight": (3, 3, 3, 3)}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("what", COMPUTED)
def test_weights_that_hooks_compute_are_cut_at_their_source_or_stored(what: str) -> None:
    make, free, shapes = COMPUTED[what]
    torch.manual_seed(0)
    model, images = make(), torch.rand(IMAGES)
    for train in (None, trained):
        if train is not None:
            train(model)
        before = contents(model)
        graph = ChannelGraph.trace(model, (images,))
        assert {group.name: group.width for group in graph.groups if group.frozen is None} == free
        keep = {name: [1, 2, 5] for name in free}
        smaller = checked_cut(graph, model, keep, images)
        assert_same(before, contents(model))
        state = smaller.state_dict()
        assert {name: tuple(state[name].shape) for name in shapes} == shapes
        assert smaller[0].weight.shape[0] == smaller[0].out_channels == 3  # type: ignore[index]
        expected = smaller.eval()(images)
        smaller.train()(images).sum().backward()
        assert expected.isfinite().all()


class Blur(nn.Conv2d):
    """A fixed filter for each channel, which is no parameter."""

    def __init__(self) -> None:
        super().__init__(8, 8, 3, padding=1, groups=8, bias=False)
        del self.weight
        self.register_buffer("weight", torch.full((8, 1, 3, 3), 1 / 9))


class Experts(nn.Conv2d):
    """Filters are mixed from several sets."""

    def __init__(self) -> None:
        super().__init__(6, 6, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(4, 6, 6, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.mean(0).view(self.out_channels, self.in_channels, *self.kernel_size)
        return F.conv2d(x, weight, self.bias, padding=self.padding)  # type: ignore[arg-type]


class Sequence(nn.Module):
    """A recurrent layer of which a weight is computed reads all pixels, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(6, 6, batch_first=True)
        prune.l1_unstructured(self.inner, "weight_hh_l0", 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(2).mT)[0].mT.unflatten(2, x.shape[2:])  # type: ignore[no-any-return]


@pytest.mark.parametrize(("odd", "place", "free"), [(Blur, 1, ["0", "3"]), (Experts, 4, ["0"]), (Sequence, 4, ["0"])])
def test_layers_with_weights_of_another_kind_are_in_no_cuts_way(
    odd: type[nn.Module], place: int, free: list[str]
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)]
    layers.insert(place, odd())
    model, images = nn.Sequential(*layers), torch.rand(IMAGES)
    graph = ChannelGraph.trace(model, (images,))
    assert [group.name for group in graph.groups if group.frozen is None] == free
    assert torch.equal(graph.cut(model, {}).eval()(images), model.eval()(images))
    smaller = checked_cut(graph, model, {name: [1, 2, 5] for name in free}, images)
    layer = smaller.get_submodule(str(place))
    if isinstance(layer, nn.Conv2d):
        assert (layer.groups, layer.out_channels) == ((3, 3) if odd is Blur else (1, 6))


def test_a_cut_model_whose_functions_captured_it_uses_its_own_weights() -> None:
    model, images = CachesItsOwnCalls().eval(), torch.rand(IMAGES)
    smaller = ChannelGraph.trace(model, (images,)).cut(model, {"a": [0, 2, 3]})
    with torch.no_grad():
        before = smaller(images)
        model.gain.fill_(100)
        assert torch.equal(before, smaller(images))
        smaller.gain.fill_(100)  # type: ignore[union-attr,operator]
        assert not torch.allclose(before, smaller(images))


class Late(Net):
    def kept(self, x: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Conv2d(8, 8, 1)
        return self.late(x)  # type: ignore[no-any-return]


class Uncopied(Net):
    def __deepcopy__(self, memo: object) -> Net:
        raise NotImplementedError("there is one of me")


class Fails(Net):
    def kept(self, x: Tensor) -> Tensor:
        raise ValueError("not for small images")


REFUSED: dict[type[Net], str] = {
    ConstrainsWeights: "cannot trace this ConstrainsWeights: it runs, but its code cannot be followed",
    Late: r"this Late makes its weights 'late\.weight' when it is first called; call it once before it is traced",
    Uncopied: "this Uncopied cannot be copied, and only a copy is cut: NotImplementedError: there is one of me",
    Fails: r"cannot trace this Fails: its code raised ValueError: not for small images \(test_untouched\.py:\d+: raise",
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_models_that_cannot_be_run_or_copied_are_refused_in_one_sentence(kind: type[Net]) -> None:
    model = kind()
    before = contents(model)
    with pytest.raises(UserError, match=REFUSED[kind]) as error:
        ChannelGraph.trace(model, (torch.zeros(IMAGES),))
    assert "\n" not in str(error.value)
    assert_same(before, contents(model))
