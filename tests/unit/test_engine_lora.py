from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("peft")

from safetensors.torch import load_file, save_file

from adapters import tiny_adapter, with_peft
from asking import ROOMY, one_by_one
from symposia_shared.errors import BadInput, Damaged, Unavailable
from symposia_shared.prompts import Sampling, user
from symposia_worker.engines.batch import Batch
from symposia_worker.engines.lora import Adaptable
from symposia_worker.engines.protocol import Base, Done, Event, Failed, Generate, Load, encode, read_command
from symposia_worker.engines.recorded import Recorded
from symposia_worker.engines.torch import TorchEngine
from symposia_worker.families.adapters import read_adapter
from tiny import tiny_checkpoint

PROMPTS = ("def add(a", "The quick brown fox jumps over the lazy dog. " * 3, "What?", "a " * 20)
#: by architecture, layers an adapter is usually put on
TARGETS = {"llama": ("q_proj", "v_proj", "down_proj"), "codegen": ("qkv_proj", "fc_in"), "mpt": ("Wqkv", "down_proj"), "gpt_neo": ("k_proj", "c_fc"),
           "xglm": ("q_proj", "fc1"), "phi3": ("qkv_proj", "gate_up_proj"), "qwen2": ("o_proj", "up_proj")}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return (tiny_adapter(root / "one", base, name="tiny", targets=TARGETS["llama"], seed=1),
            tiny_adapter(root / "two", base, name="tiny", targets="all-linear", seed=2, rank=2, use_rslora=True, rank_pattern={"q_proj": 3},
                         alpha_pattern={"layers.1.self_attn.v_proj": 7}))


class Engine:
    """A torch engine with adapters, and what came of the requests to it."""

    def __init__(self, base: Path, memory: int = ROOMY) -> None:
        self.engine, self.base = TorchEngine("cpu", memory, max_rows=4), base
        self.events: list[Event] = []

    def load(self, name: str, folder: Path) -> int:
        return self.engine.load(Load(checkpoint=name, folder=str(folder), base=Base(checkpoint="tiny", folder=str(self.base)))).bytes

    def ask(self, request_id: str, checkpoint: str, prompt: str, most: int) -> None:
        self.engine.admit(Generate(id=request_id, checkpoint=checkpoint, messages=user(prompt), sampling=Sampling(max_tokens=most)))

    def finish(self) -> dict[str, tuple[str, int]]:
        while self.engine.busy:
            self.events += self.engine.step()
        return {e.id: (e.completion.text, e.completion.usage.completion_tokens) for e in self.events if isinstance(e, Done)}


def test_a_base_and_two_adapters_asked_at_once_each_answer_as_peft_does(base: Path, pair: tuple[Path, Path]) -> None:
    engine = Engine(base)
    engine.engine.load(Load(checkpoint="tiny", folder=str(base)))
    for name, folder in zip(("one", "two"), pair, strict=True):
        engine.load(name, folder)
    for n, prompt in enumerate(PROMPTS):
        for name in ("tiny", "one", "two"):
            engine.ask(f"{name}{n}", name, prompt, 8 + 5 * n)
        engine.events += engine.engine.step()
    got = engine.finish()
    for n, prompt in enumerate(PROMPTS):
        assert got[f"tiny{n}"] == one_by_one(base, prompt, 8 + 5 * n)
        for name, folder in zip(("one", "two"), pair, strict=True):
            assert got[f"{name}{n}"] == with_peft(base, folder, prompt, 8 + 5 * n)
            assert got[f"{name}{n}"] == with_peft(base, folder, prompt, 8 + 5 * n, merged=True)
    assert len({got[f"{name}1"] for name in ("tiny", "one", "two")}) == 3


