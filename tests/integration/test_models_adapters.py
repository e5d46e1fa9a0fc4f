"""A LoRA adapter in a real S3: tried over its base when it is pushed, served over it from another process, refused where they do not fit."""

from __future__ import annotations

import json
import queue
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("peft")

from adapters import tiny_adapter, with_peft
from checkpoints import facts
from symposia_shared.catalogue import AdapterOf
from symposia_shared.errors import BadInput, SymposiaError
from symposia_shared.prompts import Sampling, user
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store
from symposia_shared.turns import Abstention, Completion, Turn
from symposia_worker.commands.models import command
from symposia_worker.engines.client import EngineProcess
from symposia_worker.models import forms, ingest
from symposia_worker.models.adapters import base_of
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.manifest import Manifest
from symposia_worker.models.seats import EngineSeat, seat_of
from symposia_worker.models.store import ModelStore
from tiny import tiny_checkpoint
from trials import tried_here

TARGETS = ("q_proj", "v_proj", "down_proj")


@pytest.fixture(scope="module")
def models(s3: S3Settings) -> ModelStore:
    return ModelStore(Store(s3))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, models: ModelStore, cache: Path) -> Path:
    """Stored as ``lab/tiny``."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama")
    with pytest.MonkeyPatch.context() as patch:
        tried_here(patch)
        ingest.add_folder(models, folder, "lab/tiny", cache=cache, untrained=True)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return tiny_adapter(tmp_path_factory.mktemp("adapter") / "one", base, name="lab/tiny", targets=TARGETS)


@pytest.fixture(scope="module")
def environment(s3: S3Settings, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By which a command finds the model store."""
    return {f"SYMPOSIA_{name}": value for name, value in {
        "DIR": str(tmp_path_factory.mktemp("stack")), "S3__ENDPOINT_URL": str(s3.endpoint_url), "S3__ACCESS_KEY": str(s3.access_key),
        "S3__SECRET_KEY": s3.secret_key.get_secret_value() if s3.secret_key else "", "S3__BUCKET": s3.bucket, "CACHE": str(cache)}.items()}


@pytest.fixture(scope="module")
def stored(environment: dict[str, str], adapter: Path) -> dict[str, object]:
    """What `symposia models push` tells of it as JSON."""
    done = CliRunner().invoke(command, ["push", str(adapter), "--name", "lab/one", "--untrained", "--json"], env=environment)
    assert done.exit_code == 0, (done.output, done.exception)
    told: dict[str, object] = json.loads(re.findall(r"^\{.*\}$", done.stdout, re.MULTILINE)[-1])
    return told


def put(models: ModelStore, folder: Path, name: str, *, over: str = "") -> Manifest:
    """Stored without a trial of its own: a process that loads torch is for the tests that are about what it finds."""
    of = AdapterOf(id=over, revision=models.require(over).revision) if over else None
    return models.push(folder, name, facts=facts(context=256, adapter_of=of))


def test_a_pushed_adapter_names_its_base_and_the_bases_revision(models: ModelStore, stored: dict[str, object]) -> None:
    under = models.require("lab/tiny")
    assert stored["adapter_of"] == {"id": "lab/tiny", "revision": under.revision}
    manifest = models.require("lab/one")
    assert {f.path for f in manifest.files} >= {"adapter_config.json", "adapter_model.safetensors"}
    own = 4 * (manifest.facts.parameters - under.facts.parameters)
    assert 0 < own < next(f.size for f in manifest.files if f.path == "adapter_model.safetensors")
    assert manifest.facts.bits_per_byte != under.facts.bits_per_byte
    assert not forms.suits(manifest)


