"""The OpenAPI document says what the code does."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from starlette.testclient import TestClient

from agegen.predict.results import RARE, FacePrediction
from agegen.predict.rows import format_row
from agegen.serve import app
from agegen.serve.app import PARAMETERS, Service, make_app, make_document
from agegen.serve.config import Limits
from agegen.serve.metrics import ServiceMetrics
from agegen.serve.requests import RequestQueue
from agegen.serve.security import OPEN_ROUTES

# 400 and 503 also come from below the application: an invalid request, too many connections.
FROM_SERVER = {"200", "400", "503"}


@pytest.fixture(scope="module")
def document():
    return make_document(["one", "two"], Limits(body=3_000_000, images=7), token_required=True)


def validate_row(document, row):
    Draft202012Validator(document["components"]["schemas"]["Row"]).validate(row)


@pytest.mark.parametrize("token_required", [False, True])
def test_it_is_valid(token_required):
    validate(make_document(["one"], Limits(), token_required))


def test_it_has_the_models_and_the_limits(document):
    operation = document["paths"]["/v1/faces"]["post"]
    assert operation["parameters"][0]["schema"] == {"type": "string", "enum": ["one", "two"], "default": "one"}
    assert operation["requestBody"]["description"] == "At most 3 MB and 7 images."
    content = operation["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["properties"]["image"]["maxItems"] == 7
    assert content["application/json"]["schema"]["properties"]["images"]["maxItems"] == 7


def test_it_has_all_parameters(document):
    parameters = document["paths"]["/v1/faces"]["post"]["parameters"]
    assert tuple(one["name"] for one in parameters if one["in"] == "query") == PARAMETERS


def test_it_has_all_statuses(document):
    sources = "".join(path.read_text() for path in Path(app.__file__).parent.glob("*.py"))
    raised = set(re.findall(r"RequestError\((\d+)", sources))
    assert raised | FROM_SERVER == set(document["paths"]["/v1/faces"]["post"]["responses"])


def test_its_rows_are_those_of_predictions(document):
    row = FacePrediction(
        "a.jpg", "ok", 1, (1, 2, 3, 4), 30.0, 20.0, 40.0, "female", 0.9, "yunet", 0.9, 50.0, ((1.0, 2.0),) * 5, 0,
        "compact", 2, 1, 0.5, 0.0, 1.0, 3, "min_score=0.5", (), (0.5, 0.5), "why", 0.9,
    )  # fmt: skip
    assert all(getattr(row, field.name) is not None for field in fields(row))
    validate_row(document, json.loads(format_row(row)))
    sparse = FacePrediction("a.jpg", "no_face").to_json()
    assert not set(RARE) & set(sparse)
    validate_row(document, sparse)
    schema = Draft202012Validator(document["components"]["schemas"]["Row"])
    assert not schema.is_valid(sparse | {"age": "thirty"})
    assert not schema.is_valid(sparse | {"height": 1.0})
    assert not schema.is_valid({name: value for name, value in sparse.items() if name != "age"})


def test_its_paths_exist_and_need_the_token_that_it_says(document):
    service = Service({"one": None}, RequestQueue(Limits()), ServiceMetrics())
    client = TestClient(make_app(service, "sesame", "0.0.0.0"))
    for path, operations in document["paths"].items():
        (method,) = operations
        is_open = operations[method].get("security") == []
        assert is_open == (path in OPEN_ROUTES)
        status = client.request(method, path).status_code
        assert status == (200 if is_open else 401)
        # Without a loaded model there is nothing to list.
        if path != "/v1/models":
            status = client.request(method, path, headers={"Authorization": "Bearer sesame"}).status_code
            assert status == (422 if path == "/v1/faces" else 200)
