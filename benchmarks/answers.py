"""How well answers are read and decided: `python -m benchmarks.answers FOLDER` prints the tables.

FOLDER holds *.jsonl with lines {id, kind, question, gold, answers: [{model, params_b, text, extracted, correct}]}, where
``extracted`` is a reference extraction and ``correct`` says whether it is right (or, of code, whether hidden tests passed).
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from symposia.cli.vote import AnswerSet, decided
from symposia_shared.answers import AnswerKind, extract, kind_of
from symposia_shared.behaviour import behaviours, code_runs_here
from symposia_shared.consensus import ConsensusName, Weights, count, decide, fit
from symposia_shared.verdicts import Ballot

Row = dict[str, Any]
HALVES = 50
TEXT_SETS = (
    "gsm8k_openai4", "gsm8k_zeroeval9", "gsm8k_pair_routellm", "mathl5_zeroeval8", "math100_samples8", "mmlupro8", "crux_zeroeval8",
    "crux_codellama10",
)


def rows_of(path: Path) -> list[Row]:
    """The lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def ballots_of(row: Row) -> list[Ballot]:
    """The row's ballots."""
    return [Ballot(member=a["model"], model=a["model"], text=a["text"], params_b=a.get("params_b"), score=score_of(a))
            for a in row["answers"]]


def score_of(answer: Row) -> float | None:
    """The reward model's score of a recorded answer, where there is one; of a list its mean."""
    reward = answer.get("reward")
    return statistics.mean(reward) if isinstance(reward, list) else reward


def percent(hits: Sequence[bool]) -> float:
    """Share of True, in percent."""
    return 100.0 * sum(hits) / max(1, len(hits))


def extraction(folder: Path) -> None:
    """Table: how many extractions equal the reference, by stated kind and by detected kind."""
    print(f"{'set':22}{'answers':>8}{'equal':>8}{'differ':>8}{'of these right/ref right':>26}{'auto':>8}{'auto+question':>15}"
          f"{'ms/answer':>11}")
    for name in TEXT_SETS:
        path = folder / f"{name}.jsonl"
        if not path.exists():
            continue
        rows = rows_of(path)
        began = time.process_time()
        found = [[extract(a["text"], r["kind"]) for a in r["answers"]] for r in rows]
        spent = time.process_time() - began
        pairs = [(f, a["extracted"], r["gold"]) for r, fs in zip(rows, found, strict=True) for f, a in zip(fs, r["answers"], strict=True)]
        differ = [(f, e, g) for f, e, g in pairs if f != e]
        right, ref_right = sum(f == g for f, _, g in differ), sum(e == g for _, e, g in differ)
        auto = [extract(a["text"], kind) == a["extracted"] for r in rows for kind in [_auto(r)] for a in r["answers"]]
        asked = [extract(a["text"], kind) == a["extracted"] for r in rows for kind in [_auto(r, r["question"])] for a in r["answers"]]
        print(f"{name:22}{len(pairs):8}{percent([f == e for f, e, _ in pairs]):8.2f}{len(differ):8}{f'{right}/{ref_right}':>26}"
              f"{percent(auto):8.2f}{percent(asked):15.2f}{1000 * spent / len(pairs):11.3f}")
    traps = folder / "extraction_traps.jsonl"
    if traps.exists():
        rows = rows_of(traps)
        wrong = [r["n"] for r in rows if extract(r["text"], r["kind"]) != r["expected"]]
        print(f"traps: {len(rows) - len(wrong)} of {len(rows)} right{f', wrong: {wrong}' if wrong else ''}")


def _auto(row: Row, question: str | None = None) -> AnswerKind:
    return kind_of([a["text"] for a in row["answers"]], question=question)


def accuracy(rows: Sequence[Row], name: ConsensusName, weights: Weights | None = None) -> float:
    """Percent of rows whose verdict is the gold answer."""
    return percent([decide(name, ballots_of(r), kind=r["kind"], weights=weights).answer == r["gold"] for r in rows])


def voting(folder: Path) -> None:
    """Table: accuracy of single models and of each algorithm, plain majority also over the reference extractions."""
    print(f"\n{'set':22}{'n':>5}{'mean':>7}{'best':>7}{'majority':>10}{'over ref.':>10}{'by size':>9}{'best resp.':>11}"
          f"{'all agree: share/right':>24}{'longest':>9}")
    for name in TEXT_SETS:
        path = folder / f"{name}.jsonl"
        if not path.exists():
            continue
        rows = rows_of(path)
        models = sorted({a["model"] for r in rows for a in r["answers"]})
        singles = [percent([a["correct"] for r in rows for a in r["answers"] if a["model"] == m]) for m in models]
        reference = percent([_over_reference(r) == r["gold"] for r in rows])
        agreed = [v.answer == r["gold"] for r in rows for v in [decide("all_agree", ballots_of(r), kind=r["kind"])] if v.agreed]
        longest = percent([max(r["answers"], key=lambda a: len(a["text"]))["correct"] for r in rows])
        print(f"{name:22}{len(rows):5}{statistics.mean(singles):7.1f}{max(singles):7.1f}"
              f"{accuracy(rows, 'majority_vote'):10.1f}{reference:10.1f}"
              f"{accuracy(rows, 'weighted_vote'):9.1f}{accuracy(rows, 'best_response'):11.1f}"
              f"{f'{100 * len(agreed) / len(rows):.0f} / {percent(agreed):.0f}':>24}{longest:9.1f}")


