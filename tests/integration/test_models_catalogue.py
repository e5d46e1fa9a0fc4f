"""The index, the garbage and the catalogue of a model store, against a real S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from checkpoints import contents, facts, make_checkpoint
from symposia_shared import catalogue
from symposia_shared.errors import BadInput, Conflict, Damaged, SymposiaError, UnknownModel
from symposia_shared.reading import QuickReader
from symposia_shared.settings import S3Settings
from symposia_worker.commands.listing import _quick
from symposia_worker.commands.models import command
from symposia_worker.models import collecting, index
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.manifest import Manifest, manifest_key
from symposia_worker.models.store import ModelStore


@pytest.fixture
def cli(s3: S3Settings, models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("SYMPOSIA_DIR", str(tmp_path / "stack"))
    monkeypatch.setenv("SYMPOSIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SYMPOSIA_S3__ENDPOINT_URL", str(s3.endpoint_url))
    monkeypatch.setenv("SYMPOSIA_S3__ACCESS_KEY", str(s3.access_key))
    monkeypatch.setenv("SYMPOSIA_S3__SECRET_KEY", s3.secret_key.get_secret_value() if s3.secret_key else "")
    monkeypatch.setenv("SYMPOSIA_S3__BUCKET", s3.bucket)

    def ran(*words: str) -> Any:
        done = CliRunner().invoke(command, [*words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return json.loads(done.stdout) if "--json" in words else done.stdout

    return ran


def pushed(models: ModelStore, folder: Path, name: str = "lab/tiny", **made: Any) -> Manifest:
    return models.push(make_checkpoint(folder / name.replace("/", "-"), **made), name, facts=facts())


def entry(name: str, **changed: object) -> dict[str, object]:
    """An entry of a file."""
    some = {"id": name, "base": "lab/base", "revision": "main", "source": {"kind": "hub", "repo": "lab/base", "revision": "main"},
            "architecture": "LlamaForCausalLM", "parameters": 1000, "context": 128, "licence": "Apache-2.0", "capabilities": ["generate"]}
    return {**some, **changed}


def written(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


# -- the index


def test_the_index_lists_what_the_manifests_say(models: ModelStore, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "lab/b", "lab/c")):
        pushed(models, tmp_path, name, seed=seed)
    models.list()
    rows, damaged = models.listed()
    assert not damaged
    assert {m: row["stored"] for m, row in rows.items()} == {m.id: index.stored_row(m) for m in models.list().checkpoints}
    pushed(models, tmp_path / "again", "a", seed=9)
    models.remove("lab/b")
    rows, _ = models.listed()
    assert {m: row["stored"] for m, row in rows.items()} == {m.id: index.stored_row(m) for m in models.list().checkpoints}
    assert list(rows) == ["a", "lab/c"]


def test_a_list_costs_the_same_requests_for_one_checkpoint_and_for_thousands(models: ModelStore, s3: S3Settings, tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = pushed(models, tmp_path)
    models.listed()
    for shard in range(index.SHARDS):
        rows = {f"lab/m-{shard}-{n}": {"stored": index.stored_row(manifest)} for n in range(320)}
        models.store.put(index._key(shard), index._packed(rows))
    asked: list[str] = []
    right = QuickReader._get

    def noting(self: QuickReader, path: str, query: str, *, must: bool = False) -> tuple[int, bytes, str]:
        asked.append(path)
        return right(self, path, query, must=must)

    monkeypatch.setattr(QuickReader, "_get", noting)
    found = _quick(s3)
    assert found is not None
    assert len(found) == 320 * index.SHARDS
    assert len(asked) == 1 + index.SHARDS
    assert found == models.listed()[0]


def test_a_store_that_has_no_index_yet_gets_one_when_it_is_first_listed(models: ModelStore, s3: S3Settings, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path)
    for key in models.store.keys("catalogue/"):
        models.store.delete(key)
    assert _quick(s3) is None
    assert models.listed()[0] == {"lab/tiny": {"stored": index.stored_row(manifest)}}
    assert _quick(s3) == {"lab/tiny": {"stored": index.stored_row(manifest)}}


@pytest.mark.parametrize("cut_at", ["manifest", "row"])
def test_a_push_that_dies_before_or_after_its_manifest_is_listed_as_what_it_came_to(models: ModelStore, s3: S3Settings, tmp_path: Path,
                                                                                  monkeypatch: pytest.MonkeyPatch, cut_at: str) -> None:
    # Given a store with one checkpoint, and a push of another that dies
    pushed(models, tmp_path, "lab/one")
    models.listed()

    def dying(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*((index.Index, "note", dying) if cut_at == "row" else (ModelStore, "_finish", dying)))
        with pytest.raises(KeyboardInterrupt):
            pushed(models, tmp_path, "lab/two", seed=1)
    # Then it is listed if its manifest is there, though its row is not
    assert list(models.listed()[0]) == (["lab/one", "lab/two"] if cut_at == "row" else ["lab/one"])
    assert _quick(s3) is None
    # and the collector settles the mark it left, once it is old
    collecting.collect(models, collecting.find(models, grace_s=0), grace_s=0)
    assert list(_quick(s3) or ()) == (["lab/one", "lab/two"] if cut_at == "row" else ["lab/one"])


def test_many_that_write_one_shard_at_once_lose_no_row(models: ModelStore, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path)
    names = [n for n in (f"m{i}" for i in range(400)) if index.shard_of(n) == 3][:12]
    threads = [threading.Thread(target=models.index.note, args=(manifest.model_copy(update={"id": name}),)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(names) <= set(models.index.listed().rows)


def test_a_rebuild_beside_a_push_gives_way_to_it(models: ModelStore, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path)
    other = manifest.model_copy(update={"id": next(n for n in (f"m{i}" for i in range(400)) if index.shard_of(n) == index.shard_of("lab/tiny"))})

    def manifests() -> list[Manifest]:
        models.index.note(other)
        return []

    with pytest.raises(Conflict):
        models.index.rebuild(manifests)
    assert other.id in models.index.listed().rows


def test_a_shard_that_is_damaged_is_drawn_again(cli: Callable[..., Any], models: ModelStore, tmp_path: Path) -> None:
    pushed(models, tmp_path)
    models.listed()
    models.store.put(index._key(index.shard_of("lab/tiny")), b"garbage")
    assert [row["id"] for row in cli("list", "--check", "--json")] == ["lab/tiny"]
    assert [row["id"] for row in cli("list", "--json")] == ["lab/tiny"]


def test_an_index_drawn_again_beside_a_push_keeps_the_pushs_row(models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = pushed(models, tmp_path)
    other = manifest.model_copy(update={"id": next(n for n in (f"m{i}" for i in range(400)) if index.shard_of(n) == index.shard_of("lab/tiny"))})
    right = ModelStore.list

    def pushing_meanwhile(self: ModelStore) -> Any:
        found = right(self)
        models.index.note(other)
        return found

    monkeypatch.setattr(ModelStore, "list", pushing_meanwhile)
    assert [m.id for m in models.redraw().checkpoints] == ["lab/tiny"]
    assert other.id in models.index.listed().rows


def test_a_shard_that_cannot_be_read_is_written_over_by_no_change(models: ModelStore, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path)
    models.listed()
    key = index._key(index.shard_of("lab/tiny"))
    models.store.put(key, b"garbage")
    with pytest.raises(Damaged, match=r"models list --check"):
        models.index.note(manifest)
    assert models.store.get(key) == b"garbage"
    # and who lists has it drawn again, from the manifests
    rows, damaged = models.listed()
    assert (list(rows), damaged) == (["lab/tiny"], ())
    models.index.note(manifest)


def test_a_check_reads_every_manifest_and_names_the_damaged_one(cli: Callable[..., Any], models: ModelStore, tmp_path: Path) -> None:
    pushed(models, tmp_path, "lab/one")
    pushed(models, tmp_path, "lab/two", seed=1)
    models.listed()
    models.store.put(manifest_key("lab/two"), b"{}")
    with pytest.raises(Damaged, match="lab/two"):
        cli("list", "--check")


def test_listing_needs_no_boto3_and_none_of_the_rest_of_the_command_line(cli: Callable[..., Any], models: ModelStore, tmp_path: Path) -> None:
    pushed(models, tmp_path)
    models.listed()
    code = "import sys; sys.argv = ['symposia', 'models', 'list', '--json']\nfrom symposia.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}).stdout.splitlines()
    assert [row["id"] for row in json.loads(said[0])] == ["lab/tiny"]
    assert not {"boto3", "celery", "redis", "rich", "torch", "symposia_shared.patterns"} & set(said[-1].split())


# -- garbage


def test_what_no_manifest_names_is_told_first_and_removed_when_asked(cli: Callable[..., Any], models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    # Given a checkpoint with an old revision, one that was half uploaded, and an upload in parts that was cut off
    old = pushed(models, tmp_path / "old", seed=1)
    new = pushed(models, tmp_path / "new", seed=2)
    half = f"models/lab/half/{'a' * 64}/model.safetensors"
    models.store.put(half, b"half")
    upload = models.store.client.create_multipart_upload(Bucket=models.store.bucket, Key="models/lab/half/x")["UploadId"]
    models.store.client.upload_part(Bucket=models.store.bucket, Key="models/lab/half/x", UploadId=upload, PartNumber=1, Body=b"part")
    # When it is looked for with the usual grace, then all of it is too young
    told = cli("gc", "--json")
    # equal files of two revisions lie twice: each revision is a folder of its own
    assert (told["objects"], told["uploads"], told["young"]) == (0, 0, len(old.files) + 1)
    # When the grace is over, then it is told, and nothing is removed
    told = cli("gc", "--grace", "0", "--json")
    assert (told["objects"], told["uploads"], told["removed"]) == (len(old.files) + 1, 1, 0)
    assert told["bytes"] == old.size + 4
    assert models.store.get(half) == b"half"
    # When it is asked for, then it goes, and what is named stays
    told = cli("gc", "--grace", "0", "--delete", "--json")
    assert told["removed"] == len(old.files) + 1
    assert models.verify("lab/tiny") == new
    assert models.store.keys("models/") == sorted([manifest_key("lab/tiny"), *(new.key(f) for f in new.files)])
    assert models.store.uploads("models/") == []
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "new" / "lab-tiny")
    assert "Nothing was removed" in cli("gc")


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache" / "models")


def test_what_a_damaged_manifest_may_name_is_no_garbage_of_a_cache_and_its_row_stays(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    # Given a checkpoint that is whole on this machine, whose manifest is damaged and whose last change was cut off
    pushed(models, tmp_path)
    models.listed()
    cache.fetch(models, "lab/tiny")
    cache.release("lab/tiny")
    models.store.put(manifest_key("lab/tiny"), b"{}")
    mark = f"{index.MARKS}lab~tiny~~0"
    models.store.put(mark, b"{}")
    # When garbage is collected, then nothing of it goes
    assert collecting.find_in_cache(models, cache, grace_s=0) == []
    collecting.collect(models, collecting.find(models, grace_s=0), grace_s=0)
    assert "lab/tiny" in models.index.listed().rows
    assert models.store.keys(index.MARKS) == [mark]


def test_what_is_being_pushed_is_not_collected_however_old_its_objects_are(models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given objects of a push that was cut off long ago, and the same push again, under way
    manifest = pushed(models, tmp_path)
    models.store.delete(manifest_key("lab/tiny"))
    right, collected = ModelStore._finish, []

    def collecting_meanwhile(self: ModelStore, *arguments: Any) -> None:
        found = collecting.find(models, grace_s=0.0, now=9e9)  # every object is old, and so would be every mark
        assert found.count == len(manifest.files)
        collected.append(collecting.collect(models, found, grace_s=3600))  # the mark, read again, is not
        right(self, *arguments)

    monkeypatch.setattr(ModelStore, "_finish", collecting_meanwhile)
    pushed(models, tmp_path)
    assert collected == [(0, 0)]
    assert models.verify("lab/tiny") == manifest


def test_what_was_collected_before_its_manifest_was_written_is_sent_again(models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = pushed(models, tmp_path)
    models.store.delete(manifest_key("lab/tiny"))
    right = ModelStore._finish

    def losing(self: ModelStore, *arguments: Any) -> None:
        models.store.delete(manifest.key(manifest.files[1]))
        right(self, *arguments)

    monkeypatch.setattr(ModelStore, "_finish", losing)
    pushed(models, tmp_path)
    assert models.verify("lab/tiny") == manifest


def test_nothing_of_a_checkpoint_is_collected_while_its_manifest_cannot_be_read(models: ModelStore, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path)
    models.store.put(manifest_key("lab/tiny"), b"{}")
    found = collecting.find(models, grace_s=0)
    assert found.count == 0
    assert "lab/tiny" in str(found.damaged[0])
    collecting.collect(models, found, grace_s=0)
    assert len(models.store.keys("models/")) == len(manifest.files) + 1


def test_a_cache_loses_what_the_store_no_longer_has_and_nothing_that_is_in_use(cli: Callable[..., Any], models: ModelStore, cache: ModelCache,
                                                                             tmp_path: Path) -> None:
    for name in ("used", "removed", "kept"):
        pushed(models, tmp_path, name)
    folders = {name: cache.fetch(models, name) for name in ("used", "removed", "kept")}
    cache.release("removed")
    cache.release("kept")
    models.remove("used")
    models.remove("removed")
    assert cli("gc", "--cache", "--json")["objects"] == 2
    assert cli("gc", "--cache", "--delete", "--json")["removed"] == 1
    assert {name: folder.exists() for name, folder in folders.items()} == {"used": True, "removed": False, "kept": True}


# -- entries


def test_entries_of_a_file_are_registered_listed_and_found_by_their_alias(cli: Callable[..., Any], models: ModelStore, tmp_path: Path) -> None:
    rows = [entry(f"lab/m{n}", aliases=[f"alias-{n}"]) for n in range(600)]
    told = cli("add", str(written(tmp_path / "entries.jsonl", rows)), "--json")
    assert len(told["registered"]) == 600
    listed = cli("list", "--json")
    assert len(listed) == 600
    assert {row["stored"] for row in listed} == {False}
    assert "not stored" in cli("list")
    found = models.index.entry("alias-17")
    assert found is not None
    assert found.id == "lab/m17"
    # one that is removed is no longer known
    cli("rm", "lab/m17")
    assert models.index.entry("alias-17") is None
    assert len(cli("list", "--json")) == 599


def test_a_checkpoint_that_is_registered_and_stored_is_one_row(cli: Callable[..., Any], models: ModelStore, tmp_path: Path) -> None:
    cli("add", str(written(tmp_path / "e.json", [entry("lab/tiny")])))
    pushed(models, tmp_path)
    assert [(row["id"], row["stored"]) for row in cli("list", "--json")] == [("lab/tiny", True)]
    models.remove("lab/tiny")
    assert [(row["id"], row["stored"]) for row in cli("list", "--json")] == [("lab/tiny", False)]


def test_every_wrong_entry_is_named_with_field_value_and_remedy_and_none_is_registered(cli: Callable[..., Any], models: ModelStore, tmp_path: Path) -> None:
    rows: list[object] = [entry("lab/good"), entry("lab/no-context", context=0), entry("lab/sings", capabilities=["sing"]), entry("lab/typo", licens="MIT"),
                          "no entry", {k: v for k, v in entry("lab/bare").items() if k != "licence"}, entry("lab/good"), entry("smollm2-135m"),
                          entry("lab/nc", licence="CC-BY-NC-4.0")]
    with pytest.raises(BadInput) as refused:
        cli("add", str(written(tmp_path / "entries.json", rows)))
    said = str(refused.value)
    assert refused.value.exit_code == 2
    for words in ("8 wrong entries", "entry 2 (lab/no-context): Entry.context is 0", "entry 3 (lab/sings): Entry.capabilities.0 is 'sing'",
                  "entry 4 (lab/typo): Entry has no field 'licens'", "Did you mean 'licence'?", "entry 5: 'no entry' is no entry",
                  "entry 6 (lab/bare): Entry.licence is missing. Add 'licence'.", "entry 7 (lab/good): the file names 'lab/good' twice",
                  "entry 8 (smollm2-135m): 'smollm2-135m' is in the catalogue", "entry 9 (lab/nc)", "set 'non_commercial'"):
        assert words in said, words
    assert models.index.listed().rows == {}


@pytest.mark.parametrize(("kind", "says"), [("closed", "not published"), ("image", "images"), ("audio", "sound"), ("video", "video")])
def test_what_cannot_be_loaded_here_is_refused_by_its_kind_and_the_others_are_registered(cli: Callable[..., Any], tmp_path: Path, kind: str,
                                                                                       says: str) -> None:
    told = cli("add", str(written(tmp_path / "e.json", [entry("lab/good"), {"id": "their/model", "kind": kind}])), "--json")
    assert told["registered"] == ["lab/good"]
    assert f"of the kind {kind}" in told["refused"]["their/model"]
    assert says in told["refused"]["their/model"]
    with pytest.raises(BadInput, match="no entry that can be loaded"):
        cli("add", str(written(tmp_path / "e.json", [{"id": "their/model", "kind": kind}])))


def test_a_licence_that_forbids_commerce_is_refused_unless_it_is_allowed_and_then_flagged(cli: Callable[..., Any], tmp_path: Path,
                                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "e.json", [entry("lab/good"), entry("lab/nc", licence="CC-BY-NC-4.0", non_commercial=True, needs_acceptance=True,
                                                                  licence_url="https://example.org/nc")])
    told = cli("add", str(file), "--json")
    assert told["registered"] == ["lab/good"]
    assert "CC-BY-NC-4.0, which forbids commercial use" in told["refused"]["lab/nc"]
    assert "SYMPOSIA_ALLOW_NON_COMMERCIAL" in told["refused"]["lab/nc"]
    monkeypatch.setenv("SYMPOSIA_ALLOW_NON_COMMERCIAL", "1")
    assert cli("add", str(file), "--json")["registered"] == ["lab/good", "lab/nc"]
    assert {row["id"]: row["non_commercial"] for row in cli("list", "--json")} == {"lab/good": False, "lab/nc": True}
    assert "CC-BY-NC-4.0 NC" in cli("list")


def test_a_folder_of_another_kind_or_with_such_a_licence_is_refused_before_anything_of_it_is_loaded(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "whisper")
    (folder / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    with pytest.raises(BadInput, match="of the kind audio"):
        cli("add", str(folder), "--name", "lab/whisper")
    folder = make_checkpoint(tmp_path / "diffuser")
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(BadInput, match="of the kind image"):
        cli("push", str(folder), "--name", "lab/diffuser")
    folder = make_checkpoint(tmp_path / "nc")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: lab-non-commercial\n---\n")
    with pytest.raises(BadInput, match="lab-non-commercial, which forbids commercial use"):
        cli("push", str(folder), "--name", "lab/nc")


@pytest.mark.parametrize(("name", "body", "says"), [
    ("e.toml", "[[checkpoint]\n", "is no toml"), ("e.json", "{}", "has no entries"), ("e.jsonl", "{\n", "is no jsonl"), ("gone.toml", None, "cannot be read"),
])
def test_a_file_that_holds_no_entries_is_told(cli: Callable[..., Any], tmp_path: Path, name: str, body: str | None, says: str) -> None:
    if body is not None:
        (tmp_path / name).write_text(body)
    with pytest.raises(SymposiaError, match=says):
        cli("add", str(tmp_path / name))


def test_the_catalogues_own_form_can_be_registered(models: ModelStore, tmp_path: Path) -> None:
    from symposia_worker.models.registering import read_entries

    text = Path(str(catalogue.__file__)).with_suffix(".toml").read_text(encoding="utf-8")
    text = text.replace('id = "', 'id = "mine-').replace('aliases = ["', 'aliases = ["mine-')
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(BadInput, match="is in the catalogue that comes with Symposia"):
        read_entries(tmp_path / "mine.toml", allow_non_commercial=False)  # second aliases are as they were
    (tmp_path / "mine.toml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("aliases")))
    read = read_entries(tmp_path / "mine.toml", allow_non_commercial=False)
    assert len(read.entries) + len(read.refused) == len(catalogue.entries())
    assert {"mine-facebook/incoder-1B"} <= set(read.refused)


# -- reading without boto3


def test_what_is_read_without_boto3_is_what_boto3_reads(models: ModelStore, s3: S3Settings) -> None:
    quick = QuickReader(s3)
    odd = "catalogue/changing/a~b~~ü +&=%.json"
    models.store.put(odd, b"odd")
    for n in range(5):
        models.store.put(f"catalogue/changing/m~~{n}", b"{}")
    assert quick.keys("catalogue/") == models.store.keys("catalogue/")
    found = quick.tagged(odd)
    assert found == models.store.tagged(odd)
    assert quick.tagged("catalogue/none") is None


def test_an_s3_that_boto3_alone_can_read_is_left_to_it(s3: S3Settings) -> None:
    for other in ({"endpoint_url": None}, {"access_key": None}, {"endpoint_url": "http://host/with/a/path"}):
        with pytest.raises(ValueError, match="boto3"):
            QuickReader(s3.model_copy(update=other))
    assert _quick(s3.model_copy(update={"access_key": "wrong"})) is None


def test_an_unknown_checkpoint_is_unknown_by_every_name(models: ModelStore) -> None:
    assert models.index.entry("nothing") is None
    with pytest.raises(UnknownModel):
        models.remove("nothing")
