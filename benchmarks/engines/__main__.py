"""Engines side by side on the same prompts: ``make bench``, or ``python -m benchmarks.engines --help``.

Each round starts every contender once, alone, in rotated order: it loads, is warmed up, answers all requests at once, then
(in as many rounds as asked) requests that arrive as a Poisson process. Written: results.json after every run, and at the end
results.md with the tables of docs/BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engines import checkpoint, machine, report, workload
from benchmarks.engines.contender import Contender, Failed, Order, Watched
from benchmarks.engines.contest import field, usual_queues
from benchmarks.engines.figures import Run, run_of, until_end
from benchmarks.engines.report import BASE, Results
from benchmarks.engines.wire import Request

#: slow, and in no goal: measured in the first round, unless every round is asked for
ONCE = ("static batches", "transformers' continuous batching")
#: no run of the default size takes as long on two cores
_RUN_S = 1800.0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of 6 requests of at most 12 tokens: to see that all runs")
    parser.add_argument("--prompts", type=Path, default=workload.SHIPPED, help="a file of OpenAI batch lines (default: the one shipped here)")
    parser.add_argument("--requests", type=int, default=12, help="prompts taken from it")
    parser.add_argument("--cap", type=int, default=64, help="most new tokens of a request")
    parser.add_argument("--longest", type=int, default=1280, help="longest prompt with its answer, in tokens; longer ones are left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--poisson-rounds", type=int, default=1, help="rounds in which requests also arrive one after another")
    parser.add_argument("--every-round", action="store_true", help="also those that are in no goal (static batches, transformers' own), else in the first")
    parser.add_argument("--arrivals", type=int, default=64, help="requests that arrive in such a round: the same prompts again and again, begun otherwise")
    parser.add_argument("--load", type=float, default=0.9, help="arrivals a second, as a share of what one by one served in its first run: below 1 its "
                        "queue has an end, so that the first token is asked for in a steady state")
    parser.add_argument("--rate", type=float, help="arrivals a second, instead of --load")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--slots", type=int, default=16, help="sequences in one batch, for contenders that must be told")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--checkpoint", type=Path, help="a folder in transformers' form (default: SmolLM2-135M-Instruct from its package)")
    parser.add_argument("--vllm", metavar="PYTHON", help="the Python of an environment with vLLM's CPU build")
    parser.add_argument("--queue", action="append", metavar="NAME=FLAGS",
                        help="measure a stack started with these flags of `symposia up`, compared with the contender 'ours, NAME'; "
                        "may be repeated (default: one for each OpenVINO form)")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="contenders whose name holds this")
    parser.add_argument("--skip", action="append", default=[], metavar="PART")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"), help="where converted checkpoints and stacks are kept")
    parser.add_argument("--out", type=Path, default=Path(".cache/bench/results"))
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.poisson_rounds, given.requests, given.cap = 1, 1, min(given.requests, 6), min(given.cap, 12)
        given.arrivals = min(given.arrivals, 6)
    return given


@dataclass(frozen=True, slots=True)
class Work:
    """The same prompts again and again, each time begun by another mark, so that none was read before."""

    warm: list[Request]
    at_once: list[Request]
    later: list[Request]

    @classmethod
    def of(cls, given: argparse.Namespace, tokenizer: Any) -> Work:
        """The prompts asked for. Ends the program where none fits."""
        prompts = workload.prompts_of(given.prompts)
        sizes = {"cap": given.cap, "longest": given.longest, "wanted": given.requests}
        at_once = workload.requests_of(prompts, tokenizer, **sizes)
        if not at_once:
            raise SystemExit(f"no prompt of {given.prompts} fits {given.longest} tokens; raise --longest.")
        warm = workload.requests_of(prompts, tokenizer, **sizes | {"cap": 4, "wanted": 3}, mark="Warm up. ")
        # the mark makes each a few tokens longer; whole turns of the same prompts, so that their mean is that of the run the rate is taken from
        again = sizes | {"longest": given.longest + 8}
        later = [r for n in range(-(-given.arrivals // len(at_once))) for r in workload.requests_of(prompts, tokenizer, **again, mark=f"Later {n + 1}. ")]
        return cls(warm, at_once, later[: given.arrivals])


class Bench:
    """One run of the benchmark."""

    def __init__(self, results: Results, *, work: Work, ends: frozenset[int], decode: Any, given: argparse.Namespace) -> None:
        self.results, self.work, self.ends, self.decode, self.given = results, work, ends, decode, given
        self.rate: float | None = given.rate
        self.reference: dict[str, tuple[int, ...]] | None = None

    def round(self, number: int, orders: Sequence[Order]) -> None:
        """Every contender once, beginning with another one than the round before; the first round begins with the base."""
        at = number % len(orders)
        for order in (*orders[at:], *orders[:at]):
            if order.name not in self.results.missing and (number == 0 or self.given.every_round or order.name not in ONCE):
                try:
                    self.contender(order, poisson_seed=self.given.seed + number if number < self.given.poisson_rounds else None)
                except Failed as failed:
                    self.results.missing[order.name] = str(failed)
                    print(f"  {failed}", flush=True)
                self.results.write(self.given.out / "results.json")

    def contender(self, order: Order, *, poisson_seed: int | None) -> None:
        """Start it, warm it up, measure. ``poisson_seed``: of the arrivals, each round's its own; None: none in this round."""
        with Contender(order, threads=self.given.threads, log=self.given.out / "logs" / f"{order.name.replace(' ', '-')}.log") as contender:
            assert contender.ready is not None
            self.results.facts[order.name] = {**contender.ready.facts, "ready after": f"{contender.ready.load_s:.0f} s"}
            contender.run(self.work.warm, within_s=_RUN_S)
            run = self.measured("at once", order.name, self.work.at_once, contender)
            if order.name == BASE and self.rate is None:
                self.rate = round(self.given.load * len(self.work.at_once) / run.wall_s, 3)
                self.results.settings["arrivals"] = (f"{len(self.work.later)}, {self.rate} requests/s, {self.given.load:g} of what one by one served "
                                                     "in its first run")
            if poisson_seed is not None and self.rate:
                self.measured("poisson", order.name, workload.poisson(self.work.later, rate=self.rate, seed=poisson_seed), contender)

    def measured(self, mode: str, name: str, requests: Sequence[Request], contender: Contender) -> Run:
        """One run, noted."""
        seen = contender.run(requests, within_s=_RUN_S)
        if name == BASE and self.reference is None:
            self._keep_reference(seen)
        reference = self.reference if mode == "at once" else None
        run = run_of(requests, seen.answers, began=seen.began, cpu_s=seen.cpu_s, rss_bytes=seen.rss_bytes, others_cores=seen.others_cores,
                     reference=reference, decode=self.decode)
        self.results.add(mode, name, run)
        print(f"  {name:36} {mode:8} {run.tokens:5} tokens {run.wall_s:7.1f} s {run.tokens_per_s:7.1f} tokens/s "
              f"{run.tokens_per_cpu_s:6.1f} per CPU s, others {run.others_cores:.2f} cores{f', {len(run.faults)} FAULTS' if run.faults else ''}", flush=True)
        return run

    def _keep_reference(self, seen: Watched) -> None:
        self.reference = {a.id: until_end(a.ids, self.ends) for a in seen.answers if a.ids is not None}


