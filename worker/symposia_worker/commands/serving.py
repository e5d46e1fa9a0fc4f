"""``symposia models serve``: a running pool takes a checkpoint up."""

from __future__ import annotations

import time
from pathlib import Path

from symposia_shared.errors import BadInput, StackUnavailable, Unavailable


def serve(model: str, pool: str | None, dir: Path | None, *, within_s: float) -> str:
    """Ask ``pool`` (default: the one that holds least) to serve ``model``, wait until it does, and return its name.

    Raises UnknownModel, StackUnavailable where no such pool is up, and what the pool says of a checkpoint it cannot load.
    """
    from symposia_shared.ledger import Ledger
    from symposia_shared.settings import load
    from symposia_shared.standing import alive
    from symposia_shared.store import Store
    from symposia_worker.models.store import ModelStore

    settings = load(dir)
    ledger = Ledger(settings.broker, settings.prefix)
    ModelStore(Store(settings.s3)).require(model)
    up = {str(w["name"]): w for w in alive(ledger.workers(), "pool")}
    if pool is not None and pool not in up:
        raise StackUnavailable(f"no pool {pool!r} is up; those that are: {', '.join(sorted(up)) or 'none'}.")
    if not up:
        raise StackUnavailable("no pool is up. Start one: symposia up, or symposia worker --device cpu")
    chosen = pool or min(up, key=lambda name: (len(up[name]["models"]), name))
    if model in up[chosen]["models"]:
        return chosen
    ledger.want(chosen, model)
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if model in ledger.workers().get(chosen, {}).get("models", ()):
            return chosen
        why = ledger.refusal(chosen, model)
        if why is not None:
            raise BadInput(f"{chosen} does not serve {model}: {why}", field="model", value=model)
        time.sleep(0.2)
    raise Unavailable(f"{chosen} has not taken {model} up within {within_s:.0f} s; it goes on trying. See its log.")
