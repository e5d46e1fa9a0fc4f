"""Tokens of 18 checkpoints × engines × modes: ``python -m benchmarks.matrix [-o FILE]``.

Each checkpoint of the catalogue is made in miniature (random weights, published tokenizer kind and files), exported where the allow-list
admits it, loaded by one engine process, asked several prompts at once over its socket, and compared with what transformers' own ``generate``
gives for the same prompts one by one. An answer counts as the same where text, number of tokens and mean log-probability are.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the makers of tiny checkpoints are the tests'

from benchmarks.engines import machine  # noqa: E402
from benchmarks.engines.report import table  # noqa: E402
from benchmarks.oneby import HOLES, Answer, OneByOne  # noqa: E402
from catalogue_tiny import EIGHTEEN, TinyCheckpoint, plain  # noqa: E402
from symposia_shared.errors import SymposiaError  # noqa: E402
from symposia_shared.prompts import Sampling, user  # noqa: E402
from symposia_shared.turns import Abstention, Completion, Turn  # noqa: E402
from symposia_worker.engines.client import EngineProcess  # noqa: E402
from symposia_worker.engines.protocol import Mode  # noqa: E402
from symposia_worker.families import export as exporting  # noqa: E402
from symposia_worker.families.forms import MOST_LOSS, FormReport  # noqa: E402
from symposia_worker.families.probe import Refused  # noqa: E402

#: tokens of the prompts: the tiny checkpoints read 128, gpt_neo's local window has 8 and phi3's 64
LENGTHS = (3, 9, 17, 40, 70, 100, 24, 6)
#: new tokens of each
NEW = (8, 24, 12, 20, 16, 24, 16, 24)
_WITHIN_S = 120.0
#: float32 sums in another order
_LOGPROB, _VECTOR = 1e-3, 1e-5


@dataclass(slots=True)
class Replies:
    """What the engine process answered, by request, and the pieces it streamed."""

    engine: EngineProcess
    got: dict[str, Completion | Abstention] = field(default_factory=dict)
    streamed: dict[str, str] = field(default_factory=dict)
    _over: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _first: threading.Event = field(default_factory=threading.Event)
    _asked: int = 0

    def ask(self, name: str, turn: Turn, *, stream: bool = False) -> None:
        """Ask at once."""
        self._asked += 1
        delta = (lambda text: self.streamed.__setitem__(name, self.streamed.get(name, "") + text)) if stream else None
        self.engine.generate(name, turn, lambda _: self._first.set(), lambda reply: self._end(name, reply), on_delta=delta)

    def _end(self, name: str, reply: Completion | Abstention) -> None:
        self.got[name] = reply
        self._first.set()
        self._over.release()

    def first(self) -> None:
        """Wait until something was written."""
        self._first.wait(_WITHIN_S)

    def wait(self) -> None:
        """Wait for all. Raises TimeoutError."""
        for _ in range(self._asked):
            if not self._over.acquire(timeout=_WITHIN_S):
                raise TimeoutError(f"{self._asked - len(self.got)} requests did not end within {_WITHIN_S:.0f} s")
        self._asked = 0


@dataclass(slots=True)
class Row:
    """A line of the table."""

    checkpoint: str
    architecture: str
    cells: dict[str, str] = field(default_factory=dict)
    infill: dict[str, str] = field(default_factory=dict)
    #: by engine: growth of the resident set from the first unload to the one after a second load, bytes
    growth: dict[str, int] = field(default_factory=dict)
    unloaded: list[bool] = field(default_factory=list)

    def written(self) -> list[str]:
        """The table's cells."""
        engines = ("torch", "openvino exact", "openvino fast")
        infill = "–" if not self.infill else "; ".join(f"{name}: {told}" for name, told in self.infill.items())
        most = max(self.growth.values(), default=0) / 1e6
        memory = f"{'yes' if all(self.unloaded) else '**no**'}; {most:+.1f} MB"
        return [self.checkpoint, self.architecture, *(self.cells[e] for e in engines), infill, memory]


