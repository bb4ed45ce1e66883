"""Proves that operators without a schedule compile all the same, to what PyTorch computes, at any width.

The networks are those of one construct each that the graph is tested with; multiply-accumulates are PyTorch's count.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import tvm_ffi
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from aap_hw.compile.families import family_of, output_pixels
from aap_hw.compile.families.slow import NoCode, SlowCall
from aap_hw.compile.front.partition import partition
from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.library import slow
from aap_hw.compile.library.lowering import compile_network
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from tests.compile.running import assert_compiled_equals_pytorch, outputs, randomise, target
from tests.graph.constructs import CONSTRUCTS
from tests.graph.ground_truth import random_keep

COMPILED = {
    "PixelShuffle": "",
    "SpatialGateOfMeanAndMaximum": "",
    "StandardisedFilters": "",
    "ColumnsOfATurnedImage": "",
}
# Kernels that are tried in files of their own, and one that takes TVM long.
SLOW = {
    "Convolution3d": "",
    "TransposedConvolution": "",
    "GroupNorm": "",
    "LayerNormMlp": "",
    "ReflectedBorders": "",
    "SelfAttention": "",
    "LinearOnChannelsLast": "",
    "SplitByListOfSizes": "",
    "UnpooledToTheirPlaces": "1 kernel on the slow path: 1 max_pool2d_with_indices",
}


def model_of(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return randomise(CONSTRUCTS[name]()), torch.randn(CONSTRUCTS[name].shape)


@pytest.mark.parametrize("name", [*COMPILED, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_it_compiles_to_what_pytorch_computes_and_says_what_is_slow(name: str, tmp_path: Path) -> None:
    model, images = model_of(name)
    assert partition(ChannelGraph.trace(model, (images,))).slow_path == (COMPILED | SLOW)[name]
    assert_compiled_equals_pytorch(model, images, tmp_path)


FOLLOWING = (
    "ColumnsOfATurnedImage",
    "DepthwiseConvolutionWithMultiplier",
    "GroupNorm",
    "LayerNormMlp",
    "PaddedAround",
    "PaddedTwice",
    "PixelShuffle",
    "SplitByListOfSizes",
    "SplitBySizeInAttribute",
    "StackAndMean",
    "TransposedConvolution",
)


@pytest.mark.parametrize(
    "name", [*FOLLOWING[::2], *(pytest.param(name, marks=pytest.mark.slow) for name in FOLLOWING[1::2])]
)
def test_a_cut_network_has_the_kernels_that_the_uncut_one_foretold(name: str) -> None:
    model, images = model_of(name)
    graph = ChannelGraph.trace(model, (images,))
    network = partition(graph)
    assert not network.fixed
    keep = random_keep(graph, seed=1)
    assert keep
    widths = network.dense | {group: len(kept) for group, kept in keep.items()}
    again = partition(ChannelGraph.trace(graph.cut(model, keep), (images,)))
    for foretold, found in zip(network.kernels, again.kernels, strict=True):
        calls = [SlowCall.of(k.at(w)) for k, w in ((foretold, widths), (found, again.dense)) if k.key.op[:5] == "aten."]
        assert calls[:1] == calls[1:]
        assert calls or foretold.at(widths) == found.at(again.dense)


# Two heads of two images attend from 64 pixels to 64, over 4 channels, twice: PyTorch does not count that on a CPU.
ATTENDING = 2 * (2 * 2 * 64 * 64 * 4)


@pytest.mark.parametrize(
    ("name", "uncounted"),
    [("DepthwiseConvolutionWithMultiplier", 0), ("TransposedConvolution", 0), ("SelfAttention", ATTENDING)],
)
def test_multiply_accumulates_and_parameters_are_those_that_pytorch_counts(name: str, uncounted: int) -> None:
    model, images = model_of(name)
    network = partition(ChannelGraph.trace(model, (images,)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    counted = sum(kernel.multiply_accumulates(network.dense) for kernel in network.kernels)
    assert counted == counter.get_total_flops() // 2 + uncounted
    learned = sum(kernel.parameters(network.dense) for kernel in network.kernels)
    assert learned == sum(parameter.numel() for parameter in model.parameters())


class PaddedVectors(nn.Module):
    """Of what is padded nothing can be cut, as it is returned, too; of what is added everything can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.last, self.new = nn.Linear(8, 8), nn.Linear(8, 12), nn.Linear(12, 5), 4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return x, self.last(self.wide(x) + F.pad(x, (0, self.new)))


def test_padding_of_what_stays_follows_the_channels_that_it_adds() -> None:
    model, vectors = PaddedVectors().eval(), torch.randn(2, 8)
    graph = ChannelGraph.trace(model, (vectors,))
    whole = partition(graph)
    cut = partition(ChannelGraph.trace(graph.cut(model, {"wide": [0, 2]}), (vectors,)))
    calls = [
        [SlowCall.of(kernel.at(widths)) for kernel in network.kernels if kernel.key.op == "aten.pad.default"]
        for network, widths in ((whole, whole.dense | {"wide": 2}), (cut, cut.dense))
    ]
    assert calls[0] == calls[1] != []


