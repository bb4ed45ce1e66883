"""How much the outputs depend on a group is activation times gradient, as PyTorch computes it on the plain module."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, fx, nn

from aap_hw import ChannelGraph
from aap_hw.attention import sensitivities
from aap_hw.attention.projections import OnGradient, Projections, projections_of_each
from aap_hw.errors import UserError


class Net(nn.Module):
    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.third = nn.Conv2d(6, 8, 3, padding=1)
        self.linear = nn.Linear(8, 5)
        self.relu = nn.ReLU(inplace=inplace)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self._see(self.relu(self.first(x)))
        inner = self._see(self.relu(self.third(stream)))
        return self.linear(inner.mean((2, 3)))  # type: ignore[no-any-return]

    def _see(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() and x.requires_grad:
            x.retain_grad()
            self.seen.append(x)
        return x


def images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def traced(model: nn.Module) -> ChannelGraph:
    return ChannelGraph.trace(model, (torch.zeros(1, 3, 6, 6),))


@pytest.mark.parametrize("inplace", [False, True])
def test_it_is_activation_times_gradient_of_random_projections_of_the_outputs(inplace: bool) -> None:
    torch.manual_seed(0)
    model = Net(inplace=inplace).eval()
    found = sensitivities(traced(model), images())
    spread = model(images()).detach().double().std(0, correction=0).float()
    draw, expected = torch.Generator().manual_seed(0), {"first": 0.0, "third": 0.0}
    draws = projections_of_each(5)
    for image in images():
        for _ in range(draws):
            model.seen.clear()
            (model(image[None]) / spread * torch.randn(1, 5, generator=draw)).sum().backward()
            for name, value in zip(expected, model.seen, strict=True):
                assert value.grad is not None
                expected[name] += float((value * value.grad).detach().sum((2, 3)).abs().sum()) / (5 * draws)
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_model_keeps_no_gradient_and_its_weights_need_none() -> None:
    model = Net().eval().requires_grad_(False)
    frozen = sensitivities(traced(model), images())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert frozen == pytest.approx(sensitivities(traced(model.requires_grad_(True)), images()), rel=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_is_kept_of_an_image_once_its_gradients_are_taken() -> None:
    graph, alive = traced(Net().eval()), list[weakref.ref[OnGradient]]()

    def watch(_: fx.Interpreter, node: fx.Node, __: Tensor) -> list[OnGradient]:
        def on_gradient(_: Tensor, __: Tensor) -> None:
            pass

        alive.append(weakref.ref(on_gradient))
        return [on_gradient]

    Projections(graph, images(), ()).follow(watch)
    gc.collect()
    assert len(alive) > 5
    assert not any(each() for each in alive)


def test_a_residual_branch_that_adds_little_matters_little() -> None:
    class Branch(nn.Module):
        def __init__(self, share: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
            self.outer, self.linear = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.Linear(6, 5)
            with torch.no_grad():
                self.outer.weight *= share

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            stream = torch.relu(self.first(x))
            return self.linear((stream + self.outer(torch.relu(self.inner(stream)))).mean((2, 3)))  # type: ignore[no-any-return]

    strong, weak = (sensitivities(traced(Branch(share).eval()), images()) for share in (1.0, 0.01))
    assert weak["inner"] < 0.05 * strong["inner"]
    assert weak["first"] > 0.3 * strong["first"]


class Packed(Net):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor | None]:  # type: ignore[override]
        return {"aux": None, "out": super().forward(x)}


class Several(Net):
    """Scores, a map of the second group in other units, and a decision."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        inner = self.third(torch.relu(self.first(x)))
        scores = self.linear(inner.mean((2, 3)))
        return scores, inner * self.unit, scores.argmax(1)


def test_outputs_count_alike_in_whatever_units_they_are() -> None:
    small, large = (traced(Several(unit).eval()) for unit in (1e-3, 1e3))
    large.program.state_dict.update(small.program.state_dict)
    assert sensitivities(small, images()) == pytest.approx(sensitivities(large, images()), rel=1e-3)


def test_packed_outputs_count_as_if_they_were_alone() -> None:
    alone, packed = (traced(kind().eval()) for kind in (Net, Packed))
    packed.program.state_dict.update(alone.program.state_dict)
    expected = sensitivities(alone, images())
    assert sensitivities(packed, images()) == expected
    assert expected["first"] != expected["third"]


def test_a_group_that_more_of_the_outputs_are_made_from_counts_for_more() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1)
            self.one, self.many = nn.Conv2d(6, 1, 1), nn.Conv2d(6, 50, 1)
            self.large.load_state_dict(self.small.state_dict())
            self.many.load_state_dict(
                {name: each.repeat_interleave(50, 0) for name, each in self.one.state_dict().items()}
            )

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.one(self.small(x)), self.many(self.large(x))

    torch.manual_seed(0)
    found = sensitivities(traced(Heads().eval()), images())
    assert found["large"] == pytest.approx(50**0.5 * found["small"], rel=0.3)


def test_activations_without_a_gradient_count_for_nothing() -> None:
    class Halted(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.third(torch.relu(self.first(x))).mean((2, 3)) * 0)  # type: ignore[no-any-return]

    assert sensitivities(traced(Halted().eval()), images())["first"] == 0.0


def test_too_few_images_for_a_traced_batch_are_refused() -> None:
    graph = ChannelGraph.trace(Net().eval(), (torch.zeros(4, 3, 6, 6),))
    with pytest.raises(UserError, match="2 calibration images are not a whole batch of 4"):
        sensitivities(graph, images(2))


def test_inputs_that_forward_takes_by_name_arrive() -> None:
    class Named(Net):
        def forward(self, *, image: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(image)

    named, plain = Named().eval(), Net().eval()
    named.load_state_dict(plain.state_dict())
    graph = ChannelGraph.trace(named, (torch.zeros(1, 3, 6, 6),), ("image",))
    assert sensitivities(graph, images()) == pytest.approx(sensitivities(traced(plain), images()), rel=1e-6)
