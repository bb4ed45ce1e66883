"""What is in a `.pt2` file, found out without running it, and the parts of it that PyTorch may see.

`torch.export.load` unpickles and evaluates text, so each file is screened first: plain tensors, operators of
`torch.ops.aten` that only compute, sizes that are arithmetic, and nothing else. It is given an archive of just the
parts that were screened, since two readers of one archive may find different things in it.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload

from aap_hw.errors import UserError
from aap_hw.foreign import reason

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
# The operators that round values and come back from rounding.
ROUNDING = re.compile(r"torch\.ops\.quantized_decomposed\.(de)?quantize_per_(tensor|channel)\.\w+")
_OPERATORS = re.compile(
    rf"{ROUNDING.pattern}|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|ge|gt|le|lt)"
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


@dataclass(frozen=True)
class Archive:
    """A screened file: the parts that PyTorch may see, by their names below the archive's folder."""

    parts: Mapping[str, bytes]
    program: dict[str, Any]

    @property
    def is_quantised(self) -> bool:
        """Whether the program rounds values or weights."""
        return any(key == "target" and ROUNDING.fullmatch(value) for key, value in _items(self.program))

    def anew(self) -> io.BytesIO:
        """An archive of these parts and nothing else."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, content in self.parts.items():
                archive.writestr(f"archive/{name}", content)
        stream.seek(0)
        return stream


def screened(path: Path) -> Archive:
    """Read a file's parts.

    Raises
    ------
    UserError : it cannot be read, is damaged, or holds something that could run code or change files.
    """
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
    return Archive(parts, program)


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
