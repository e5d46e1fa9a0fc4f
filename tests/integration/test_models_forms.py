"""A checkpoint's forms in a real S3: made once, listed under it, removed with it, served by the engine process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("openvino_genai")
pytest.importorskip("optimum.intel")

from checkpoints import facts
from symposia_shared.errors import BadInput
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store
from symposia_worker.commands.models import command
from symposia_worker.models import forms
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.seats import EngineSeat, seat_of, stored_checkpoint
from symposia_worker.models.store import ModelStore
from tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def models(s3: S3Settings) -> ModelStore:
    return ModelStore(Store(s3))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture(scope="module")
def made(models: ModelStore, checkpoint: Path, cache: Path) -> forms.Forms:
    """The forms of ``lab/tiny``, exported in a process of its own."""
    models.push(checkpoint, "lab/tiny", facts=facts(context=256))
    told: list[str] = []
    made = forms.make(models, "lab/tiny", cache=cache, threads=1, progress=lambda what, done, total: told.append(what))
    assert any("testing the form exact" in line for line in told)
    return made


@pytest.fixture
def cli(s3: S3Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name, value in {"DIR": str(tmp_path), "S3__ENDPOINT_URL": str(s3.endpoint_url), "S3__ACCESS_KEY": str(s3.access_key),
                        "S3__SECRET_KEY": s3.secret_key.get_secret_value() if s3.secret_key else "", "S3__BUCKET": s3.bucket}.items():
        monkeypatch.setenv(f"SYMPOSIA_{name}", value)
    return CliRunner()


def test_both_forms_are_stored_with_what_was_measured(made: forms.Forms, models: ModelStore) -> None:
    assert [(r.mode, r.refused) for r in made.reports] == [("exact", None), ("fast", None)]
    manifest = models.require("lab/tiny")
    for mode in forms.MODES:
        form = forms.form(models, manifest, mode)
        assert form is not None
        assert form.facts.form_of is not None
        assert (form.facts.form_of.id, form.facts.form_of.mode) == ("lab/tiny", mode)
        assert {f.path for f in form.files} >= {"config.json", "openvino_model.xml", "openvino_model.bin", "tokenizer.json"}
        assert models.verify(form.id) == form
    report = made.report("fast")
    assert report is not None
    assert report.loss is not None
    assert report.loss <= 0.01


def test_forms_are_exported_once_per_machine_and_again_where_a_byte_is_gone(
        made: forms.Forms, models: ModelStore, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exported(*_: object, **__: object) -> Any:
        raise RuntimeError("exported again")

    monkeypatch.setattr(forms, "run_export", exported)
    forms.remove(models, "lab/tiny")
    assert forms.form(models, models.require("lab/tiny"), "exact") is None
    assert forms.make(models, "lab/tiny", cache=cache, threads=1) == made
    assert forms.form(models, models.require("lab/tiny"), "exact") is not None
    (spoiled,) = (cache / "forms").glob("*/exact/openvino_model.bin")
    whole = spoiled.read_bytes()
    spoiled.write_bytes(b"x" + whole[1:])
    assert forms.make(models, "lab/tiny", cache=cache, threads=1) == made  # what is stored already is left as it is
    assert forms._read(spoiled.parent.parent) is None
    spoiled.write_bytes(whole)


def test_a_folders_form_is_found_without_a_store_and_is_the_same(made: forms.Forms, checkpoint: Path, cache: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(forms, "run_export")
    folder = forms.local(checkpoint, "tiny", "fast", cache=cache, threads=1)
    assert (folder / "openvino_model.bin").is_file()
    told = folder.parent / "told.json"
    whole = told.read_text()
    told.write_text(whole.replace('"refused":null,"rows"', '"refused":"too bad.","rows"'))
    with pytest.raises(BadInput, match="too bad"):
        forms.local(checkpoint, "tiny", "fast", cache=cache, threads=1)
    told.write_text(whole)


def test_a_form_of_another_revision_does_not_count(made: forms.Forms, models: ModelStore, tmp_path: Path) -> None:
    models.push(tiny_checkpoint(tmp_path / "other", "llama", seed=3), "lab/other", facts=facts(context=256))
    stored = models.require("lab/tiny").model_copy(update={"revision": models.require("lab/other").revision})
    assert forms.form(models, stored, "exact") is None
    assert forms.told(models, stored) is None


def test_auto_takes_openvino_where_the_form_is_and_torch_elsewhere(made: forms.Forms, models: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = models.require("lab/tiny")
    assert seat_of(models, manifest, device="cpu:0", engine="auto", mode="exact") == EngineSeat("openvino", "exact", "lab/tiny--openvino-exact")
    assert seat_of(models, manifest, device="cpu", engine="auto", mode="fast") == EngineSeat("openvino", "fast", "lab/tiny--openvino-fast")
    torch = EngineSeat("torch", "exact", "lab/tiny")
    assert seat_of(models, manifest, device="cuda:0", engine="auto", mode="exact") == torch
    assert seat_of(models, manifest, device="cpu", engine="torch", mode="exact") == torch
    # on a GPU torch has both modes, and fast is half precision
    for engine in ("auto", "torch"):
        assert seat_of(models, manifest, device="cuda:0", engine=engine, mode="fast") == EngineSeat("torch", "fast", "lab/tiny")
    found = stored_checkpoint(models, "lab/tiny", device="cuda:0", engine="auto", mode="fast")
    assert (found.dtype, found.place()["precision"]) == ("bfloat16", "bfloat16")
    whole = stored_checkpoint(models, "lab/tiny", device="cuda:0", engine="auto", mode="exact")
    assert (whole.dtype, whole.bytes) == ("float32", 2 * found.bytes)
    with pytest.raises(BadInput, match="mode exact only"):
        seat_of(models, manifest, device="cpu", engine="torch", mode="fast")
    with pytest.raises(BadInput, match="no CPU"):
        seat_of(models, manifest, device="cuda:0", engine="openvino", mode="exact")
    with pytest.raises(BadInput, match="is a form of lab/tiny"):
        seat_of(models, models.require("lab/tiny--openvino-fast"), device="cpu", engine="auto", mode="exact")
    monkeypatch.setattr(forms, "servable", lambda: False)
    assert seat_of(models, manifest, device="cpu", engine="auto", mode="exact") == torch
    with pytest.raises(BadInput, match="not installed"):
        seat_of(models, manifest, device="cpu", engine="openvino", mode="exact")


def test_what_a_form_was_refused_for_is_said_where_it_is_asked_for(models: ModelStore, checkpoint: Path) -> None:
    manifest = models.push(checkpoint, "lab/refused", facts=facts(context=256))
    refused = forms.Forms(revision=manifest.revision, refused="the architecture mpt is not among those.")
    models.store.put("models/lab/refused/forms.json", refused.canonical())
    with pytest.raises(BadInput, match="mpt is not among"):
        seat_of(models, manifest, device="cpu", engine="openvino", mode="exact")
    assert seat_of(models, manifest, device="cpu", engine="auto", mode="exact").engine == "torch"


def test_an_engine_process_serves_a_form_from_the_cache_and_again_after_it_died(made: forms.Forms, models: ModelStore, cache: Path) -> None:
    import threading

    from symposia_shared.prompts import Sampling, user
    from symposia_shared.turns import Completion, Turn
    from symposia_worker.engines.client import EngineProcess

    folder = ModelCache(cache / "models").fetch(models, "lab/tiny--openvino-exact")
    died, answers = threading.Event(), []
    engine = EngineProcess("cpu", 1 << 28, on_death=lambda ids: died.set())
    engine.start()

    def asked(turn_id: str) -> Completion:
        done = threading.Event()
        turn = Turn(member="m", model="lab/tiny", messages=user("def add(a"), sampling=Sampling(max_tokens=12))
        engine.generate(turn_id, turn, None, lambda reply: (answers.append(reply), done.set()))
        assert done.wait(60)
        assert isinstance(answers[-1], Completion), answers[-1]
        return answers[-1]

    try:
        loaded = engine.load("lab/tiny", str(folder), engine="openvino")
        assert loaded.context == 256
        first = asked("a")
        engine.kill()
        assert died.wait(60)
        engine.restart()
        assert asked("b").text == first.text
    finally:
        engine.stop()


def test_what_is_pulled_gets_its_forms_and_says_so(made: forms.Forms, models: ModelStore, cache: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from symposia_worker.commands.models import _exported

    monkeypatch.setenv("SYMPOSIA_CACHE", str(cache))
    manifest = models.require("lab/tiny")
    forms.remove(models, "lab/tiny")
    monkeypatch.setattr(forms, "installed", lambda: False)
    _exported(models, manifest, tmp_path)
    assert "pip install 'symposia[openvino]'" in capsys.readouterr().err
    assert forms.form(models, manifest, "fast") is None
    monkeypatch.setattr(forms, "installed", lambda: True)
    _exported(models, manifest, tmp_path)
    told = capsys.readouterr().err
    assert "\nopenvino exact " in told
    assert "\nopenvino fast " in told
    assert forms.form(models, manifest, "fast") is not None


def test_the_commands_show_forms_under_their_checkpoint_and_remove_them_with_it(made: forms.Forms, models: ModelStore, cli: CliRunner) -> None:
    def ran(*words: str) -> str:
        done = cli.invoke(command, [*words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    lines = ran("list").splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("lab/tiny "))
    assert [line.split()[:2] for line in lines[at + 1 : at + 3]] == [["openvino", "exact"], ["openvino", "fast"]]
    shown = ran("show", "lab/tiny")
    assert re.search(r"\nopenvino fast +[\d,]+ +[\d.]+ +[+-]\d+\.\d\d% +[\d,.]+ ", shown)
    assert "\ntokens/s: 8 at once, " in shown
    assert {r["mode"] for r in json.loads(ran("show", "lab/tiny", "--json"))["forms"]["reports"]} == {"exact", "fast"}
    measured = json.loads(ran("measure", "lab/tiny", "--json"))
    assert all(r["tokens_per_s"] > 0 for r in measured["reports"])
    with pytest.raises(BadInput, match="name of a form"):
        cli.invoke(command, ["push", "/tmp", "--name", "lab/x--openvino-exact"], catch_exceptions=False)
    ran("rm", "lab/tiny")
    assert list(models.store.keys("models/lab/tiny")) == []
