"""A latency table as a JSON file: checked on loading, written so that two tables can be compared line by line."""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import jsonschema

from aap_hw.compile.keys.address import Address
from aap_hw.compile.keys.key import KernelKey
from aap_hw.compile.keys.precision import FP32, NetworkPrecision
from aap_hw.errors import UserError
from aap_hw.files import read_text, write_atomic
from aap_hw.inputs import Inputs
from aap_hw.lut.calibrating import Slowdown
from aap_hw.lut.table import LatencyPoint, LatencyTable, NetworkName, Validation

SCHEMA_VERSION = 4


class OtherVersion(UserError):  # noqa: N818 - the table is as good as ever, for another version
    """A latency table of another version of its format."""


def load_table(path: Path) -> LatencyTable:
    """Read a latency table.

    Raises
    ------
    OtherVersion : the table was written by another version.
    UserError : the file is missing, is not JSON, or does not follow the schema.
    """
    try:
        document = json.loads(read_text(path, "latency table"), parse_constant=_refuse, object_pairs_hook=_once_each)
    except json.JSONDecodeError as problem:
        raise _damaged(path, f"is damaged or cut short ({problem.msg} at line {problem.lineno})") from problem
    except (ValueError, RecursionError) as problem:
        raise _damaged(path, f"is damaged ({problem})") from problem
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise OtherVersion(
            f"{path} is not a latency table of version {SCHEMA_VERSION} (schema_version is {version!r}); "
            "profile the device again into another file, or use the version of aap-hw that wrote it"
        )
    fault = jsonschema.exceptions.best_match(_validator().iter_errors(document))
    if fault is not None:
        raise _damaged(path, f"is not valid at {fault.json_path}: {fault.message[:200]}")
    return _from_document(document, path)


def save_table(table: LatencyTable, path: Path) -> None:
    """Write a latency table; the file is replaced as a whole or not at all."""
    write_atomic(path, dump_table(table))


def dump_table(table: LatencyTable) -> str:
    """The text of a table: sorted keys, one point a line."""
    kernels = []
    for key in sorted(table.points):
        rows = [
            json.dumps([*p.widths, rounded(p.latency_us), rounded(p.spread_us), p.samples])
            for _, p in sorted(table.points[key].items())
        ]
        kernels.append(f'  {json.dumps(str(key))}: {{"points": [\n   ' + ",\n   ".join(rows) + "\n  ]}")
    validation = [
        json.dumps(
            {
                "model": v.model,
                "input": inputs_json(v.inputs),
                "plan": v.plan,
                "widths": dict(v.widths),
                "predicted_us": rounded(v.predicted_us),
                "measured_us": rounded(v.measured_us),
                **_precision_json(v.precision),
                **({"floats": list(v.floats)} if v.floats else {}),
            },
            sort_keys=True,
        )
        for v in table.validation
    ]
    slowdowns = [
        json.dumps(
            {"model": network.model, "input": inputs_json(network.inputs), **_precision_json(network.precision)}
            | {name: rounded(value) for name, value in asdict(slow).items()},
            sort_keys=True,
        )
        for network, slow in sorted(table.slowdowns.items(), key=_by_network)
    ]
    parts = {
        "device": _indented(table.device),
        "kernels": "{\n" + ",\n".join(kernels) + "\n }",
        "measurement": _indented(table.measurement),
        "schema_version": str(SCHEMA_VERSION),
        "slowdowns": "[\n  " + ",\n  ".join(slowdowns) + "\n ]" if slowdowns else "[]",
        "validation": "[\n  " + ",\n  ".join(validation) + "\n ]" if validation else "[]",
    }
    return "{\n" + ",\n".join(f' "{name}": {text}' for name, text in parts.items()) + "\n}\n"


def _from_document(document: dict[str, Any], path: Path) -> LatencyTable:
    table = LatencyTable(document["device"], document["measurement"])
    for text, kernel in document["kernels"].items():
        try:
            key = KernelKey.parse(text)
        except UserError as problem:
            raise _damaged(path, f"is not valid: {text!r} is not a kernel key") from problem
        for row in kernel["points"]:
            *widths, latency_us, spread_us, samples = row
            point = LatencyPoint(tuple(widths), latency_us, spread_us, samples)
            _finite(point.latency_us, text, path)
            _finite(point.spread_us, text, path)
            if Address(key, point.widths) in table:
                raise _damaged(path, f"has two points of the widths {point.widths} in '{text}'")
            table.add(key, point)
    for entry in document["slowdowns"]:
        line = {name: _finite(entry[name], "slowdowns", path) for name in ("alone_us", "measured_us", "tilt")}
        network = NetworkName(entry["model"], _inputs(entry["input"], path), entry.get("precision", FP32))
        table.slowdowns[network] = Slowdown(**line)
    for entry in document["validation"]:
        values = {name: value for name, value in entry.items() if name != "input"}
        values["floats"] = tuple(values.get("floats", ()))
        table.validation.append(Validation(inputs=_inputs(entry["input"], path), **values))
    return table


def inputs_json(inputs: Inputs) -> list[int] | str:
    """A network's inputs as a table holds them: the shape of a batch of one if that says all, else their text."""
    value = inputs.as_json()
    return value if isinstance(value, str) else [1, *value]


def _inputs(value: list[int] | str, path: Path) -> Inputs:
    try:
        return Inputs.of(value if isinstance(value, str) else value[1:])
    except UserError as problem:
        raise _damaged(path, f"is not valid: {value!r} are no inputs of a network") from problem


def _precision_json(precision: NetworkPrecision) -> dict[str, str]:
    """What a table says of a precision: nothing of float32, the only one that older versions knew."""
    return {} if precision == FP32 else {"precision": precision}


def _by_network(item: tuple[NetworkName, Slowdown]) -> tuple[str, tuple[tuple[int, ...], ...], str, str]:
    network, _ = item
    inputs, precision = network.inputs, _precision_json(network.precision).get("precision", "")
    return network.model, tuple(one.shape for one in inputs.each), inputs.text, precision


def _finite(value: float, key: str, path: Path) -> float:
    if not abs(value) <= sys.float_info.max:
        raise _damaged(path, f"has a latency that is not a number in '{key}'")
    return float(value)


def _damaged(path: Path, fault: str) -> UserError:
    return UserError(f"the latency table {path} {fault}; restore it or profile the device again")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no name stands twice, as where two tables were joined by hand; Python would take the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"'{next(name for name in names if names.count(name) > 1)}' stands there twice")
    return made


def _indented(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True).replace("\n", "\n ")


def rounded(value: float) -> float:
    """Four significant digits: more than any timing can claim."""
    return float(f"{value:.4g}")


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(resources.files("aap_hw.lut").joinpath("table.schema.json").read_text("utf-8"))
    return jsonschema.Draft202012Validator(schema)
