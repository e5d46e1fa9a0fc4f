"""What is heard of an answer while it is made, and what of that is passed on."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgers import QUEUE, new_job, placed
from symposia_shared.ledger import Ledger, Seat
from symposia_shared.said import Hearing, Piece, channel, read_piece, visible
from symposia_worker.saying import Sayer
from valkey_server import running_valkey


def pieces(fence: str, *texts: str) -> list[Piece]:
    at, found = 0, []
    for text in texts:
        found.append(Piece(fence=fence, at=at, text=text))
        at += len(text)
    return found


def test_pieces_are_passed_on_as_they_come_and_the_result_completes_them() -> None:
    hearing = Hearing()
    assert [hearing.hear(p) for p in pieces("1", "Bonjour, ", "le ")] == ["Bonjour, ", "le "]
    assert hearing.end("Bonjour, le monde") == "monde"


def test_an_answer_begun_again_after_its_pool_died_says_nothing_twice() -> None:
    hearing = Hearing()
    first = [hearing.hear(p) for p in pieces("1.a", "one ", "two ")]
    again = [hearing.hear(p) for p in pieces("2.b", "one ", "two ", "three")]
    assert (first, again) == (["one ", "two "], ["", "", "three"])
    assert hearing.end("one two three") == ""


def test_an_answer_begun_again_otherwise_is_passed_on_only_as_far_as_the_result_agrees() -> None:
    hearing = Hearing()
    hearing.hear(Piece(fence="1", at=0, text="one "))
    assert [hearing.hear(p) for p in pieces("2", "uno ", "due")] == ["", ""]
    assert hearing.end("uno due") is None
    assert hearing.end("one two") == "two"


def test_after_a_gap_nothing_more_of_that_lease_is_passed_on() -> None:
    hearing = Hearing()
    one, _, three, four = pieces("1", "a", "b", "c", "d")
    assert [hearing.hear(p) for p in (one, three, four)] == ["a", "", ""]
    assert hearing.end("abcd") == "bcd"


@given(st.text(max_size=40), st.lists(st.integers(0, 40)), st.sets(st.integers(0, 10)))
def test_whatever_is_lost_what_was_passed_on_is_the_recorded_text(text: str, cuts: list[int], lost: set[int]) -> None:
    edges = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    made = [Piece(fence="1", at=a, text=text[a:b]) for a, b in itertools.pairwise(edges)]
    hearing, said = Hearing(), ""
    answer = visible(text)
    for number, piece in enumerate(made):
        said += "" if number in lost else hearing.hear(piece)
    rest = hearing.end(answer if answer else text)
    assert rest is not None
    assert said + rest == (answer or text)


@pytest.mark.parametrize(("text", "shown"), [
    ("", ""), ("<", ""), ("<thi", ""), ("<think>so", ""), ("<think>so</think>\n\nyes", "yes"), ("  <b>", "  <b>"), ("<th>", "<th>"), ("a<think>", "a<think>"),
])
def test_a_reasoning_is_not_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("raw", ["", "x", "[]", "1", '{"fence": "1"}', '{"fence": "1", "at": 0, "text": "a", "more": 1}'])
def test_what_is_no_piece_is_ignored(raw: str) -> None:
    assert read_piece(raw) is None


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as url:
        yield Ledger(url, "t:")


def test_a_claim_says_whether_the_answer_is_read_as_it_comes(ledger: Ledger) -> None:
    placed(ledger)
    ledger.submit([new_job("quiet"), new_job("read", stream=True), new_job("after")])
    assert {c.seat.job_id: c.stream for c in ledger.claim(most=3, pools=1, queues=[QUEUE]).claims} == {"quiet": False, "read": True, "after": False}


def test_what_is_said_is_heard_in_order_and_nothing_of_it_stays_in_redis(ledger: Ledger) -> None:
    # Given somebody who listens
    ears = ledger.redis.pubsub(ignore_subscribe_messages=True)
    ears.subscribe(channel("t:", "j"))
    ears.get_message(timeout=5)
    keys = ledger.redis.dbsize()
    # When an answer is said in pieces
    sayer = Sayer(ledger)
    sayer.start()
    say = sayer.begin(Seat("j", 0, 0), "1.f")
    threading.Thread(target=lambda: [(say(f"w{n} "), time.sleep(0.005)) for n in range(50)]).start()
    whole = "".join(f"w{n} " for n in range(50))
    hearing, heard, until = Hearing(), "", time.monotonic() + 20
    while heard != whole and time.monotonic() < until:
        message = ears.get_message(timeout=1)
        piece = read_piece(message["data"]) if message else None
        heard += hearing.hear(piece) if piece else ""
    # Then all of it was heard, and what is said after the end is not
    assert heard == whole
    sayer.end(Seat("j", 0, 0), "1.f")
    say("too late")
    assert ears.get_message(timeout=0.2) is None
    assert ledger.redis.dbsize() == keys
    sayer.stop()
    ears.close()
