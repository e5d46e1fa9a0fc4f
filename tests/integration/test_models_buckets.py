"""Checkpoints of other buckets, with keys of their own, into the model store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from checkpoints import contents, facts, make_checkpoint
from s3 import running_s3
from symposia_shared.catalogue import S3Source
from symposia_shared.errors import BadInput, Damaged, StoreUnavailable, SymposiaError, Unavailable, UnknownModel
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store
from symposia_worker.commands import models as commands
from symposia_worker.models import buckets, ingest, trial
from symposia_worker.models import manifest as manifests
from symposia_worker.models.store import ModelStore, silent


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The bucket of another S3, with other keys."""
    with running_s3(tmp_path_factory.mktemp("theirs")) as settings:
        yield Store(settings)


@pytest.fixture(autouse=True)
def tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """These checkpoints are none that could be loaded; the trial has its own tests."""
    found = trial.Found(architecture="LlamaForCausalLM", model_type="llama", context=128, vocab=320, capabilities=("generate",))
    monkeypatch.setattr(trial, "probe", lambda *_, **__: found)
    monkeypatch.setattr(ingest, "reasons_to_convert", lambda *_, **__: ())
    monkeypatch.setattr(ingest, "longest_token_bytes", lambda _: 16)


def published(theirs: Store, folder: Path, prefix: str, *, elements: int = 4096) -> Path:
    made = make_checkpoint(folder, elements=elements)
    for path, body in contents(made).items():
        theirs.put(f"{prefix}/{path}", body)
    return made


