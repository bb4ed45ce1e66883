"""Turn what is wrong with a file or with settings into one sentence that a person can act on.

For files, a model's field descriptions double as the text after "must be", so that each key's rule is worded once.
Does not read files and knows no particular model.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from aap_hw.errors import UserError, closest

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], data: Mapping[str, Any], source: str) -> Model:
    """Build a model from parsed data.

    Parameters
    ----------
    model
        A pydantic model that forbids extra keys and whose every field has a description fit for the
        sentence "<key> must be <description>".
    data
        What was parsed from the file.
    source
        What the data is and where it is from, for the sentence: ``"device profile boards/mine.toml"``.

    Raises
    ------
    UserError : the data are no such model; the sentence names `source` and every wrong, missing or unknown key once.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as failure:
        # A union reports once per alternative; the reader wants one remark per key.
        remarks = dict(_remark(model, details) for details in failure.errors(include_url=False))
        raise UserError(f"{source}: {'; '.join(remarks.values())}") from failure


def require(what: str, *rules: tuple[bool, str]) -> None:
    """Raise a UserError with the complaint of the first rule that does not hold, in front of it what it is about."""
    for holds, complaint in rules:
        if not holds:
            raise UserError(f"{what}: {complaint}")


def one_of(name: str, value: str | None, known: Sequence[str | None]) -> tuple[bool, str]:
    """The rule that a setting is one of a few words, or None if that is among them."""
    words = [str(each) for each in known]
    return (
        value in known,
        f"{name} is {value!r}; give {', '.join(words[:-1])} or {words[-1]}{closest(str(value), words)}",
    )


def _remark(model: type[BaseModel], details: ErrorDetails) -> tuple[tuple[str, ...], str]:
    """Return the path of the offending key and what to say about it."""
    path: tuple[str, ...] = ()
    description = ""
    for part in details["loc"]:
        fields = model.model_fields
        if part not in fields:
            # Either an unknown key, or pydantic's own label below a known one (list index, union member).
            if details["type"] == "extra_forbidden":
                path = (*path, str(part))
                hint = closest(str(part), fields) or f" (known here: {', '.join(fields)})"
                return path, f"unknown key '{'.'.join(path)}'{hint}"
            break
        path = (*path, str(part))
        description = fields[str(part)].description or ""
        inner = _model_in(fields[str(part)].annotation)
        if inner is None:
            break
        model = inner
    key = ".".join(path)
    match details["type"]:
        case "missing":
            return path, f"the key '{key}' is missing; it must be {description}"
        case "value_error":
            return path, f"{key}: {details['ctx']['error']}" if key else str(details["ctx"]["error"])
        case _:
            return path, f"{key} must be {description}, not {_shown(details['input'])}"


def _model_in(annotation: object) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
