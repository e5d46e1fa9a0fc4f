"""How a pool takes up what it was asked to serve after it had begun."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from symposia_shared.errors import SymposiaError, Unavailable

if TYPE_CHECKING:
    from symposia_worker.pool import Pool

log = logging.getLogger(__name__)


class Adoption:
    """Loads what is wanted of a pool, beside its work. ``adopt`` makes a checkpoint resident and says where it is served."""

    def __init__(self, pool: Pool, adopt: Callable[[str], dict[str, object]]) -> None:
        self.pool, self._adopt = pool, adopt
        self._busy = threading.Lock()

    def look(self) -> None:
        """Begin to take up what is new, unless that is being done already."""
        pool = self.pool
        new = pool.ledger.wanted(pool.name) - set(pool.placement.models)
        if new and pool.revival.up and self._busy.acquire(blocking=False):
            threading.Thread(target=self._take_up, args=(sorted(new),), name="adopt", daemon=True).start()

    def _take_up(self, models: Sequence[str]) -> None:
        pool = self.pool
        try:
            for model in models:
                try:
                    place = self._adopt(model)
                except Unavailable as error:
                    log.warning("%s is not taken up yet: %s", model, error)
                    return
                except SymposiaError as error:
                    log.error("%s is not taken up: %s", model, error)
                    pool.ledger.refuse(pool.name, model, str(error))
                    continue
                pool.serve(model, place)
                log.info("%s is served from now on", model)
        except Exception:
            log.exception("taking up %s", models)
        finally:
            self._busy.release()