def test_a_stored_adapter_is_served_by_torch_over_its_base_as_peft_would(models: ModelStore, base: Path, adapter: Path, cache: Path,
                                                                         stored: dict[str, object]) -> None:
    manifest, checkpoints = models.require("lab/one"), ModelCache(cache / "models")
    assert seat_of(models, manifest, device="cpu", engine="auto", mode="exact") == EngineSeat("torch", "exact", "lab/one")
    with pytest.raises(BadInput, match="LoRA adapter of lab/tiny"):
        seat_of(models, manifest, device="cpu", engine="openvino", mode="exact")
    engine = EngineProcess("cpu", 1 << 28, threads=1, start_within_s=300)
    engine.start()
    replies: queue.SimpleQueue[Completion | Abstention] = queue.SimpleQueue()
    try:
        loaded = engine.load("lab/one", str(checkpoints.fetch(models, "lab/one")), base=base_of(models, manifest, checkpoints))
        engine.generate("a", Turn(member="m", model="lab/one", messages=user("def add(a"), sampling=Sampling(max_tokens=12)), None, replies.put)
        reply = replies.get(timeout=120)
    finally:
        engine.stop()
    assert loaded.bytes == 4 * (manifest.facts.parameters - models.require("lab/tiny").facts.parameters)
    assert isinstance(reply, Completion)
    assert (reply.text, reply.usage.completion_tokens) == with_peft(base, adapter, "def add(a", 12)


def test_an_adapter_whose_base_is_not_stored_or_does_not_fit_is_refused(models: ModelStore, base: Path, adapter: Path, cache: Path, tmp_path: Path,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = tiny_adapter(tmp_path / "stranger", base, name="lab/nowhere", targets=TARGETS)
    with pytest.raises(BadInput, match="'lab/nowhere' is not in the model store"):
        ingest.add_folder(models, stranger, "lab/two", cache=cache, untrained=True)
    with monkeypatch.context() as patch:
        tried_here(patch)
        assert ingest.add_folder(models, stranger, "lab/two", cache=cache, untrained=True, base="lab/tiny").facts.adapter_of
    put(models, tiny_checkpoint(tmp_path / "wide", "llama", hidden_size=64), "lab/wide")
    with pytest.raises(BadInput, match="matrices for"):
        ingest.add_folder(models, adapter, "lab/three", cache=cache, untrained=True, base="lab/wide")
    with pytest.raises(BadInput, match="no base for adapters"):
        ingest.add_folder(models, adapter, "lab/three", cache=cache, untrained=True, base="lab/two")
    with pytest.raises(BadInput, match="bits per byte"):
        ingest.add_folder(models, adapter, "lab/three", cache=cache)


def test_an_adapter_is_refused_once_its_base_is_another(models: ModelStore, base: Path, adapter: Path, cache: Path, tmp_path: Path) -> None:
    put(models, tiny_checkpoint(tmp_path / "old", "llama", seed=5), "lab/moving")
    manifest = put(models, adapter, "lab/follows", over="lab/moving")
    put(models, tiny_checkpoint(tmp_path / "new", "llama", seed=6), "lab/moving")
    with pytest.raises(SymposiaError, match="was made for the revision"):
        base_of(models, manifest, ModelCache(cache / "models"))


def test_a_base_is_not_removed_before_its_adapters_which_are_named(models: ModelStore, environment: dict[str, str], adapter: Path,
                                                                   tmp_path: Path) -> None:
    put(models, tiny_checkpoint(tmp_path / "under", "llama", seed=7), "lab/under")
    for name in ("lab/first", "lab/second"):
        put(models, adapter, name, over="lab/under")
    refused = CliRunner().invoke(command, ["rm", "lab/under"], env=environment)
    assert isinstance(refused.exception, BadInput)
    assert "lab/first, lab/second" in str(refused.exception)
    assert models.manifest("lab/under") is not None
    assert CliRunner().invoke(command, ["rm", "lab/second"], env=environment).exit_code == 0
    assert CliRunner().invoke(command, ["rm", "--force", "lab/under"], env=environment).exit_code == 0
    assert models.manifest("lab/under") is None
    assert models.manifest("lab/first") is not None
    assert CliRunner().invoke(command, ["rm", "lab/first"], env=environment).exit_code == 0
