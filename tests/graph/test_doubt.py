"""Code that does not follow a cut freezes what it counts and no more, with a reason that names it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aap_hw.graph import ChannelGraph
from aap_hw.graph.check.self_check import checked_cut
from aap_hw.graph.groups.groups import ChannelGroup
from aap_hw.graph.groups.widths import WidthExpr
from aap_hw.graph.trial.amounts import amounts
from aap_hw.graph.trial.surprises import Trials
from tests.graph.attention_nets import DIM, HEADS, Embedded, Shares
from tests.graph.ground_truth import IMAGES, assert_cut_equals_silenced, assert_widths_follow, random_keep, traced
from tests.graph.nets import Head, conv


class CountedElsewhere(nn.Module):
    """Reshapes one tensor to as many channels as another one has."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide, self.mixed = conv(8, 6), conv(6, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = self.mixed(self.wide(self.narrow(x))).flatten(2)
        return self.wide(self.narrow(x)) + y.view(n, c, h, w).tanh()


class Halves(nn.Module):
    """Innocent, but doubtful: two halves, of which only running the code tells that they follow."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.both, self.last = conv(8, 12), conv(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).split(self.width, 1)
        return self.last(left * right.reshape(left.shape))


class Several(nn.Module):
    """Innocent blocks and others, a head."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.innocent = nn.ModuleList(Halves() for _ in range(3))
        self.counting = nn.ModuleList(CountedElsewhere() for _ in range(blocks))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.innocent:
            x = block(x)
        for block in self.counting:
            x = block(x)
        return self.head(x)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    made: list[object] = []
    first = Trials.first_surprise

    def counted(self: Trials, *arguments: object) -> object:
        made.append(first(self, *arguments))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(Trials, "first_surprise", counted)
    return made


@pytest.mark.slow  # the next test looks for one block, of a number instead of a length
def test_only_the_channels_that_the_code_counts_freeze(trials: list[object]) -> None:
    torch.manual_seed(0)
    model, graph, images = traced(Several(3), IMAGES)
    frozen = {group.name: str(group.frozen) for group in graph.groups if group.frozen}
    counted = {"innocent.2.last.0", *(f"counting.{number}.wide.0" for number in range(3))}
    assert frozen.keys() - {"head.linear"} == counted
    assert all("x.view, test_doubt.py:" in frozen[name] for name in counted)
    assert len(trials) <= 8
    keep = random_keep(graph, seed=1)
    smaller = assert_cut_equals_silenced(model, graph, images, keep)
    assert_widths_follow(graph, smaller, keep, images)


