"""What our processes leave out of their imports. ``python -m symposia_worker.imports MODULE ARGUMENT...`` runs the exporter without what it can spare.

transformers imports scikit-learn and scipy wherever they are installed, and nncf brings both along, for one function of assisted generation and the losses
of object detection, which nobody calls here. An engine process took 5.9 s of processor time and 430 MB of memory for its imports; without, 4.4 s and 358 MB.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

SPARED = ("sklearn", "scipy")


def leave_out(names: Sequence[str] = SPARED) -> None:
    """Keep ``names`` out of this process; to be called before transformers is imported."""
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # as Python has it for what cannot be imported


def become(module: str, arguments: Sequence[str], *, without: Sequence[str] = SPARED) -> None:
    """Run ``module`` as ``python -m`` would."""
    leave_out(without)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    become(sys.argv[1], sys.argv[2:], without=("sklearn",))  # nncf's algorithms need scipy
