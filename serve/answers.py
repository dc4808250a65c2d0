"""What handlers answer: JSON, or a refusal of one line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from serve.schemas import complaint

Handler = Callable[[Request], Awaitable[Response]]
M = TypeVar("M", bound=BaseModel)


class Refusal(Exception):
    """Becomes an answer with a status and one line that says what is wrong, where, and what was expected."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The answer, with some more headers."""
        together = {**self.headers, **(headers or {})}
        return json_response({"error": self.text}, self.status, together)


def json_response(values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON values as an answer."""
    return Response(orjson.dumps(values), status, headers, media_type="application/json")


def validated(model: type[M], values: Any) -> M:
    """The values as a model, or a refusal."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Refusal(422, complaint(error)) from None
