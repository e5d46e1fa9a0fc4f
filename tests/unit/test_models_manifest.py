"""Manifests, names and the catalogue: what is stored says what it is, and no name leaves its folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import facts
from symposia_shared import catalogue
from symposia_shared.errors import BadInput, Damaged, UnknownModel
from symposia_shared.values import canonical_json
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


EIGHTEEN = ("codegen-2b", "codegen-7b", "replit-3b", "incoder-1b", "codebert", "graphcodebert", "coderl", "pycodegpt", "unixcoder", "llemma-7b",
            "tinyllama", "phi-2", "phi-1.5", "phi-3-mini", "qwen-0.5b", "qwen-1.5b", "stablelm-1.6b", "stablelm-3b")


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


def test_the_eighteen_of_the_specification_are_found_by_their_registry_names() -> None:
    registry = {
        "salesforce-codegen-2b-mono": "codegen-2b", "salesforce-codegen25-7b-mono": "codegen-7b", "replit-replit-code-v1_5-3b": "replit-3b",
        "facebook-incoder-1b": "incoder-1b", "codebert": "codebert", "graphcodebert": "graphcodebert", "coderl-770m": "coderl",
        "pycodegpt-110m": "pycodegpt", "unixcoder": "unixcoder", "eleutherai-llemma_7b": "llemma-7b", "tinyllama-1.1b-chat": "tinyllama",
        "phi-2": "phi-2", "phi-1_5": "phi-1.5", "phi-3-mini-4k-instruct": "phi-3-mini", "qwen-qwen2-0.5b": "qwen-0.5b",
        "qwen-qwen2-1.5b": "qwen-1.5b", "stabilityai-stablelm-2-1_6b": "stablelm-1.6b", "stabilityai-stablelm-zephyr-3b": "stablelm-3b",
    }
    ids = {catalogue.entry(name).id for name in registry}
    assert len(ids) == 18
    assert all(catalogue.entry(name).id == catalogue.entry(alias).id for name, alias in registry.items())


def test_what_the_catalogue_says_of_its_checkpoints_agrees_with_itself() -> None:
    entries = catalogue.entries()
    for entry in entries.values():
        assert all(catalogue.known(other) is not None and catalogue.entry(other).id != entry.id for other in entry.substitutes)
        assert entry.capabilities[0] in ("generate", "embed", "seq2seq")
        assert (entry.prompt == "text") == ("embed" in entry.capabilities)
        assert not entry.non_commercial or not entry.open_source
    refused = {e.id for e in entries.values() if e.non_commercial}
    assert refused == {"facebook/incoder-1B", "stabilityai/stablelm-2-1_6b", "stabilityai/stablelm-zephyr-3b"}
    assert round(sum(catalogue.entry(name).parameters for name in EIGHTEEN) / 1e9, 2) == 37.87  # as computed from their shapes


def test_an_entry_is_validated_when_it_is_asked_for_and_not_before() -> None:
    entry = catalogue.entry("smollm2-135m").model_dump(mode="json")
    wrong = [{**entry, "id": f"m{n}", "context": 0} for n in range(2000)]
    known = catalogue.Catalogue({"checkpoint": [*wrong, entry]})
    assert len(known) == 2001
    assert known["smollm2-135m"].id == "smollm2-135m"
    with pytest.raises(BadInput, match="context"):
        known["m7"]


def test_an_alias_that_is_another_checkpoints_name_is_refused() -> None:
    entry = catalogue.entry("smollm2-135m").model_dump(mode="json")
    with pytest.raises(BadInput, match="'b' twice"):
        catalogue.Catalogue({"checkpoint": [{**entry, "id": "a", "aliases": ["b"]}, {**entry, "id": "b"}]})


@pytest.mark.parametrize(("change", "says"), [
    ({"non_commercial": True, "needs_acceptance": False}, "needs_acceptance"), ({"revision": "0" * 40}, "they are one"),
    ({"prompt": "completion"}, "chat_template"),
])
def test_an_entry_that_contradicts_itself_is_refused(change: dict[str, object], says: str) -> None:
    entry = catalogue.entry("phi-3-mini").model_dump(mode="json")
    with pytest.raises(BadInput, match=says):
        catalogue.Catalogue({"checkpoint": [{**entry, **change}]})["microsoft/Phi-3-mini-4k-instruct"]


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


def test_a_manifest_written_before_a_field_was_added_is_read() -> None:
    manifest = Manifest.of("lab/tiny", [StoredFile(path="config.json", size=2, sha256="0" * 64)], facts=facts())
    raw = manifest.model_dump(mode="json")
    del raw["facts"]["form_of"]
    sealed = canonical_json({**raw, "seal": hashlib.sha256(canonical_json(raw)).hexdigest()})
    assert Manifest.unsealed(sealed, "s3", model="lab/tiny") == manifest
