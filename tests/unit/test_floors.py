from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_floors() -> None:
    """The floors of docs/ARCHITECTURE.md hold (import-linter's contracts in pyproject.toml)."""
    ran = subprocess.run([str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 broken" in ran.stdout
    assert "4 kept" in ran.stdout


def test_the_producer_imports_no_torch_no_celery_and_no_boto3_until_they_are_needed() -> None:
    code = "import sys, symposia, symposia.cli; print(sorted({'torch', 'transformers', 'celery', 'boto3'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
