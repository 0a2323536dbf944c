"""The OpenAPI description: of every route, and in the structure that OpenAPI 3.1 prescribes."""

import re

import pytest

from extract.service.app import build
from extract.service.heads import Heads
from extract.service.protocols import ENDPOINTS
from extract.service.service import Service
from extract.service.settings import ServeSettings


@pytest.fixture(scope="module")
def description(server):
    reply = server.get("/openapi.json")
    assert reply.status == 200 and reply.headers["content-type"] == "application/json"
    return reply.json


def operations(description):
    for path, item in description["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def test_it_has_every_route_and_no_other(description):
    app = build(Service(ServeSettings(), Heads(())), ENDPOINTS, None)
    routes = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in app.routes
        for method in route.methods - {"HEAD"}  # Starlette adds it wherever there is GET
    }
    assert {(path, method) for path, method, _ in operations(description)} == routes


def test_every_route_that_needs_nothing_answers(server, description):
    for path, method, _ in operations(description):
        if method == "get" and "{" not in path:
            reply = server.get(path)
            assert reply.status == 200 or b"start it with --" in reply.body, (path, reply.body)


def test_no_route_hides_another():
    """Two templates with the same names left out would be one path for OpenAPI."""
    templates = [(one.method, re.sub(r"{[^}]*}", "{}", one.path)) for one in ENDPOINTS]
    assert len(set(templates)) == len(templates)


def test_structure(description):
    assert re.fullmatch(r"3\.1\.\d+", description["openapi"])
    assert description.keys() <= {"openapi", "info", "servers", "paths", "components", "security", "tags"}
    assert {"title", "version"} <= description["info"].keys()
    schemes = description["components"]["securitySchemes"]
    identifiers = []
    for path, method, operation in operations(description):
        where = f"{method} {path}"
        assert path.startswith("/") and "?" not in path, where
        assert method in {"get", "put", "post", "delete", "patch"}, where
        known = {"summary", "description", "tags", "parameters", "requestBody", "responses", "security", "operationId"}
        assert operation.keys() <= known, where
        assert operation["summary"].endswith("."), where
        identifiers.append(operation["operationId"])
        _check_parameters(where, path, operation.get("parameters", []))
        assert operation["responses"], where
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5](\d\d|XX)|default", status), where
            assert isinstance(response["description"], str) and response["description"], where
            _check_content(where, response.get("content", {}))
        if "requestBody" in operation:
            assert method != "get" and operation["requestBody"]["content"], where
            _check_content(where, operation["requestBody"]["content"])
        for need in operation.get("security", []):
            assert need.keys() <= schemes.keys(), where
    assert len(set(identifiers)) == len(identifiers)


def _check_parameters(where, path, parameters):
    in_path = [one["name"] for one in parameters if one["in"] == "path"]
    assert sorted(in_path) == sorted(re.findall(r"{(\w+)}", path)), where
    assert len({(one["name"], one["in"]) for one in parameters}) == len(parameters), where
    for one in parameters:
        assert one["in"] in ("path", "query", "header", "cookie"), where
        assert one["required"] is True or one["in"] != "path", where
        assert "schema" in one, where


def _check_content(where, content):
    for kind, media in content.items():
        assert re.fullmatch(r"[\w.+*-]+/[\w.+*-]+(; .*)?", kind), where
        assert isinstance(media.get("schema", {}), dict), where
