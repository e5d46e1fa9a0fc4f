from __future__ import annotations

import math
from collections import deque
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper

from symposia_shared.errors import BadInput, PromptTooLong, Unavailable
from symposia_shared.prompts import Sampling, user
from symposia_shared.turns import Completion
from symposia_worker.engines.prefill import next_group
from symposia_worker.engines.protocol import Cancel, Done, Generate, Load, Pulse, cause_of, encode, read_command, read_event
from symposia_worker.engines.sampling import choose, filtered, generator_of, penalised
from symposia_worker.engines.sequence import Reading, Sequence, Transcription
from symposia_worker.engines.slots import Slots
from tiny import tiny_tokenizer


@cache
def tokenizer() -> Any:
    return tiny_tokenizer()


def text_of(ids: Any) -> str:
    return str(tokenizer().decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


# --- wire ---


@given(st.text(), st.floats(0, 10), st.integers(0, 2**63 - 1))
def test_commands_and_events_survive_the_wire_on_one_line(text: str, temperature: float, seed: int) -> None:
    prompt = text if text.strip() else "x"
    asked = Generate(id="a", checkpoint="b/c", messages=user(prompt), sampling=Sampling(temperature=temperature, seed=seed), stream=True)
    for command in (asked, Cancel(id=prompt), Load(checkpoint="b/c", folder=prompt)):
        line = encode(command)
        assert line.count(b"\n") == 1
        assert read_command(line) == command
    for event in (Done(id="a", completion=Completion(text=text)), Pulse(resident={prompt: 3})):
        line = encode(event)
        assert line.count(b"\n") == 1
        assert read_event(line) == event


@pytest.mark.parametrize(("error", "cause"), [
    (PromptTooLong("x"), "prompt_too_long"), (BadInput("x"), "bad_prompt"), (MemoryError(), "out_of_memory"),
    (torch.OutOfMemoryError("x"), "out_of_memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
    (RuntimeError("CUDA error: device-side assert triggered"), "device_lost"), (Unavailable("x"), "throttled"), (TimeoutError(), "timeout"),
    (ZeroDivisionError(), "bug"),
])
def test_each_error_has_its_cause(error: BaseException, cause: str) -> None:
    assert cause_of(error) == cause


# --- text ---


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=40).map(lambda t: tokenizer()(t)["input_ids"]), st.lists(st.integers(0, 318), max_size=60)))
def test_a_transcription_is_the_text_of_all_tokens(ids: list[int]) -> None:
    transcription = Transcription(text_of)
    pieces = [*map(transcription.push, ids), transcription.flush()]
    assert "".join(pieces) == transcription.text == text_of(ids)


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=40).map(lambda t: tokenizer()(t)["input_ids"]), st.lists(st.integers(0, 318), max_size=60)))
def test_a_text_that_is_asked_for_at_its_end_is_the_one_told_piece_by_piece(ids: list[int]) -> None:
    told, held = Transcription(text_of), Transcription(text_of)
    pieces = [*map(told.push, ids), told.flush()]
    for token in ids:
        held.hold(token)
    assert held.flush() == held.text == "".join(pieces)


@given(st.binary(max_size=20))
def test_bytes_that_are_no_characters_are_told_the_same_at_the_end(ids: bytes) -> None:
    told, held = Transcription(fallen_back), Transcription(fallen_back)
    pieces = [*map(told.push, ids), told.flush()]
    for token in ids:
        held.hold(token)
    assert held.flush() == held.text == "".join(pieces)


def test_no_piece_of_a_transcription_holds_half_a_character() -> None:
    transcription = Transcription(text_of)
    ids = tokenizer()("🧵🪡 漢 ☃")["input_ids"]
    assert len(ids) > 8
    assert all("\ufffd" not in transcription.push(i) for i in ids)


def fallen_back(ids: Any) -> str:
    """As a tokenizer decodes that has a token for each byte it has no piece for; ids are bytes."""
    from tokenizers import decoders

    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return str(decoder.decode([f"<0x{i:02X}>" for i in ids]))


@given(st.text(max_size=20))
def test_a_transcription_of_byte_tokens_is_their_text(text: str) -> None:
    transcription = Transcription(fallen_back)
    assert "".join([*map(transcription.push, text.encode()), transcription.flush()]) == text


def test_a_newline_is_not_lost_to_half_a_character_behind_it() -> None:
    transcription = Transcription(fallen_back)
    ids = b"\n" + "🙂".encode()[:2]
    assert fallen_back(ids) == "\ufffd" * 3  # decoded whole
    assert "".join([*map(transcription.push, ids), transcription.flush()]) == transcription.text == "\n" + "\ufffd" * 2