def row(checkpoint: TinyCheckpoint, root: Path, engine: EngineProcess) -> Row:
    """One checkpoint through every engine and mode."""
    folder, _ = plain(checkpoint, root)
    alone = OneByOne(checkpoint, folder)
    found = Row(checkpoint.stands_for, alone.architecture)
    _served(found, "torch", folder, alone, engine)
    reports, refused = _forms(folder, root / "forms")
    for mode, report in reports.items():
        name = f"openvino {mode}"
        if report is None or (report.refused and not (root / "forms" / mode).exists()):
            found.cells[name] = f"refused: {_short(report.refused if report and report.refused else refused)}"
            continue
        _served(found, name, root / "forms" / mode, alone, engine)
        if mode == "fast" and report.loss is not None:
            by_rule = "within the rule" if report.loss <= MOST_LOSS else "the rule refuses it: served for this table only"
            found.cells[name] += f"; perplexity {report.loss:+.2%}, {by_rule}"
    return found


def _forms(folder: Path, out: Path) -> tuple[dict[Mode, FormReport | None], str]:
    """What the exporter told of each form. Weights are random, so the rule of perplexity says nothing of them: fast is kept all the same."""
    try:
        vars(exporting)["MOST_LOSS"] = float("inf")
        with contextlib.redirect_stdout(sys.stderr):  # its progress
            reports = exporting.export(folder, out, threads=1)
    except Refused as refused:
        return {"exact": None, "fast": None}, str(refused)
    finally:
        vars(exporting)["MOST_LOSS"] = MOST_LOSS
    return {r.mode: r for r in reports}, ""


def _short(why: str) -> str:
    return "not on the allow-list" if "is not among those" in why else why


def _served(found: Row, name: str, folder: Path, alone: OneByOne, engine: EngineProcess) -> None:
    kind, _, mode = name.partition(" ")
    asked: Mode = "fast" if mode == "fast" else "exact"
    process = psutil.Process(engine.pid)
    after: list[int] = []
    try:
        for turn in range(2):
            engine.load(alone.checkpoint.slug, str(folder), engine=kind, mode=asked)
            if turn == 0:
                found.cells[name] = _compared(alone, name, engine)
                if alone.checkpoint.slug in HOLES:
                    found.infill[name] = _hole(alone, engine, exact=asked == "exact")
            engine.unload(alone.checkpoint.slug)
            after.append(process.memory_info().rss)
    except SymposiaError as error:
        found.cells[name] = f"**refused by its load**: {error}"
        return
    found.growth[name] = after[1] - after[0]
    found.unloaded.append(_forgotten(engine, alone.checkpoint.slug))


def _forgotten(engine: EngineProcess, name: str) -> bool:
    """Whether the process says it has nothing of a checkpoint: of a pulse sent after the unload."""
    before = engine.pulse
    for _ in range(100):
        now = engine.pulse
        if now is not None and (before is None or now.at > before.at):
            return name not in now.resident
        threading.Event().wait(0.1)
    return False


def _compared(alone: OneByOne, name: str, engine: EngineProcess) -> str:
    return _embedded(alone, engine) if alone.checkpoint.kind == "embed" else _generated(alone, name, engine)


def _generated(alone: OneByOne, name: str, engine: EngineProcess) -> str:
    """Eight prompts, three of them first, the others once those are being written; every second one streamed."""
    slug = alone.checkpoint.slug
    least = len(alone.ids("a")) + 1
    prompts = [alone.text_of(max(n, least)) for n in LENGTHS]
    turns = [Turn(member="m", model=slug, messages=user(p), sampling=Sampling(max_tokens=most)) for p, most in zip(prompts, NEW, strict=True)]
    together = _ask(engine, turns)
    wanted = [alone.answer(p, most) for p, most in zip(prompts, NEW, strict=True)]
    same = sum(map(_same, together, wanted))
    for t, w in zip(together, wanted, strict=True):
        if not name.endswith("fast") and not _same(t, w):
            print(f"  {slug}, {name}: {t!r}\n    is not {w!r}", file=sys.stderr)
    told = f"{same} of {len(wanted)} ({sum(w.completion_tokens for w in wanted)} tokens)"
    if name.endswith("fast"):  # its weights are others: what it owes is the same answer whatever shares its batch
        single = [_ask(engine, [turn])[0] for turn in turns]
        return f"{sum(_same(t, _answer(s)) for t, s in zip(together, single, strict=True))} of {len(wanted)} as alone; float32's: {told}"
    return told if same == len(wanted) else f"**{told}**"


