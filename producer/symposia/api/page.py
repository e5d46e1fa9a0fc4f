"""The page ``/docs``: the OpenAPI document written out as plain HTML. It loads nothing and runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response

#: nothing may be loaded or run, whatever a description should come to hold
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = ("body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}code,pre{font:13px/1.4 monospace}"
          "pre{background:#f5f5f5;padding:.8em;overflow:auto}h3{margin:1.6em 0 .2em}summary{cursor:pointer;color:#555}"
          "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}pre{background:#222}summary{color:#aaa}}")


def page(document: Mapping[str, Any]) -> str:
    """The document as a page."""
    told = document["info"]
    return (f"<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{escape(told['title'])}</title><style>{_STYLE}</style></head><body>"
            f"<h1>{escape(told['title'])} {escape(told['version'])}</h1><p>{escape(told.get('summary', ''))}</p>"
            "<p>Paths under <code>/v1</code> ask for <code>Authorization: Bearer KEY</code>. The same as JSON: <a href=\"openapi.json\">openapi.json</a></p>"
            f"{''.join(_sections(document))}</body></html>")


def _sections(document: Mapping[str, Any]) -> Iterator[str]:
    seen = ""
    operations = [(o.get("tags", ["other"])[0], path, method, o) for path, methods in document["paths"].items() for method, o in methods.items()]
    for tag, path, method, operation in sorted(operations, key=lambda row: row[:2]):
        if tag != seen:
            yield f"<h2>{escape(tag)}</h2>"
            seen = tag
        yield f"<h3><code>{escape(method.upper())} {escape(path)}</code></h3><p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
        yield from _parts(operation)


def _parts(operation: Mapping[str, Any]) -> Iterator[str]:
    for parameter in operation.get("parameters", ()):
        yield f"<p><code>{escape(parameter['name'])}</code> in the {escape(parameter['in'])}{' (required)' if parameter.get('required') else ''}</p>"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = escape(json.dumps(content.get("schema", {}), indent=2))
        yield f"<details><summary>body, {escape(kind)}</summary><pre>{schema}</pre></details>"


def add(app: FastAPI) -> None:
    """Serve the page."""

    async def docs(request: Request) -> Response:
        return HTMLResponse(page(request.app.openapi()), headers={"Content-Security-Policy": POLICY})

    app.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
