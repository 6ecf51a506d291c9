"""The pieces of the OpenAPI description that routes share, and the page that shows it.

Separate because the routes read their bodies and headers by hand, for speed and strictness, so what
they take is said here; and because the page must work without any network beyond the node.
"""

from __future__ import annotations

from html import escape
from typing import Any, Final

from ..core.limits import KEY_BYTES_MAX, OPS_MAX, VALUE_BYTES_MAX

_PROBLEM_REF: Final = {"$ref": "#/components/schemas/Problem"}
PROBLEM_CONTENT: Final[dict[str, Any]] = {"application/problem+json": {"schema": _PROBLEM_REF}}
PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"description": "The request was refused (RFC 9457)", "content": PROBLEM_CONTENT},
    "5XX": {"description": "The node cannot do it (RFC 9457)", "content": PROBLEM_CONTENT},
}

JSON_VALUE: Final[dict[str, Any]] = {
    "required": True,
    "description": f"Any JSON value of at most {VALUE_BYTES_MAX} bytes.",
    "content": {"application/json": {"schema": {}}},
}
SEALED: Final[dict[str, Any]] = {
    "required": True,
    "description": "One sealed envelope.",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}

_OVER: Final = {
    "type": "array",
    "items": {"type": "string"},
    "description": "The versions that this op replaces; without it, all that this node holds live.",
}
_CONDITIONS: Final = {
    "if_match": {"type": "string", "description": "The winner's version, or * for any."},
    "if_none_match": {"type": "string", "enum": ["*"], "description": "The key must be absent."},
}
_KEY: Final = {"type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX}
OPS_BODY: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["ops"],
                "additionalProperties": False,
                "properties": {
                    "ops": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": OPS_MAX,
                        "items": {
                            "oneOf": [
                                {
                                    "type": "object",
                                    "title": "put",
                                    "required": ["op", "key", "value"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "op": {"const": "put"},
                                        "key": _KEY,
                                        "value": {},
                                        "over": _OVER,
                                        **_CONDITIONS,
                                    },
                                },
                                {
                                    "type": "object",
                                    "title": "delete",
                                    "required": ["op", "key"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "op": {"const": "delete"},
                                        "key": _KEY,
                                        "over": _OVER,
                                        **_CONDITIONS,
                                    },
                                },
                                {
                                    "type": "object",
                                    "title": "add",
                                    "required": ["op", "key", "amount"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "op": {"const": "add"},
                                        "key": _KEY,
                                        "amount": {"type": "integer"},
                                    },
                                },
                            ]
                        },
                    }
                },
            }
        }
    },
}


def _header(name: str, text: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": text,
        "schema": {"type": "string"},
    }


IF_MATCH: Final = _header("If-Match", "Only if the key's version is this ETag, or * for any.")
IF_NONE_MATCH: Final = _header(
    "If-None-Match", "Reads: 304 if unchanged. Writes: * if the key must be absent."
)
LAST_EVENT_ID: Final = _header(
    "Last-Event-ID", "Resume behind this event: each later one comes once, or a `lost` event says which not."
)
IDEMPOTENCY_KEY: Final = _header(
    "Idempotency-Key", "A repeat at this node within 24 h answers the first result."
)
ACK: Final[dict[str, Any]] = {
    "name": "ack",
    "in": "query",
    "required": False,
    "description": "Wait until so many nodes hold the entry, this one included (at most 10 s).",
    "schema": {"type": "integer", "minimum": 1, "default": 1},
}

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1f24}"
    "h2{font-size:1.1rem;margin:2rem 0 .3rem;border-top:1px solid #d0d7de;padding-top:1rem}"
    "code{font:14px ui-monospace,monospace;background:#f2f4f6;padding:.1em .3em;border-radius:3px}"
    "b.m{display:inline-block;min-width:4.5rem}table{border-collapse:collapse;font-size:.9rem}"
    "td{padding:.2rem 1rem .2rem 0;vertical-align:top}"
)


def docs_page(schema: dict[str, Any]) -> str:
    """A page over the OpenAPI description: no script, nothing loaded from elsewhere."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(schema['info']['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{escape(schema['info']['title'])} {escape(schema['info']['version'])}</h1>",
        f"<p>{escape(schema['info'].get('description', ''))}</p>",
        "<p>The machine-readable form is <a href=openapi.json>openapi.json</a> (OpenAPI 3.1).</p>",
    ]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(method, path, operation))
    return "".join(parts)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [
        _row(f"{item['name']} ({item['in']})", item.get("description", ""), item.get("schema", {}))
        for item in operation.get("parameters", [])
    ]
    body = operation.get("requestBody")
    if body is not None:
        kinds = ", ".join(body["content"])
        rows.append(_row("body", f"{kinds}. {body.get('description', '')}", {}))
    for status, response in operation.get("responses", {}).items():
        if status.startswith("2"):
            rows.append(_row(status, _shape(response), {}))
    return (
        f"<h2><b class=m>{escape(method.upper())}</b> <code>{escape(path)}</code></h2>"
        f"<p>{escape(operation.get('summary', ''))}</p><table>{''.join(rows)}</table>"
    )


def _shape(response: dict[str, Any]) -> str:
    for kind, content in response.get("content", {}).items():
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        return f"{name or response.get('description', '')} ({kind})"
    return str(response.get("description", ""))


def _row(name: str, text: str, schema: dict[str, Any]) -> str:
    default = f" Default: {schema['default']}." if schema.get("default") not in (None, "") else ""
    return f"<tr><td><code>{escape(name)}</code><td>{escape(text + default)}"
