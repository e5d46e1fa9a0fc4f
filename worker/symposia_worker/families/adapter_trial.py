"""An adapter tried over its base as it will be served: run as ``python -m symposia_worker.families.adapter_trial FOLDER BASE OPTIONS``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from symposia_shared.errors import BadInput, Damaged
from symposia_worker.families.probe import PROGRAM, Loaded, Refused, bits_per_byte, capabilities_of, report, require_prediction


def tried(folder: Path, base: Path, *, untrained: bool) -> Loaded:
    """What an adapter is over its base. Raises Refused where they do not fit, or together predict neither English nor code."""
    from symposia_worker.engines.loading import load_model
    from symposia_worker.engines.lora import adapt

    try:
        under = load_model("its base", base, dtype="float32", device="cpu", room_bytes=float("inf"))
        model = adapt(under, "it", folder, room_bytes=float("inf"))
    except (BadInput, Damaged) as error:
        raise Refused(str(error), getattr(error, "remedy", "") or "Name the base it was trained on by --base.") from None
    plain, tokenizer = _Plain(model.network, under.network.config), model.renderer.tokenizer
    english, code = bits_per_byte(plain, tokenizer), bits_per_byte(plain, tokenizer, PROGRAM)
    if not untrained:
        require_prediction(english, code)
    return Loaded(architecture=type(under.network).__name__, model_type=under.model_type, context=under.context, vocab=len(tokenizer),
                  capabilities=capabilities_of(model.kind, tokenizer), bits_per_byte=english, code_bits_per_byte=code)


class _Plain:
    """A network as ``bits_per_byte`` asks it."""

    def __init__(self, network: Any, config: Any) -> None:
        self.network, self.config = network, config

    def __call__(self, ids: Any) -> Any:
        return self.network(input_ids=ids, use_cache=False)


def main() -> int:
    """The command line: FOLDER BASE OPTIONS, where OPTIONS is JSON: ``{"untrained": true}``."""
    return report(lambda: tried(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3])))


if __name__ == "__main__":
    sys.exit(main())
