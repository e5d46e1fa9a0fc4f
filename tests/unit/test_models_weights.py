"""What is read off safetensors files without loading them, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints import contents, make_checkpoint, safetensors
from symposia_shared.errors import BadInput, Damaged
from symposia_worker.models.ingest import licence_of
from symposia_worker.models.weights import checkpoint_files, header_counts, read_weights


def test_parameters_and_dtype_come_from_the_headers(tmp_path: Path) -> None:
    # Given a checkpoint in two files
    folder = make_checkpoint(tmp_path, elements=100)
    # When their headers are read, then the elements of both are counted
    weights = read_weights(folder)
    assert (weights.parameters, weights.dtype) == (200, "uint8")
    assert weights.size == sum(len(body) for path, body in contents(folder).items() if path.endswith(".safetensors"))


@pytest.mark.parametrize("kept", range(len(safetensors(16))))
def test_a_safetensors_file_cut_anywhere_is_damaged(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(16)[:kept])
    with pytest.raises(Damaged, match="safetensors"):
        header_counts(path)


@pytest.mark.parametrize("tensor", [
    {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}, {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    {"dtype": "F32", "shape": ["2"]}, 7,
])
def test_tensors_that_do_not_fit_their_file_are_damaged(tensor: object, tmp_path: Path) -> None:
    header = json.dumps({"w": tensor}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(Damaged):
        header_counts(tmp_path / "model.safetensors")


def test_code_pickles_and_hidden_files_are_left_behind(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    before = set(checkpoint_files(folder))
    for name in ("modeling_evil.py", "pytorch_model.bin", "weights.pt", ".env", "model.onnx"):
        (folder / name).write_text("x")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"x")
    assert set(checkpoint_files(folder)) == before


def test_a_folder_with_nothing_but_a_pickle_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(BadInput, match=r"pickle.*save_pretrained"):
        checkpoint_files(tmp_path)


def test_a_name_s3_would_not_keep_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    (folder / "my weights (1).safetensors").write_bytes(safetensors(1))
    with pytest.raises(BadInput, match="my weights"):
        checkpoint_files(folder)


@pytest.mark.parametrize(("card", "licence"), [
    ("---\nlicense: mit\ntags: [a]\n---\n# A model", "mit"), ("# A model", "unknown"), ("---\nlicense: [a, b]\n---\n", "unknown"),
    ("---\n: : :\n---\n", "unknown"), ("---\n- a\n---\n", "unknown"),
])
def test_the_licence_is_what_the_model_card_states(card: str, licence: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence
