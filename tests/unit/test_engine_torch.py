from __future__ import annotations

import gc
import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asking import ROOMY, Asked, one_by_one, plain
from symposia_shared.errors import BadInput, Damaged, PromptTooLong, Unavailable
from symposia_shared.prompts import Sampling, user
from symposia_worker.engines import batch as batch_module
from symposia_worker.engines.packed import PackedLinear
from symposia_worker.engines.protocol import Delta, Done, Failed, First, Generate, Load
from symposia_worker.engines.slots import Slots
from symposia_worker.engines.torch import TorchEngine
from tiny import ARCHITECTURES, edit_config, endless_checkpoint, tiny_checkpoint, tiny_tokenizer

PROMPTS = (
    "def add(a", "The quick brown fox jumps over the lazy dog. " * 4, "What?", "Zwölf Boxkämpfer jagen Viktor quer über den Deich",
    "a " * 40, "Debate, then vote", "x",
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: tiny_checkpoint(root / name, name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_checkpoint(tmp_path_factory.mktemp("endless"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_answers_with_staggered_joins_equal_one_by_one_generate(folders: dict[str, Path], architecture: str) -> None:
    folder = folders[architecture]
    asked = Asked(folder)
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=8 + 5 * n)
        asked.step(2)
    asked.finish()
    for n, prompt in enumerate(PROMPTS):
        got = asked.completion(str(n))
        assert (got.text, got.usage.completion_tokens) == one_by_one(folder, prompt, 8 + 5 * n)


@pytest.mark.parametrize("sampling", [
    {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.2}, {"temperature": 2.0, "top_k": 7, "min_p": 0.05},
])
def test_a_seeded_answer_is_the_same_whatever_shares_its_batch(endless: Path, sampling: dict[str, float]) -> None:
    alone = Asked(endless)
    alone.ask("a", PROMPTS[0], max_tokens=40, seed=7, **sampling)
    alone.finish()

    crowded = Asked(endless)
    crowded.ask("x", PROMPTS[1], max_tokens=30, temperature=1.0, seed=1)
    crowded.step(5)
    crowded.ask("a", PROMPTS[0], max_tokens=40, seed=7, **sampling)
    crowded.ask("y", PROMPTS[3], max_tokens=11)
    crowded.step(9)
    crowded.ask("z", PROMPTS[2], max_tokens=40, temperature=0.3, seed=7)
    crowded.finish()

    assert crowded.completion("a").text == alone.completion("a").text
    other = Asked(endless)
    other.ask("a", PROMPTS[0], max_tokens=40, seed=8, **sampling)
    other.finish()
    assert other.completion("a").text != alone.completion("a").text


def test_a_repetition_penalty_changes_greedy_answers_as_generate_does(endless: Path) -> None:
    asked = Asked(endless)
    asked.ask("a", PROMPTS[0], max_tokens=30, repetition_penalty=1.5)
    asked.finish()
    model, tokenizer = plain(endless)
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=30, do_sample=False, repetition_penalty=1.5, pad_token_id=0)[0, ids.shape[1] :]
    assert asked.completion("a").text == tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_the_mean_log_probability_is_that_of_a_teacher_forced_forward(endless: Path) -> None:
    asked = Asked(endless)
    asked.ask("a", PROMPTS[0], max_tokens=12, temperature=1.5, seed=3)
    asked.step()
    (sequence,) = list(asked.batch)
    asked.finish()
    model, _ = plain(endless)
    with torch.no_grad():
        logs = model(torch.tensor([sequence.ids])).logits[0].log_softmax(-1)
    new = range(sequence.prompt_tokens, len(sequence.ids))
    expected = sum(float(logs[i - 1, sequence.ids[i]]) for i in new) / len(new)
    assert asked.completion("a").logprob_mean == pytest.approx(expected, abs=1e-4)


def test_turns_that_overlap_share_forward_passes(endless: Path) -> None:
    asked = Asked(endless)
    asked.ask("a", PROMPTS[0], max_tokens=30)
    asked.step(10)
    asked.ask("b", PROMPTS[2], max_tokens=30)
    asked.finish()
    alone = 2 * (1 + 29)  # a prefill, and a pass for each further token
    assert asked.engine.forward_passes < alone
    first_b = next(n for n, e in enumerate(asked.events) if isinstance(e, First) and e.id == "b")
    last_a = next(n for n, e in enumerate(asked.events) if isinstance(e, Done) and e.id == "a")
    assert first_b < last_a


def test_a_long_prompt_does_not_stall_the_others(endless: Path) -> None:
    asked = Asked(endless, chunk=16)
    asked.ask("running", PROMPTS[0], max_tokens=60)
    asked.step(3)
    asked.ask("long", "word " * 40, max_tokens=2)
    asked.step()
    asked.ask("short", "x", max_tokens=2)
    asked.finish()
    done = [e.id for e in asked.events if isinstance(e, Done)]
    assert done == ["short", "long", "running"]


def test_two_checkpoints_are_advanced_together(folders: dict[str, Path]) -> None:
    asked = Asked(folders["gpt_neo"])
    asked.engine.load(Load(checkpoint="other", folder=str(folders["mpt"])))
    asked.ask("a", PROMPTS[0], max_tokens=12)
    asked.engine.admit(Generate(id="b", checkpoint="other", messages=user(PROMPTS[3]), sampling=Sampling(max_tokens=12)))
    asked.step()
    assert {e.id for e in asked.events if isinstance(e, First)} == {"a", "b"}
    asked.finish()
    assert asked.completion("a").text == one_by_one(folders["gpt_neo"], PROMPTS[0], 12)[0]
    assert asked.completion("b").text == one_by_one(folders["mpt"], PROMPTS[3], 12)[0]


def test_a_cancelled_turn_leaves_the_others_as_they_were(endless: Path) -> None:
    asked = Asked(endless)
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=25)
    asked.step(6)
    for n in (0, 1, 4, 6):  # running, being read or waiting
        assert asked.engine.cancel(str(n))
        asked.step()
    asked.finish()
    assert not asked.engine.cancel("2")
    assert {e.id for e in asked.events if isinstance(e, Done)} == {"2", "3", "5"}
    for n in (2, 3, 5):
        assert asked.completion(str(n)).text == one_by_one(endless, PROMPTS[n], 25)[0]


def test_an_id_may_be_asked_again_after_its_cancel(endless: Path) -> None:
    asked = Asked(endless, chunk=8)
    asked.ask("a", "word " * 40, max_tokens=5)
    asked.step()
    asked.engine.cancel("a")
    asked.ask("a", "x", max_tokens=5)
    asked.finish()
    assert asked.completion("a").text == one_by_one(endless, "x", 5)[0]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_stop_string_ends_the_answer_before_it_over_token_borders(endless: Path, data: st.DataObject) -> None:
    whole = one_by_one(endless, PROMPTS[0], 30)[0]
    begin = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[begin : begin + data.draw(st.integers(1, 6))]
    asked = Asked(endless)
    asked.ask("a", PROMPTS[0], max_tokens=30, stop=("never there", stop), stream=True)
    asked.finish()
    got = asked.completion("a")
    assert got.text == whole[: whole.index(stop)]
    assert got.finish_reason == "stop"
    assert "".join(e.text for e in asked.events if isinstance(e, Delta)) == got.text


def test_streamed_deltas_joined_are_the_text(endless: Path) -> None:
    asked = Asked(endless)
    asked.ask("a", PROMPTS[3], max_tokens=60, stream=True)
    asked.finish()
    deltas = [e.text for e in asked.events if isinstance(e, Delta)]
    assert len(deltas) > 10
    assert "".join(deltas) == asked.completion("a").text == one_by_one(endless, PROMPTS[3], 60)[0]


def test_an_answer_is_cut_to_what_is_left_of_the_context(endless: Path) -> None:
    asked = Asked(endless)
    asked.ask("a", "word " * 45, max_tokens=1000)
    asked.finish()
    got = asked.completion("a")
    assert got.finish_reason == "length"
    assert got.usage.prompt_tokens + got.usage.completion_tokens == 256


def test_prompts_that_cannot_be_answered_are_refused_before_any_decode(endless: Path) -> None:
    asked = Asked(endless)
    before = asked.engine.forward_passes
    with pytest.raises(PromptTooLong, match="reads 256"):
        asked.ask("a", "word " * 300)
    with pytest.raises(BadInput, match="empty"):
        asked.ask("b", " \n ")
    with pytest.raises(Unavailable, match="not resident"):
        asked.engine.admit(Generate(id="c", checkpoint="elsewhere", messages=user("x")))
    assert not asked.engine.busy
    assert asked.engine.forward_passes == before


def test_a_token_beyond_the_models_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m")
    tiny_tokenizer(special=("<far>",)).save_pretrained(folder)
    asked = Asked(folder)
    with pytest.raises(BadInput, match="knows"):
        asked.ask("a", "what is <far> here")


def test_ids_that_pad_the_vocabulary_are_never_sampled(tmp_path: Path) -> None:
    asked = Asked(tiny_checkpoint(tmp_path / "m", padding=5000))
    for seed in range(4):
        asked.ask(str(seed), "x", temperature=10.0, seed=seed, max_tokens=100)
    sequences = []
    while asked.engine.busy:
        asked.step()
        sequences += [s for s in asked.batch if s not in sequences]
    assert sum(s.new_tokens for s in sequences) > 50
    assert max(i for s in sequences for i in s.ids) < len(tiny_tokenizer())


@pytest.mark.parametrize(("kind", "model_type"), [("LlamaModel", "llama"), ("BartForConditionalGeneration", "bart"), ("T5EncoderModel", "t5")])
def test_what_is_no_generator_encoder_or_t5_is_refused(endless: Path, tmp_path: Path, kind: str, model_type: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(endless, folder)
    edit_config(folder, architectures=[kind], model_type=model_type)
    with pytest.raises(BadInput, match="not a text generator, an encoder or a T5"):
        Asked(folder)


def test_an_architecture_that_needs_code_of_its_own_is_refused(endless: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(endless, folder)
    edit_config(folder, model_type="novel", auto_map={"AutoConfig": "novel.Novel", "AutoModelForCausalLM": "novel.NovelLM"})
    (folder / "novel.py").write_text("raise SystemExit('code of a checkpoint was run')")
    with pytest.raises(BadInput, match="Code that comes with a checkpoint is never run"):
        Asked(folder)


def test_weights_that_are_cut_or_lack_tensors_are_refused(endless: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    cut, lacking = tmp_path / "cut", tmp_path / "lacking"
    shutil.copytree(endless, cut)
    shutil.copytree(endless, lacking)
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(Damaged):
        Asked(cut)
    tensors = load_file(lacking / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Damaged, match="lacks 1 of its tensors"):
        Asked(lacking)


def test_a_checkpoint_without_safetensors_is_refused(endless: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(endless, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="safetensors"):
        Asked(folder)


def test_weights_that_are_not_numbers_fail_the_self_test(endless: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "m"
    shutil.copytree(endless, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Damaged, match="self-test"):
        Asked(folder)


def test_batching_that_is_wrong_for_an_architecture_fails_the_self_test(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Slots.join
    monkeypatch.setattr(Slots, "join", lambda self, layers, source, length: right(self, layers, source, length - 1))
    with pytest.raises(Damaged, match="self-test"):
        Asked(endless)


def test_a_checkpoint_larger_than_its_device_is_refused_with_the_numbers(endless: Path) -> None:
    with pytest.raises(BadInput, match="0 MB left"):
        Asked(endless, memory=1000)


def test_caches_stay_within_the_memory_and_the_answers_the_same(endless: Path) -> None:
    weights = Asked(endless).loaded
    room = 600 * weights.cache_bytes_per_token
    asked = Asked(endless, memory=weights.bytes + room, max_rows=8)
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=60)
    most = passed = 0
    while asked.engine.busy:
        asked.step()
        passed += asked.engine.waiting > 0
        if len(asked.batch.rows) > 1:
            most = max(most, asked.batch.cache_bytes)
    assert passed  # someone had to wait
    assert 0 < most <= room
    for n, prompt in enumerate(PROMPTS):
        assert asked.completion(str(n)).text == one_by_one(endless, prompt, 60)[0]


def test_a_prompt_whose_cache_fits_nowhere_fails_as_out_of_memory(endless: Path) -> None:
    weights = Asked(endless).loaded
    asked = Asked(endless, memory=weights.bytes + 100 * weights.cache_bytes_per_token)
    asked.ask("a", "word " * 40)
    asked.finish()
    assert asked.failure("a").cause == "out_of_memory"
    assert "MB" in asked.failure("a").message


def test_a_forward_that_is_out_of_memory_is_split_and_nobody_sees_it(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(endless)
    right = asked.batch.model.forward
    refused = []

    def forward(**given: Any) -> Any:
        if given["input_ids"].shape[0] > 2:
            refused.append(1)
            raise torch.OutOfMemoryError("too many rows")
        return right(**given)

    monkeypatch.setattr(asked.batch.model, "forward", forward)
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=20)
    asked.finish()
    assert refused
    for n, prompt in enumerate(PROMPTS):
        assert asked.completion(str(n)).text == one_by_one(endless, prompt, 20)[0]


def test_a_failing_forward_fails_its_turns_and_no_other_checkpoints(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(folders["llama"])
    asked.engine.load(Load(checkpoint="other", folder=str(folders["mpt"])))
    asked.engine.admit(Generate(id="b", checkpoint="other", messages=user("x"), sampling=Sampling(max_tokens=20)))
    asked.ask("a", PROMPTS[0], max_tokens=20)
    asked.step(2)
    with monkeypatch.context() as broken:
        broken.setattr(asked.batch.model, "forward", lambda **_: 1 / 0)
        asked.step()
    assert asked.failure("a").cause == "bug"
    asked.ask("again", PROMPTS[0], max_tokens=5)
    asked.finish()
    assert asked.completion("b").text == one_by_one(folders["mpt"], "x", 20)[0]
    assert asked.completion("again").text == one_by_one(folders["llama"], PROMPTS[0], 5)[0]


def test_a_lost_device_ends_the_step_so_that_the_process_can_end(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(endless)

    def lost(**_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(asked.batch.model, "forward", lost)
    asked.ask("a", "x")
    with pytest.raises(RuntimeError, match="CUDA error"):
        asked.step()
    assert asked.engine.abandon() == ["a"]


def test_unloading_gives_turns_back_as_throttled_and_forgets_the_checkpoint(endless: Path) -> None:
    asked = Asked(endless)
    assert asked.engine.resident == {"tiny": asked.loaded.bytes}
    asked.ask("a", "x", max_tokens=50)
    asked.step(3)
    passes = asked.engine.forward_passes
    (failed,) = asked.engine.unload("tiny")
    assert isinstance(failed, Failed)
    assert failed.cause == "throttled"
    assert asked.engine.resident == {}
    assert asked.engine.forward_passes == passes
    assert list(asked.engine.unload("tiny")) == []


def test_measured_bytes_are_those_of_the_weights(endless: Path) -> None:
    header = (endless / "model.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    tensors = json.loads(header[8 : 8 + size])
    on_disk = max(t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__")
    assert on_disk <= Asked(endless).loaded.bytes <= on_disk + 4096  # and the buffers of rope


def test_a_rope_that_changes_with_length_is_served_only_within_what_it_was_trained_for(endless: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(endless, folder)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 128}
    edit_config(folder, rope_parameters=rope)
    assert Asked(folder).loaded.context == 128


def test_half_precision_weights_are_served_in_the_precision_asked_for(endless: Path) -> None:
    engine = TorchEngine("cpu", ROOMY)
    whole = engine.load(Load(checkpoint="whole", folder=str(endless)))
    half = engine.load(Load(checkpoint="half", folder=str(endless), dtype="bfloat16"))
    assert half.bytes < 0.6 * whole.bytes


def test_groups_of_prompts_are_not_read_beyond_their_number(endless: Path) -> None:
    asked = Asked(endless, max_rows=16, chunk=8)
    for n in range(16):
        asked.ask(str(n), "word " * (3 + 2 * n), max_tokens=2)
        asked.step()
        assert len(asked.batch.prefills) <= batch_module.MAX_PREFILLS
    asked.finish()
    assert sum(isinstance(e, Done) for e in asked.events) == 16


def test_checkpoints_with_one_tokenizer_hold_it_once_and_others_their_own(tmp_path: Path) -> None:
    one, two = (tiny_checkpoint(tmp_path / name, "llama", seed=seed) for name, seed in (("one", 1), ("two", 2)))
    other = tiny_checkpoint(tmp_path / "other", "llama")
    stated = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**stated, "model_max_length": 77}))
    engine = TorchEngine("cpu", ROOMY)
    for folder in (one, two, other):
        engine.load(Load(checkpoint=folder.name, folder=str(folder)))
    held = {name: r.model.renderer.tokenizer for name, r in engine._residents.items()}
    assert held["one"] is held["two"]
    assert held["other"] is not held["one"]
    # and no longer than it is used
    gone = weakref.ref(held.pop("other"))
    engine.unload("other")
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's mappings")
def test_weights_that_were_packed_are_no_longer_mapped_from_their_file_as_well(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "large", "llama", hidden_size=384, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4)
    asked = Asked(folder)
    assert any(isinstance(m, PackedLinear) for m in asked.engine._residents["tiny"].model.network.modules())
    assert str(folder) not in Path("/proc/self/maps").read_text()
    asked.ask("a", "def add(a", max_tokens=8)
    asked.finish()
    assert asked.completion("a").text == one_by_one(folder, "def add(a", 8)[0]
