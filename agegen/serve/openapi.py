"""The OpenAPI document at ``/openapi.json``: a static file, completed with what is known at run time only."""

from __future__ import annotations

import json
import types
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Union, get_args, get_origin, get_type_hints

from agegen.predict.results import RARE, FacePrediction
from agegen.serve.config import Limits

# This field becomes the columns ``under_18`` …, which the service does not offer.
_SEPARATE = "under"
_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def make_document(models: Sequence[str], limits: Limits, token_required: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document; the first of ``models`` is the default one."""
    text = files("agegen.serve").joinpath("openapi.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    document["info"]["version"] = version("agegen")
    operation = document["paths"]["/v1/faces"]["post"]
    (model,) = (parameter for parameter in operation["parameters"] if parameter["name"] == "model")
    model["schema"] |= {"enum": list(models), "default": models[0]}
    body = operation["requestBody"]
    body["description"] = f"At most {limits.body / 1e6:g} MB and {limits.images} images."
    body["content"]["multipart/form-data"]["schema"]["properties"]["image"]["maxItems"] = limits.images
    document["components"]["schemas"]["Row"] = _make_row_schema()
    if token_required:
        # Operations for which the file has an empty list need no token.
        document["security"] = [{"token": []}]
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return document


def _make_row_schema() -> dict[str, Any]:
    """Return the JSON schema of a row, from the fields of :class:`agegen.predict.results.FacePrediction`."""
    hints = {name: hint for name, hint in get_type_hints(FacePrediction).items() if name != _SEPARATE}
    return {
        "type": "object",
        "properties": {name: _make_type_schema(hint) for name, hint in hints.items()},
        "required": [name for name in hints if name not in RARE],
        "additionalProperties": False,
    }


def _make_type_schema(hint: Any) -> dict[str, Any]:
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_make_type_schema(part) for part in get_args(hint) if part is not type(None)]
        return {"anyOf": [*parts, {"type": "null"}]}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _make_type_schema(get_args(hint)[0])}
    return {"type": _JSON_TYPES[hint]}