class Remembers(nn.Module):
    """Computes with the width that it once had, far from where its channels are made."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(8, 8), conv(8, 7), conv(7, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c(self.b(self.a(x)))
        return y * (2.0 if x.shape[1] == 8 else 1.0)


def test_a_number_that_changes_freezes_the_group_it_depends_on(trials: list[object]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.innocent, self.block, self.head = conv(3, 8), Halves(), Remembers(), Head(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.innocent(self.stem(x))))

    torch.manual_seed(0)
    model, graph, images = traced(Net(), IMAGES)
    frozen = {group.name for group in graph.groups if group.frozen}
    assert frozen == {"block.c.0", "innocent.last.0", "head.linear"}
    assert "'*', test_doubt.py:" in str(graph.group("innocent.last.0").frozen)
    assert len(trials) <= 8
    assert_cut_equals_silenced(model, graph, images, random_keep(graph, seed=1))


def test_the_trial_sees_what_a_group_alone_does(trials: list[object]) -> None:
    """A network whose code follows needs one trial."""
    graph = ChannelGraph.trace(Several(0), (torch.zeros(IMAGES),))
    assert [group.name for group in graph.groups if group.frozen] == ["head.linear"]
    assert trials == [None]


class OneLiesAsItShould(nn.Module):
    """Copies two channels before it reshapes them; of one there is nothing to copy, and export leaves that out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow, self.wide, self.head = conv(3, 8), nn.Conv2d(8, 2, 1), nn.Linear(2, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.narrow(x).permute(0, 2, 3, 1).contiguous().view(x.shape[0], -1, self.wide.in_features)
        return self.head(x + self.wide(y).mT.unflatten(2, x.shape[2:]))


def test_a_copy_that_one_channel_does_not_need_is_no_fault_of_the_code() -> None:
    torch.manual_seed(0)
    model, graph, images = traced(OneLiesAsItShould(), IMAGES)
    assert [group.name for group in graph.groups if group.frozen] == ["head.linear"]
    assert_cut_equals_silenced(model, graph, images, {"narrow": [1], "stem.0": [0, 1, 4, 6, 7]})


class CountedOnAnother(nn.Module):
    """Attention whose values and root are as wide as another tensor, and whose result is rolled by a count of its own.

    If all are cut alike, the root is that of the queries' width, but what is rolled still does not follow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.other = (nn.Linear(3, 12) for _ in range(4))
        self.head, self.second = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, (q, k, other) = x.shape[0], (layer(x) for layer in (self.q, self.k, self.other))
        q = q.reshape(n, -1, q.shape[-1])
        k = k.reshape(n, -1, k.shape[-1])
        other = other.reshape(n, -1, other.shape[-1])
        v = self.v(x).reshape(n, -1, other.shape[-1])
        weights = q @ k.mT
        weights = (weights * other.shape[-1] ** -0.5).softmax(-1)
        made = (weights @ v).roll(v.shape[-1] // 2, 1)
        return self.head(made) + self.second(other)  # type: ignore[no-any-return]


def test_what_was_made_up_for_while_channels_were_tied_in_vain_is_forgotten() -> None:
    torch.manual_seed(0)
    model, graph, inputs = traced(CountedOnAnother(), (2, 5, 3))
    assert [group.name for group in graph.groups if group.frozen is None] == ["q"]
    assert not graph.has_factors
    checked_cut(graph, model, {"q": [0, 2, 3, 7, 11]}, inputs)


class CountedBehindAttention(Embedded):
    """Heads that are shares of the embedding, and an output that is reshaped to the width of something else."""

    def __init__(self) -> None:
        super().__init__(Shares)
        self.aside, self.second = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        aside = self.aside(x)
        second = self.second(aside)
        return second, super().forward(x).reshape(len(x), -1, aside.shape[-1])


def test_channels_are_tied_before_something_else_in_the_network_is_found_to_be_wrong() -> None:
    torch.manual_seed(0)
    model, inputs = CountedBehindAttention().eval(), torch.randn(2, 5, 3)
    graph = ChannelGraph.trace(model, (inputs,))
    assert {group.name: group.width for group in graph.groups if group.frozen is None} == {"stem": DIM // HEADS}
    checked_cut(graph, model, {"stem": [0, 2, 3]}, inputs)


class OneNumberForTwo(nn.Module):
    """Reshapes two layers to as many classes as one attribute says; of one, the classes are the network's output."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = 8
        self.stem, self.a, self.b, self.last = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 4)

    def by_class(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.classes, -1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        a, b = self.by_class(self.a(x)), self.by_class(self.b(x))
        return a, self.last(b.unflatten(2, x.shape[2:]))


def test_a_number_that_counts_an_output_elsewhere_stays_without_a_search(trials: list[object]) -> None:
    torch.manual_seed(0)
    model, graph, images = traced(OneNumberForTwo(), IMAGES)
    assert [group.name for group in graph.groups if group.frozen is None] == ["stem.0"]
    assert trials == [None]
    checked_cut(graph, model, {"stem.0": [0, 1, 4, 6, 7]}, images)


class CountedOnWholeGroups(nn.Module):
    """A layer of 24 channels is reshaped to as many as another has, of which a norm keeps 4 groups of 6 whole."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(*(conv(count, 8) for count in (3, 8, 8, 8)))
        self.a, self.norm = nn.Conv2d(8, 24, 1), nn.GroupNorm(4, 24)
        self.b, self.last, self.head = nn.Conv2d(24, 24, 1), conv(24, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(self.before(x)))
        return self.head(self.last(self.b(x).flatten(2).view(x.shape)))


def test_a_trial_leaves_no_length_right_by_chance() -> None:
    torch.manual_seed(0)
    model, graph, images = traced(CountedOnWholeGroups(), IMAGES)
    free = {group.name: group.width for group in graph.groups if group.frozen is None}
    assert free == {"last.0": 8, **{f"before.{number}.0": 8 for number in range(4)}, "a": 4}
    checked_cut(graph, model, {"a": [0, 3]}, images)


def test_lengths_that_were_equal_are_different_in_a_trial() -> None:
    groups = [ChannelGroup(f"{number}", 64 if number % 9 else 16, None, (), ()) for number in range(45)]
    lengths = [WidthExpr(0, ((group.name, 64 // group.width),)) for group in groups]
    lengths += [WidthExpr(8, (("1", 1), ("4", 1))), WidthExpr(8, (("2", 1), ("8", 1)))]
    full = {group.name: group.width for group in groups}
    widths = full | amounts(groups, lengths, full)
    assert all(0 < widths[group.name] < group.width for group in groups)
    assert len({(each.at(full), each.at(widths)) for each in lengths}) == len(lengths)


class CountedOnTheNearest(nn.Module):
    """Reshapes a layer to as many channels as another one before it has, and a third has as many as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 12) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(12, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        n, (a, b, c) = x.shape[0], (layer(x) for layer in (self.a, self.b, self.c))
        a = a.reshape(n, -1, a.shape[-1])
        b = b.reshape(n, -1, b.shape[-1])
        c = c.reshape(n, -1, b.shape[-1])
        return sum(head(each.relu()) for head, each in zip(self.heads, (a, b, c), strict=True))  # type: ignore[return-value]


def test_only_channels_of_the_nearest_view_are_tied_if_that_is_enough() -> None:
    torch.manual_seed(0)
    model, graph, inputs = traced(CountedOnTheNearest(), (2, 5, 3))
    assert [group.name for group in graph.groups if group.frozen is None] == ["a", "b"]
    checked_cut(graph, model, {"a": [0, 2, 3, 7], "b": [1, 4]}, inputs)
