"""What is fuzzed: each reader of a value, a message or a file, and how what it accepted is given back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import seeds
from benchmarks.fuzz.spoil import raw, spoiled, texts
from symposia.cli.jobs import read_job
from symposia.cli.rehearse import read_script
from symposia.cli.replay import replayed
from symposia_shared import settings as configured
from symposia_shared.catalogue import Catalogue, Entry, Facts
from symposia_shared.errors import BadInput, SymposiaError
from symposia_shared.ledger.dead import Letter
from symposia_shared.ledger.quarantined import Quarantined
from symposia_shared.ledger.tenants import ApiKey
from symposia_shared.openai.collaborations import read_collaboration
from symposia_shared.openai.lines import BadLine, bad_line, read_line
from symposia_shared.openai.requests import read_request
from symposia_shared.patterns import parse_job
from symposia_shared.prompts import Message, Sampling
from symposia_shared.results import Result, RoundRecord
from symposia_shared.said import Piece, read_piece
from symposia_shared.schedules import Schedule, next_by_cron, seconds_of
from symposia_shared.signing import HEADER, authentic, signature
from symposia_shared.teams import Team, read_team
from symposia_shared.turns import Abstention, Completion, Turn
from symposia_shared.values import Value
from symposia_shared.verdicts import Verdict
from symposia_worker.models.manifest import Manifest, StoredFile
from symposia_worker.spool import Spooled
from symposia_worker.stack.ports import Ports
from symposia_worker.stack.state import StackState

KEY = b"a key of the fuzz's own"


@dataclass(frozen=True, slots=True)
class Target:
    """One reader. ``look(given)`` raises AssertionError where what was accepted is not given back, and otherwise only of our tree."""

    name: str
    given: st.SearchStrategy[Any]
    look: Callable[[Any], object]


def holds(target: Target, given: Any) -> bool:
    """Whether ``given`` was accepted; a refusal is one of our errors. Raises whatever else comes."""
    try:
        target.look(given)
    except SymposiaError as error:
        if not str(error):
            raise AssertionError("a refusal says why") from error
        return False
    return True


def same(one: object, other: object) -> None:
    """Raises AssertionError where two readings differ."""
    assert one == other, f"accepted as {one!r:.300}, given back as {other!r:.300}"


def _value(cls: type[Value]) -> Callable[[Any], object]:
    def look(given: Any) -> object:
        value = cls.from_json(json.dumps(given))
        same(value, cls.from_json(value.to_json().encode()))
        same(value, cls.parse(value.model_dump(mode="json")))
        assert value.canonical() == cls.from_json(value.to_json()).canonical()
        return value

    return look


def _values() -> list[Target]:
    rounds = [r for found in seeds.result_dicts() for r in found["rounds"]]
    turns = [t for r in rounds for t in r["turns"]]
    replies = [t["reply"] for t in turns]
    spoken = [r for r in replies if r["kind"] == "completion"]
    silent = [r for r in replies if r["kind"] == "abstention"] or [{"kind": "abstention", "cause": "bug", "message": "x"}]
    recipe = {"kind": "inference", "spec": "{}", "deadline_ms": 1000, "prompt_bytes": 3, "models": ["m"]}
    file = {"path": "a/b.json", "size": 3, "sha256": "0" * 64}
    manifest = json.loads(Manifest.of("lab/one", [StoredFile.parse(file)], facts=Facts.parse(seeds.FACTS)).model_dump_json())
    spooled = {"seat": "a|0|1", "fence": "1.x.0", "attempt": 1, "deaths": 0, "kind": "inference", "spec": "{}", "payload": "", "queue": "q",
               "claimed_at": 1.0, "reply": "{}"}
    process = {"role": "pool", "name": "pool-cpu-0", "pid": 3, "device": "cpu", "state": "ready", "restarts": 1, "began": 2.0}
    of: list[tuple[type[Value], Sequence[Any]]] = [
        (Result, seeds.result_dicts()), (RoundRecord, rounds), (Turn, [t["turn"] for t in turns]), (Completion, spoken), (Abstention, silent),
        (Verdict, [found["verdict"] for found in seeds.result_dicts() if found["verdict"]]), (Message, [m for t in turns for m in t["turn"]["messages"]]),
        (Sampling, [{"temperature": 0.7, "seed": 3, "stop": ["a"], "max_tokens": 4, "top_k": 3}]),
        (Team, [{"pattern": "ensemble", "members": [{"model": "a"}, {"model": "b", "name": "x"}], "options": {"rounds": 2}}]),
        (Schedule, [{"id": "often", "cron": "0 4 * * *", "begins_s": 5, "recipe": recipe}, {"id": "b", "every_s": 60, "begins_s": 5, "recipe": recipe}]),
        (Letter, [{"reason": "bug", "kind": "inference", "state": "failed", "models": ["m"], "message": "x"}]),
        (ApiKey, [{"id": "0" * 12, "tenant": "default", "name": "n", "created_at": 1.5}]),
        (Quarantined, [{"device": "cpu", "reason": "died", "since": 1.0, "until": 2.0}]), (Spooled, [spooled]), (Facts, [seeds.FACTS]),
        (Manifest, [manifest]), (Entry, [seeds.CHECKPOINT]), (Piece, [{"fence": "1.x.0", "at": 3, "text": "abc"}]),
        (StackState, [{"state": "ready", "pid": 5, "started_at": 1.0, "began": 1.0, "processes": [process]}]),
        (Ports, [dict.fromkeys(Ports.model_fields, 6000)]),
    ]
    return [Target(f"value {cls.__name__}", spoiled(examples), _value(cls)) for cls, examples in of]


def _job(given: Any) -> object:
    job = parse_job(given) if isinstance(given, dict) else _refuse()
    written = json.loads(job.to_json().encode())
    same(job, parse_job(written))
    return job.models


def _refuse() -> Any:
    raise BadInput("not an object", field="job")


def _job_file(given: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_bytes(given)
        job = read_job(path)
        path.write_bytes(job.to_json().encode())
        same(job, read_job(path))
        return job


def _script(given: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.jsonl"
        path.write_bytes(given)
        return read_script(path)


def _transcript(given: Any) -> object:
    found = Result.from_json(json.dumps(given))
    return replayed(found)


def _line(given: bytes) -> object:
    try:
        line = read_line(given, 3)
    except BadLine as error:
        json.dumps(bad_line(error, request_id="x", number=3), allow_nan=False).encode()
        raise
    return _asked(line.request())


def _asked(request: Any) -> object:
    for inference in getattr(request, "jobs", ()):
        same(inference, parse_job(json.loads(inference.to_json().encode())))
    return request


def _body(endpoint: str) -> Callable[[Any], object]:
    def look(given: Any) -> object:
        return _asked(read_request(endpoint, given if isinstance(given, dict) else _refuse()))

    return look


def _collaboration(given: Any) -> object:
    body = given if isinstance(given, dict) else _refuse()
    model = body.get("model")
    team = read_team(model if isinstance(model, str) else "ensemble:a,b,c")
    asked = read_collaboration("/v1/chat/completions", body, team, model="named")
    same(asked.job, parse_job(json.loads(asked.job.to_json().encode())))
    return asked


def _team(given: str) -> object:
    team = read_team(given)
    same(read_team(team.name).job("?").to_json(), team.job("?").to_json())
    return team


def _catalogue(given: Any) -> object:
    found = Catalogue({"checkpoint": given if isinstance(given, list) else [given]})
    return [found[name] for name in found]


def _manifest(given: bytes) -> object:
    found = Manifest.unsealed(given, "s3://x", model="lab/one")
    same(found, Manifest.unsealed(found.sealed(), "s3://x", model="lab/one"))
    return found


def _settings(given: Any) -> object:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / configured.CREDENTIALS).write_text(json.dumps(given))
        found = configured.load(folder)
        return found.environ(), repr(found)


def _message(given: Any) -> object:
    headers, body = given
    signed = authentic(KEY, headers, body) if isinstance(headers, dict) else False
    assert not signed, "nobody has signed it"
    if isinstance(headers, dict):
        try:
            sealed = {**headers, HEADER: signature(KEY, headers, body)}
        except (TypeError, ValueError, RecursionError):
            return False  # what cannot be written as JSON cannot be sent either
        assert authentic(KEY, sealed, body)
    return True


def _piece(given: str) -> object:
    return read_piece(given)


def _cron(given: str) -> object:
    at = next_by_cron(given, 1_800_000_000.0)
    assert at > 1_800_000_000
    same(at, next_by_cron(given, at - 1.0))
    return at


def _length(given: str) -> object:
    seconds = seconds_of(given)
    same(seconds, seconds_of(f"{seconds}s"))
    return seconds


def targets() -> list[Target]:
    """All of them."""
    chat, line = seeds.CHAT, st.one_of(raw(seeds.LINES), spoiled(seeds.LINES).map(lambda v: json.dumps(v).encode()))
    sealed = [json.loads(Manifest.of("lab/one", [StoredFile(path="a", size=1, sha256="0" * 64)], facts=Facts.parse(seeds.FACTS)).sealed())]
    return [
        *_values(),
        Target("job", spoiled(seeds.job_dicts()), _job), Target("job file", raw(seeds.job_dicts()), _job_file),
        Target("script file", raw([{"model": "m", "text": "x"}]), _script), Target("transcript", spoiled(seeds.result_dicts()), _transcript),
        Target("batch line", line, _line), Target("chat body", spoiled(chat), _body("/v1/chat/completions")),
        Target("completions body", spoiled(seeds.COMPLETIONS), _body("/v1/completions")),
        Target("embeddings body", spoiled(seeds.EMBEDDINGS), _body("/v1/embeddings")), Target("collaboration body", spoiled(chat), _collaboration),
        Target("team's name", texts(seeds.TEAMS), _team), Target("catalogue", spoiled([[seeds.CHECKPOINT]]), _catalogue),
        Target("manifest", raw(sealed), _manifest), Target("credentials file", spoiled([seeds.CREDENTIALS]), _settings),
        Target("message", st.tuples(spoiled([seeds.HEADERS]), spoiled([seeds.BODY])), _message),
        Target("piece of an answer", texts(['{"f":"1.x.0","a":0,"t":"abc"}', '["1.x.0",0,"abc"]']), _piece), Target("cron", texts(seeds.CRONS), _cron),
        Target("length of time", texts(["90", "10m", "2h", "1d"]), _length),
    ]