def test_the_step_that_a_gpu_records_is_each_adapters_own(base: Path, pair: tuple[Path, Path]) -> None:
    # Given a base and two adapters, whose decode steps are recorded as on a GPU
    engine = Engine(base)
    engine.engine.load(Load(checkpoint="tiny", folder=str(base)))
    for name, folder in zip(("one", "two"), pair, strict=True):
        engine.load(name, folder)
    for resident in engine.engine._residents.values():
        batch = resident.batch
        assert isinstance(batch, Batch)
        batch._recorded = Recorded(batch._forward, batch.slots, record=lambda step: step)
    for name in ("tiny", "one", "two"):
        engine.ask(name, name, PROMPTS[1], 20)
    got = engine.finish()
    assert got["tiny"] == one_by_one(base, PROMPTS[1], 20)
    for name, folder in zip(("one", "two"), pair, strict=True):
        assert got[name] == with_peft(base, folder, PROMPTS[1], 20)


@pytest.mark.parametrize("architecture", sorted(set(TARGETS) - {"llama"}))
def test_adapters_of_other_architectures_answer_as_peft_does(tmp_path: Path, architecture: str) -> None:
    base = tiny_checkpoint(tmp_path / "base", architecture)
    adapter = tiny_adapter(tmp_path / "adapter", base, name="tiny", targets=TARGETS[architecture])
    engine = Engine(base)
    engine.load("one", adapter)
    for n, prompt in enumerate(PROMPTS):
        engine.ask(str(n), "one", prompt, 10)
    got = engine.finish()
    assert [got[str(n)] for n in range(len(PROMPTS))] == [with_peft(base, adapter, prompt, 10) for prompt in PROMPTS]


def test_turns_of_one_adapter_share_forward_passes(base: Path, pair: tuple[Path, Path]) -> None:
    engine = Engine(base)
    engine.load("one", pair[0])
    before = engine.engine.forward_passes
    for n in range(4):
        engine.ask(str(n), "one", PROMPTS[0], 12)
    tokens = sum(tokens for _, tokens in engine.finish().values())
    assert engine.engine.forward_passes - before < tokens / 2


def test_an_adapter_takes_its_own_bytes_and_its_base_is_held_once_while_any_is_resident(base: Path, pair: tuple[Path, Path]) -> None:
    engine = Engine(base)
    sizes = {name: engine.load(name, folder) for name, folder in zip(("one", "two"), pair, strict=True)}
    held = dict(engine.engine.resident)
    assert held == {"tiny": held["tiny"], **sizes}
    assert sizes["one"] == sum(t.nbytes for t in load_file(pair[0] / "adapter_model.safetensors").values())
    engine.engine.load(Load(checkpoint="tiny", folder=str(base)))
    engine.engine.unload("tiny")
    engine.engine.unload("one")
    assert set(engine.engine.resident) == {"tiny", "two"}
    engine.engine.unload("two")
    assert not engine.engine.resident
    assert engine.engine.held_bytes == 0


def test_a_base_answers_as_before_when_its_adapters_are_gone(base: Path, pair: tuple[Path, Path]) -> None:
    engine = Engine(base)
    engine.engine.load(Load(checkpoint="tiny", folder=str(base)))
    network = engine.engine._residents["tiny"].model.network
    layers = [type(m) for m in network.modules()]
    for name, folder in zip(("one", "two"), pair, strict=True):
        engine.load(name, folder)
    for name in ("two", "one"):
        engine.engine.unload(name)
    assert [type(m) for m in network.modules()] == layers
    engine.ask("a", "tiny", PROMPTS[1], 12)
    assert engine.finish()["a"] == one_by_one(base, PROMPTS[1], 12)


def test_turns_of_an_adapter_that_is_unloaded_are_asked_again(base: Path, pair: tuple[Path, Path]) -> None:
    engine = Engine(base)
    engine.load("one", pair[0])
    engine.ask("a", "one", PROMPTS[0], 12)
    (failed,) = engine.engine.unload("one")
    assert isinstance(failed, Failed)
    assert failed.cause == "throttled"
    with pytest.raises(Unavailable):
        engine.ask("b", "one", PROMPTS[0], 12)


