"""Patterns choose what may be cut; the head never may; a pattern that means nothing is one sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.selection import select
from tests.synthetic import resnet20


def free(*, only: tuple[str, ...] = (), skip: tuple[str, ...] = ()) -> set[str]:
    return {group.name for group in select(resnet20()[1], only, skip).groups if group.frozen is None}


ALL = free()


def test_without_patterns_everything_stays_as_it_is() -> None:
    assert {group.name for group in resnet20()[1].groups if group.frozen is None} == ALL
    assert "linear" not in ALL


def test_patterns_choose_by_name() -> None:
    first_stage = {"layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1"}
    assert free(only=("layer1.*",)) == first_stage
    assert free(skip=("layer1.*",)) == ALL - first_stage
    assert free(only=("layer1.*", "layer2.0.conv1")) == first_stage | {"layer2.0.conv1"}
    assert free(only=("layer1.*",), skip=("*.1.conv1",)) == first_stage - {"layer1.1.conv1"}
    assert free(skip=("layer1.0.conv1",)) == ALL - {"layer1.0.conv1"}


def test_channels_that_a_norm_is_taken_over_can_be_left_alone() -> None:
    class Normed(torch.nn.Sequential):
        def __init__(self) -> None:
            layers = torch.nn.Linear(3, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 6), torch.nn.Linear(6, 2)
            super().__init__(*layers)

    graph = ChannelGraph.trace(Normed(), (torch.zeros(1, 3),))
    assert [group.frozen is None for group in select(graph).groups] == [True, True, False]
    first, second, _ = select(graph, renormalised=False).groups
    assert first.frozen == "is normalised over (nn.LayerNorm '1') and left alone by --no-renormalised"
    assert second.frozen is None
    with pytest.raises(UserError, match="nothing is left that may be cut with --skip '2' --no-renormalised"):
        select(graph, skip=("2",), renormalised=False)
    first, *_ = select(graph, renormalised=None).groups
    assert str(first.frozen).endswith("and left alone as nothing is trained; --renormalised cuts it")
    with pytest.raises(UserError, match=r"all that could be cut is normalised over, as '0' is, .* add --renormalised"):
        select(graph.frozen({"2": "is not wanted"}), renormalised=None)


def test_reason_names_the_option_and_what_was_frozen_keeps_its_own() -> None:
    groups = {group.name: group for group in select(resnet20()[1], ("layer1.*",), ("*0.conv1", "linear")).groups}
    assert groups["layer1.0.conv1"].frozen == "is left alone by --skip *0.conv1"
    assert groups["layer2.1.conv1"].frozen == "is not among --only layer1.*"
    assert "reaches the network's output" in str(groups["linear"].frozen)


def test_graph_with_fewer_free_groups_refuses_them_and_has_their_widths_as_numbers() -> None:
    module, graph, _ = resnet20()
    chosen = select(graph, skip=("layer1.0.conv1",))
    with pytest.raises(
        UserError, match=r"layer1\.0\.conv1' cannot be cut: it is left alone by --skip layer1\.0\.conv1"
    ):
        chosen.cut(module, {"layer1.0.conv1": [0]})
    (node,) = graph.group("layer1.0.conv1").observed[:1]
    assert graph.width_of(node).terms == (("layer1.0.conv1", 1),)
    assert (chosen.width_of(node).terms, chosen.width_of(node).constant) == ((), 16)
    assert isinstance(chosen.cut(module, {"layer1.1.conv1": [0]}), torch.nn.Module)


@pytest.mark.parametrize(
    ("option", "pattern", "sentence"),
    [
        ("skip", "layer9.*", r"--skip 'layer9\.\*' matches no channel group; the nearest are .*layer"),
        (
            "only",
            "layer1.0.conv",
            r"--only 'layer1\.0\.conv' matches no channel group; the nearest are layer1\.0\.conv1",
        ),
        ("skip", "", "matches no channel group; the nearest are conv1"),
        ("skip", "*", r"nothing is left that may be cut with --skip '\*'; 'aap-hw plan' without them lists the groups"),
        (
            "skip",
            "kind:mlp",
            "--skip 'kind:mlp' matches no channel group; the kinds of this network are output, stream, ",
        ),
        ("only", "kind:output", "--only 'kind:output' matches nothing that can be cut: 'linear' reaches the network's"),
        ("only", "linear", "--only 'linear' matches nothing that can be cut: 'linear' reaches the network's output"),
    ],
)
def test_pattern_that_means_nothing_is_one_sentence(option: str, pattern: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        select(resnet20()[1], **{option: (pattern,)})


def test_kinds_choose_too() -> None:
    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(24, 9), nn.Linear(9, 2)
    graph = ChannelGraph.trace(nn.Sequential(*layers), (torch.zeros(1, 3, 2, 2),))

    def chosen(**patterns: tuple[str, ...]) -> list[str]:
        return [group.name for group in select(graph, **patterns).groups if group.frozen is None]

    assert graph.kinds == {"0": "inner", "1": "inner", "3": "mlp", "4": "output"}
    assert chosen(only=("kind:mlp",)) == ["3"]
    assert chosen(skip=("kind:mlp",)) == ["0", "1"]
    assert chosen(only=("kind:*n*", "3"), skip=("1",)) == ["0", "3"]
    assert select(graph, skip=("kind:mlp",)).group("3").frozen == "is left alone by --skip kind:mlp"
    with pytest.raises(UserError, match="nothing is left that may be cut with --skip 'kind:inner' --skip 'kind:mlp'"):
        select(graph, skip=("kind:inner", "kind:mlp"))
