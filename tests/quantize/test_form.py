"""Proves that what a run keeps of a quantised network gives it back, that rounding is blamed on the layers that it
hurts, and that training with rounding trains the very network.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.precision import layer_of
from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.compile.keys.precision import INT8
from aap_hw.errors import UserError
from aap_hw.graph import ChannelGraph
from aap_hw.graph.program.inputs import Tensors
from aap_hw.inputs import Inputs
from aap_hw.quantize import (
    AwareProgram,
    Int8Form,
    Program,
    calibrated,
    float_layers,
    for_timing,
    noise_share,
    quantise,
    read_quantised,
    rounded,
)
from aap_hw.quantize.quantizer import SMALLEST
from tests.compile.running import randomise

INPUTS = Inputs.of((3, 10, 8))


class Small(nn.Module):
    """A residual block between two layers; its norms have settings of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, eps=0.1, momentum=0.3)
        self.conv, self.conv_bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, eps=0.2, momentum=0.4)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(image)))
        x = F.relu(self.conv_bn(self.conv(x)) + x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(2)
    return randomise(Small()).eval()


@pytest.fixture(scope="module")
def batches() -> list[Tensors]:
    torch.manual_seed(3)
    return [(torch.randn(4, 3, 10, 8),) for _ in range(3)]


@pytest.fixture(scope="module")
def form(model: nn.Module, batches: list[Tensors]) -> Int8Form:
    return calibrated(model, INPUTS, batches)


def test_a_form_gives_the_reference_back_to_the_bit(model: nn.Module, batches: list[Tensors], form: Int8Form) -> None:
    reference = quantise(model, batches)
    written = Int8Form.from_json(json.loads(json.dumps(form.as_json())))
    assert written == form
    floating, quantisation = written.of(model, INPUTS, batch=4)
    _, expected = read_quantised(reference)
    assert quantisation.values == expected.values
    assert quantisation.weights.keys() == expected.weights.keys() == {"stem.weight", "conv.weight", "head.weight"}
    for name, scales in expected.weights.items():
        np.testing.assert_array_equal(quantisation.weights[name], scales)
    with torch.no_grad():
        assert torch.equal(rounded(floating, quantisation)(*batches[0]), reference(*batches[0]))
        assert not torch.equal(floating(*batches[0]), reference(*batches[0]))


def test_a_form_holds_for_any_number_of_samples(model: nn.Module, batches: list[Tensors], form: Int8Form) -> None:
    images = torch.cat([each for (each,) in batches])[:7]
    by_one, by_three = (rounded(*form.of(model, INPUTS, size)) for size in (1, 3))
    with torch.no_grad():
        expected = torch.cat([by_one(image[None]) for image in images])
        found = Program(by_three, INPUTS.names, 3)(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_form_of_another_network_is_refused(form: Int8Form) -> None:
    with pytest.raises(UserError, match="the scales are of another network"):
        form.of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), INPUTS)


@pytest.mark.parametrize("damaged", [[0.0, 3], [1e13, 3], [float("nan"), 3], [0.1, -1], [0.1, 256]], ids=str)
def test_numbers_that_are_no_scale_are_not_read(damaged: list[float]) -> None:
    with pytest.raises(ValueError, match="is no scale, of relu"):
        Int8Form.from_json({"floats": [], "values": {"image": [0.1, 3], "relu": damaged}})


def test_layers_that_stay_in_float32_read_and_make_float32(model: nn.Module, batches: list[Tensors]) -> None:
    graph = ChannelGraph.trace(model, INPUTS.zeros())
    kernels = {layer_of(k): k.key.precision for k in partition(graph, INT8, floats=["conv"]).kernels if k.weight}
    assert kernels == {"stem": "int8_float32", "conv": "float32", "head": "int8_float32"}
    hollow = copy.deepcopy(model)
    with torch.no_grad():
        hollow.get_parameter("head.weight")[2] = 0  # from which no step follows
    form = calibrated(hollow, INPUTS, batches, ["conv"])
    floating, quantisation = form.of(hollow, INPUTS, 4)
    assert quantisation.weights.keys() == {"stem.weight", "head.weight"}
    assert quantisation.weights["head.weight"].min() == quantisation.weights["head.weight"][2] == SMALLEST
    found = partition(ChannelGraph.trace(floating, INPUTS.zeros(4)), INT8, quantisation)
    assert {layer_of(k): k.key.precision for k in found.kernels if k.weight} == kernels


def test_what_is_timed_has_the_kernels_of_the_plan(model: nn.Module) -> None:
    program, quantisation = for_timing(model, INPUTS, ["conv"])
    planned = partition(ChannelGraph.trace(model, INPUTS.zeros()), INT8, floats=["conv"])
    timed = partition(ChannelGraph.trace(program, INPUTS.zeros()), INT8, quantisation)
    assert [kernel.key for kernel in timed.kernels] == [kernel.key for kernel in planned.kernels]


def test_the_layer_that_rounding_hurts_stays_in_float32(model: nn.Module, batches: list[Tensors]) -> None:
    hurt = copy.deepcopy(model)
    with torch.no_grad():
        hurt.get_parameter("conv.weight")[:, :, 1, 1] = 0
        hurt.get_parameter("conv.weight")[:, 0, 0, 0] += 60  # beside which all other weights are rounded to nothing

    def loss(exact: list[Tensor], found: list[Tensor]) -> float:
        return 100 * noise_share(exact, found)

    every = float_layers(hurt, INPUTS, batches, loss, allowed=1e6)
    assert (every.names, every.noise) == ((), {})
    chosen = float_layers(hurt, INPUTS, batches, loss, allowed=every.lost_by_all / 3)
    assert chosen.names == ("conv",)
    assert chosen.lost <= every.lost_by_all / 3 < every.lost_by_all == chosen.lost_by_all
    assert chosen.noise.keys() == {"stem", "conv", "head"}
    assert float_layers(hurt, INPUTS, batches, loss, allowed=0.0).names[0] == "conv"


