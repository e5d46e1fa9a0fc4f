"""Batches without a stack: the survey of an input, forms read as they come, templates, windows, and a drive on a real Valkey over a dictionary."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shelf import Shelf
from symposia.api.faults import HttpFault
from symposia.api.multipart import Form
from symposia.batches import checked_auto
from symposia.tables.asking import Prompting
from symposia.tables.reading import rows_of
from symposia.tables.template import Template
from symposia_shared.batches.lines import Unmet, answered, question_of, unfinished
from symposia_shared.batches.records import Batches
from symposia_shared.batches.survey import SPAN_LINES, Surveyor
from symposia_shared.batches.uploads import lines_of
from symposia_shared.batches.values import Batch, Counts, Order, Survey
from symposia_shared.batches.windows import check, seconds_needed, window_s
from symposia_shared.errors import BadInput, UnknownJob
from symposia_shared.ledger import Ledger
from symposia_shared.openai.lines import MOST_LINE_BYTES, BadLine
from symposia_shared.results import Result
from symposia_shared.settings import ApiSettings
from symposia_worker.batches.rates import FULL, WINDOW_S, Rates
from valkey_server import emptied


def line(custom_id: str, **body: Any) -> bytes:
    body = {"model": "test/echo", "messages": [{"role": "user", "content": "hi"}], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}).encode()


def order(**more: Any) -> Order:
    return Order(id="batch_aa", tenant="t", endpoint="/v1/chat/completions", input_file_id="f", completion_window="24h", window_s=86_400, created_at=1, **more)


def surveyed(text: bytes, *cuts: int) -> Survey:
    surveyor = Surveyor()
    for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True):
        surveyor.feed(text[start:end])
    return surveyor.finish()


# -- the survey


@given(st.lists(st.sampled_from([b"", b"  ", b"nonsense", line("a"), line("b"), line("c", model="other"), line("d") + b"\r"]), max_size=12),
       st.lists(st.integers(0, 2_000), max_size=5), st.booleans())
def test_a_survey_does_not_depend_on_how_the_bytes_come(lines: list[bytes], cuts: list[int], ended: bool) -> None:
    text = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    whole = surveyed(text)
    assert surveyed(text, *sorted(min(c, len(text)) for c in cuts)) == whole
    assert whole.lines == sum(1 for part in lines if part.strip())
    assert sum(s.lines for s in whole.spans) == whole.lines


def test_the_spans_of_a_survey_are_the_lines_of_the_file() -> None:
    rows = [line(f"{n}") if n % 7 else b"" for n in range(3 * SPAN_LINES)]
    text = b"\n".join(rows)
    found: dict[int, bytes] = {}
    for span in surveyed(text).spans:
        part = text[span.offset:span.offset + span.length]
        found |= {n: raw for n, raw in enumerate(part.split(b"\n"), start=span.first) if raw.strip()}
    assert found == {n: row for n, row in enumerate(rows, start=1) if row}


def test_a_survey_tells_lines_that_are_none_and_ids_that_come_again() -> None:
    survey = surveyed(b"\n".join([line("a"), b"{", line("b", model="m"), line("a"), line("a")]))
    assert (survey.lines, survey.bad, survey.twice, survey.models) == (5, 3, (4, 5), {"test/echo": 3, "m": 1})


def test_of_a_line_that_is_too_long_only_so_much_is_held_as_shows_it() -> None:
    surveyor = Surveyor()
    for _ in range(3 * MOST_LINE_BYTES // (1 << 20)):
        surveyor.feed(b"x" * (1 << 20))
        assert len(surveyor._rest) <= MOST_LINE_BYTES + 2
    surveyor.feed(b"\n" + line("a"))
    survey = surveyor.finish()
    assert (survey.lines, survey.bad) == (2, 1)
    assert survey.spans[0].length == 3 * MOST_LINE_BYTES + 1


def test_lines_come_whole_from_pieces_of_any_size() -> None:
    text = b"one\ntwo\r\nthree"
    for size in range(1, len(text) + 1):
        assert list(lines_of(text[i:i + size] for i in range(0, len(text), size))) == [b"one\n", b"two\r\n", b"three"]


# -- a line


def asked(raw: bytes, **more: Any) -> Any:
    return question_of(raw, 7, order(**more), twice=False, team_named=lambda _: None, limits=ApiSettings(max_tokens=100))


def test_a_lines_jobs_have_ids_of_their_own_that_are_the_same_again() -> None:
    question = asked(line("a", n=2))
    assert question.job_ids("batch_aa", 1) == ["batch_aa-7-0", "batch_aa-7-1"]
    assert asked(line("a")).job_ids("batch_aa", 2) == ["batch_aa-7-r2"]
    assert {(j.priority, j.tags) for j in question.jobs} == {("batch", ("tenant:t", "batch:batch_aa"))}


def test_what_a_line_may_ask_for_is_limited_as_any_request_is() -> None:
    assert asked(line("a")).jobs[0].sampling.max_tokens == 100
    with pytest.raises(Unmet, match="at most 100 new tokens"):
        asked(line("a", max_tokens=101))


def test_auto_is_answered_by_the_model_the_batch_names() -> None:
    assert asked(line("a", model="auto"), auto_model="m").model == "m"
    with pytest.raises(Unmet, match="--auto"):
        asked(line("a", model="auto"))


def test_who_answers_for_auto_is_read_when_the_batch_is_made() -> None:
    assert checked_auto(None) is None
    assert checked_auto("debate:a,b;rounds=2") == "debate:a,b;rounds=2"
    for bad in ("auto", "", "m" * 9_000, "debate:a", "nothing:a,b"):
        with pytest.raises(BadInput) as refused:
            checked_auto(bad)
        assert refused.value.field == "auto_model"


def test_another_url_than_the_batchs_is_refused_unless_they_may_be_mixed() -> None:
    texts = line("a").replace(b"/v1/chat/completions", b"/v1/completions").replace(b'"messages": [{"role": "user", "content": "hi"}]', b'"prompt": "hi"')
    with pytest.raises(BadLine, match="the batch's endpoint is"):
        asked(texts)
    assert asked(texts, mixed=True).asked.endpoint == "/v1/completions"


def test_a_cancelled_job_is_unfinished_where_its_batch_ends_and_else_has_failed() -> None:
    result = Result(job_id="j", state="cancelled", job={})
    assert answered(asked(line("a")), [result], end="expired").outcome == "unfinished"
    alone = answered(asked(line("a")), [result])
    assert (alone.outcome, json.loads(alone.text)["response"]["status_code"]) == ("failed", 499)
    assert json.loads(unfinished(3, "a", request_id="r", end="cancelled").text)["error"]["line"] == 3


# -- windows and rates


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86_400), ("1m", 60), ("30d", 2_592_000)])
def test_windows_from_a_minute_to_thirty_days(text: str, seconds: int) -> None:
    assert window_s(text) == seconds


@pytest.mark.parametrize("text", ["59s", "31d", "24", "", "h", None, 24, "1.5h", "-2h"])
def test_other_windows_are_refused_by_name(text: object) -> None:
    with pytest.raises(BadInput) as refused:
        window_s(text)
    assert refused.value.field == "completion_window"


def test_a_window_is_refused_only_by_a_rate_that_was_measured() -> None:
    survey = Survey(lines=100, spans=(), models={"a": 60, "auto": 40})
    assert seconds_needed(survey, [], {}, auto_model="b") is None
    assert seconds_needed(survey, [], {"a": 2.0, "b": 0.5}, auto_model="b") == 80
    waiting = Batch(order=order(), status="in_progress", total=50, expires_at=9)
    assert seconds_needed(survey, [waiting], {"a": 2.0}, auto_model=None) == 45
    check(60, "1m", None, now_s=0)
    check(60, "1m", 60, now_s=0)
    with pytest.raises(BadInput, match=r"ends at 1970-01-01T00:02:00Z at the earliest\. Ask for at least 3m"):
        check(60, "1m", 120, now_s=0)


def test_a_rate_is_measured_only_while_the_pools_were_full() -> None:
    rates = Rates()
    begun = time.monotonic()
    for _ in range(50):
        rates.ended("m")
    rates.look(begun + WINDOW_S + 0.01, in_flight=FULL)
    assert rates.lines_per_s == pytest.approx(10, rel=0.05)
    assert set(rates.take_measured()) == {"m"}
    rates.look(begun + WINDOW_S + 1, in_flight=1)
    rates.ended("m")
    rates.look(begun + 2 * WINDOW_S + 1, in_flight=FULL)
    assert rates.take_measured() == {}


# -- the form of an upload

FORM = "multipart/form-data; boundary=b"


def pieces(body: bytes, size: int, content_type: str = "multipart/form-data; boundary=b") -> list[tuple[str, str | None, bytes]]:
    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at:at + size]

    async def read() -> list[tuple[str, str | None, bytes]]:
        parts: list[tuple[str, str | None, bytes]] = []
        open_part = b""
        async for piece in Form(content_type, source()).pieces():
            open_part += piece.data
            if piece.last:
                parts.append((piece.name, piece.filename, open_part))
                open_part = b""
        return parts

    return asyncio.run(read())


@given(st.binary(max_size=200), st.integers(1, 40))
def test_a_forms_file_comes_through_byte_for_byte(data: bytes, size: int) -> None:
    if b"\r\n--b" in data:
        return
    body = (b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
            b'Content-Disposition: form-data; name="file"; filename="a \\"b\\".jsonl"\r\n'
            b"Content-Type: application/jsonl\r\n\r\n" + data + b"\r\n--b--\r\n")
    assert pieces(body, size) == [("purpose", None, b"batch"), ("file", 'a "b".jsonl', data)]


@pytest.mark.parametrize(("body", "content_type", "status"), [
    (b"", FORM, 400), (b"--b\r\n", FORM, 400), (b"x" * 20_000, FORM, 400), (b"--b\r\n\r\nnameless\r\n--b--", FORM, 400),
    (b"--b--", "application/json", 415), (b"--b--", "multipart/form-data", 415),
    (b"--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\ncut", FORM, 400)])
def test_what_is_no_form_is_refused(body: bytes, content_type: str, status: int) -> None:
    with pytest.raises(HttpFault) as refused:
        pieces(body, 7, content_type)
    assert refused.value.status == status


# -- tables


def test_a_template_names_columns_and_nothing_else() -> None:
    template = Template.of("{{x}} {a} and {b b}{a}")
    assert template.columns == ("a", "b b")
    assert template.of_row({"a": 1, "b b": None}) == "{x} 1 and 1"
    for bad in ("{a.b!r}", "{a:>3}", "{}", "{", "{a"):
        with pytest.raises(BadInput):
            Template.of(bad)
    with pytest.raises(BadInput, match="names a column 'a'"):
        template.check(["b b"])


def test_a_row_becomes_a_line_that_is_a_request() -> None:
    raw = Prompting(Template.of("{q}"), "m", Template.of("be {how}"), (("max_tokens", 5),)).line(3, {"q": "why?", "how": "brief"})
    question = question_of(raw, 3, order(), twice=False, team_named=lambda _: None, limits=ApiSettings())
    assert (question.custom_id, question.jobs[0].turn.messages[0].content, question.jobs[0].sampling.max_tokens) == ("row-3", "be brief", 5)


@pytest.mark.parametrize(("name", "text", "said"), [("t.jsonl", '{"a": 1}\n[]\n', "line 2 is a JSON list"), ("t.csv", "a,b\n1\n", "another number of cells"),
                                                    ("t.txt", "", "the ending of no table")])
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        list(rows_of(path))


# -- the records


@pytest.fixture
def batches(server: Ledger) -> Batches:
    return Batches(emptied(server), Shelf())  # type: ignore[arg-type]


def test_one_driver_holds_a_batch_until_it_lets_go(batches: Batches) -> None:
    batches.add(order(), total=3)
    assert batches.hold("batch_aa", "one") == "validating"
    assert batches.hold("batch_aa", "two") == ""
    assert batches.hold("batch_aa", "one") == "validating"
    batches.let_go("batch_aa", "two")
    assert batches.hold("batch_aa", "two") == "", "what another holds is not let go"
    batches.let_go("batch_aa", "one")
    assert batches.hold("batch_aa", "two") == "validating"
    assert batches.hold("batch_bb", "two") == "gone"


def test_a_span_is_counted_once_however_often_it_is_marked(batches: Batches) -> None:
    batches.add(order(), total=3)
    for _ in range(2):
        batches.mark("batch_aa", 0, Counts(completed=2, failed=1), live=Counts(completed=4))
    found = batches.get("batch_aa")
    assert (found.counts.completed, found.counts.failed) == (6, 1)
    assert set(batches.marked("batch_aa")) == {0}


def test_a_batch_moves_on_once_from_where_it_may(batches: Batches) -> None:
    batches.add(order(), total=3)
    assert batches.cancel("batch_aa")
    assert not batches.cancel("batch_aa")
    assert not batches.move("batch_aa", ("in_progress",), "finalizing")
    assert batches.move("batch_aa", ("cancelling",), "finalizing", end="cancelled")
    assert batches.active() == ["batch_aa"]
    assert batches.move("batch_aa", ("finalizing",), "cancelled", out="file-x")
    found = batches.get("batch_aa")
    assert (found.status, found.output_file_id, found.ended, batches.active()) == ("cancelled", "file-x", True, [])
    assert found.view()["cancelled_at"] == found.at["cancelled"]


def test_of_many_at_once_one_wins_a_batch(batches: Batches) -> None:
    batches.add(order(), total=3)
    won: list[str] = []
    threads = [threading.Thread(target=lambda n=n: won.append(batches.hold("batch_aa", f"d{n}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [""] * 7 + ["validating"]


def test_an_ended_batch_that_redis_has_let_go_is_read_from_s3(batches: Batches) -> None:
    batches.add(order(), total=3)
    batches.move("batch_aa", ("validating",), "failed", why=json.dumps([{"code": "c", "message": "m", "param": None, "line": None}]))
    before = batches.get("batch_aa")
    batches.ended(before)
    batches.ledger.redis.delete(batches.key("batch_aa"))
    assert batches.get("batch_aa") == before
    with pytest.raises(UnknownJob):
        batches.get("batch_aa", tenant="another")


def test_a_resumed_batch_keeps_the_spans_of_which_nothing_is_left(batches: Batches) -> None:
    batches.add(order(), total=3)
    batches.mark("batch_aa", 0, Counts(completed=1), live=Counts())
    batches.mark("batch_aa", 1, Counts(unfinished=2), live=Counts())
    batches.move("batch_aa", ("validating",), "expired", end="expired")
    assert batches.resume(batches.get("batch_aa"), expires_at=99, keep=[0])
    found = batches.get("batch_aa")
    assert (found.status, found.attempt, found.end, found.expires_at, found.counts.completed, found.counts.unfinished) == ("in_progress", 2, "", 99, 1, 0)
    assert set(batches.marked("batch_aa")) == {0}
    assert batches.active() == ["batch_aa"]


def test_s3_has_a_batch_as_it_ends_before_it_has_ended(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    batches.add(order(), total=3)
    batches.hold("batch_aa", "one")
    batches.mark("batch_aa", 0, Counts(completed=2, calls=2), live=Counts(failed=1))
    batches.move("batch_aa", ("validating",), "finalizing", end="expired")
    found: list[Batch] = []
    move = batches.move

    def killed(*args: Any, **fields: Any) -> bool:
        found.append(Batch.from_json(batches.store.get("batches/batch_aa/batch.json") or b""))
        return move(*args, **fields)

    monkeypatch.setattr(batches, "move", killed)
    assert batches.end("batch_aa", ("finalizing",), "completed", out="file-o", err="", sum=Counts(completed=2, calls=2).to_json(), **{"c:0": ""})
    told, ended = found[0], batches.get("batch_aa")
    assert abs(told.at["completed"] - ended.at["completed"]) <= 1
    assert told.model_copy(update={"at": ended.at}) == ended
    assert (ended.counts.completed, ended.counts.failed, ended.output_file_id) == (2, 0, "file-o")
    assert not batches.end("batch_aa", ("finalizing",), "failed")
    assert batches._archived("batch_aa") == ended


def test_a_resumed_batch_is_driven_though_its_producer_is_killed_right_then(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    batches.add(order(), total=3)
    batches.move("batch_aa", ("validating",), "expired", end="expired")
    assert batches.active() == []

    def killed(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(batches.ledger.redis, "zadd", killed)
    assert batches.resume(batches.get("batch_aa"), expires_at=99, keep=[])
    assert batches.active() == ["batch_aa"]


def test_a_batch_that_moves_on_keeps_its_place(batches: Batches) -> None:
    for n, batch_id in enumerate(("batch_aa", "batch_bb")):
        batches.add(order().model_copy(update={"id": batch_id, "created_at": n}), total=1)
    batches.move("batch_aa", ("validating",), "in_progress")
    assert batches.active() == ["batch_aa", "batch_bb"]