def _ask(engine: EngineProcess, turns: Sequence[Turn]) -> list[Completion | Abstention]:
    replies = Replies(engine)
    for n, turn in enumerate(turns):
        if n == 3:
            replies.first()
        replies.ask(str(n), turn, stream=n % 2 == 1)
    replies.wait()
    for name, text in replies.streamed.items():
        reply = replies.got[name]
        if not isinstance(reply, Completion) or reply.text != text:
            replies.got[name] = Abstention(cause="bug", message=f"{text!r} was streamed and is not its text")
    return [replies.got[str(n)] for n in range(len(turns))]


def _answer(reply: Completion | Abstention) -> Answer:
    assert isinstance(reply, Completion), reply
    return Answer(reply.text, reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.logprob_mean)


def _same(reply: Completion | Abstention, wanted: Answer) -> bool:
    if isinstance(reply, Abstention):
        print(f"  abstained: {reply.message}", file=sys.stderr)
        return False
    got = _answer(reply)
    means = (got.logprob_mean, wanted.logprob_mean)
    near = None in means or abs((means[0] or 0) - (means[1] or 0)) <= _LOGPROB
    return near and replace(got, logprob_mean=None) == replace(wanted, logprob_mean=None)


def _embedded(alone: OneByOne, engine: EngineProcess) -> str:
    """Four requests of one to three texts each, at once."""
    texts = [alone.text_of(max(n, 5)) for n in LENGTHS]
    groups = [texts[:1], texts[1:4], texts[4:6], texts[6:]]
    got = _ask(engine, [Turn(member="m", model=alone.checkpoint.slug, messages=tuple(m for t in group for m in user(t)), want="embedding")
                        for group in groups])
    vectors = [v for reply in got if isinstance(reply, Completion) for v in reply.vectors or ()]
    if len(vectors) != len(texts):
        return f"**{len(vectors)} of {len(texts)} vectors: {got}**"
    apart = max(abs(a - b) for text, vector in zip(texts, vectors, strict=True) for a, b in zip(alone.vector(text), vector, strict=True))
    told = f"{len(texts)} vectors within {apart:.0e}"
    return told if apart <= _VECTOR else f"**{told}**"


def _hole(alone: OneByOne, engine: EngineProcess, *, exact: bool) -> str:
    slug = alone.checkpoint.slug
    (reply,) = _ask(engine, [Turn(member="m", model=slug, messages=user("a("), suffix=")b", sampling=Sampling(max_tokens=10))])
    same = _same(reply, alone.answer(HOLES[slug], 10, as_it_is=True))
    return "same" if same else "**other**" if exact else "not float32's"


def matrix(root: Path, checkpoints: Sequence[TinyCheckpoint]) -> str:
    """The table."""
    engine = EngineProcess("cpu", 2 << 30, threads=1, start_within_s=300.0)
    engine.start()
    rows = []
    try:
        for checkpoint in checkpoints:
            (root / checkpoint.slug).mkdir()
            rows.append(row(checkpoint, root / checkpoint.slug, engine))
            print(" | ".join(rows[-1].written()), file=sys.stderr, flush=True)
    finally:
        engine.stop()
    head = ["checkpoint", "architecture", "torch", "openvino exact", "openvino fast", "infill", "unload returned memory"]
    return table(head, [r.written() for r in rows])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="a file for the table, beside standard output")
    parser.add_argument("--only", default="", help="a regular expression: checkpoints whose short name matches")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as scratch:
        found = matrix(Path(scratch), [c for c in EIGHTEEN if re.search(given.only, c.slug)])
    written = "; ".join(f"{k}: {v}" for k, v in machine.described().items()) + f".\n\n{found}\n"
    print(written)
    if given.output:
        given.output.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
