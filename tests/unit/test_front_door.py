from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import symposia


def test_front_door() -> None:
    """Every public name is there, is sorted, and is documented."""
    assert symposia.__all__ == sorted(symposia.__all__)
    for name in symposia.__all__:
        assert getattr(symposia, name).__doc__, f"symposia.{name} has no docstring"


def test_the_front_door_opens_one_name_at_a_time() -> None:
    """The type checkers' imports and the table of homes name the same, and nothing heavy comes with the first of them."""
    tree = ast.parse(Path(symposia.__file__).read_text(encoding="utf-8"))
    stated = {(node.module, name.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
              if node.module and node.module.startswith("symposia")}
    homes = {(home, name) for home, names in symposia._HOMES.items() for name in names.split()}
    assert stated == homes
    assert {name for _, name in homes} == set(symposia.__all__)
    said = subprocess.run([sys.executable, "-c", "import sys, symposia; symposia.BadInput; print(*sys.modules)"], capture_output=True, text=True, check=True)
    assert "symposia_shared.errors" in said.stdout.split()
    assert not {"celery", "redis", "boto3", "pydantic"} & set(said.stdout.split())


def test_a_command_of_another_extra_does_not_import_the_rest_of_the_command_line() -> None:
    code = "import sys; from symposia.cli import build; build('models'); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "symposia_worker.commands.models" in said
    assert not {"celery", "redis", "boto3", "rich", "symposia.client", "symposia_shared.patterns"} & set(said)


def test_sync_and_async_clients_have_the_same_names() -> None:
    def names(cls: type) -> set[str]:
        return {n for n in vars(cls) if not n.startswith("_")}

    assert names(symposia.AsyncClient) <= names(symposia.Client)
    assert names(symposia.AsyncHandle) <= names(symposia.Handle) | {"status", "wait", "result", "rounds", "cancel"}
    assert {"submit", "submit_many", "ask", "handle", "cancel", "stats", "close"} <= names(symposia.AsyncClient)