def _over_reference(row: Row) -> str | None:
    return count("majority_vote", ballots_of(row), [a["extracted"] for a in row["answers"]]).answer


def halves(folder: Path) -> None:
    """Table: weights fitted on one random half against size weights and plain majority on the other, over HALVES draws."""
    print(f"\n{'set':22}{'fitted':>8}{'by size':>9}{'majority, ties measured':>25}{'majority':>10}{'fitted - size':>15}")
    for name in TEXT_SETS:
        path = folder / f"{name}.jsonl"
        if not path.exists():
            continue
        rows = rows_of(path)
        read = [[(a["model"], extract(a["text"], r["kind"])) for a in r["answers"]] for r in rows]
        draw, kept = random.Random(20261122), []
        for _ in range(HALVES):
            order = draw.sample(range(len(rows)), len(rows))
            fitting, judging = order[: len(rows) // 2], order[len(rows) // 2:]
            weights = fit((m, e == rows[i]["gold"]) for i in fitting for m, e in read[i] if e is not None)
            kept.append([_judged(rows, read, judging, *how) for how in
                         (("weighted_vote", weights), ("weighted_vote", None), ("majority_vote", weights), ("majority_vote", None))])
        means = [statistics.mean(column) for column in zip(*kept, strict=True)]
        print(f"{name:22}{means[0]:8.2f}{means[1]:9.2f}{means[2]:25.2f}{means[3]:10.2f}{means[0] - means[1]:15.2f}")


def _judged(rows: Sequence[Row], read: Sequence[Sequence[tuple[str, str | None]]], judging: Sequence[int], name: ConsensusName,
            weights: Weights | None) -> float:
    hits = [count(name, ballots_of(rows[i]), [e for _, e in read[i]], weights=weights).answer == rows[i]["gold"] for i in judging]
    return percent(hits)


def code(folder: Path) -> None:
    """Accuracy of votes on programs: by behaviour in the sandbox, by syntax tree, and of the commonest text."""
    path = folder / "humaneval_codegen10.jsonl"
    if not path.exists() or not code_runs_here():
        return
    rows, began = rows_of(path), time.process_time()
    passed: dict[str, list[bool]] = {"one sample": [], "commonest behaviour": [], "commonest syntax tree": [], "any": []}
    alike = pairs = 0
    for r in rows:
        right = {a["text"]: a["correct"] for a in r["answers"]}
        texts = [a["text"] for a in r["answers"]]
        ran = behaviours([extract(t, "code") for t in texts], r["probe_calls"], prompt=r["question"])
        verdicts = [decide("majority_vote", ballots_of(r), kind="code", behaviours=b) for b in (ran, None)]
        passed["one sample"].append(statistics.mean(right[t] for t in texts))
        passed["commonest behaviour"].append(right.get(verdicts[0].answer or "", False))
        passed["commonest syntax tree"].append(right.get(verdicts[1].answer or "", False))
        passed["any"].append(any(right.values()))
        for i in range(len(texts)):
            for j in range(i):
                pairs += 1
                alike += (ran[i] == ran[j]) == (r["answers"][i]["behaviour"] == r["answers"][j]["behaviour"])
    spent = time.process_time() - began
    print(f"\nhumaneval_codegen10, {len(rows)} questions, {spent:.0f} s: " + ", ".join(f"{k} {percent(v):.1f}" for k, v in passed.items())
          + f"; pairs judged alike as the reference does: {100 * alike / max(1, pairs):.1f} %")


def speed(folder: Path) -> None:
    """Seconds for 10,000 answer sets through the code of `symposia vote`, on one core."""
    lines = [line for name in TEXT_SETS if (folder / f"{name}.jsonl").exists() for line in (folder / f"{name}.jsonl").open("rb")]
    began = time.process_time()
    for i in range(10_000):
        decided(AnswerSet.model_validate(json.loads(lines[i % len(lines)])), "majority_vote")
    print(f"\n10,000 answer sets: {time.process_time() - began:.1f} s")


def main() -> None:
    """Print all tables."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit("usage: python -m benchmarks.answers FOLDER")
    for table in (extraction, voting, halves, code, speed):
        table(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
