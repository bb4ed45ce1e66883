"""Image classifiers as LiteRT files, in float32 or int8, for counting what LiteRT's kernels execute.

Convolutions with their batch normalisation folded, the activations, pooling, sums and scales that torchvision's
MobileNets, ResNets and EfficientNets are made of, and nothing else. Activations that LiteRT fuses are fused. In int8
ranges are those of one image, weights have a scale for each output channel. The classes of the file format come from
LiteRT's own package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

Shape = tuple[int, ...]

FUSED = {nn.ReLU: "RELU", nn.ReLU6: "RELU6"}
INT8_VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "ADD": 2,
    "MUL": 2,
    "MEAN": 2,
    "PAD": 2,
    "LOGISTIC": 2,
    "MAX_POOL_2D": 2,
}
SAME, PLAIN = (nn.Dropout, nn.Identity), ("stochastic_depth", "dropout")


@dataclass(frozen=True)
class Scale:
    """How int8 stands for numbers: step by step for all, or for each index along an axis."""

    steps: np.ndarray
    zero: int = 0
    axis: int = 0

    @classmethod
    def of(cls, values: torch.Tensor) -> Scale:
        """For values from the smallest to the largest, and zero."""
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        step = (high - low) / 255 or 1.0
        return cls(np.array([step]), round(-128 - low / step))

    @classmethod
    def of_weight(cls, weight: np.ndarray, axis: int) -> Scale:
        """Symmetric, for each output channel; of a linear layer one for all, as LiteRT's oldest kernels want it."""
        others = tuple(i for i in range(weight.ndim) if i != axis or weight.ndim == 2)
        return cls(np.maximum(np.abs(weight).max(axis=others), 1e-8).reshape(-1) / 127, 0, axis)

    def whole(self, values: np.ndarray) -> np.ndarray:
        """Numbers as int8."""
        shape = [1] * values.ndim
        if self.steps.size > 1:
            shape[self.axis] = -1
        steps = self.steps.reshape(shape) if values.ndim else self.steps[0]
        return np.clip(np.round(values / steps) + self.zero, -128, 127).astype(np.int8)