@pytest.fixture
def cli(s3: S3Settings, theirs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    secret = theirs.settings.secret_key
    assert secret
    for name, value in {"DIR": str(tmp_path / "stack"), "S3__ENDPOINT_URL": s3.endpoint_url, "S3__ACCESS_KEY": s3.access_key, "S3__BUCKET": s3.bucket,
                        "S3__SECRET_KEY": s3.secret_key.get_secret_value() if s3.secret_key else ""}.items():
        monkeypatch.setenv(f"SYMPOSIA_{name}", str(value))
    (tmp_path / "aws").write_text(f"[profile other]\nregion = us-east-1\nendpoint_url = {theirs.settings.endpoint_url}\n"
                                  f"aws_access_key_id = {theirs.settings.access_key}\naws_secret_access_key = {secret.get_secret_value()}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

    def ran(*words: str) -> Any:
        done = CliRunner().invoke(commands.command, [*words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return json.loads(done.stdout) if "--json" in words else done.stdout

    return ran


def test_a_folder_of_another_bucket_is_pulled_by_a_profile(cli: Callable[..., Any], models: ModelStore, theirs: Store, tmp_path: Path) -> None:
    made = published(theirs, tmp_path / "made", "weights/tiny")
    theirs.put("weights/tiny/train.py", b"raise SystemExit")
    told = cli("pull", "s3://tests/weights/tiny", "--name", "lab/tiny", "--profile", "other", "--no-export", "--json")
    manifest = models.verify("lab/tiny")
    assert told["source"] == f"s3://tests/weights/tiny@{manifest.revision}"
    assert {f.path: f.sha256 for f in manifest.files} == {path: hashlib.sha256(body).hexdigest() for path, body in contents(made).items()}


def test_a_folder_of_another_bucket_is_pulled_by_settings(cli: Callable[..., Any], models: ModelStore, theirs: Store, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    published(theirs, tmp_path / "made", "weights/tiny")
    with pytest.raises(UnknownModel, match="there is nothing at s3://tests/weights/tiny"):  # in our own S3
        cli("add", "s3://tests/weights/tiny", "--no-export")
    for name in ("endpoint_url", "access_key"):
        monkeypatch.setenv(f"SYMPOSIA_SOURCE__{name.upper()}", str(getattr(theirs.settings, name)))
    with pytest.raises(Unavailable, match="SYMPOSIA_SOURCE__"):
        monkeypatch.setenv("SYMPOSIA_SOURCE__SECRET_KEY", "wrong")
        cli("add", "s3://tests/weights/tiny", "--no-export")
    monkeypatch.setenv("SYMPOSIA_SOURCE__SECRET_KEY", theirs.settings.secret_key.get_secret_value() if theirs.settings.secret_key else "")
    cli("add", "s3://tests/weights/tiny", "--no-export")
    assert models.verify("tiny").facts.source.startswith("s3://tests/weights/tiny@")


def test_a_checkpoint_of_another_model_store_is_verified_by_its_manifest(models: ModelStore, theirs: Store, tmp_path: Path) -> None:
    original = ModelStore(theirs).push(make_checkpoint(tmp_path / "made"), "lab/tiny", facts=facts())
    source = S3Source(uri="s3://tests/models/lab/tiny")
    manifest = ingest.pull(models, "mine/tiny", cache=tmp_path / "cache", source=source, bucket=theirs)
    assert manifest.files == original.files
    assert manifest.facts.source == f"s3://tests/models/lab/tiny@{original.revision}"
    theirs.put(original.key(original.files[1]), b"x" * original.files[1].size)
    with pytest.raises(Damaged, match=original.files[1].path):
        ingest.pull(models, "mine/other", cache=tmp_path / "cache", source=source, bucket=theirs)
    assert models.manifest("mine/other") is None


@pytest.mark.parametrize("stored", [False, True])
def test_a_pull_from_another_bucket_that_was_cut_off_is_gone_on_with(models: ModelStore, theirs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                     stored: bool) -> None:
    # Given a checkpoint of a plain folder, or of a model store, and a pull that loses its S3 after most of it
    made, uri = tmp_path / "made", "s3://tests/models/lab/cut" if stored else "s3://tests/weights/cut"
    if stored:
        ModelStore(theirs).push(make_checkpoint(made), "lab/cut", facts=facts())
    else:
        published(theirs, made, "weights/cut")
    right, asked, most = Store.get_range, list[str](), [3]

    def failing(self: Store, key: str, start: int, *, length: int, etag: str) -> bytes:
        if len(asked) >= most[0]:
            raise StoreUnavailable("S3 is away.")
        asked.append(key)
        return right(self, key, start, length=length, etag=etag)

    monkeypatch.setattr(Store, "get_range", failing)
    with pytest.raises(Unavailable):
        ingest.pull(models, "mine/cut", cache=tmp_path / "cache", source=S3Source(uri=uri), bucket=theirs)
    first, most[0] = set(asked), 1000
    (left,) = (tmp_path / "cache" / "ingest").glob(".fetch-*")
    (left / "fetched" / "model-00009-of-00009.safetensors").write_bytes(b"of another revision")
    asked.clear()
    # When it is pulled again, then what had come is not fetched again, and what is not of it is not stored
    manifest = ingest.pull(models, "mine/cut", cache=tmp_path / "cache", source=S3Source(uri=uri), bucket=theirs)
    assert not first & set(asked)
    assert {f.path: f.sha256 for f in manifest.files} == {path: hashlib.sha256(body).hexdigest() for path, body in contents(made).items()}
    assert [*(tmp_path / "cache" / "ingest").glob(".fetch-*")] == []


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_bit_flipped_on_the_way_from_a_plain_folder_is_seen(theirs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_parts: bool) -> None:
    # Given a plain object, uploaded at once or in parts, and a wire that flips a bit
    body = make_checkpoint(tmp_path / "made", elements=6 * 2**20) / "model-00001-of-00002.safetensors"
    if in_parts:
        upload = theirs.client.create_multipart_upload(Bucket=theirs.bucket, Key="plain/model.safetensors")["UploadId"]
        parts = []
        for n, block in enumerate((body.read_bytes()[:5 * 2**20], body.read_bytes()[5 * 2**20:]), 1):
            tag = theirs.client.upload_part(Bucket=theirs.bucket, Key="plain/model.safetensors", UploadId=upload, PartNumber=n, Body=block)["ETag"]
            parts.append({"ETag": tag, "PartNumber": n})
        theirs.client.complete_multipart_upload(Bucket=theirs.bucket, Key="plain/model.safetensors", UploadId=upload, MultipartUpload={"Parts": parts})
    else:
        theirs.put("plain/model.safetensors", body.read_bytes())
    right, flips, reads = Store.get_range, [True], [0]

    def flipping(self: Store, key: str, start: int, *, length: int, etag: str) -> bytes:
        got = right(self, key, start, length=length, etag=etag)
        reads[0] += 1
        return bytes([got[0] ^ 1]) + got[1:] if flips and flips.pop() else got

    monkeypatch.setattr(Store, "get_range", flipping)
    target = tmp_path / "model.safetensors"
    with pytest.raises(Damaged, match="was read twice and came as"):
        buckets._object(theirs, "plain/model.safetensors", target)
    # and without one it is read once, for its ETag tells that it is right
    reads[0] = 0
    buckets._object(theirs, "plain/model.safetensors", target)
    assert reads[0] == -(-body.stat().st_size // manifests.RANGE_BYTES)
    assert target.read_bytes() == body.read_bytes()


@pytest.mark.parametrize("name", ["../../outside.json", "a/../../config.json"])
def test_a_key_that_would_leave_the_folder_is_refused(theirs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    published(theirs, tmp_path / "made", "weights/odd")
    listed = theirs.objects("weights/odd/")
    odd = [listed[0].__class__(f"weights/odd/{name}", 3, 0.0)]
    monkeypatch.setattr(Store, "objects", lambda *_: [*listed, *odd])
    monkeypatch.setattr(buckets, "wanted_files", lambda names: list(names))
    with pytest.raises(BadInput, match="is not a path within a checkpoint"):
        buckets.fetch_s3(theirs, S3Source(uri="s3://tests/weights/odd"), tmp_path, progress=silent)
    assert not (tmp_path.parent / "outside.json").exists()


@pytest.mark.parametrize("uri", ["s3://", "s3://UPPER/x", "s3://bucket", "s3://b/x y", "https://bucket/x"])
def test_an_address_that_is_no_folder_of_a_bucket_is_refused(cli: Callable[..., Any], uri: str) -> None:
    with pytest.raises(SymposiaError):
        cli("pull", uri)


def test_a_large_object_comes_in_ranges(theirs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = published(theirs, tmp_path / "made", "weights/large", elements=200_000)
    monkeypatch.setattr(buckets, "RANGE_BYTES", 65_536)
    monkeypatch.setattr(manifests, "RANGE_BYTES", 65_536)
    (tmp_path / "got").mkdir()
    source = buckets.fetch_s3(theirs, S3Source(uri="s3://tests/weights/large"), tmp_path / "got", progress=silent)
    assert contents(tmp_path / "got") == contents(made)
    assert len(source.revision) == 64
