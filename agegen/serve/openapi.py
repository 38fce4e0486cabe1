"""What the service says of its interface at ``/openapi.json``."""

from __future__ import annotations

import types
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Union, get_args, get_origin, get_type_hints

from agegen.predict.results import RARE, FacePrediction
from agegen.serve.limits import Limits

_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}
# A row has these as columns of their own, for ages that the service can't be asked for.
_APART = "under"
_REFUSALS = {
    400: "The head of the request is no HTTP.",
    401: "The token is missing or wrong.",
    403: "The request comes from another web page, or to a name that isn't this machine's.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The body is of a type that is no picture.",
    422: "No picture could be read, or a parameter can't be used; the reason says which.",
    429: "Too many requests are under way; Retry-After says when to come again.",
    503: "No answer in time; Retry-After says when to come again.",
}


def describe_api(models: Sequence[str], limits: Limits, guarded: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document; ``guarded``: whether a token is wanted."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "agegen",
            "version": version("agegen"),
            "description": "Estimates age and gender from photographs of faces. Not fit for decisions about "
            "individuals, nor for verifying anyone's age.",
        },
        "paths": {
            "/v1/faces": {"post": _describe_faces(models, limits)},
            "/v1/models": {"get": _describe_get("The models that can be asked for.", "Models")},
            "/healthz": {"get": _describe_get("Whether the service runs.", "Health")},
            "/metrics": {"get": _describe_text("Counters in Prometheus' text format.", "text/plain")},
            "/openapi.json": {"get": _describe_get("This document.", "Document")},
            "/": {"get": _describe_text("A page to try it on.", "text/html")},
        },
        "components": {"schemas": _describe_schemas()},
    }
    if guarded:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path in ("/v1/faces", "/v1/models", "/metrics"):
            for operation in document["paths"][path].values():
                operation["security"] = [{"token": []}]
    return document


def _describe_faces(models: Sequence[str], limits: Limits) -> dict[str, Any]:
    picture = {"schema": {"type": "string", "format": "binary"}}
    files = {
        "type": "object",
        "properties": {
            "picture": {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "maxItems": limits.pictures,
                "description": "Parts of any name that have a file name.",
            }
        },
    }
    asked = [
        ("model", {"type": "string", "enum": list(models), "default": models[0]}, "Which model estimates."),
        ("min_score", {"type": "number", "minimum": 0, "maximum": 1, "default": 0}, "How sure the detector must be."),
        ("distribution", {"type": "integer", "enum": [0, 1], "default": 0}, "Whether rows hold P(age) over 0–116."),
    ]
    return {
        "summary": "Find the faces in one or more pictures and estimate the age and gender of each.",
        "operationId": "findFaces",
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
            for name, schema, text in asked
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {limits.body / 1e6:g} MB and {limits.pictures} pictures.",
            "content": {
                "image/*": picture,
                "application/octet-stream": picture,
                "multipart/form-data": {"schema": files},
            },
        },
        "responses": {
            "200": _describe_json("One row per face, or one that says why a picture has none.", "Rows"),
            **{str(status): _describe_json(text, "Refusal") for status, text in _REFUSALS.items()},
        },
    }


def _describe_get(text: str, schema: str) -> dict[str, Any]:
    return {"summary": text, "responses": {"200": _describe_json(text, schema)}}


def _describe_text(text: str, kind: str) -> dict[str, Any]:
    content = {kind: {"schema": {"type": "string"}}}
    return {"summary": text, "responses": {"200": {"description": text, "content": content}}}


def _describe_json(text: str, schema: str) -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": text, "content": {"application/json": {"schema": reference}}}


def _describe_schemas() -> dict[str, Any]:
    hints = {name: hint for name, hint in get_type_hints(FacePrediction).items() if name != _APART}
    row = _describe_object({name: _describe_type(hint) for name, hint in hints.items()}, without=RARE)
    model = {
        "name": {"type": "string", "description": "What ?model= takes."},
        "model": {"type": "string", "description": "Its name, version and checkpoint, as rows have them."},
        "detector": {"type": "string"},
        "min_confidence": {"type": "number", "description": "Gender below it is 'uncertain'."},
        "engine": {"type": "string"},
        "input_size": {"type": "integer"},
        "licence": {"type": ["string", "null"]},
    }
    listed = {"type": "array", "items": _describe_object(model)}
    return {
        "Row": row,
        "Rows": {"type": "array", "items": {"$ref": "#/components/schemas/Row"}},
        "Models": _describe_object({"default": {"type": "string"}, "models": listed}),
        "Health": _describe_object({"status": {"const": "ok"}}),
        "Refusal": _describe_object({"status": {"type": "integer"}, "reason": {"type": "string"}}),
        "Document": {"type": "object"},
    }


def _describe_object(properties: dict[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in without]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _describe_type(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of a row's value."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_describe_type(part) for part in get_args(hint) if part is not type(None)]
        return {"anyOf": [*parts, {"type": "null"}]}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _describe_type(get_args(hint)[0])}
    return _SIMPLE[hint]
