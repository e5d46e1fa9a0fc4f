from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asking import Asked, one_by_one, plain
from symposia_worker.engines.prefixes import Piece, Prefixes
from symposia_worker.engines.protocol import Load
from tiny import ARCHITECTURES, endless_checkpoint, tiny_checkpoint

SHARED = "The quick brown fox jumps over the lazy dog. Debate, then vote; the majority decides. " * 2
ASKED = ("What?", "def add(a, b):", "Zwölf Boxkämpfer jagen Viktor quer", "x")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_checkpoint(tmp_path_factory.mktemp("endless"))


def tokens(folder: Path, text: str) -> int:
    return len(plain(folder)[1](text)["input_ids"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_behind_a_kept_beginning_equal_one_by_one_generate(tmp_path: Path, architecture: str) -> None:
    folder = tiny_checkpoint(tmp_path / "m", architecture)
    asked = Asked(folder, chunk=40)
    asked.ask("first", SHARED, max_tokens=6)
    asked.finish()
    assert asked.batch.tokens_spared == 0
    read = asked.batch.tokens_read
    for n, end in enumerate(ASKED):  # joins staggered, rows of other lengths decoding beside them
        asked.ask(str(n), SHARED + end, max_tokens=10 + n)
        asked.step(3)
    asked.finish()
    for n, end in enumerate(ASKED):
        got = asked.completion(str(n))
        assert (got.text, got.usage.completion_tokens) == one_by_one(folder, SHARED + end, 10 + n)
    whole = tokens(folder, SHARED) // 64 * 64
    assert whole >= 64
    assert asked.batch.tokens_spared >= whole * len(ASKED)
    assert asked.batch.tokens_read - read <= sum(tokens(folder, SHARED + end) - whole for end in ASKED)


@pytest.mark.parametrize("architecture", ["llama", "mpt", "gpt_neo"])
def test_prompts_that_begin_alike_and_come_at_once_are_read_once(tmp_path: Path, architecture: str) -> None:
    folder = tiny_checkpoint(tmp_path / "m", architecture)
    asked = Asked(folder, max_rows=8, chunk=512)
    for n, end in enumerate(ASKED):
        asked.ask(str(n), SHARED + end, max_tokens=8)
    asked.finish()
    whole = tokens(folder, SHARED) // 64 * 64
    rest = max(tokens(folder, SHARED + end) for end in ASKED) - whole
    assert asked.batch.tokens_read <= tokens(folder, SHARED + ASKED[0]) + rest * (len(ASKED) - 1)
    for n, end in enumerate(ASKED):
        assert asked.completion(str(n)).text == one_by_one(folder, SHARED + end, 8)[0]


def test_one_prompt_with_many_seeds_is_read_once_and_each_seed_keeps_its_tokens(endless: Path) -> None:
    alone = []
    for seed in range(6):
        one = Asked(endless)
        one.ask("a", "short prompt", temperature=1.0, seed=seed, max_tokens=20)
        one.finish()
        alone.append(one.completion("a").text)
    asked = Asked(endless, max_rows=8)
    for seed in range(6):
        asked.ask(str(seed), "short prompt", temperature=1.0, seed=seed, max_tokens=20)
    asked.finish()
    assert asked.batch.tokens_read == tokens(endless, "short prompt")
    assert [asked.completion(str(seed)).text for seed in range(6)] == alone
    assert len(set(alone)) > 1


def test_who_asks_what_is_being_read_joins_it_and_may_be_cancelled(endless: Path) -> None:
    asked = Asked(endless, max_rows=8, chunk=16)
    asked.ask("leader", "word " * 30, max_tokens=5)
    asked.step(2)
    asked.ask("twin", "word " * 30, max_tokens=5)
    asked.ask("other", "word " * 30, max_tokens=5)
    asked.step()
    asked.engine.cancel("leader")
    asked.engine.cancel("other")
    asked.finish()
    assert asked.batch.tokens_read == tokens(endless, "word " * 30)
    assert asked.completion("twin").text == one_by_one(endless, "word " * 30, 5)[0]


def test_kept_beginnings_are_given_up_before_anyone_has_to_wait(endless: Path) -> None:
    weights = Asked(endless).loaded
    room = 3000 * weights.cache_bytes_per_token
    asked = Asked(endless, memory=weights.bytes + room)
    asked.engine._prefixes.limit_bytes = room
    for n in range(30):
        asked.ask(str(n), f"{n} " + SHARED, max_tokens=2)
        asked.finish()
    kept = asked.engine._prefixes.bytes
    assert kept > 0
    most = 0
    for n in range(4):
        asked.ask(f"long {n}", f"{n} " + "word " * 45, max_tokens=40)
    for _ in range(4):  # a prompt begins in each step; none is passed over
        asked.step()
    assert asked.engine.waiting == 0
    while asked.engine.busy:
        asked.step()
        most = max(most, asked.batch.cache_bytes + asked.engine._prefixes.bytes)
    assert most <= room
    assert asked.engine._prefixes.bytes < kept
    for n in range(4):
        assert asked.completion(f"long {n}").text == one_by_one(endless, f"{n} " + "word " * 45, 40)[0]


def test_kept_beginnings_make_room_for_another_checkpoint_and_go_with_their_own(endless: Path) -> None:
    weights = Asked(endless).loaded
    asked = Asked(endless, memory=int(2.2 * weights.bytes))
    asked.engine._prefixes.limit_bytes = weights.bytes
    for n in range(40):
        asked.ask(str(n), f"{n} " + SHARED, max_tokens=2)
        asked.finish()
    assert asked.engine._prefixes.bytes > 0.5 * weights.bytes
    asked.engine.load(Load(checkpoint="other", folder=str(endless)))
    assert asked.engine._prefixes.bytes <= 0.2 * weights.bytes
    asked.engine.unload("tiny")
    assert asked.engine._prefixes.bytes == 0


class _Layer:
    def __init__(self, columns: int) -> None:
        self.keys = torch.arange(columns, dtype=torch.float32).view(1, 1, columns, 1).expand(2, 3, columns, 4).clone()
        self.values = -self.keys


def test_the_least_recently_used_block_goes_first_and_never_before_what_follows_it() -> None:
    layers, size = [_Layer(8)], 2 * 4 * 3 * 4 * 4
    prefixes = Prefixes(4 * size, block=4)
    prefixes.keep("m", [1, 2, 3, 4, 5, 6, 7, 8], layers, 0, 0, room=1e9)
    prefixes.keep("m", [9, 9, 9, 9, 5, 6, 7, 8], layers, 0, 0, room=1e9)
    found = prefixes.find("m", [1, 2, 3, 4, 5, 6, 7, 8, 9], most=8)
    assert found is not None
    assert found.tokens == 8
    prefixes.keep("m", [7, 7, 7, 7], layers, 0, 0, room=1e9)
    assert prefixes.bytes == 4 * size
    last = prefixes.find("m", [9, 9, 9, 9, 5, 6, 7, 8, 9], most=8)
    assert last is not None
    assert last.tokens == 4  # the leaf went, its beginning stays
    assert prefixes.find("other", [1, 2, 3, 4], most=4) is None
    prefixes.shrink(0)
    assert prefixes.bytes == 0
    assert prefixes.find("m", [1, 2, 3, 4], most=4) is None


def test_a_beginning_longer_than_the_room_keeps_what_fits_of_it() -> None:
    size = 2 * 4 * 3 * 4 * 4
    prefixes = Prefixes(2 * size, block=4)
    prefixes.keep("m", list(range(16)), [_Layer(16)], 1, 0, room=1e9)
    found = prefixes.find("m", list(range(16)), most=16)
    assert found is not None
    assert found.tokens == 8
    keys, values = found.empty(0, 1, 10)
    found.write(0, keys[0], values[0], at=2, tokens=7)
    assert keys[0, 0, :, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 0]
    assert torch.equal(values, -keys)


def test_a_piece_is_a_copy(endless: Path) -> None:
    layer = _Layer(4)
    piece = Piece.of([layer], 0, 0, 4)
    layer.keys.zero_()
    assert piece.layers[0][0].sum() > 0
