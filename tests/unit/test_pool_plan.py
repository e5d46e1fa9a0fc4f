"""What `symposia worker` makes of its options: the plan a pool is run by."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from symposia_shared.errors import BadInput
from symposia_shared.ledger.desired import Assigned
from symposia_shared.settings import Settings
from symposia_worker.commands import pool
from symposia_worker.placing.writing import PoolPart, WrittenPlacement
from symposia_worker.program import PoolPlan

HELD = (Assigned(checkpoint="a", precision="int8", bytes=7), Assigned(checkpoint="b", precision="float32", bytes=9))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[PoolPlan]:
    """The plans that pools would be run by."""
    plans: list[PoolPlan] = []

    def run(settings: Settings, plan: PoolPlan) -> int:
        plans.append(plan)
        return 0

    monkeypatch.setattr(pool, "run_pool", run)
    monkeypatch.setenv("SYMPOSIA_DIR", str(tmp_path))
    return plans


def invoke(*flags: str) -> None:
    app = typer.Typer()
    app.command()(pool.command)
    done = CliRunner().invoke(app, list(flags))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


def test_a_pool_of_a_written_placement_begins_with_what_it_is_to_hold_in_the_planned_precisions(planned: list[PoolPlan], tmp_path: Path) -> None:
    written = tmp_path / "placement.json"
    written.write_text(WrittenPlacement(pools={"one": PoolPart(device="cpu:0", memory_bytes=1 << 30, threads=3, holds=HELD)}).to_json(), encoding="utf-8")
    invoke("--placement", str(written), "--name", "one")
    assert planned[0].holds == HELD
    assert (planned[0].device, planned[0].memory_bytes, planned[0].threads) == ("cpu:0", 1 << 30, 3)


def test_models_named_have_the_precisions_named_beside_them_and_else_the_pools_own(planned: list[PoolPlan]) -> None:
    invoke("--model", "lab/a", "--model", "b", "--precision", "lab/a=bfloat16")
    assert planned[0].holds == (Assigned(checkpoint="lab/a", precision="bfloat16"), Assigned(checkpoint="b"))


@pytest.mark.parametrize("precision", ["a=int4", "b=int8", "int8", "=int8"])
def test_a_precision_that_there_is_not_or_of_what_is_not_named_is_refused(planned: list[PoolPlan], precision: str) -> None:
    with pytest.raises(BadInput, match="precision"):
        invoke("--model", "a", "--precision", precision)
    assert not planned
