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


def read_json(request: Request) -> Any:
    """The body, which has been received, as JSON values; NaN and infinities are not among them."""
    try:
        return orjson.loads(request.state.body)
    except orjson.JSONDecodeError as error:
        raise Refusal(422, f"request: not JSON: {str(error).splitlines()[0]}") from None


def validated(model: type[M], values: Any) -> M:
    """The values as a model, or a refusal."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Refusal(422, complaint(error)) from None
