"""The user-defined pattern of docs/PATTERNS.md, run as it stands there, through an entry point of an installed distribution."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from symposia_shared.errors import BadInput
from symposia_shared.patterns import parse_job, patterns
from symposia_shared.rehearsal import rehearse
from symposia_shared.scripted import scripted_reply

ROOT = Path(__file__).parents[2]


def example() -> tuple[str, str]:
    """The pattern and its entry point, as docs/PATTERNS.md shows them."""
    text = (ROOT / "docs" / "PATTERNS.md").read_text().partition("## Your own")[2]
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    return code, re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution that holds the example, on the path."""
    code, toml = example()
    module, name, target = re.findall(r'^(?:\[project.entry-points."(symposia.patterns)"\])?\n?(\w+) = "([\w:]+)"', toml, re.MULTILINE)[0]
    (tmp_path / f"{target.partition(':')[0]}.py").write_text(code)
    facts = tmp_path / "second_opinion-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: second-opinion\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[{module}]\n{name} = {target}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_example_has_at_most_fifteen_lines() -> None:
    assert len([line for line in example()[0].splitlines() if line.strip()]) <= 15


def test_an_outsiders_pattern_is_a_job_like_ours(installed: Path) -> None:
    job = parse_job({"kind": "second_opinion", "prompt": "2 + 2?", "members": [{"model": "test/say:Answer: 5"}, {"model": "test/echo"}]})
    found = rehearse(job.seeded(1), lambda number, place, turn: scripted_reply(turn.model, turn.messages, turn.sampling))
    assert len(found.rounds) == 2
    assert found.verdict is not None
    assert "Answer: 5" in (found.verdict.answer or ""), "the second member has read the first"
    with pytest.raises(BadInput):
        parse_job({"kind": "second_opinion", "prompt": "2 + 2?", "members": [{"model": "a"}]})


def test_without_the_distribution_its_pattern_is_unknown() -> None:
    assert "second_opinion" not in patterns()
    with pytest.raises(BadInput, match="which is no job"):
        parse_job({"kind": "second_opinion", "prompt": "2 + 2?", "members": []})


def test_an_outsiders_pattern_gets_a_command_a_schema_and_a_rehearsal(installed: Path) -> None:
    job, script = installed / "job.json", installed / "replies.jsonl"
    job.write_text('{"kind": "second_opinion", "prompt": "2 + 2?", "members": [{"model": "a"}, {"model": "b"}]}')
    script.write_text('{"text": "5"}\n{"text": "4, surely"}\n')
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def symposia(*arguments: str) -> str:
        ran = subprocess.run([sys.executable, "-m", "symposia", *arguments], capture_output=True, text=True, check=False, env=environment)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    assert "second_opinion" in symposia("schema", "second_opinion")
    assert "--member" in symposia("second-opinion", "--help")
    assert "4, surely" in symposia("rehearse", str(job), "--script", str(script))


def test_an_outsider_cannot_replace_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path / "usurper-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: usurper\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[symposia.patterns]\ndebate = json:dumps\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert patterns()["debate"].__module__ == "symposia_shared.patterns.debate"
