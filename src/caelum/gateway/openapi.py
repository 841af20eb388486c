"""The OpenAPI 3.1 document, made from the declarations of the operations.

Invariant: it describes what this server really takes and answers. Where one path has several PUT actions they are one
OpenAPI operation whose body is one of their schemas.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec

from caelum import __version__
from caelum.gateway.answer import body_types
from caelum.gateway.reading import api_parameters, plain
from caelum.kernel.errors import ErrorCode
from caelum.kernel.message import ApiMeta, ApiQuery, ParamMeta, apis

_TEMPLATE = "#/components/schemas/{name}"
_TIME = {
    "type": "string",
    "pattern": r"^[A-Z][a-z]{2} \d{1,2}, \d{4} \d{1,2}:\d{2}:\d{2} (AM|PM)$",
    "examples": ["Nov 22, 2026 7:15:56 PM"],
}
_VARIABLE = re.compile(r"\{(\w+)\}")
_INT64 = 2**63
Json = dict[str, Any]


def document(metas: Iterable[ApiMeta] | None = None) -> Json:
    """The whole document."""
    known = sorted(apis() if metas is None else metas, key=lambda one: (one.path, one.method, one.name))
    schemas = _Schemas(known)
    paths: Json = {}
    spellings: dict[str, str] = {}
    for meta in known:
        for path in (meta.path, *meta.also):
            # Paths that differ in their variables' names only are one path; the first one's names stay.
            shown = spellings.setdefault(_VARIABLE.sub("{}", path), path)
            _enter(paths.setdefault("/zstack/v1" + shown, {}), path, shown, meta, schemas)
    paths["/zstack/v1/api-jobs/{uuid}"] = {"get": _job_operation()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Caelum", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": one} for one in sorted({meta.category for meta in known} | {"job"})],
        "paths": paths,
        "components": {
            "schemas": {**schemas.components, **_COMMON_SCHEMAS},
            "responses": _RESPONSES,
            "securitySchemes": {
                "session": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`OAuth <session uuid>`, from LogInByAccount; or `ZStack <AccessKeyID>:<signature>`",
                }
            },
        },
    }


_ABOUT = """Operations that change something are asynchronous: they answer 202 with the `location` of a job, which is
polled until it answers 200 (done), 503 (failed) or 404 (expired). Errors of operations are `{"error": {...}}` with
status 503; errors of the HTTP layer are plain text."""

_JOB_ACCEPTED = {
    "type": "object",
    "required": ["location", "apiTimeout"],
    "properties": {
        "location": {"type": "string", "format": "uri", "description": "where to poll"},
        "apiTimeout": {"type": "integer", "description": "milliseconds that the operation may take"},
    },
}
_COMMON_SCHEMAS: Json = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "additionalProperties": False,
        "properties": {"error": {"$ref": "#/components/schemas/ErrorCode"}},
    },
    "JobAccepted": _JOB_ACCEPTED,
}


def _text(description: str) -> Json:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


_RESPONSES: Json = {
    "BadRequest": _text("the request is malformed, or lacks the session"),
    "NotFound": _text("the path names no operation, or the job has expired"),
    "NotAllowed": _text("no operation has this method here"),
    "TooLarge": _text("the body is too large"),
    "TooMany": _text("the client sends too many requests; see Retry-After"),
    "Failed": {
        "description": "the operation failed",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    },
    "Accepted": {
        "description": "the job is accepted; poll its location",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobAccepted"}}},
    },
}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/responses/{name}"}


_COMMON_RESPONSES: Json = {
    "400": _ref("BadRequest"),
    "404": _ref("NotFound"),
    "405": _ref("NotAllowed"),
    "413": _ref("TooLarge"),
    "429": _ref("TooMany"),
    "503": _ref("Failed"),
}


class _Schemas:
    """JSON schemas of every type that occurs, in this server's dialect."""

    def __init__(self, metas: Iterable[ApiMeta]) -> None:
        metas = list(metas)
        params = {(m.name, p.wire): p.type for m in metas for p in api_parameters(m).values()}
        bodies = {(m.name, key): hint for m in metas for key, hint in body_types(m).items()}
        self._keys = [*params, *(("body", *key) for key in bodies)]
        found, components = msgspec.json.schema_components(
            [*params.values(), *bodies.values(), ErrorCode], ref_template=_TEMPLATE
        )
        self._found = dict(zip(self._keys, map(_in_dialect, found), strict=False))
        self.components: Json = {name: _in_dialect(one) for name, one in components.items()}
        for cls in _structs([*params.values(), *bodies.values()]):
            self._tell_times(cls)

    def _tell_times(self, cls: type[msgspec.Struct]) -> None:
        """msgspec calls a time a string, and nothing more."""
        properties = self.components.get(cls.__name__, {}).get("properties", {})
        for field in msgspec.structs.fields(cls):
            if plain(field.type) is datetime and field.encode_name in properties:
                properties[field.encode_name] = _TIME

    def param(self, meta: ApiMeta, param: ParamMeta) -> Json:
        return _constrained(dict(self._found[(meta.name, param.wire)]), param)

    def body(self, meta: ApiMeta) -> Json:
        properties = {key: self._found[("body", meta.name, key)] for key in body_types(meta)}
        return {"type": "object", "properties": properties}