def test_groups_whose_widths_a_slow_kernel_cannot_follow_are_fixed_with_a_reason() -> None:
    class ThreeWidths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, width, 1) for width in (4, 5, 6))
            self.last = nn.Conv2d(15, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            rows = [layer(x).permute(0, 2, 3, 1) for layer in (self.a, self.b, self.c)]
            return self.last(torch.cat(rows, 3).permute(0, 3, 1, 2))

    graph = ChannelGraph.trace(ThreeWidths().eval(), (torch.zeros(1, 3, 4, 4),))
    assert not any(group.frozen for group in graph.groups[:3])
    network = partition(graph)
    assert {"a", "b", "c"} == set(network.fixed)
    assert "depends on more widths (torch.cat" in network.fixed["a"]
    assert all(group.frozen for group in graph.frozen(network.fixed).groups)


def test_an_operator_has_its_schedule_once_the_widths_that_it_cannot_follow_are_fixed() -> None:
    class CrossCovariance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.last = *(nn.Conv2d(3, width, 1) for width in (4, 5, 5)), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
            return self.last(((q @ k.mT).relu() @ v).unflatten(2, x.shape[2:]))

    network = partition(ChannelGraph.trace(CrossCovariance().eval(), (torch.zeros(1, 3, 4, 6),)))
    assert not network.slow_path
    assert {"q", "k"} <= set(network.fixed)


def test_the_text_of_a_call_is_read_at_its_widths() -> None:
    text = "aten.conv2d.default - call=(image[1,i,8,8],w[2*o,i,3,3],None,[1,1],'a\\x20b',-0.5,(i+3)//4)[1]->x.bool[1,o]"
    key = KernelKey.parse(f"{text} float32 batch=1")
    call = SlowCall.of(Address(key, (5, 3)))
    image, weight = call.operands
    assert (image.stored, weight.stored, weight.is_constant) == ((1, 8, 8, 5), (6, 5, 3, 3), True)
    assert call.arguments[2:] == (None, [1, 1], "a b", -0.5, 2)
    assert (call.op, call.piece, call.output.dtype, call.output.shape) == ("aten.conv2d.default", 1, "bool", (1, 3))
    assert family_of(key).constants(Address(key, (5, 3))) == 6 * 5 * 9
    assert output_pixels(key) == 1


@pytest.mark.parametrize("call", ["(__import__('os'))->x[1]", "(x[1].real)->x[1]", "x[1]", "(open)->x[1]", "(x[1]"])
def test_a_text_that_is_no_call_is_refused_and_not_run(call: str) -> None:
    with pytest.raises(UserError, match="is not a kernel of this version"):
        SlowCall.of(Address(KernelKey.make("aten.relu.default", (), 1, call=call), (1, 1)))


class OneOperator(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))  # type: ignore[no-any-return, operator]


def test_what_tvm_cannot_lower_either_is_refused_by_its_line(tmp_path: Path) -> None:
    model = OneOperator(torch.special.bessel_j0).eval()
    sentence = (
        r"^torch\.special\.bessel_j0 \(test_slow.py:\d+: return self.function\(self.conv\(x\)\).*\) has no kernel "
        r"here, and TVM \S+ has no code for it; replace it in the model, or leave that part out of it$"
    )
    with pytest.raises(UserError, match=sentence):
        outputs(model, torch.randn(1, 3, 4, 4), tmp_path)


def test_a_refusal_keeps_its_words_between_processes() -> None:
    refusal = NoCode(KernelKey.make("aten.erf.default", (), 1, call="(x[1])->x[1]"), "TVM has no code for it")
    again = pickle.loads(pickle.dumps(refusal))
    advice = "has no kernel here, and TVM has no code for it; replace it in the model, or leave that part out of it"
    assert str(again) == str(refusal) == f"the operator erf {advice}"
    assert str(again.at("x.erf (net.py:3)")) == f"x.erf (net.py:3) {advice}"