def schema_of(packages: Path) -> ModuleType:
    """The file format, from the package of LiteRT for the board; of it only this file, which needs flatbuffers."""
    path = packages / "ai_edge_litert" / "schema_py_generated.py"
    spec = importlib.util.spec_from_file_location("litert_schema", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_litert(model: nn.Module, image: torch.Tensor, schema: ModuleType, path: Path, int8: bool = False) -> None:
    """Write a network for images of the shape of ``image`` (N, C, H, W); in int8 ranges are those of this one.

    Raises
    ------
    NotImplementedError : the network has something that this cannot write.
    """
    path.write_bytes(_Writer(fuse(model.eval()), image, schema, int8).file())


class _Values(fx.Interpreter):  # type: ignore[misc]
    """What each node of a network makes."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.made: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        made = super().run_node(node)
        self.made[node] = made.clone()  # a later one may change it in place
        return made


class _Writer:
    def __init__(self, network: nn.Module, image: torch.Tensor, schema: ModuleType, int8: bool) -> None:
        traced = network if isinstance(network, fx.GraphModule) else fx.symbolic_trace(network)
        values = _Values(traced)
        with torch.no_grad():
            values.run(image)
        self.network, self.values, self.schema, self.int8 = traced, values.made, schema, int8
        self.buffers, self.tensors, self.operators, self.codes = [schema.BufferT()], [], [], list[int]()
        # Those from which on the operators know int8.
        names = INT8_VERSIONS.items() if int8 else ()
        self.versions = {getattr(schema.BuiltinOperator, name): version for name, version in names}
        self.places: dict[fx.Node, int] = {}
        self.scales: dict[int, Scale] = {}
        self.inputs: list[int] = []
        self.outputs: list[int] = []

    def file(self) -> bytes:
        """The whole file."""
        import flatbuffers

        for node in self.network.graph.nodes:
            if node not in self.places:
                self._add(node)
        schema = self.schema
        graph = schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = (
            self.tensors,
            self.operators,
            self.inputs,
            self.outputs,
        )
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, []
        for code in self.codes:
            each = schema.OperatorCodeT()
            # Readers of old take the first, which has room for 127.
            each.builtinCode, each.deprecatedBuiltinCode = code, min(code, 127)
            each.version = self.versions.get(code, 1)
            model.operatorCodes.append(each)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _add(self, node: fx.Node) -> None:
        read = node.all_input_nodes
        kind = self._kind(node)
        if node.op == "placeholder":
            self.places[node] = self._value(node)
            self.inputs.append(self.places[node])
        elif node.op == "output":
            self.outputs = [self.places[each] for each in read]
        elif isinstance(kind, SAME) or kind in PLAIN:
            self.places[node] = self.places[read[0]]
        elif isinstance(kind, nn.Conv2d):
            self._convolution(node, kind)
        elif isinstance(kind, nn.Linear):
            self._linear(node, kind)
        elif isinstance(kind, nn.MaxPool2d):
            self._max_pool(node, kind)
        elif isinstance(kind, nn.AdaptiveAvgPool2d) or kind == "adaptive_avg_pool2d":
            options = self.schema.ReducerOptionsT()
            options.keepDims = True
            self._operator("MEAN", [self.places[read[0]], self._whole([1, 2])], self._value(node), options, node)
        elif kind == "flatten":
            made = self._value(node, like=self.places[read[0]])
            options = self.schema.ReshapeOptionsT()
            options.newShape = list(self._shape(node))
            self._operator("RESHAPE", [self.places[read[0]], self._whole(options.newShape)], made, options, node)
        elif kind in ("add", "iadd", "mul", "imul"):
            self._arithmetic(node, kind.removeprefix("i").upper(), [self.places[each] for each in read])
        else:
            self._activation(node, kind, self.places[read[0]])

    def _kind(self, node: fx.Node) -> Any:
        """The module that a node calls, or the name of its function."""
        if node.op == "call_module":
            return self.network.get_submodule(str(node.target))
        return getattr(node.target, "__name__", node.target)

    def _convolution(self, node: fx.Node, layer: nn.Conv2d) -> None:
        (read,) = node.all_input_nodes
        is_depthwise = layer.groups > 1
        if (is_depthwise and layer.groups != layer.in_channels) or layer.dilation != (1, 1):
            raise NotImplementedError(f"{node.name}: grouped or dilated")
        place, padding = self._padded(self.places[read], read, layer)
        weight = layer.weight.detach().numpy()
        weight = weight.transpose(1, 2, 3, 0) if is_depthwise else weight.transpose(0, 2, 3, 1)
        schema = self.schema
        options = schema.DepthwiseConv2DOptionsT() if is_depthwise else schema.Conv2DOptionsT()
        options.strideH, options.strideW = layer.stride
        options.padding, options.dilationHFactor, options.dilationWFactor = padding, 1, 1
        if is_depthwise:
            options.depthMultiplier = layer.out_channels // layer.in_channels
        name = "DEPTHWISE_CONV_2D" if is_depthwise else "CONV_2D"
        self._weighted(node, name, place, weight, 3 if is_depthwise else 0, layer.bias, options)

    def _linear(self, node: fx.Node, layer: nn.Linear) -> None:
        (read,) = node.all_input_nodes
        weight = layer.weight.detach().numpy()
        options = self.schema.FullyConnectedOptionsT()
        self._weighted(node, "FULLY_CONNECTED", self.places[read], weight, 0, layer.bias, options)

    def _weighted(
        self,
        node: fx.Node,
        name: str,
        place: int,
        weight: np.ndarray,
        axis: int,
        bias: torch.Tensor | None,
        options: Any,
    ) -> None:
        last, options.fusedActivationFunction = self._fused(node)
        added = np.zeros(weight.shape[axis], np.float32) if bias is None else bias.detach().numpy()
        if not self.int8:
            constants = [self._constant(weight), self._constant(added)]
        else:
            scale = Scale.of_weight(weight, axis)
            sums = Scale(self.scales[place].steps[0] * scale.steps)
            whole = np.round(added / sums.steps).astype(np.int32)
            constants = [self._constant(scale.whole(weight), scale), self._constant(whole, sums)]
        self._operator(name, [place, *constants], self._value(last), options, last)

    def _fused(self, node: fx.Node) -> tuple[fx.Node, int]:
        """The node whose value an operator makes, and the activation on its way: that of the only reader."""
        users = list(node.users)
        kind = self._kind(users[0]) if len(users) == 1 else None
        name = FUSED.get(type(kind), "RELU" if kind == "relu" else "NONE")
        last = node if name == "NONE" else users[0]
        return last, getattr(self.schema.ActivationFunctionType, name)

    def _padded(self, place: int, read: fx.Node, layer: Any) -> tuple[int, int]:
        """Where the image with the padding of a layer is, and the padding that is left for LiteRT to add."""
        kernel, stride, around = (_pair(each) for each in (layer.kernel_size, layer.stride, layer.padding))
        if around == (0, 0):
            return place, self.schema.Padding.VALID
        if stride == (1, 1) and tuple(2 * each + 1 for each in around) == kernel:
            return place, self.schema.Padding.SAME
        batch, channels, *sizes = self.values[read].shape
        ends = [
            max(0, (size + 2 * p - k) // s * s + k - size - p)
            for size, k, s, p in zip(sizes, kernel, stride, around, strict=True)
        ]
        shape = (batch, *(size + p + end for size, p, end in zip(sizes, around, ends, strict=True)), channels)
        made = self._tensor(shape, self.scales.get(place))
        amounts = np.array([(0, 0), *zip(around, ends, strict=True), (0, 0)], np.int32)
        self._operator("PAD", [place, self._constant(amounts)], made, self.schema.PadOptionsT())
        return made, self.schema.Padding.VALID

    def _max_pool(self, node: fx.Node, layer: nn.MaxPool2d) -> None:
        """Padding is with zeros: right behind a rectifier, as in ResNets."""
        (read,) = node.all_input_nodes
        place, padding = self._padded(self.places[read], read, layer)
        options = self.schema.Pool2DOptionsT()
        options.filterHeight, options.filterWidth = _pair(layer.kernel_size)
        options.strideH, options.strideW = _pair(layer.stride)
        options.padding = padding
        self._operator("MAX_POOL_2D", [place], self._value(node, like=place), options, node)

    def _arithmetic(self, node: fx.Node, name: str, places: Sequence[int]) -> None:
        options = self.schema.AddOptionsT() if name == "ADD" else self.schema.MulOptionsT()
        last, options.fusedActivationFunction = self._fused(node)
        self._operator(name, places, self._value(last), options, last)

    def _activation(self, node: fx.Node, kind: Any, place: int) -> None:
        schema, value = self.schema, self.values[node]
        if isinstance(kind, nn.Hardswish):
            self._operator("HARD_SWISH", [place], self._value(node), schema.HardSwishOptionsT(), node)
        elif isinstance(kind, nn.Sigmoid | nn.SiLU):
            # What a logistic makes in int8 is fixed.
            curve = self._tensor(self._shape(node), Scale(np.array([1 / 256]), -128) if self.int8 else None)
            self._operator("LOGISTIC", [place], curve, None)
            self.places[node] = curve
            if isinstance(kind, nn.SiLU):
                self._operator("MUL", [place, curve], self._value(node), schema.MulOptionsT(), node)
        elif isinstance(kind, nn.Hardsigmoid):
            sixfold = self._tensor(self._shape(node), Scale.of(value * 6) if self.int8 else None)
            options = schema.AddOptionsT()
            options.fusedActivationFunction = schema.ActivationFunctionType.RELU6
            self._operator("ADD", [place, self._number(3.0)], sixfold, options)
            self._operator("MUL", [sixfold, self._number(1 / 6)], self._value(node), schema.MulOptionsT(), node)
        else:
            raise NotImplementedError(f"{node.name}: {kind}")

    def _operator(
        self, name: str, inputs: Sequence[int], output: int, options: Any, makes: fx.Node | None = None
    ) -> None:
        """Add an operator; ``makes`` is the node of the network whose value it makes."""
        schema, each = self.schema, self.schema.OperatorT()
        code = getattr(schema.BuiltinOperator, name)
        if code not in self.codes:
            self.codes.append(code)
        each.opcodeIndex, each.inputs, each.outputs = self.codes.index(code), list(inputs), [output]
        if options is not None:
            each.builtinOptions = options
            each.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(each)
        if makes is not None:
            self.places[makes] = output

    def _shape(self, node: fx.Node) -> Shape:
        shape = tuple(self.values[node].shape)
        return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape

    def _value(self, node: fx.Node, like: int | None = None) -> int:
        """A tensor for what a node makes; in int8 in the steps of another one, or in those of its own range."""
        scale = None
        if self.int8:
            scale = Scale.of(self.values[node]) if like is None else self.scales[like]
        return self._tensor(self._shape(node), scale)

    def _number(self, value: float) -> int:
        numbers = np.array([value], np.float32)
        if not self.int8:
            return self._constant(numbers)
        scale = Scale.of(torch.tensor(value))
        return self._constant(scale.whole(numbers), scale)

    def _whole(self, values: Sequence[int]) -> int:
        return self._constant(np.array(values, np.int32))

    def _constant(self, values: np.ndarray, scale: Scale | None = None) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.buffers.append(buffer)
        return self._tensor(values.shape, scale, str(values.dtype), len(self.buffers) - 1)

    def _tensor(self, shape: Shape, scale: Scale | None = None, type_: str | None = None, buffer: int = 0) -> int:
        schema, tensor = self.schema, self.schema.TensorT()
        name = type_ or ("int8" if self.int8 else "float32")
        tensor.shape, tensor.type, tensor.buffer = list(shape), getattr(schema.TensorType, name.upper()), buffer
        tensor.name = f"tensor_{len(self.tensors)}"
        if scale is not None:
            steps = schema.QuantizationParametersT()
            steps.scale, steps.zeroPoint = scale.steps.astype(np.float32), np.full(scale.steps.size, scale.zero)
            steps.quantizedDimension = scale.axis
            tensor.quantization = steps
            self.scales[len(self.tensors)] = scale
        self.tensors.append(tensor)
        return len(self.tensors) - 1


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
