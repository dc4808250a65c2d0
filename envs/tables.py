"""Tables of a scenario that users may replace by a YAML file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)


def read_table(path: str, model: type[M]) -> M:
    """The table in a YAML file.

    Raises:
        ValueError: One line with the file, the field and what is expected.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected the keys {', '.join(model.model_fields)}, got {type(values).__name__}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(_complaint(e) for e in error.errors())) from None


def _complaint(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "extra_forbidden":
        return f"unknown key {where}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where} = {error['input']!r}: {message}" if not isinstance(error["input"], dict) else f"{where}: {message}"
