"""The scores of a network equal those computed from forward hooks on its modules, however images arrive.

Most networks here come with a hand-written stand-in for their channel graph, so that what is observed is
known and not what the graph says; the last tests use the real one.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from aap_hw import ChannelGraph
from aap_hw.attention import REDUCTIONS, attention_scores
from aap_hw.errors import UserError


class SmallNet(nn.Module):
    """Conv, depthwise conv and a residual sum; the flattening writes the batch size into the trace."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6), nn.ReLU6())
        self.narrow = nn.Conv2d(6, 4, 1)
        self.inner = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.back = nn.Conv2d(8, 4, 1)
        self.residual = nn.Identity()
        self.hidden = nn.Sequential(nn.Linear(4 * 16, 10), nn.ReLU())
        self.classifier = nn.Linear(10, 5)

    def forward(self, x):
        x = self.narrow(self.depthwise(self.stem(x)))
        x = self.residual(x + self.back(self.inner(x)))
        return self.classifier(self.hidden(x.view(x.size(0), -1)))


READ_AT = {
    "stem.0": ("stem.2", "depthwise.1"),
    "narrow": ("residual",),
    "inner.0": ("inner.1",),
    "hidden.0": ("hidden.1",),
}
WIDTHS = {"stem.0": 6, "narrow": 4, "inner.0": 8, "hidden.0": 10}


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = SmallNet().double()
    model(torch.randn(16, 3, 8, 8, dtype=torch.float64))  # so that the statistics of batch norm are not trivial
    return model.eval()


def images(n, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64)


def graph_of(net, batch, **changed):
    program = torch.export.export(net, (images(batch),))
    names = {}
    for node in program.graph.nodes:
        if node.op == "call_function":
            names.setdefault(node.target.__name__.split(".")[0], []).append(node.name)
    observed = {
        "stem.0": (names["relu"][0], names["hardtanh"][0]),
        "narrow": (names["add"][0],),
        "inner.0": (names["relu_"][0],),
        "hidden.0": (names["relu"][1],),
    } | changed
    groups = [SimpleNamespace(name=name, frozen=None, observed=nodes) for name, nodes in observed.items()]
    groups.append(SimpleNamespace(name="classifier", frozen="reaches the output", observed=()))
    return SimpleNamespace(program=program, groups=groups, positions_of=one_to_one, meetings=())


def one_to_one(_node, group):
    return 1, np.arange(WIDTHS[group]).reshape(-1, 1)


def named(*names, observed):
    return [SimpleNamespace(name=name, frozen=None, observed=observed) for name in names]


def from_hooks(net, batch, reduction="mean", p=1.0):
    """The formula applied to what forward hooks see on the whole batch at once."""
    seen = {}
    modules = [name for at in READ_AT.values() for name in at]
    handles = [
        net.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.clone()}))
        for name in modules
    ]
    with torch.no_grad():
        net(batch)
    for handle in handles:
        handle.remove()

    def score(activation):
        pixels = np.abs(activation.numpy()).mean(axis=0).reshape(activation.shape[1], -1) ** p
        return {"mean": pixels.mean(1), "sum": pixels.sum(1), "max": pixels.max(1)}[reduction]

    return {group: sum(score(seen[name]) for name in at) / len(at) for group, at in READ_AT.items()}


def assert_same(scores, expected, rtol=1e-10):
    assert scores.keys() == expected.keys()
    for group, values in expected.items():
        assert scores[group].dtype == np.float64
        np.testing.assert_allclose(scores[group], values, rtol=rtol, err_msg=group)


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scores_equal_what_forward_hooks_see(net, reduction, p):
    batch = images(6)
    scores = attention_scores(net, [batch], reduction=reduction, p=p, graph=graph_of(net, 6))
    assert_same(scores, from_hooks(net, batch, reduction, p))


@pytest.mark.parametrize("lengths", [(4, 4, 4), (4, 4, 3), (4, 7, 1), (1, 9, 2)])
@pytest.mark.parametrize("traced", [1, 4, 12])
def test_three_batches_of_any_length_equal_one(net, lengths, traced):
    whole = images(sum(lengths))
    batches = iter(whole.split(lengths))  # an iterator: it can be gone through only once
    scores = attention_scores(net, batches, p=2.0, graph=graph_of(net, traced))
    assert_same(scores, from_hooks(net, whole, p=2.0))


