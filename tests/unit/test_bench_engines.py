"""The arithmetic of the benchmarks, and their protocol with a real contender process."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks.engines import checkpoint, report, workload
from benchmarks.engines.contender import Contender, Failed
from benchmarks.engines.contest import torch_orders
from benchmarks.engines.figures import Run, Spread, compared, jain, percentile, run_of, until_end
from benchmarks.engines.report import BASE, Results
from benchmarks.engines.wire import Answer, Request

from tiny import tiny_checkpoint

WORDS = ("zero ", "one ", "two ", "three ", "four ")


def decode(ids: Sequence[int]) -> str:
    return "".join(WORDS[i] for i in ids)


def run(**changed: object) -> Run:
    some: dict[str, object] = {"wall_s": 2.0, "cpu_s": 4.0, "rss_bytes": 1_000_000, "others_cores": 0.0, "tokens": 10, "wanted": 10,
                               "ttft_s": (0.1, 0.3), "latency_s": (1.0, 2.0), "faults": ()}
    return Run(**{**some, **changed})  # type: ignore[arg-type]


def request(name: str, at_s: float = 0.0) -> Request:
    return Request(name, (1, 2), "one two ", 3, at_s)


# -- arithmetic


def test_percentiles_are_interpolated_and_do_not_depend_on_the_order() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0.5) == 2.5
    assert percentile(values, 0.0) == 1.0
    assert percentile(values, 1.0) == 4.0
    assert percentile(values, 0.95) == pytest.approx(3.85)
    assert percentile([7.0], 0.95) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_a_percentile_lies_between_the_least_and_the_most_and_grows_with_its_share() -> None:
    draw = random.Random(1)
    for _ in range(200):
        values = [draw.uniform(-5, 5) for _ in range(draw.randint(1, 12))]
        found = [percentile(values, share / 20) for share in range(21)]
        assert found == sorted(found)
        assert (found[0], found[-1]) == (min(values), max(values))


def test_a_spread_leaves_out_what_was_not_measured() -> None:
    assert Spread.of([3.0, math.nan, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert math.isnan(Spread.of([math.nan]).median)


def test_a_runs_clock_is_from_each_arrival_and_its_wall_from_the_beginning_to_the_last_answer() -> None:
    requests = [request("a"), request("b", at_s=2.0)]
    answers = [Answer("a", 101.0, 103.0, 3, ids=(0, 1, 2)), Answer("b", 102.5, 106.0, 3, ids=(0, 1, 3))]
    found = run_of(requests, answers, began=100.0, cpu_s=3.0, rss_bytes=1, reference={"a": (0, 1, 2), "b": (0, 1, 2)})
    assert (found.wall_s, found.tokens, found.wanted) == (6.0, 6, 6)
    assert found.ttft_s == (1.0, 0.5)
    assert found.latency_s == (3.0, 4.0)
    assert (found.tokens_per_s, found.tokens_per_cpu_s) == (1.0, 2.0)
    assert (found.same, found.reference, found.identical) == (5, 6, 1)


def test_an_answer_that_failed_or_never_came_counts_no_token_and_is_named() -> None:
    answers = [Answer("a", None, 101.0, 3, fault="it broke")]
    found = run_of([request("a"), request("b")], answers, began=100.0, cpu_s=1.0, rss_bytes=1)
    assert found.tokens == 0
    assert sorted(found.faults) == ["a: it broke", "b: no answer"]


def test_tokens_are_the_references_up_to_the_first_that_is_not() -> None:
    assert compared((1, 2, 3), Answer("a", None, 0.0, 3, ids=(1, 2, 4))) == (2, False)
    assert compared((1, 2, 3), Answer("a", None, 0.0, 4, ids=(1, 2, 3, 4))) == (3, True)
    assert compared((1, 2, 3), Answer("a", None, 0.0, 2, ids=(1, 2))) == (2, False)


def test_an_answer_without_ids_is_compared_by_its_text() -> None:
    reference = (1, 2, 3, 4)
    assert compared(reference, Answer("a", None, 0.0, 4, text="one two three four "), decode) == (4, True)
    assert compared(reference, Answer("a", None, 0.0, 4, text="one two one "), decode) == (2, False)
    assert compared(reference, Answer("a", None, 0.0, 4, text=""), decode) == (0, False)
    with pytest.raises(ValueError, match="tokenizer"):
        compared(reference, Answer("a", None, 0.0, 4, text="one "))


def test_a_reference_is_cut_where_its_text_has_ended() -> None:
    assert until_end((5, 6, 2, 7), frozenset({2, 0})) == (5, 6)
    assert until_end((5, 6), frozenset({2})) == (5, 6)


def test_jains_index_is_one_for_equals_and_one_of_n_for_one_that_has_all() -> None:
    assert jain([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain([9.0, 0.0, 0.0]) == pytest.approx(1 / 3)


# -- workload


def test_arrivals_of_one_seed_are_the_same_and_of_another_are_not() -> None:
    requests = [request(str(n)) for n in range(400)]
    once, again, other = (workload.poisson(requests, rate=2.0, seed=seed) for seed in (5, 5, 6))
    assert once == again
    assert once != other
    assert once[0].at_s == 0.0
    assert [r.at_s for r in once] == sorted(r.at_s for r in once)
    assert once[-1].at_s / 399 == pytest.approx(0.5, rel=0.2)  # 399 gaps of 1/rate in the mean


def test_the_shipped_prompts_are_chat_requests_with_names_of_their_own() -> None:
    prompts = workload.prompts_of(workload.SHIPPED)
    assert len({p.id for p in prompts}) == len(prompts) >= 24
    assert all(p.messages[-1]["role"] == "user" and p.max_tokens >= 1 for p in prompts)


def test_a_line_that_is_no_request_is_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "x"}]}}\n\n{"custom_id": "b"}\n')
    with pytest.raises(ValueError, match="line 3"):
        workload.prompts_of(file)


def test_prompts_that_do_not_fit_are_left_out_and_a_mark_makes_each_another(tmp_path: Path) -> None:
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer(chat=True)
    prompts = [workload.Prompt("long", ({"role": "user", "content": "fox " * 200},), 8), workload.Prompt("short", ({"role": "user", "content": "fox"},), 90)]
    plain, marked = (workload.requests_of(prompts, tokenizer, cap=16, longest=100, wanted=9, mark=mark) for mark in ("", "Later. "))
    assert [(r.id, r.max_new) for r in plain] == [("short", 16)]
    assert tuple(tokenizer(plain[0].text, add_special_tokens=False)["input_ids"]) == plain[0].ids
    assert marked[0].ids[: len(plain[0].ids)] != plain[0].ids


# -- tables


def test_results_come_back_from_their_file_and_their_tables_show_ratios_and_losses(tmp_path: Path) -> None:
    results = Results({"processor": "some"}, {"seed": "5"}, {BASE: {"torch": "2"}}, {"vLLM": "it does not import"})
    for tokens in (10, 20, 30):
        results.add("at once", BASE, run(tokens=tokens, wanted=tokens))
        results.add("at once", "ours, torch", run(tokens=2 * tokens, wanted=2 * tokens, same=9, reference=10, identical=1))
    results.add("poisson", BASE, run(ttft_s=(4.0,)))
    results.add("poisson", "ours, torch", run(ttft_s=(0.2,)))
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results
    shown = report.tables(results)
    assert "| one by one | 10.0 | 5.0 to 15.0 | 1.00 |" in shown
    assert "| ours, torch | 20.0 | 10.0 to 30.0 | 2.00 |" in shown
    assert "90.0 % | 1 of 2" in shown
    assert "| torch / one by one | 2.00 | ≥ 2.5 | **no** |" in shown
    assert "| first token p50 under load, ours, torch / one by one | 0.050 | ≤ 0.1 | yes |" in shown
    assert "| vLLM | not measured: it does not import |" in shown


def test_fewer_tokens_than_asked_for_and_faults_are_told() -> None:
    results = Results({}, {}, {}, {}, {"at once": {"peer": [run(tokens=7, faults=("a: it broke",))]}})
    shown = report.tables(results)
    assert "made 7 of 10 tokens in 1 of 1 runs" in shown
    assert "fault: a: it broke" in shown


# -- contenders, for real, on a tiny checkpoint


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    tiny_checkpoint(folder / "tiny", chat=True)
    return checkpoint.endless(folder / "tiny", folder / "endless")


@pytest.mark.parametrize("place", [0, 1, 2, 3], ids=["one by one", "static", "transformers", "torch"])
def test_a_contender_answers_with_the_tokens_of_one_by_one_generate(endless: Path, tmp_path: Path, place: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(endless)
    texts = ("The quick brown fox", "def add(a, b):\n    return", "What is the capital of France?")
    requests = [Request(str(n), tuple(tokenizer(text)["input_ids"]), text, 6 + n, at_s=0.05 * n) for n, text in enumerate(texts)]
    order = torch_orders(endless, device="cpu", dtype="float32", slots=4, longest=64)[place]
    with Contender(order, threads=1, log=tmp_path / "log") as contender:
        contender.run(requests[:1], within_s=60)
        seen = contender.run(requests, within_s=60)
    reference = {r.id: _alone(endless, r) for r in requests}
    found = run_of(requests, seen.answers, began=seen.began, cpu_s=seen.cpu_s, rss_bytes=seen.rss_bytes, reference=reference,
                   decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True))
    assert found.faults == ()
    assert found.tokens == found.wanted == 6 + 7 + 8
    assert found.identical == 3
    assert all(first > 0 for first in found.ttft_s)
    assert len(found.ttft_s) == 3
    assert found.cpu_s > 0


def _alone(folder: Path, request: Request) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    ids = torch.tensor([request.ids])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new, do_sample=False)
    return list(out[0, ids.shape[1]:].tolist())


def test_a_contender_that_cannot_start_says_why(tmp_path: Path) -> None:
    order = torch_orders(tmp_path / "nowhere", device="cpu", dtype="float32", slots=1, longest=8)[0]
    with pytest.raises(Failed, match="one by one ended"), Contender(order, threads=1, log=tmp_path / "log"):
        pass
