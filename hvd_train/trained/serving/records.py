"""From the body of a request to records, and the schema that describes both.

A body is JSON, `{"instances": [record, ...]}`, whose records have the fields of the run's data; or
one file or text, with its own content type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, FailFast, Field, ValidationError, create_model
from pydantic_core import to_json

from hvd_train.errors import UserError, nearest
from hvd_train.trained.input import Form
from hvd_train.trained.serving.refusal import Refusal

JSON = "application/json"
CONFIG = ConfigDict(extra="forbid", val_json_bytes="base64")
MOST_ERRORS = 20
"""Errors in one answer."""
MOST_CHARACTERS = 80
"""Characters of a value in an error."""


class Bodies:
    """Reads bodies whose records have a given form."""

    def __init__(self, of: Form) -> None:
        self._form = of
        records = Annotated[list[of.type], Field(min_length=1), FailFast()]  # type: ignore[name-defined]
        self._body = create_model("Body", __config__=CONFIG, instances=(records, ...))

    def schema(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the content of a request as OpenAPI describes it, by content type; and its components."""
        whole = self._body.model_json_schema(ref_template="#/components/schemas/{model}")
        components = whole.pop("$defs", {})
        files = {media: {"schema": {"type": "string", "format": "binary"}} for media in self._form.media}
        return {JSON: {"schema": whole}, **files}, components

    def records(self, content_type: str, body: bytes) -> Sequence[Any]:
        """Return the records of a body, at least one.

        Raise Refusal: 415 for another content type, 400 for a body that is not JSON, 422 for wrong
        fields.
        """
        media = content_type.partition(";")[0].strip().lower()
        if media in {JSON, ""}:
            return self._read_json(body)
        if media in self._form.media or f"{media.partition('/')[0]}/*" in self._form.media:
            return [_decode(self._form.decode, body)]
        raise Refusal(415, f"content type '{media}', expected {' or '.join((JSON, *self._form.media))}")

    def _read_json(self, body: bytes) -> Sequence[Any]:
        try:
            records: Sequence[Any] = self._body.model_validate_json(body).instances  # type: ignore[attr-defined]
        except ValidationError as error:
            raise _refusal(error) from None
        return records


def at_record(number: int, message: str) -> dict[str, Any]:
    """Return the detail of a refusal for the record with this number in a request."""
    return {"loc": ["body", "instances", number], "msg": message}


def _decode(decode: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return decode(body)
    except UserError as error:
        raise Refusal(422, [{"loc": ["body"], "msg": str(error)}]) from None


def _refusal(error: ValidationError) -> Refusal:
    errors = error.errors(include_url=False, include_context=False)[:MOST_ERRORS]
    if errors[0]["type"] == "json_invalid":
        return Refusal(400, errors[0]["msg"])
    return Refusal(422, [_detail(one) for one in errors])


def _detail(error: Mapping[str, Any]) -> dict[str, Any]:
    """Return an error of pydantic as FastAPI shows it, with a short value."""
    loc, found, message = error["loc"], error["input"], error["msg"]
    if error["type"] == "missing":
        hint = nearest(str(loc[-1]), map(str, found)).partition(" (choices")[0] if isinstance(found, Mapping) else ""
        return {"loc": ["body", *loc], "msg": f"{message}{hint}"}
    shown = to_json(found, inf_nan_mode="constants", fallback=str).decode()
    short = shown if len(shown) <= MOST_CHARACTERS else f"{shown[:MOST_CHARACTERS]}..."
    return {"loc": ["body", *loc], "msg": message, "input": short}