def sequence(*, most: int = 100, stop: tuple[str, ...] = (), stop_ids: frozenset[int] = frozenset()) -> Sequence:
    return Sequence("s", [5, 6], Sampling(stop=stop), text_of, max_new=most, stop_ids=stop_ids)


def test_a_stop_token_ends_an_answer_and_is_counted_but_not_written() -> None:
    s = sequence(stop_ids=frozenset({70}))
    for token in (40, 41, 70):
        s.take(token, -1.0, 1.0)
    assert (s.finish, s.text, s.new_tokens, s.logprob_mean) == ("stop", text_of([40, 41]), 3, -1.0)


def test_a_stop_string_at_the_last_allowed_token_is_a_stop() -> None:
    ids = tokenizer()("Answer: 42")["input_ids"]
    s = sequence(most=len(ids), stop=("42",))
    for token in ids:
        s.take(token, 0.0, 1.0)
    assert (s.finish, s.text) == ("stop", "Answer: ")


def test_what_may_begin_a_stop_string_is_not_told_before_it_is_known() -> None:
    told = []
    s = sequence(stop=("\n\nQ:",))
    for token in tokenizer()("yes\n\nnot Q\n\nQ: more")["input_ids"]:
        if not s.ended:
            s.take(token, 0.0, 1.0)
            told.append(s.fresh_text())
            assert "\n\nQ" not in "".join(told)
    assert "".join(told) == s.text == "yes\n\nnot Q"


# --- sampling ---

SCORES = st.lists(st.integers(-200, 200), min_size=2, max_size=40, unique=True).map(lambda tenths: [n / 10 for n in tenths])


def kept(scores: torch.Tensor) -> list[bool]:
    return (scores > -math.inf).tolist()


@given(SCORES, st.integers(1, 50), st.floats(0.05, 0.99), st.floats(0.01, 1.0))
def test_filters_keep_what_transformers_keep(scores: list[float], top_k: int, top_p: float, min_p: float) -> None:
    row = torch.tensor([scores])
    ids = torch.zeros(1, 1, dtype=torch.long)
    assert kept(filtered(row[0], Sampling(top_k=top_k))) == kept(TopKLogitsWarper(top_k)(ids, row)[0])
    # at the border of the nucleus the sum's rounding decides, so one token more or less is no error
    ours, theirs = kept(filtered(row[0], Sampling(top_p=top_p))), kept(TopPLogitsWarper(top_p)(ids, row)[0])
    assert abs(sum(ours) - sum(theirs)) <= 1
    assert ours[int(row.argmax())]
    ours, theirs = kept(filtered(row[0], Sampling(min_p=min_p))), kept(MinPLogitsWarper(min_p)(ids, row)[0])
    assert abs(sum(ours) - sum(theirs)) <= 1
    assert ours[int(row.argmax())]


@given(SCORES, st.floats(0.5, 3.0), st.data())
def test_the_repetition_penalty_is_that_of_transformers(scores: list[float], penalty: float, data: st.DataObject) -> None:
    history = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, max_size=10))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([history]), torch.tensor([scores]))[0]
    assert torch.allclose(penalised(torch.tensor(scores), penalty, history), expected)


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
    sampling = Sampling(temperature=1.0, seed=11)
    generator = generator_of(sampling)
    drawn = [choose(scores, [sampling], [[0]], [generator])[0].token for _ in range(2000)]
    shares = [drawn.count(t) / len(drawn) for t in range(3)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.04)


def test_a_row_of_no_numbers_is_not_sound_and_harms_no_other_row() -> None:
    logits = torch.tensor([[0.0, float("nan")], [0.0, 1.0], [float("inf"), 0.0]])
    sampling = Sampling(temperature=1.0, seed=0)
    choices = choose(logits, [sampling, Sampling(), Sampling()], [[0]] * 3, [generator_of(sampling)] * 3)
    assert [c.sound for c in choices] == [False, True, False]
    assert choices[1].token == 1


# --- the cache ---


def prefilled(*rows: list[int]) -> list[Any]:
    """Two layers of a prefilled cache, left-padded by two columns and more with no numbers, whose keys are the tokens and whose values are their
    negatives."""
    width = max(map(len, rows)) + 2
    keys = torch.tensor([[float("nan")] * (width - len(row)) + [float(t) for t in row] for row in rows]).view(len(rows), 1, -1, 1)
    return [SimpleNamespace(keys=keys, values=-keys) for _ in range(2)]


