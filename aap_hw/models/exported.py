"""Networks as exported programs: `.pt2` files that `torch.export.save` wrote.

`torch.export.load` unpickles and evaluates text, so each file is screened first: plain tensors, operators of
`torch.ops.aten` that only compute, sizes that are arithmetic, and nothing else. It is given an archive of just the
parts that were screened, since two readers of one archive may find different things in it. The program is made to
follow when it is cut and trained: grouped convolutions become layers, and batch norms and dropout obey the training
flag.

A program may be quantised, as by torchao's PT2E flow. It is then compiled as it is, for one sample, and never cut.
"""

from __future__ import annotations

import importlib
import io
import json
import operator
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from aap_hw.errors import UserError
from aap_hw.foreign import reason
from aap_hw.graph.program.call import Call, set_argument, training_argument
from aap_hw.inputs import Input, Inputs

# What a program consists of. No two of these names differ by case only, which PyTorch does not tell apart.
_PARTS = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|data/weights/(weight_[0-9]+|model_weights_config\.json)"
    r"|data/constants/(tensor_[0-9]+|model_constants_config\.json)|archive_(format|version)|byteorder|\.data/[a-z_]+"
)
# Texts that a program may be saved with. They do nothing, and are left out.
_EXTRA = "extra/"
# Where a symbol is declared; what is left of a size is arithmetic on plain names.
_SYMBOL = re.compile(r"Symbol\('[a-z]+\d*'(, (positive|nonnegative|integer)=True)*\)")
_ARITHMETIC = re.compile(r"([A-Z][A-Za-z]*|[su]\d+|\d+(\.\d+)?|[-+*/%,() ])*")
# That two sizes of inputs agree, such as of their batches: all that a guard may say.
_SIZE = r"L(\[('\w+'|\d+)\])+\.size\(\)\[\d+\]"
_GUARD = re.compile(f"{_SIZE} == {_SIZE}")
# The operators that round values and come back from rounding, and what registers them with PyTorch.
_ROUNDING = re.compile(r"torch\.ops\.quantized_decomposed\.(de)?quantize_per_(tensor|channel)\.\w+")
_REGISTERS_ROUNDING = "torch.ao.quantization.fx._decomposed"
_OPERATORS = re.compile(
    rf"{_ROUNDING.pattern}|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|ge|gt|le|lt)"
    r"|torch\.sym_(max|min|int|float|not|sum)"
)
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
# Arguments that say in a word how to compute. Any other text may name a file, as that of aten.from_file does.
_MANNERS = {
    *("UPLO", "api_name", "approximate", "assert_msg", "driver", "equation", "indexing", "interpolation", "mode"),
    *("norm", "ord", "p", "pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side"),
}
# Views that trust the sizes and the indices that they are given, and so reach memory that is not the tensor's.
_UNCHECKED = re.compile(r"_reshape_alias|_nested_\w+|_sparse_\w+")
_CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    torch.ops.aten.conv1d.default: nn.Conv1d,
    torch.ops.aten.conv2d.default: nn.Conv2d,
    torch.ops.aten.conv3d.default: nn.Conv3d,
}
# Numbers of the types in a program, and what they are called.
_TYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 7: "float32", 12: "bool"}