def test_an_adapter_that_is_refused_leaves_no_base_behind(base: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", "llama", hidden_size=64)
    engine = Engine(other)
    with pytest.raises(BadInput, match="Name the base it was trained on"):
        engine.load("one", pair[0])
    assert not engine.engine.resident


def test_an_adapter_in_another_precision_than_its_resident_base_is_refused(base: Path, pair: tuple[Path, Path]) -> None:
    engine = Engine(base)
    engine.load("one", pair[0])
    with pytest.raises(BadInput, match="resident in float32"):
        engine.engine.load(Load(checkpoint="two", folder=str(pair[1]), dtype="bfloat16", base=Base(checkpoint="tiny", folder=str(base))))
    assert set(engine.engine.resident) == {"tiny", "one"}


def test_an_adapter_larger_than_the_room_left_is_refused_with_the_numbers(base: Path, pair: tuple[Path, Path]) -> None:
    size = (base / "model.safetensors").stat().st_size
    with pytest.raises(BadInput, match="MB are left"):
        Engine(base, memory=size + 1000).load("one", pair[0])


def _copied(folder: Path, to: Path, **fields: object) -> Path:
    to.mkdir()
    (to / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    (to / "adapter_config.json").write_text(json.dumps({**json.loads((folder / "adapter_config.json").read_text()), **fields}))
    return to


@pytest.mark.parametrize(("fields", "named"), [
    ({"use_dora": True}, "DoRA"), ({"bias": "all"}, "bias: all"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"lora_bias": True}, "lora_B"),
    ({"peft_type": "IA3"}, "IA3"), ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"), ({"trainable_token_indices": [1]}, "token embeddings"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"), ({"r": 0}, "rank"), ({"layer_replication": [[0, 1]]}, "replicated"),
    ({"rank_pattern": {"(": 3}}, "rank_pattern"),
    ({"base_model_name_or_path": None}, "names no base"),
])
def test_variants_that_are_not_served_are_refused_by_name(pair: tuple[Path, Path], tmp_path: Path, fields: dict[str, object], named: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_adapter(_copied(pair[0], tmp_path / "a", **fields))
    assert named in str(refused.value)


def test_a_pickled_adapter_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = _copied(pair[0], tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(BadInput, match="pickle"):
        read_adapter(folder)


def test_an_adapter_with_half_a_pair_or_with_a_stranger_is_refused(base: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = _copied(pair[0], tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    first = next(k for k in tensors if "lora_A" in k)
    save_file({k: v for k, v in tensors.items() if k != first}, folder / "adapter_model.safetensors")
    with pytest.raises(Damaged, match="only one of"):
        Engine(base).load("one", folder)
    save_file({**tensors, "base_model.model.lm_head.weight": tensors[first].clone()}, folder / "adapter_model.safetensors")
    with pytest.raises(BadInput, match=r"lm_head\.weight"):
        Engine(base).load("one", folder)
    save_file({**tensors, first: tensors[first] * float("nan")}, folder / "adapter_model.safetensors")
    with pytest.raises(Damaged, match="numbers that are none"):
        Engine(base).load("one", folder)


def test_an_adapter_refused_for_its_tokenizer_leaves_the_bases_layers_as_they_were(base: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    engine, folder = Engine(base), _copied(pair[0], tmp_path / "a")
    engine.engine.load(Load(checkpoint="tiny", folder=str(base)))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "NoSuchTokenizer"}')
    with pytest.raises((BadInput, Damaged)):
        engine.load("one", folder)
    network = engine.engine._residents["tiny"].model.network
    assert not [module for module in network.modules() if isinstance(module, Adaptable)]


def test_the_base_of_an_adapter_crosses_the_wire(base: Path) -> None:
    order = Load(checkpoint="one", folder="/a", base=Base(checkpoint="tiny", folder=str(base)))
    assert read_command(encode(order)) == order


def test_the_engine_openvino_refuses_an_adapter_by_name(base: Path, pair: tuple[Path, Path]) -> None:
    pytest.importorskip("openvino_genai")
    from symposia_worker.engines.openvino import OpenVINOEngine

    with pytest.raises(BadInput, match="LoRA adapter of tiny"):
        OpenVINOEngine("cpu", ROOMY).load(Load(checkpoint="one", folder=str(pair[0]), base=Base(checkpoint="tiny", folder=str(base))))
