"""``symposia serve``: the HTTP API in OpenAI's form."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from symposia.cli.options import Folder
from symposia_shared.errors import StackUnavailable
from symposia_shared.settings import load


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on. Another than loopback is for a network you trust, or behind TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The port.")] = 8000,
    dir: Folder = None,
) -> None:
    """Serve the deployment over HTTP, as OpenAI's clients speak it. A key is always asked for: `symposia keys create`."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise StackUnavailable("The HTTP API is not installed. Run `pip install 'symposia[api]'`.")
    settings = load(dir)
    _ = settings.broker, settings.signing_key  # for their errors: each names the remedy
    from symposia.api.app import make
    from symposia.api.server import run

    print(f"http://{host}:{port}/v1 (its page: http://{host}:{port}/docs)", flush=True)
    run(make(settings), host=host, port=port, h11_max_incomplete_event_size=2 * settings.api.max_header_bytes)