@settings(max_examples=40)
@given(st.data())
def test_rows_keep_their_tokens_whoever_joins_leaves_or_moves(data: st.DataObject) -> None:
    slots, rows, fresh = Slots(max_rows=6), list[list[int]](), iter(range(1, 1_000_000))
    for _ in range(data.draw(st.integers(1, 25))):
        act = data.draw(st.sampled_from(["join", "leave", "steps"]))
        if act == "join" and len(rows) < 6:
            group = [[next(fresh) for _ in range(length)] for length in data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=3))]
            joining = data.draw(st.permutations(range(len(group))))[: 6 - len(rows)]
            tokens = [group[place] for place in joining]
            slots.open(prefilled(*group), rows=len(rows) + len(tokens), longest=max(map(len, [*rows, *tokens])))
            slots.join(prefilled(*group), joining, [len(t) for t in tokens])
            rows += tokens
        elif act == "leave" and rows:
            place = data.draw(st.integers(0, len(rows) - 1))
            slots.leave(place)
            last = rows.pop()
            if place < len(rows):
                rows[place] = last
        elif rows:
            for _ in range(data.draw(st.integers(1, 70))):
                longest = max(map(len, rows))
                slots.reserve(len(rows), longest)
                slots.start = slots.end - longest
                new = torch.tensor([float(next(fresh)) for _ in rows]).view(-1, 1, 1, 1)
                for layer in slots.cache.layers:
                    keys, values = layer.update(new, -new)
                for n, row in enumerate(rows):
                    row.append(int(new[n]))
                    assert keys[n, 0, -len(row) :, 0].tolist() == row
                    assert values[n, 0, -len(row) :, 0].tolist() == [-t for t in row]
                assert keys.shape[2] == longest + 1
                assert keys.isfinite().all()
                assert values.isfinite().all()
                slots.end += 1
    if rows:
        height, width = slots.shape
        assert height <= 6
        assert width <= 2 * max(map(len, rows)) + 3 * 150 + 192


def test_the_cache_grows_in_blocks_and_not_to_the_context_at_once() -> None:
    slots = Slots(max_rows=8)
    slots.open(prefilled([1] * 10), rows=1, longest=10)
    assert slots.shape == (1, 128)
    slots.clear()
    assert slots.bytes == 0


# --- prompts ---


@given(st.lists(st.integers(1, 200), max_size=30), st.integers(1, 8), st.integers(1, 256))
def test_groups_take_prompts_in_order_within_places_and_budget(lengths: list[int], places: int, budget: int) -> None:
    waiting = deque(Reading(str(n), [n] * length) for n, length in enumerate(lengths))
    taken = []
    while waiting:
        group = next_group(waiting, places=places, budget=budget, prefix_of=lambda reading: None)
        assert 1 <= len(group) <= places
        assert len(group) == 1 or max(len(line.ids) for line in group) * len(group) <= budget
        taken += [len(line.ids) for line in group]
    assert taken == lengths


@given(st.lists(st.integers(1, 200), max_size=30), st.integers(1, 8), st.integers(1, 256))
def test_where_padding_is_free_groups_are_filled_whatever_their_lengths_and_nobody_is_left(lengths: list[int], places: int, budget: int) -> None:
    waiting = deque(Reading(str(n), [n] * length) for n, length in enumerate(lengths))
    taken: list[str] = []
    while waiting:
        first = waiting[0].id
        group = next_group(waiting, places=places, budget=budget, prefix_of=lambda reading: None, padding_is_free=True)
        assert group[0].readings[0].id == first
        assert len(group) == 1 or max(len(line.ids) for line in group) * len(group) <= budget
        if len(group) < places:  # nobody waits who would have had room
            widest = max(len(line.ids) for line in group)
            assert all(max(widest, len(r.ids)) * (len(group) + 1) > budget for r in waiting)
        taken += [line.readings[0].id for line in group]
    assert sorted(taken, key=int) == [str(n) for n in range(len(lengths))]


def test_where_padding_is_free_what_fills_a_group_s_width_is_read_in_it() -> None:
    # Given prompts of the lengths of the shipped ones, in an order in which long and short take turns
    lengths = [558, 75, 437, 136, 106, 111, 348, 91, 80, 57, 100, 98, 142, 766, 67, 82, 108, 56, 100, 57, 136] * 3
    waiting = deque(Reading(str(n), [n] * length) for n, length in enumerate(lengths))
    groups = []
    # When they are read in groups of the tokens that a GPU reads of 1.5e9 parameters at once
    while waiting:
        groups.append([len(line.ids) for line in next_group(waiting, places=64, budget=6476, prefix_of=lambda reading: None, padding_is_free=True)])
    # Then there are three, and more than half of what is read is no padding
    assert len(groups) == 3
    assert sum(lengths) > sum(max(group) * len(group) for group in groups) / 2
