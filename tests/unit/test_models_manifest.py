"""Manifests, names and the catalogue: what is stored says what it is, and no name leaves its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import facts
from symposia_shared import catalogue
from symposia_shared.errors import BadInput, Damaged, UnknownModel
from symposia_worker.models.manifest import Manifest, StoredFile, revision_of, within
from symposia_worker.models.store import checkpoint_id
from symposia_worker.models.weights import checkpoint_files

odd = st.sampled_from(["..", ".", "", "~", "a", "model.safetensors", ".complete", "a\\b", "a b", "é", "\x00", "C:"])
segments = st.one_of(odd, st.text(max_size=8))
paths = st.builds("/".join, st.lists(segments, min_size=1, max_size=5))
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
names = st.from_regex(r"[a-z]{1,6}(/[a-z]{1,6})?\.json", fullmatch=True)
files = st.lists(st.builds(StoredFile, path=names, size=st.integers(0, 2**40), sha256=digests), min_size=1, max_size=6,
                 unique_by=lambda f: f.path)


@given(paths)
def test_a_path_of_a_manifest_never_leaves_its_folder(path: str) -> None:
    folder = Path("/nowhere/cache/model")
    try:
        inside = within(folder, path)
    except BadInput:
        return
    assert Path(os.path.normpath(inside)).is_relative_to(folder)
    assert inside != folder
    assert not any(part.startswith(".") for part in inside.relative_to(folder).parts)


@given(st.sampled_from(["../x", "/etc/passwd", "a/../../x", "a//b", "a/", "", ".", "..", "a/./b", "~/x", ".complete", "a\\..\\x", "x" * 401]))
def test_paths_that_escape_are_refused_in_manifests_too(path: str) -> None:
    with pytest.raises(BadInput):
        StoredFile.parse({"path": path, "size": 1, "sha256": "0" * 64})


@given(st.one_of(paths, st.from_regex(r"[0-9a-f]{64}", fullmatch=True), st.sampled_from(["a/manifest.json", "test/echo", "a/b/c", "-a", "a" * 121])))
def test_an_id_is_two_plain_names_at_most(name: str) -> None:
    try:
        assert checkpoint_id(name) == name
    except BadInput:
        return
    parts = name.split("/")
    assert len(parts) <= 2
    assert len(name) <= 120
    assert all(part and part[0].isascii() and part[0].isalnum() for part in parts)
    assert "manifest.json" not in parts
    assert not any(len(part) == 64 and set(part) <= set("0123456789abcdef") for part in parts)


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "tokenizer.json").symlink_to(secret)
    with pytest.raises(BadInput, match="leads out of"):
        checkpoint_files(folder)


@given(files, st.randoms())
def test_the_revision_is_of_the_contents_and_not_of_their_order(rows: list[StoredFile], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert revision_of(rows) == revision_of(shuffled)
    grown = rows[0].model_copy(update={"size": rows[0].size + 1})
    assert revision_of([grown, *rows[1:]]) != revision_of(rows)


@given(files)
def test_a_manifest_reads_back_as_it_was_sealed(rows: list[StoredFile]) -> None:
    try:
        manifest = Manifest.of("a/b", rows, facts=facts())
    except BadInput:
        # a file where another has a folder
        assert any(f.path.startswith(g.path + "/") for f in rows for g in rows)
        return
    assert Manifest.unsealed(manifest.sealed(), "here", model="a/b") == manifest


@given(st.data())
def test_no_flipped_bit_of_a_manifest_goes_unseen(data: st.DataObject) -> None:
    manifest = Manifest.of("a/b", [StoredFile(path="config.json", size=3, sha256="ab" * 32)], facts=facts())
    body = bytearray(manifest.sealed())
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = Manifest.unsealed(bytes(body), "here", model="a/b")
    except Damaged:
        return
    assert found == manifest  # another spelling of the same JSON


@pytest.mark.parametrize("change", [
    {"id": "other"}, {"revision": "0" * 64}, {"files": []}, {"seal": "0" * 64}, {"facts": {}},
    {"files": [{"path": "../x", "size": 0, "sha256": "0" * 64}]},
])
def test_a_manifest_that_was_tampered_with_is_refused(change: dict[str, object]) -> None:
    manifest = Manifest.of("a/b", [StoredFile(path="config.json", size=3, sha256="ab" * 32)], facts=facts())
    raw = {**json.loads(manifest.sealed()), **change}
    with pytest.raises(Damaged):
        Manifest.unsealed(json.dumps(raw).encode(), "here", model="a/b")


def test_two_files_that_differ_by_case_alone_are_refused() -> None:
    rows = [StoredFile(path=p, size=0, sha256="0" * 64) for p in ("LICENSE", "license")]
    with pytest.raises(BadInput, match="same path"):
        Manifest.of("a", rows, facts=facts())


def test_each_entry_of_the_catalogue_is_sound_and_pinned() -> None:
    entries = catalogue.entries()
    assert {"smollm2-135m", "gemma3-270m", "HuggingFaceTB/SmolLM2-135M-Instruct"} <= set(entries)
    for name, entry in entries.items():
        assert entry.id == name
        assert entry.revision in entry.source.model_dump_json()
        assert entry.open_source or entry.needs_acceptance


def test_a_name_the_catalogue_lacks_is_answered_with_its_neighbours() -> None:
    with pytest.raises(UnknownModel, match="smollm2-135m"):
        catalogue.entry("smolm2-135")


@pytest.mark.parametrize(("change", "says"), [
    ({"licence_url": "", "needs_acceptance": True}, "licence_url"), ({"id": "test/echo"}, "weights"), ({"capabilities": ["sing"]}, "capabilities"),
    ({"source": {"kind": "package", "parts": [{"package": "p", "file": "f"}], "sha256": "0" * 64, "size": 1}}, "package"),
])
def test_a_wrong_entry_is_refused_with_its_field(change: dict[str, object], says: str) -> None:
    entry = catalogue.entry("gemma3-270m").model_dump(mode="json")
    with pytest.raises(BadInput, match=says):
        catalogue.Catalogue({"checkpoint": [{**entry, **change}]})[str(change.get("id", "gemma3-270m"))]


def test_an_entry_that_is_there_twice_is_refused() -> None:
    entry = catalogue.entry("smollm2-135m").model_dump(mode="json")
    with pytest.raises(BadInput, match="twice"):
        catalogue.Catalogue({"checkpoint": [entry, entry]})
