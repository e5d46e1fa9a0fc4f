"""What an endpoint says of itself: which models it has, what kind of server it is, how long their context is."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import httpx

from symposia_shared.errors import BadInput, SymposiaError, Unavailable
from symposia_worker.engines.openai.asking import Model
from symposia_worker.engines.openai.endpoint import KEY, MOST_LISTED, Endpoint, asked_models, is_checkpoint_id, nameable
from symposia_worker.engines.openai.faults import said
from symposia_worker.engines.openai.servers import HOSTED, SERVERS, kind_of

#: seconds an endpoint is given to say what it has, tried again while it cannot be reached
WITHIN_S = 30.0
#: what servers call the length of a model's context; llama.cpp nests its own in ``meta``
_CONTEXTS = ("max_model_len", "n_ctx", "context_length", "context_window", "max_context_length", "n_ctx_train")


@dataclass(frozen=True, slots=True)
class Listing:
    """The answer to GET /models. ``known`` False: the server has no such list."""

    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    known: bool = True

    def find(self, remote: str) -> Mapping[str, Any] | None:
        """What is said of a model, by its id, an alias, or its name without ``:latest``."""
        for name, said_of in self.models.items():
            aliases = said_of.get("aliases")
            if remote == name or f"{remote}:latest" == name or (isinstance(aliases, list) and remote in aliases):
                return said_of
        return None


def client_for(endpoint: Endpoint, key: str | None) -> httpx.Client:
    """A client for the few questions of a start. The key goes into the header and nowhere else; redirects are not followed."""
    return httpx.Client(base_url=endpoint.url, headers=headers_for(key), verify=trust(),
                        timeout=httpx.Timeout(30.0, connect=endpoint.patience.connect_s))


@cache
def trust() -> ssl.SSLContext:
    """Who is trusted over https; read once, since that takes as long as many requests."""
    return httpx.create_ssl_context()


def headers_for(key: str | None) -> dict[str, str]:
    """The headers of every request."""
    return {"User-Agent": "symposia", **({"Authorization": f"Bearer {key}"} if key else {})}


def listed(client: httpx.Client, *, within_s: float = WITHIN_S) -> Listing:
    """GET /models. Raises BadInput where the key or the URL is refused, Unavailable where the server stays away."""
    response = _patiently(client, "models", within_s)
    if response.status_code in (404, 405, 501):
        return Listing(known=False)
    found = _json(response)
    rows = found.get("data") if isinstance(found, dict) else None
    if response.status_code != 200 or not isinstance(rows, list):
        raise Unavailable(f"{client.base_url}models answered {response.status_code}: {_words(response)}. "
                          "Is this an OpenAI-compatible endpoint, and does the URL end in /v1?")
    return Listing({r["id"]: r for r in rows if isinstance(r, dict) and isinstance(r.get("id"), str)})


def models_of(endpoint: Endpoint, key: str | None, given: tuple[str, ...]) -> dict[str, str]:
    """Our id → the server's of what is to be served: what is asked for, else all that the endpoint lists and a job can name.

    Raises BadInput where that is nothing or too much.
    """
    if given:
        return asked_models(given)
    with client_for(endpoint, key) as client:
        names = list(listed(client).models)
    able = [n for n in names if is_checkpoint_id(n) and not n.startswith(("test/", "check/"))]
    left = [n for n in names if n not in able]
    if not able or len(able) > MOST_LISTED:
        found = f"lists {len(names)} models ({', '.join((left or able)[:5])}{', …' if len(names) > 5 else ''})" if names else "lists no models"
        raise BadInput(f"{endpoint.url} {found}; {'none has' if not able else 'too many have'} a name that jobs can use.", field="--model",
                       remedy=f"Name those to serve: --model {nameable((left or able or ['x'])[0])}={(left or able or ['THEIR_ID'])[0]}")
    return {name: name for name in able}


def model_of(client: httpx.Client, endpoint: Endpoint, checkpoint: str, listing: Listing) -> Model:
    """A checkpoint as its server has it. Raises BadInput where the server has no such model."""
    remote = endpoint.remote(checkpoint)
    found = listing.find(remote)
    if found is None and listing.known:
        raise BadInput(f"{endpoint.url} has no model {remote!r}; it lists {', '.join(list(listing.models)[:10]) or 'none'}.", field="--model",
                       value=remote, remedy="Name one of those.")
    found = found or {}
    kind, version = _kind(client, endpoint, str(found.get("owned_by", "")))
    model = Model(remote, SERVERS[kind], _context(client, endpoint, kind, found), version=version, parameters=_parameters(found))
    if model.server.embed_is_tried:
        embeds = _embeds(client, remote)
        return replace(model, embeds=embeds, generates=not (embeds and kind == "vllm"))
    return model


def capabilities(model: Model) -> tuple[str, ...]:
    """What can be asked of a model; embedding only where that is known, or its name says so."""
    server = model.server
    can = ["generate", "instruct", "json_schema", "choice"] if model.generates else []
    can += ["regex"] * (model.generates and server.regex is not None) + ["score"] * (model.generates and server.scores)
    can += ["infill"] * (model.generates and server.kind == "ollama")
    return (*can, *(["embed"] if model.embeds or (model.embeds is None and "embed" in model.remote.lower()) else []))


def _kind(client: httpx.Client, endpoint: Endpoint, owner: str) -> tuple[Any, str]:
    kind = endpoint.server or kind_of(owner)
    if kind is None and owner not in HOSTED:
        if _own(client, endpoint, "/api/version").get("version"):
            kind = "ollama"
        elif _own(client, endpoint, "/version").get("version"):
            kind = "vllm"
        elif "default_generation_settings" in _own(client, endpoint, "/props"):
            kind = "llamacpp"
    version = str(_own(client, endpoint, "/version").get("version", "")) if kind == "vllm" else ""
    return kind or "openai", version


def _context(client: httpx.Client, endpoint: Endpoint, kind: str, found: Mapping[str, Any]) -> int:
    """Of what the server says the least: a model may be trained for more than it is served with."""
    meta = found.get("meta")
    sources = [found, meta if isinstance(meta, dict) else {}]
    if kind == "llamacpp":
        settings = _own(client, endpoint, "/props").get("default_generation_settings")
        sources.append(settings if isinstance(settings, dict) else {})
    lengths = [s[name] for s in sources for name in _CONTEXTS if type(s.get(name)) is int and s[name] > 0]
    return min(lengths, default=endpoint.context)


def _parameters(found: Mapping[str, Any]) -> int:
    meta = found.get("meta")
    count = meta.get("n_params") if isinstance(meta, dict) else None
    return count if type(count) is int and count > 0 else 0


def _embeds(client: httpx.Client, remote: str) -> bool:
    try:
        answer = client.post("embeddings", json={"model": remote, "input": ["a"]})
    except httpx.HTTPError as error:
        raise Unavailable(f"{client.base_url}embeddings cannot be reached: {type(error).__name__} {error}") from None
    found = _json(answer)
    rows = found.get("data") if isinstance(found, dict) else None
    return answer.status_code == 200 and isinstance(rows, list) and len(rows) == 1 and "embedding" in rows[0]


def _own(client: httpx.Client, endpoint: Endpoint, path: str) -> dict[str, Any]:
    """What a server says at a place of its own; {} where there is no such place."""
    try:
        found = _json(client.get(endpoint.root + path))
    except httpx.HTTPError:
        return {}
    return found if isinstance(found, dict) else {}


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _words(response: httpx.Response) -> str:
    """What a server says of its refusal, without the key, which some repeat."""
    key = response.request.headers.get("authorization", "").removeprefix("Bearer ")
    words = said(response.content)[1]
    return words.replace(key, "***") if key else words


def _patiently(client: httpx.Client, path: str, within_s: float) -> httpx.Response:
    until, wait = time.monotonic() + within_s, 0.2
    while True:
        fault: SymposiaError
        try:
            response = client.get(path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            fault = Unavailable(f"{client.base_url} cannot be reached: {type(error).__name__} {error}. Is the server up, and the address right?")
        else:
            if response.status_code in (401, 403):
                raise BadInput(f"{client.base_url} refuses the key ({response.status_code}: {_words(response)}).", field=KEY,
                               remedy=f"Set {KEY}, or the variable that --api-key-env names, to a valid key.")
            if response.status_code not in (429, 502, 503, 504):
                return response
            fault = Unavailable(f"{client.base_url}{path} answered {response.status_code}: {_words(response)}.")
        if time.monotonic() + wait > until:
            raise fault
        time.sleep(wait)
        wait = min(2 * wait, 5.0)
