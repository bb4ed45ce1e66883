"""Proves that quantising a network gives what int8 kernels compute, and that it can be taken apart without loss."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from aap_hw.compile.code.quantized import GATED, LEAST_STEP
from aap_hw.compile.front.partition import partition
from aap_hw.compile.front.quantisation import Quantisation
from aap_hw.compile.keys.precision import INT8
from aap_hw.errors import Fault, UserError
from aap_hw.graph import ChannelGraph
from aap_hw.quantize import calibration, quantise, read_quantised
from aap_hw.quantize.pt2e import convert_pt2e, prepare_pt2e
from aap_hw.quantize.quantizer import KernelQuantizer, name_of
from tests.compile.running import randomise


class Residual(nn.Module):
    """What kernels take along: batch normalisation, sums and activations; a pool and a view between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv, self.conv_bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, input: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(input)))
        x = F.max_pool2d(F.relu(self.conv_bn(self.conv(x)) + x), 2)
        x = F.hardswish(self.depthwise(x))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(F.dropout(x, 0.5, self.training))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(3)
    model = Residual()
    for norm in (model.stem_bn, model.conv_bn):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.data.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(2, 3, 8, 8) for _ in range(4)]


@pytest.fixture(scope="module")
def reference(model: nn.Module, images: list[Tensor]) -> GraphModule:
    return quantise(model, images)


class Rounding(Interpreter):
    """Runs a float network and rounds what a quantisation says is rounded."""

    def __init__(self, module: GraphModule, quantisation: Quantisation) -> None:
        super().__init__(module)
        self._quantisation = quantisation

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if (scale := self._quantisation.values.get(name_of(n))) is not None:
            steps = (value * (1.0 / scale.scale)).round() + scale.zero_point
            return (steps.clamp(0, 255) - scale.zero_point) * scale.scale
        if n.op == "get_attr" and name_of(n) in self._quantisation.weights:
            scales = torch.tensor(self._quantisation.weights[name_of(n)]).reshape(-1, *[1] * (value.dim() - 1))
            return (value * (1.0 / scales)).round().clamp(-127, 127) * scales
        return value


def test_the_float_network_rounded_by_the_scales_is_the_quantised_one(
    reference: GraphModule, images: list[Tensor]
) -> None:
    floating, quantisation = read_quantised(reference)
    for image in images:
        assert torch.equal(Rounding(floating, quantisation).run(image), reference(image))


def test_the_float_network_is_the_model(model: nn.Module, reference: GraphModule, images: list[Tensor]) -> None:
    floating, _ = read_quantised(reference)
    torch.testing.assert_close(floating(images[0]), model(images[0]), rtol=1e-4, atol=1e-5)
    assert not torch.equal(reference(images[0]), model(images[0]))


def test_values_between_kernels_are_quantised_and_none_within(model: nn.Module, reference: GraphModule) -> None:
    floating, quantisation = read_quantised(reference)
    network = partition(ChannelGraph.trace(floating, (torch.zeros(2, 3, 8, 8),)), INT8, quantisation)
    plain = partition(ChannelGraph.trace(model, (torch.zeros(2, 3, 8, 8),)), INT8)
    assert [kernel.key for kernel in network.kernels] == [kernel.key for kernel in plain.kernels]
    assert set(network.scaled.values()) == set(quantisation.values)
    assert set(quantisation.weights) == {f"{name}.weight" for name in ("stem", "conv", "depthwise", "head")}
    assert {"input", "relu", "relu_1"} <= set(quantisation.values)
    assert not {"conv2d", "conv2d_1", "add", "linear"} & set(quantisation.values)