def main() -> None:
    """Measure and print."""
    given = arguments()
    given.work, given.out = given.work.absolute(), given.out.absolute()
    began = time.monotonic()
    forms = checkpoint.prepared(given.work, folder=given.checkpoint, threads=given.threads)
    tokenizer = _tokenizer(forms.published)
    work = Work.of(given, tokenizer)
    longest = max(len(r.ids) + r.max_new for r in (*work.at_once, *work.later))
    queue_flags = [(name, flags) for name, _, flags in (q.partition("=") for q in given.queue or ())] or usual_queues(forms)
    chosen = field(forms, given.work, slots=given.slots, longest=-(-longest // 64) * 64, vllm=given.vllm, queue_flags=queue_flags,
                   only=given.only, skip=given.skip)
    results = Results(machine.described(), _settings(given, work.at_once), {}, dict(chosen.missing))
    bench = Bench(results, work=work, ends=forms.ends, decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True), given=given)
    for number in range(given.rounds):
        print(f"round {number + 1} of {given.rounds}, after {time.monotonic() - began:.0f} s", flush=True)
        bench.round(number, chosen.orders)
    results.settings["took"] = f"{(time.monotonic() - began) / 60:.1f} min"
    _finish(results, given.out)


def _finish(results: Results, out: Path) -> None:
    results.write(out / "results.json")
    text = report.tables(results)
    (out / "results.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{out / 'results.json'}")
    try:
        from benchmarks.engines import plots

        for path in plots.draw(results, out):
            print(path)
    except ImportError:
        print("matplotlib is not installed, so no plots were drawn: python -m benchmarks.engines.plots RESULTS.json FOLDER does so where it is.")


def _settings(given: argparse.Namespace, requests: Sequence[Request]) -> dict[str, str]:
    lengths = sorted(len(r.ids) for r in requests)
    return {
        "prompts": f"{given.prompts.name}, {len(requests)} of {lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]}, sum {sum(lengths)})",
        "new tokens": f"{min(r.max_new for r in requests)} to {max(r.max_new for r in requests)} a request, {sum(r.max_new for r in requests)} in all, greedy",
        "rounds": f"{given.rounds}, interleaved, order rotated, medians; {given.poisson_rounds} with arrivals",
        "threads": f"{given.threads}, OpenMP waiting passively",
        "arrivals": f"{given.arrivals}, {given.rate} requests/s" if given.rate else "none measured", "seed": str(given.seed),
    }


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


if __name__ == "__main__":
    main()