def test_code_does_not_depend_on_which_widths_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TVM gets an operator right at some widths and not at others, either order of widths ends alike."""
    key = KernelKey.make("aten.erf.default", (), 1, call="(image[1,o,4,4])->image[1,o,4,4]")
    really = slow._computes

    def computes(function: slow.Function, model: nn.Module, examples: list[Tensor]) -> bool:
        tried.append(examples[0].shape[-1])
        return tried[-1] != 16 and really(function, model, examples)

    monkeypatch.setattr(slow, "_computes", computes)
    made = []
    for widths in ((16, 5), (5, 16)):
        tried: list[int] = []
        slow._is_right_in_steps.cache_clear()
        codes = {width: slow.build_slow(Address(key, (width, width)), target()).code for width in widths}
        made.append((tried, codes[5], codes[16]))
    assert tvm_ffi.structural_equal(made[0][1], made[1][1], map_free_vars=True)
    assert tvm_ffi.structural_equal(made[0][2], made[1][2], map_free_vars=True)
    assert made[0][0] == made[1][0]


def test_what_tvm_computes_differently_is_never_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow._is_right_in_steps.cache_clear()
    right = slow._imported
    monkeypatch.setattr(
        slow, "_imported", lambda program: right(torch.export.export(Doubled(), (torch.zeros(1, 4, 4, 4),)))
    )
    with pytest.raises(UserError, match=r"TVM \S+ computes something else in its place"):
        outputs(OneOperator(torch.atan).eval(), torch.randn(1, 3, 4, 4), tmp_path)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def sampled(x: Tensor) -> Tensor:
    return nn.functional.grid_sample(x, x.permute(0, 2, 3, 1)[..., :2], padding_mode="reflection", align_corners=False)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5)),
        lambda x: nn.functional.adaptive_max_pool2d(x, (3, 1)),
        lambda x: nn.functional.interpolate(x, size=(13, 4))[:, :, -2].type_as(x)[:, :, -3::2],
        pytest.param(sampled, marks=pytest.mark.slow),  # test_sampling's kernels take less to compile
    ],
    ids=["windows", "cells", "last of nearest", "sampled"],
)
def test_what_neither_the_importer_nor_pytorch_divides_is_spelt_out(function: object, tmp_path: Path) -> None:
    assert_compiled_equals_pytorch(OneOperator(function).eval(), torch.randn(1, 3, 7, 9), tmp_path)


@pytest.mark.parametrize(
    ("operator", "call"),
    [
        pytest.param(
            "aten.group_norm.default",
            "(image[1,2,300,256],1,w[2],w[2],1e-05)->image[1,2,300,256]",
            marks=pytest.mark.slow,
        ),
        ("aten.sort.stable", "(x[2,9],stable=True,descending=True)[0]->x[2,9]"),
        pytest.param(
            "torchvision.deform_conv2d.default",
            "(image[1,2,5,4],w[3,2,2,1],image[1,4,4,4],c[1,1],c[3],1,1,0,0,1,1,1,1,False)->image[1,3,4,4]",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_spellings_are_code_that_computes_what_pytorch_does(operator: str, call: str) -> None:
    address = Address(KernelKey.make(operator, (), 1, call=call), (1, 1))
    assert slow.build_slow(address, target()).output_shape == SlowCall.of(address).output.stored


def test_tensors_that_are_made_in_the_code_are_constants(tmp_path: Path) -> None:
    factors, terms = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([1, 0, 2, 3])
    model = OneOperator(lambda x: x * factors.view(1, 4, 1, 1) + terms.type_as(x).view(1, 4, 1, 1)).eval()
    assert_compiled_equals_pytorch(model, torch.randn(1, 3, 5, 5), tmp_path)


def test_a_mask_that_is_written_piece_by_piece_is_a_constant(tmp_path: Path) -> None:
    def masked(x: Tensor) -> Tensor:
        mask = x.new_zeros((5, 5))
        mask[:2, 1:] = 3
        early = mask * 2.0
        mask[3:] += 1.5
        return (x + early) * mask

    assert_compiled_equals_pytorch(OneOperator(masked).eval(), torch.randn(1, 3, 5, 5), tmp_path)


def test_zeros_that_do_not_stay_zero_are_constants(tmp_path: Path) -> None:
    def masked(x: Tensor) -> Tensor:
        mask = torch.zeros_like(x)
        mask[:, 1] = 3
        return torch.cat([x * mask, torch.zeros_like(x), x + (torch.zeros_like(x) + 1.5)], 1)

    assert_compiled_equals_pytorch(OneOperator(masked).eval(), torch.randn(1, 3, 5, 5), tmp_path)


def test_vectors_of_one_pixel_are_an_image_of_one_pixel(tmp_path: Path) -> None:
    def attending(x: Tensor) -> Tensor:
        rows = x.flatten(2)
        return torch.cat([(rows @ rows.transpose(1, 2).softmax(-1)[:, :1, :1]).view(x.shape), x], 1).relu()

    assert_compiled_equals_pytorch(OneOperator(attending).eval(), torch.randn(1, 3, 1, 1), tmp_path)


def test_a_constant_that_an_image_is_written_into_is_refused(tmp_path: Path) -> None:
    def copied(x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape)
        y.view(y.shape).add_(x)
        return y * 2.0

    with pytest.raises(UserError, match="writes what depends on the input into a tensor of constants"):
        outputs(OneOperator(copied).eval(), torch.randn(1, 3, 5, 5), tmp_path)


def test_a_constant_that_changes_between_two_readers_is_refused(tmp_path: Path) -> None:
    def changing(x: Tensor) -> Tensor:
        mask = x.new_ones((5, 5))
        y = x + mask
        mask[::2] = 3
        return y * mask

    with pytest.raises(UserError, match="is written to between two that read it"):
        outputs(OneOperator(changing).eval(), torch.randn(1, 3, 5, 5), tmp_path)


def test_a_buffer_that_the_code_counts_with_is_left_as_it_was(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.conv(x)  # type: ignore[no-any-return]

    model = Counting().eval()
    compile_network(model, torch.zeros(1, 3, 5, 5), target(), tmp_path / "network.so")
    assert model.calls == 0