def _structs(hints: Iterable[Any]) -> set[type[msgspec.Struct]]:
    """The structs that these types are made of."""
    found: set[type[msgspec.Struct]] = set()
    pending = list(hints)
    while pending:
        hint = pending.pop()
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            if hint not in found:
                found.add(hint)
                pending += [one.type for one in msgspec.structs.fields(hint)]
        else:
            pending += typing.get_args(hint)
    return found


def _in_dialect(schema: Any) -> Any:
    """msgspec's schema without the nulls, which never travel."""
    if isinstance(schema, list):
        return [_in_dialect(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _in_dialect(value) for key, value in schema.items() if not (key == "default" and value is None)}
    options = made.get("anyOf")
    if options is not None:
        rest = [one for one in options if one != {"type": "null"}]
        if len(rest) == 1:
            del made["anyOf"]
            made = {**rest[0], **made}
    return made


def _constrained(schema: Json, param: ParamMeta) -> Json:
    limits = param.param
    target = schema["items"] if schema.get("type") == "array" and "items" in schema else schema
    for name, value in (("maxLength", limits.max_length), ("minLength", limits.min_length)):
        if value is not None and schema.get("type") == "string":
            schema[name] = value
    if limits.valid_values is not None and target.get("type") == "string":
        target["enum"] = list(limits.valid_values)
    if limits.regex is not None and target.get("type") == "string":
        target["pattern"] = f"^(?:{limits.regex})$"
    if limits.nonempty and schema.get("type") == "array":
        schema["minItems"] = 1
    if schema.get("type") == "integer":
        schema["minimum"] = -_INT64 if limits.minimum is None else limits.minimum
        schema["maximum"] = _INT64 - 1 if limits.maximum is None else limits.maximum
    if limits.secret:
        schema["writeOnly"] = True
    return schema


def _enter(item: Json, path: str, shown: str, meta: ApiMeta, schemas: _Schemas) -> None:
    """Add an operation to its path; a further PUT action joins the one that is there."""
    method = meta.method.lower()
    made = _operation(path, shown, meta, schemas)
    known = item.get(method)
    if known is None:
        item[method] = made
        return
    content = known["requestBody"]["content"]["application/json"]
    more = made["requestBody"]["content"]["application/json"]["schema"]
    options = content["schema"].get("oneOf", [content["schema"]])
    content["schema"] = {"oneOf": [*options, more]}
    known["summary"] += " / " + made["summary"]
    known["description"] += "\n\n" + made["description"]
    for status, response in made["responses"].items():
        known["responses"][status] = _either(known["responses"].get(status), response)
    if "security" not in made:
        known.pop("security", None)


def _either(known: Json | None, response: Json) -> Json:
    if known is None or known == response:
        return response
    schemas = [option for one in (known, response) for option in _schema_of(one).get("anyOf", [_schema_of(one)])]
    unique = [one for index, one in enumerate(schemas) if one not in schemas[:index]]
    return {
        "description": "what the action answers",
        "content": {"application/json": {"schema": {"anyOf": unique}}},
    }


def _schema_of(response: Json) -> Json:
    found: Json = response["content"]["application/json"]["schema"]
    return found


def _operation(path: str, shown: str, meta: ApiMeta, schemas: _Schemas) -> Json:
    variables = _VARIABLE.findall(path)
    names = dict(zip(variables, _VARIABLE.findall(shown), strict=True))
    suffix = "" if path == meta.path else "_" + str((meta.path, *meta.also).index(path))
    made: Json = {
        "operationId": meta.cls.__name__ + suffix,
        "tags": [meta.category],
        "summary": meta.cls.__name__,
        "description": _description(meta),
        "parameters": [_path_parameter(name, names[name], meta, schemas) for name in variables],
        "responses": _responses(meta, schemas),
        "x-api-message": meta.name,
        "x-admin-only": meta.admin_only,
    }
    if meta.login:
        made["security"] = [{"session": []}]
    if meta.kind == "query":
        made["parameters"] += [] if variables else _QUERY_PARAMETERS
    elif meta.method in ("POST", "PUT"):
        made["requestBody"] = _request_body(meta, variables, schemas)
    else:
        made["parameters"] += [
            {"name": one.wire, "in": "query", "required": False, "schema": schemas.param(meta, one)}
            for one in api_parameters(meta).values()
            if one.wire not in variables and not _is_map(one)
        ]
    return made


def _is_map(param: ParamMeta) -> bool:
    """Maps travel as `name.key=value`, which OpenAPI cannot say."""
    return "dict" in str(param.type)


def _description(meta: ApiMeta) -> str:
    who = "Administrators only. " if meta.admin_only and meta.login else ""
    return f"{' '.join(meta.doc.split())} {who}".strip()


def _path_parameter(name: str, shown: str, meta: ApiMeta, schemas: _Schemas) -> Json:
    known = api_parameters(meta).get(name)
    schema = schemas.param(meta, known) if known is not None else {"type": "string"}
    return {"name": shown, "in": "path", "required": True, "schema": {**schema, "minLength": 1}}


def _request_body(meta: ApiMeta, variables: list[str], schemas: _Schemas) -> Json:
    params = [one for one in api_parameters(meta).values() if one.wire not in variables]
    inner: Json = {"type": "object", "properties": {one.wire: schemas.param(meta, one) for one in params}}
    if required := [one.wire for one in params if one.required]:
        inner["required"] = required
    key = meta.body_key or ""
    tags = {"type": "array", "items": {"type": "string"}}
    whole: Json = {
        "type": "object",
        "properties": {key: inner, "systemTags": tags, "userTags": tags},
        # One action per request: the key of a second one would not be an unknown property.
        "additionalProperties": False,
    }
    if required or meta.action:
        whole["required"] = [key]
    return {"required": True, "content": {"application/json": {"schema": whole}}}


def _responses(meta: ApiMeta, schemas: _Schemas) -> Json:
    if meta.kind == "async":
        return {"202": _ref("Accepted"), **_COMMON_RESPONSES}
    schema = schemas.body(meta)
    if issubclass(meta.cls, ApiQuery):
        schema["properties"]["schema"] = {"type": "object", "additionalProperties": {"type": "string"}}
    answer = {"description": "the answer", "content": {"application/json": {"schema": schema}}}
    return {"200": answer, **_COMMON_RESPONSES}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_CONDITION = (
    r"^[^\s=<>!~?][^=<>!~?]*"
    r"((=|!=|>=|<=|\?=|!\?=|~=|!~=).*[^=<>!~?]=*|[<>][^=<>!~?]+| is null| not null)$"
)
"""Conditions that are certainly understood; the server takes a few more."""
_QUERY_PARAMETERS = [
    _query(
        "q",
        {"type": "array", "items": {"type": "string", "pattern": _CONDITION}},
        "conditions, all of which hold: a field (dotted through joins; `__systemTag__`, `__userTag__`, `__tagUuid__`),"
        " one of = != > >= < <= ?= (in) !?= ~= (like) !~= 'is null' 'not null', and a value",
    ),
    _query("limit", {**_COUNT, "default": 1000}, "at most so many"),
    _query("start", {**_COUNT, "default": 0}, "leave out so many first"),
    _query("sort", {"type": "string"}, "a field, with + or - before it for the direction"),
    _query("fields", {"type": "string"}, "only these fields, split by commas"),
    _query("count", {"type": "boolean"}, "answer only the number of matches, as total"),
    _query("replyWithCount", {"type": "boolean"}, "answer the number of all matches too, as total"),
]


def _job_operation() -> Json:
    content = {"application/json": {"schema": {"type": "object"}}}
    done = {"description": "done: what the operation answers", "content": content}
    running = {"description": "still running", "content": content}
    wait = {"name": "Prefer", "in": "header", "schema": {"type": "string"}, "description": "`wait=10`: wait that long"}
    return {
        "operationId": "GetJob",
        "tags": ["job"],
        "summary": "GetJob",
        "description": "Poll a job; no session is needed.",
        "parameters": [
            {"name": "uuid", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
            wait,
        ],
        "responses": {"200": done, "202": running, **_COMMON_RESPONSES},
    }