@dataclass(frozen=True)
class _Archive:
    """A screened file: the parts that PyTorch may see, by their names below the archive's folder."""

    parts: Mapping[str, bytes]
    program: dict[str, Any]

    @property
    def is_quantised(self) -> bool:
        """Whether the program rounds values or weights."""
        return any(key == "target" and _ROUNDING.fullmatch(value) for key, value in _items(self.program))

    def anew(self) -> io.BytesIO:
        """An archive of these parts and nothing else."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, content in self.parts.items():
                archive.writestr(f"archive/{name}", content)
        stream.seek(0)
        return stream


@dataclass(frozen=True)
class Program:
    """What a file holds, without its being loaded.

    Attributes
    ----------
    inputs : what it was exported for; None if it takes tensors of several sizes.
    is_quantised : whether values or weights are rounded in it.
    """

    inputs: Inputs | None
    is_quantised: bool


def look_at(path: Path) -> Program:
    """Read what a file holds.

    Raises
    ------
    UserError : it is no exported program that is safe to load, takes anything but batches of tensors, or was exported
        for batches of one length only, unless that is 1 and the program is quantised.
    """
    archive = _screened(path)
    return Program(_inputs(path, archive), archive.is_quantised)


def is_quantised(module: nn.Module) -> bool:
    """Whether a network is a program that rounds values or weights."""
    nodes = module.graph.nodes if isinstance(module, GraphModule) else ()
    return any(_ROUNDING.fullmatch(f"torch.ops.{node.target}") for node in nodes)


def load(path: Path) -> nn.Module:
    """The program as a module that can be cut, trained and exported again, unless it is quantised.

    Raises
    ------
    UserError : as for `look_at`, or PyTorch cannot load it.
    """
    archive = _screened(path)
    _inputs(path, archive)
    if archive.is_quantised:
        importlib.import_module(_REGISTERS_ROUNDING)
    try:
        module = torch.export.load(archive.anew()).module(check_guards=False)
    except Exception as error:
        raise UserError(f"PyTorch cannot load {path}: {reason(error)}; export it again with this PyTorch") from error
    graph = module.graph
    # No parameter or buffer, which is what fx warns of, but the flag that train() and eval() set.
    with graph.inserting_before(next(iter(graph.nodes))):
        training = graph.create_node("get_attr", "training")
    for node in list(graph.nodes):
        if node.target in _CONVOLUTIONS and len(node.args) > 6 and node.args[6] != 1:
            _make_layer(module, node)
            continue
        if (argument := training_argument(node)) is not None:
            set_argument(node, argument, training)
        if share := Call(node).get("dropout_p"):
            with graph.inserting_before(node):
                set_argument(node, "dropout_p", graph.call_function(operator.mul, (training, share)))
    if not training.users:
        graph.erase_node(training)
    # PyTorch's own module refuses train() and eval().
    return GraphModule(module, graph, class_name=re.sub(r"\W", "_", path.stem) or "Exported")


def _make_layer(module: GraphModule, node: Node) -> None:
    """Replace a grouped convolution by a layer with its weights, whose number of groups follows when it is cut."""
    arguments: tuple[Any, ...] = node.args
    x, weight, bias, *how, groups = arguments
    path, _, leaf = str(weight.target).rpartition(".")
    if leaf != "weight" or not (bias is None or (isinstance(bias, Node) and bias.target == f"{path}.bias")):
        return
    old: Any = module.get_submodule(path)
    with torch.device("meta"):
        shape = old.weight.shape
        layer: Any = _CONVOLUTIONS[node.target](
            shape[1] * groups, shape[0], tuple(shape[2:]), *how, groups, bias is not None
        )
    layer.weight, layer.bias = old.weight, None if bias is None else old.bias
    module.set_submodule(path, layer)
    with module.graph.inserting_before(node):
        node.replace_all_uses_with(module.graph.call_module(path, (x,)))
    module.graph.erase_node(node)
    for parameter in (weight, bias):
        if isinstance(parameter, Node) and not parameter.users:
            module.graph.erase_node(parameter)


def _screened(path: Path) -> _Archive:
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            foreign = next(_what_is_misplaced(archive.namelist()), None)
            # Reading compares the checksums.
            parts = {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}
        if foreign is None:
            parts = {name: content for name, content in parts.items() if not name.startswith(_EXTRA)}
            program = json.loads(parts["models/model.json"])
            foreign = next(_what_is_no_program(program, parts), None)
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror}") from error
    except (
        zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, KeyError, ValueError, TypeError, AttributeError
    ) as error:  # fmt: skip
        raise UserError(
            f"{path} is damaged or no file of this PyTorch's torch.export.save: {reason(error)}; export it again"
        ) from error
    if foreign is not None:
        raise UserError(
            f"{path} is not loaded: it contains {foreign}, which could run code or change files; name a Python file "
            "instead"
        )
    return _Archive(parts, program)


def _what_is_misplaced(names: list[str]) -> Iterator[str]:
    """Everything by which a name could mean one part here and another one to PyTorch."""
    for name, times in Counter(names).items():
        if not all(name.partition("/")):
            yield f"'{name}' outside its folder"
        if times > 1:
            yield f"'{name}' twice"
    folders = {name.partition("/")[0] for name in names}
    if len(folders) > 1:
        yield f"several folders ({', '.join(sorted(folders))})"


def _what_is_no_program(program: dict[str, Any], parts: Mapping[str, bytes]) -> Iterator[str]:
    """Everything that loading would unpickle, evaluate or call beside plain arithmetic on tensors."""
    for name in parts:
        if not _PARTS.fullmatch(name):
            yield f"the file '{name}'"
    for kind in ("weights", "constants"):
        config = json.loads(parts[f"data/{kind}/model_{kind}_config.json"])["config"]
        for name, payload in config.items():
            if payload["use_pickle"] or not re.fullmatch(r"(weight|tensor)_[0-9]+", payload["path_name"]):
                yield f"the pickled object '{name}'"
    if not all(_GUARD.fullmatch(guard) for guard in program["guards_code"]):
        yield "guards in Python"
    for key, value in _items(program):
        if key == "expr_str" and not _ARITHMETIC.fullmatch(_SYMBOL.sub("", value)):
            yield f"the size '{value}'"
        if key == "target" and not _only_computes(value):
            yield f"the operator '{value}'"
    if _is_pickled(parts["data/sample_inputs/model.pt"]):
        yield "example inputs that are not plain tensors"


def _only_computes(target: str) -> bool:
    """Whether an operator takes tensors, numbers and words about how to compute, as its schema says, and no more."""
    if (named := _ATEN.fullmatch(target)) is None:
        return _OPERATORS.fullmatch(target) is not None
    name, overload = named.groups()
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(found, OpOverload) or _UNCHECKED.fullmatch(name):
        return False
    schema = found._schema
    # Functions of TorchScript alone, such as aten.save, have no kernel.
    return torch._C._dispatch_has_kernel(f"{schema.name}.{schema.overload_name}".removesuffix(".")) and all(
        each.name in _MANNERS or "str" not in str(each.type) for each in schema.arguments
    )


def _items(value: Any) -> Iterator[tuple[str, str]]:
    """Every key with a text as its value, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                yield key, inner
            else:
                yield from _items(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _items(inner)


def _is_pickled(examples: bytes) -> bool:
    # Where this fails, PyTorch would unpickle everything.
    try:
        torch.load(io.BytesIO(examples), weights_only=True)
    except Exception:
        return True
    return False


def _inputs(path: Path, archive: _Archive) -> Inputs | None:
    graph = archive.program["graph_module"]
    specs = graph["signature"]["input_specs"]
    arguments = [spec["user_input"]["arg"] for spec in specs if "user_input" in spec]
    others = any("constant_input" in spec for spec in specs)
    if others or not arguments or not all("as_tensor" in argument for argument in arguments):
        raise UserError(f"{path} does not take tensors alone, which is all that can be pruned")
    found = []
    for argument in arguments:
        tensor = graph["graph"]["tensor_values"][argument["as_tensor"]["name"]]
        batch, *sizes = tensor["sizes"] or [{"as_int": "no axis at all"}]
        is_compiled_only = archive.is_quantised and batch.get("as_int") == 1
        if "as_expr" not in batch and not is_compiled_only:
            raise UserError(
                f"{path} was exported for batches of exactly {batch['as_int']}; export it for any number of images, "
                "with an example of two and dynamic_shapes=({0: torch.export.Dim('n', min=1)},), one for each input"
            )
        if tensor["dtype"] not in _TYPES:
            raise UserError(f"{path} takes tensors of other types than {', '.join(_TYPES.values())}")
        if not all(size.get("as_int") for size in sizes):
            return None
        found.append(Input(tuple(int(size["as_int"]) for size in sizes), _TYPES[tensor["dtype"]]))
    return Inputs(tuple(found))
