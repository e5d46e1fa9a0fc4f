"""What an engine process, an exporter and a trial import."""

from __future__ import annotations

import subprocess
import sys


def test_no_engine_imports_scikit_learn_and_scipy_which_transformers_would() -> None:
    program = """if True:
        import sys
        from symposia_worker.imports import leave_out

        leave_out()
        import symposia_worker.engines.openvino, symposia_worker.engines.torch, transformers.generation.candidate_generator
        print([name for name in ("sklearn", "scipy") if sys.modules.get(name)])
    """
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True).stdout == "[]\n"