@pytest.mark.parametrize("gated", sorted(GATED))
def test_the_steps_of_swish_and_hard_swish_have_a_least_size(gated: str) -> None:
    """As kernels for Arm need; a step means the same on all devices."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, image: Tensor) -> Tensor:
            made: Tensor = self.third(getattr(F, gated)(self.second(F.relu(self.first(image)))))
            return made

    torch.manual_seed(0)
    model = Small().eval()
    for parameter in model.parameters():
        parameter.data *= 1e-2
    _, quantisation = read_quantised(quantise(model, [torch.rand(1, 3, 4, 4)]))
    steps = {name: scale.scale for name, scale in quantisation.values.items()}
    assert steps[gated] == pytest.approx(LEAST_STEP)
    assert steps["relu"] < LEAST_STEP / 2


def test_a_saved_program_with_weights_in_int8_says_the_same(
    model: nn.Module, reference: GraphModule, images: list[Tensor]
) -> None:
    """As you would quantise and save a network yourself."""
    prepared = prepare_pt2e(torch.export.export(model, (images[0],)).module(), KernelQuantizer((images[0],)))
    for image in images:
        prepared(image)
    file = io.BytesIO()
    torch.export.save(torch.export.export(convert_pt2e(prepared), (images[0],)), file)
    file.seek(0)
    floating, quantisation = read_quantised(torch.export.load(file).module(check_guards=False))
    assert quantisation.values == read_quantised(reference)[1].values
    assert all(parameter.dtype == torch.float32 for parameter in floating.parameters())
    assert torch.equal(Rounding(floating, quantisation).run(images[1]), reference(images[1]))


@pytest.mark.parametrize(
    ("place", "wrong", "sentence"),
    [
        (1, 0.0, "a scale that is no number from 9e-13 to 1e\\+12; quantise it"),
        (1, 1e38, "a scale that is no number"),
        (2, 300, "a zero point that is no number of 8 bits: 300"),
    ],
)
def test_scales_that_make_no_bytes_are_refused(reference: GraphModule, place: int, wrong: float, sentence: str) -> None:
    changed = GraphModule(reference, copy.deepcopy(reference.graph))
    for node in changed.graph.nodes:
        if "quantize_per_tensor" in str(node.target):
            node.update_arg(place, wrong)
    with pytest.raises(UserError, match=sentence):
        read_quantised(changed)


def rounded_again(graph: Graph) -> None:
    """One reader of a value gets it in wider steps than others."""
    there = next(
        node for node in graph.nodes if node.name.startswith("quantize_per_tensor") and "relu" in str(node.args)
    )
    value, scale, *rest = there.args
    first, *_ = there.users
    with graph.inserting_before(next(iter(first.users))):
        again = graph.call_function(there.target, (value, 2 * scale, *rest))
        back = graph.call_function(first.target, (again, 2 * scale, *rest))
    next(iter(first.users)).replace_input_with(first, back)


def read_in_other_steps(graph: Graph) -> None:
    next(node for node in graph.nodes if "dequantize_per_tensor" in str(node.target)).update_arg(1, 0.5)


def read_by_row(graph: Graph) -> None:
    back = next(node for node in graph.nodes if "dequantize_per_tensor" in str(node.target))
    back.target = torch.ops.quantized_decomposed.dequantize_per_token.default


def returned_as_bytes(graph: Graph) -> None:
    there = next(
        node for node in graph.nodes if str(node.target).startswith("quantized_decomposed.quantize_per_tensor")
    )
    graph.output_node().args = ((there,),)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (rounded_again, "the value relu is quantised in two ways, and a kernel makes only one"),
        (read_in_other_steps, "reads quantize_per_tensor.* with other scales than it was made with"),
        (read_by_row, "the quantised network has dequantize_per_tensor.*, which no int8 kernel knows"),
        (returned_as_bytes, "the quantised network has quantize_per_tensor.*, which no int8 kernel knows"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_no_kernel_stores_so_is_refused(
    reference: GraphModule, change: Callable[[Graph], None], sentence: str
) -> None:
    changed = GraphModule(reference, copy.deepcopy(reference.graph))
    change(changed.graph)
    with pytest.raises(UserError, match=sentence):
        read_quantised(changed)


def test_a_value_that_is_also_read_as_it_is_is_rounded_for_the_others(
    reference: GraphModule, images: list[Tensor]
) -> None:
    changed = GraphModule(reference, copy.deepcopy(reference.graph))
    relu = next(node for node in changed.graph.nodes if node.name == "relu")
    output = next(node for node in changed.graph.nodes if node.op == "output")
    with changed.graph.inserting_before(output):
        total = changed.graph.call_function(torch.ops.aten.sum.default, (relu,))
        output.args = ((changed.graph.call_function(torch.ops.aten.add.Tensor, (output.args[0][0], total)),),)
    changed.recompile()
    floating, quantisation = read_quantised(changed)
    assert "relu" not in quantisation.values
    assert torch.equal(Rounding(floating, quantisation).run(images[1]), changed(images[1]))
    assert not torch.equal(changed(images[1]), reference(images[1]))
    network = partition(ChannelGraph.trace(floating, (images[0],)), INT8, quantisation)
    made = {kernel.name: kernel.key.types.made for kernel in network.kernels}
    assert (made["relu"], made["leaky_relu_quantised"]) == ("float32", "uint8")


def test_no_images_are_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match="needs images"):
        quantise(model, [])


def test_batch_norm_is_folded_neither_into_what_others_read_nor_along_a_wrong_axis(images: list[Tensor]) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.other = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(3)
            self.up, self.last = nn.ConvTranspose2d(8, 8, 2, 2, groups=8), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.last(self.up(self.norm(y) + y + self.norm(self.conv(self.other(x)))))

    torch.manual_seed(6)
    model = randomise(Shared())
    floating, _ = read_quantised(quantise(model, images))
    torch.testing.assert_close(floating(images[0]), model(images[0]), rtol=1e-4, atol=1e-4)


def test_weights_that_are_also_read_as_they_are_are_kept_apart() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.stem(x).relu()) * self.layer.weight.abs().sum((1, 2, 3)).reshape(1, -1, 1, 1)

    torch.manual_seed(7)
    images = [torch.randn(1, 3, 8, 8) for _ in range(3)]
    reference = quantise(randomise(Reused()), images)
    floating, quantisation = read_quantised(reference)
    assert "layer.weight" not in quantisation.weights
    assert torch.equal(Rounding(floating, quantisation).run(images[0]), reference(images[0]))


def test_a_vector_that_is_multiplied_by_may_be_rounded() -> None:
    class Scored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.vector = nn.Linear(8, 6), nn.Parameter(torch.linspace(-1, 1, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) @ self.vector

    model, rows = Scored().eval(), torch.randn(2, 8)
    program: GraphModule = torch.export.export(model, (rows,)).module()
    (product,) = (node for node in program.graph.nodes if "matmul" in str(node.target))
    vector, decomposed = product.args[1], torch.ops.quantized_decomposed
    steps = (0.01, 0, -127, 127, torch.int8)
    with program.graph.inserting_before(product):
        stored = program.graph.call_function(decomposed.quantize_per_tensor.default, (vector, *steps))
        product.update_arg(1, program.graph.call_function(decomposed.dequantize_per_tensor.default, (stored, *steps)))
    program.recompile()
    _, quantisation = read_quantised(program)
    assert quantisation.weights["vector"].tolist() == pytest.approx([0.01] * 6)


@pytest.mark.parametrize("answer", [lambda y: y > 0, lambda y: y.argmax(1), lambda y: (y, None, 2)])
def test_answers_of_any_kind_are_compared_and_images_stay_as_they_are(answer: Any) -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2.0)  # in place, which no later batch must feel
            return answer(self.layer(x))  # type: ignore[no-any-return]

    model, images = Decides(), [torch.randn(1, 3, 8, 8) for _ in range(2)]
    before = [image.clone() for image in images]
    quantise(model, images)
    assert all(map(torch.equal, images, before))


def test_a_program_that_computes_something_else_before_it_is_rounded_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibration, "prepare_pt2e", lambda program, _: lambda *inputs: 1.01 * program(*inputs))
    with pytest.raises(Fault, match="torchao changed what the network computes before it quantised anything"):
        quantise(nn.Conv2d(3, 4, 1), [torch.randn(1, 3, 4, 4)])