def test_the_model_is_left_as_it_was(net):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.eval()
    graph = graph_of(net, 4)
    net.train()
    attention_scores(net, [images(6)], graph=graph)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_weights_trained_since_the_trace_are_used(net):
    graph = graph_of(net, 4)
    with torch.no_grad():
        net.narrow.weight.mul_(3)
    assert_same(attention_scores(net, [images(4)], graph=graph), from_hooks(net, images(4)))


def test_nothing_behind_the_last_observed_node_is_run(net):
    graph = graph_of(net, 4)
    graph.groups = [group for group in graph.groups if group.name != "hidden.0"]
    with torch.no_grad():
        net.hidden[0].weight = nn.Parameter(torch.zeros(1))  # would fail if it were used
    graph.program.state_dict["hidden.0.weight"] = net.hidden[0].weight
    assert set(attention_scores(net, [images(4)], graph=graph)) == {"stem.0", "narrow", "inner.0"}


def test_without_images_there_is_a_sentence(net):
    for batches in ([], [images(0)]):
        with pytest.raises(UserError, match="no calibration images"):
            attention_scores(net, batches, graph=graph_of(net, 4))
        with pytest.raises(UserError, match="no calibration images"):
            attention_scores(net, batches)


def test_images_of_another_size_are_refused_with_both_sizes(net):
    with pytest.raises(UserError, match=r"\(3, 16, 16\).*\(3, 8, 8\)"):
        attention_scores(net, [images(4), images(4, size=16)], graph=graph_of(net, 4))


@pytest.mark.parametrize("batch", [torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 8), [1, 2]])
def test_what_is_no_batch_of_images_is_refused(net, batch):
    with pytest.raises(UserError, match="floating point tensors of shape"):
        attention_scores(net, [batch], graph=graph_of(net, 4))
    # Without a graph, what the network takes is only known to itself.
    with pytest.raises(
        UserError,
        match=r"floating point tensors of shape|cannot trace this SmallNet|weights .* are float64 and the input",
    ):
        attention_scores(net, [batch])


def test_a_bad_reduction_is_refused_before_any_image_is_run(net):
    def must_not_be_read():
        raise AssertionError
        yield

    with pytest.raises(UserError, match="reduction"):
        attention_scores(net, must_not_be_read(), reduction="median")


def test_attention_that_is_not_finite_names_the_group(net):
    with torch.no_grad():
        net.hidden[0].bias[2] = float("inf")
    with pytest.raises(UserError, match=r"group hidden\.0 is not finite"):
        attention_scores(net, [images(4)], graph=graph_of(net, 4))


@pytest.mark.parametrize(
    ("observed", "complaint"),
    [((), "group narrow is read"), (("no_such_node",), "no_such_node")],
)
def test_a_graph_that_contradicts_itself_is_an_error(net, observed, complaint):
    with pytest.raises(ValueError, match=complaint):
        attention_scores(net, [images(4)], graph=graph_of(net, 4, narrow=observed))


class Pair(nn.Module):
    """Two images, laid side by side along the batch, through one trunk; a row of numbers says how much each counts."""

    def __init__(self):
        super().__init__()
        self.trunk, self.apart = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(10, 2)

    def forward(self, left, right, *, weight):
        both = self.trunk(torch.cat([left, right])).relu().mean((2, 3))
        alone = self.apart(left).relu().mean((2, 3)) * weight[:, None]
        return self.head(torch.cat([both[: len(left)] - both[len(left) :], alone], 1))