def test_training_with_rounding_trains_the_network(model: nn.Module, batches: list[Tensors]) -> None:
    module = copy.deepcopy(model)
    program = AwareProgram(module, INPUTS, 4, floats=["stem"])
    (images,), labels = batches[0], torch.arange(4)

    def plain(of: nn.Module) -> Iterator[tuple[str, Tensor]]:
        program.give(copied := copy.deepcopy(of))
        yield from copied.state_dict().items()

    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in plain(module))
    twin = copy.deepcopy(module).train()
    optimisers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (program, twin)]
    losses: list[Tensor] = []
    for _ in range(20):
        for network, optimiser in zip((program.train(), twin), optimisers, strict=True):
            losses.append(F.cross_entropy(network(images), labels))
            optimiser.zero_grad()
            losses[-1].backward()
            optimiser.step()
        if len(losses) == 2:
            # Up to rounding it is the same training, with each norm's own momentum.
            program.give(module)
            for name in ("stem_bn.running_mean", "conv_bn.running_var"):
                first, other = (each.state_dict()[name] - model.state_dict()[name] for each in (module, twin))
                assert 0 < (first - other).norm() < 0.1 * other.norm(), name
    assert losses[-2] < 0.9 * losses[0]
    program.give(module)
    program.eval()
    ranges = {name: each.clone() for name, each in program.state_dict().items()}
    with torch.no_grad():
        found, expected = program(torch.cat([images, images[:1]])), module.eval()(torch.cat([images, images[:1]]))
    assert 0 < (found - expected).abs().max() < 0.3 * expected.abs().max()
    assert all(torch.equal(each, ranges[name]) for name, each in program.state_dict().items())
    program.settle(True)
    F.cross_entropy(program.train()(images), labels).backward()
    optimisers[0].step()
    changed = {name for name, each in program.state_dict().items() if not torch.equal(each, ranges[name])}
    assert changed == dict(program.named_parameters()).keys(), "norms and ranges stay, weights learn on"


@pytest.fixture
def without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is rounded in training, which torchao would take seconds to prepare."""
    monkeypatch.setattr("aap_hw.quantize.aware.prepare_qat_pt2e", lambda program, quantizer: program)


@pytest.mark.usefixtures("without_rounding")
def test_norms_that_average_over_all_batches_learn_their_statistics(batches: list[Tensors]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm := nn.BatchNorm2d(4, momentum=None)).eval()
    program = AwareProgram(model, INPUTS, 4)
    program.train()(*batches[0])
    program.give(model)
    assert norm.running_mean is not None
    assert norm.running_mean.abs().min() > 0


@pytest.mark.usefixtures("without_rounding")
@pytest.mark.parametrize("layer", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.RReLU()])
def test_what_is_random_in_training_is_in_training_with_rounding(layer: nn.Module, batches: list[Tensors]) -> None:
    program = AwareProgram(nn.Sequential(nn.Conv2d(3, 8, 1), layer).eval(), INPUTS, 4)
    assert torch.equal(program(*batches[0]), program(*batches[0]))
    assert not torch.equal(program.train()(*batches[0]), program(*batches[0]))


@pytest.mark.usefixtures("without_rounding")
def test_layers_that_do_not_learn_do_not_learn_with_rounding_either() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[0].requires_grad_(False)
    learns = {name: each.requires_grad for name, each in AwareProgram(model, INPUTS, 4).program.named_parameters()}
    assert learns == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}


def test_weights_are_rounded_by_their_own_scales_however_they_are_called() -> None:
    class Alike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_1, self.conv = nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1))
            self.register_buffer("conv_1_weight_scales", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv_1(x)) + self.conv_1_weight_scales

    model, scales = Alike().eval(), {"conv_1.weight": 0.01, "conv.1.weight": 0.1}
    program = ChannelGraph.trace(model, INPUTS.zeros()).program.module(check_guards=False)
    quantisation = Quantisation({}, {name: np.full(3, scale, np.float32) for name, scale in scales.items()})
    found = rounded(program, quantisation)(image := torch.randn(1, 3, 10, 8))
    for name, scale in scales.items():
        weight = model.get_parameter(name)
        weight.data = (weight / scale).round() * scale
    torch.testing.assert_close(found, model(image))


def test_a_network_that_views_an_image_as_rows_trains_with_rounding() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(320, 5)

        def forward(self, image: Tensor) -> Tensor:
            return self.head(self.conv(image).view(-1, 320))

    (images,) = INPUTS.random(2, seed=3)
    program = AwareProgram(Views(), INPUTS, 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        program(images.contiguous(memory_format=layout)).sum().backward()
    assert all(each.grad is not None for each in program.parameters())


def test_a_layer_with_two_names_is_given_what_was_learned() -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    program, before = AwareProgram(model, INPUTS, 2), layer.weight.clone()
    with torch.no_grad():
        for each in program.parameters():
            each += 1
    program.give(model)
    assert torch.equal(layer.weight, before + 1)