def test_each_of_several_inputs_reaches_its_channels_by_place_or_by_name():
    torch.manual_seed(0)
    net, names = Pair().double(), (None, None, "weight")
    left, right, weight = images(5), images(5, seed=1), torch.arange(5).double()
    batches = [tuple(each[part] for each in (left, right, weight)) for part in (slice(0, 2), slice(2, 4), slice(4, 5))]
    found = attention_scores(net, batches, names=names)
    both = net.trunk(torch.cat([left, right])).relu().abs()
    np.testing.assert_allclose(found["apart"], net.apart(left).relu().mean((0, 2, 3)).detach().numpy())
    # What fills the last batch up cannot be told from it along an axis that holds two batches: each image counts.
    once_more = torch.cat([both, both[4:5], both[9:10]])
    np.testing.assert_allclose(found["trunk"], once_more.mean((0, 2, 3)).detach().numpy())
    with pytest.raises(UserError, match=r"\(N, C, H, W\) and .* and .*\(N,\), normalised .*, not .*\(N, C, H, W\)$"):
        attention_scores(net, [batches[0], left], names=names)


def test_channels_are_read_where_the_graph_says_that_they_are():
    places = {
        "pair": (1, np.array([[2, 0]])),
        "single": (1, np.array([[1]])),
        "row": (2, np.arange(8).reshape(4, 2)),
    }
    graph = SimpleNamespace(
        meetings=(),
        program=torch.export.export(nn.ReLU(), (images(2),)),
        groups=named("pair", "single", observed=("relu",)),
        positions_of=lambda _node, group: places[group],
    )
    by_channel = images(2).relu().mean(dim=(0, 2, 3)).numpy()
    scores = attention_scores(nn.ReLU(), [images(2)], graph=graph)
    np.testing.assert_allclose(scores["pair"], [(by_channel[0] + by_channel[2]) / 2])
    np.testing.assert_allclose(scores["single"], [by_channel[1]])

    graph.groups = named("row", observed=("relu",))
    by_row = images(2).relu().mean(dim=(0, 1, 3)).numpy()
    scores = attention_scores(nn.ReLU(), [images(2)], graph=graph)
    np.testing.assert_allclose(scores["row"], by_row.reshape(4, 2).mean(axis=1))


def test_channels_along_the_axis_of_the_images_are_an_error():
    graph = SimpleNamespace(
        meetings=(),
        program=torch.export.export(nn.ReLU(), (images(2),)),
        groups=named("g", observed=("relu",)),
        positions_of=lambda _node, _group: (0, np.arange(2).reshape(-1, 1)),
    )
    with pytest.raises(ValueError, match="first axis of node relu"):
        attention_scores(nn.ReLU(), [images(2)], graph=graph)


def test_every_group_that_the_real_graph_may_cut_gets_a_score_per_channel(net):
    scores = attention_scores(net, images(11).split(4))
    graph = ChannelGraph.trace(net, (images(4),))
    cuttable = {group.name: group.width for group in graph.groups if group.frozen is None}
    assert {group: score.size for group, score in scores.items()} == cuttable
    assert "inner.0" in cuttable
    hooks = from_hooks(net, images(11))
    np.testing.assert_allclose(scores["inner.0"], hooks["inner.0"], rtol=1e-10)


def test_a_float32_network_on_its_own_trace_agrees_with_hooks(net):
    net = net.float()
    batch = images(5).float()
    scores = attention_scores(net, batch.split(2))
    hooks = from_hooks(net, batch)
    np.testing.assert_allclose(scores["inner.0"], hooks["inner.0"], rtol=1e-4)


class Shuffled(nn.Module):
    """Two branches concatenated and shuffled, so that a group's channel is several of an activation."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], dim=1)
        n, c, h, w = x.shape
        kept, _ = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).chunk(2, dim=1)
        return self.head(kept)


def test_a_shuffled_network_is_scored_in_batches_that_differ_in_length():
    torch.manual_seed(0)
    net = Shuffled().double().eval()
    graph = ChannelGraph.trace(net, (images(3),))
    many = attention_scores(net, images(7).split(3), graph=graph)
    cuttable = {group.name: group.width for group in graph.groups if group.frozen is None}
    assert cuttable
    assert {group: score.size for group, score in many.items()} == cuttable
    assert_same(many, attention_scores(net, [images(7)]))


def test_a_network_of_which_nothing_can_be_cut_has_no_scores():
    assert attention_scores(nn.Linear(3, 2).eval(), [torch.randn(4, 3)]) == {}
