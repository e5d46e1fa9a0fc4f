"""``symposia run-batch`` by each engine: the form made here once, a server elsewhere, an encoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from symposia_shared.errors import BadInput
from symposia_worker.batchrun.seats import local_seat, remote_seat
from symposia_worker.models import forms
from symposia_worker.models.local import LocalCheckpoint
from tiny import tiny_checkpoint

PROMPTS = ("The quick brown fox", "def add(a, b):", "What is the capital of France?", "42")


def completions(path: Path, **body: Any) -> Path:
    path.write_text("".join(json.dumps({"custom_id": p, "url": "/v1/completions", "body": {"model": "x", "prompt": p, "temperature": 0, **body}}) + "\n"
                            for p in PROMPTS))
    return path


def ran(source: Path, target: Path, *flags: str, model: str, cache: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "symposia_worker.commands.run_batch", "-i", str(source), "-o", str(target), "--model", model, "--threads", "1", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, "SYMPOSIA_CACHE": str(cache)})
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def bodies(path: Path) -> list[Any]:
    return [json.loads(x)["response"]["body"] for x in path.read_text().splitlines()]


def texts(path: Path) -> list[str]:
    return [body["choices"][0]["text"] for body in bodies(path)]


def generated(folder: Path, most: int) -> list[str]:
    """What plain ``generate`` answers, which is what the torch engine answers (test_batch_run.py)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    asked = [tokenizer(prompt, return_tensors="pt") for prompt in PROMPTS]
    return [tokenizer.decode(network.generate(**ids, max_new_tokens=most, do_sample=False)[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)
            for ids in asked]


def test_the_form_is_made_once_and_exact_says_what_torch_says(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai", reason="pip install 'symposia[openvino]'")
    pytest.importorskip("optimum.intel", reason="pip install 'symposia[openvino]'")
    folder, cache = tiny_checkpoint(tmp_path / "tiny", "llama"), tmp_path / "cache"
    source = completions(tmp_path / "in.jsonl", max_tokens=12)
    by_torch = generated(folder, 12)
    made = ran(source, tmp_path / "auto.jsonl", model=str(folder), cache=cache).stderr
    assert "exporting tiny: " in made
    assert "tok/s, openvino exact" in made
    assert texts(tmp_path / "auto.jsonl") == by_torch

    fast = ran(source, tmp_path / "fast.jsonl", "--engine", "openvino", "--mode", "fast", model=str(folder), cache=cache).stderr
    assert "exporting" not in fast
    assert "tok/s, openvino fast" in fast
    assert all(body["usage"]["completion_tokens"] for body in bodies(tmp_path / "fast.jsonl"))

    (form,) = (cache / "forms").glob("*/exact")
    summary = ran(source, tmp_path / "form.jsonl", "--json", model=str(form), cache=cache)
    assert (json.loads(summary.stdout)["engine"], json.loads(summary.stdout)["answered"], summary.stderr) == ("openvino", 4, "")
    assert texts(tmp_path / "form.jsonl") == by_torch


def test_a_t5_is_exported_and_answers_what_torch_answers(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai", reason="pip install 'symposia[openvino]'")
    pytest.importorskip("optimum.intel", reason="pip install 'symposia[openvino]'")
    from catalogue_tiny import EIGHTEEN, plain

    folder, _ = plain(next(c for c in EIGHTEEN if c.slug == "codet5-large-ntp-py"), tmp_path / "t5")
    cache, source = tmp_path / "cache", completions(tmp_path / "in.jsonl", max_tokens=12)
    ran(source, tmp_path / "torch.jsonl", "--engine", "torch", model=str(folder), cache=cache)
    said = ran(source, tmp_path / "out.jsonl", "--engine", "openvino", model=str(folder), cache=cache).stderr
    assert "tok/s, openvino exact" in said
    assert texts(tmp_path / "out.jsonl") == texts(tmp_path / "torch.jsonl")
    assert local_seat(LocalCheckpoint("t5", folder), device="cpu", engine="auto", mode="fast", cache=cache, threads=1).engine == "openvino"
    (form,) = (cache / "forms").glob("*/fast")
    assert local_seat(LocalCheckpoint("t5", form), device="cpu", engine="openvino", mode="fast", cache=cache, threads=1).folder == form


def test_an_encoders_vectors_are_written_in_float32s_digits(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from catalogue_tiny import EIGHTEEN, plain

    folder, _ = plain(next(c for c in EIGHTEEN if c.slug == "codebert-base"), tmp_path / "encoder")
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"custom_id": "e", "url": "/v1/embeddings", "body": {"model": "x", "input": list(PROMPTS)}}) + "\n")
    said = ran(source, tmp_path / "out.jsonl", model=str(folder), cache=tmp_path / "cache").stderr
    assert "served by torch: " in said
    (body,) = bodies(tmp_path / "out.jsonl")
    vectors = [row["embedding"] for row in body["data"]]
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for prompt, vector in zip(PROMPTS, vectors, strict=True):
        with torch.inference_mode():
            states = network(**tokenizer(prompt, return_tensors="pt")).last_hidden_state[0]
        assert torch.allclose(torch.tensor(vector), torch.nn.functional.normalize(states.mean(0), dim=0), atol=1e-4)
    assert max(len(repr(x).split("e")[0].lstrip("-0.").replace(".", "")) for v in vectors for x in v) <= 9


def test_a_server_answers_a_file_under_a_name_of_ours(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with pip install 'symposia[test]'")
    pytest.importorskip("gguf", reason="the tiny model is written with gguf, of pip install 'symposia[worker]'")
    from llamacpp import llamacpp_server, tiny_gguf

    source = completions(tmp_path / "in.jsonl", max_tokens=8)
    with llamacpp_server(tiny_gguf(tmp_path / "tiny.gguf"), "lab/tiny:f32") as url:
        device = ("--engine", "openai", "--device", f"openai:{url}")
        refused = ran(source, tmp_path / "out.jsonl", *device, model="lab/tiny:f32", cache=tmp_path, expect=2).stderr
        assert "--model tiny-f32=lab/tiny:f32" in refused
        assert not (tmp_path / "out.jsonl").exists()
        told = ran(source, tmp_path / "out.jsonl", *device, model="tiny=lab/tiny:f32", cache=tmp_path).stderr
        assert "4 requests answered, 0 failed" in told
        again = json.loads(ran(source, tmp_path / "out.jsonl", *device, "--json", model="tiny=lab/tiny:f32", cache=tmp_path).stdout)
        assert (again["kept"], again["answered"]) == (4, 0)
    assert [(b["model"], b["usage"]["completion_tokens"]) for b in bodies(tmp_path / "out.jsonl")] == [("tiny", 8)] * 4


def test_an_endpoints_key_comes_from_the_variable_that_is_named_and_stands_in_no_text(tmp_path: Path) -> None:
    source = completions(tmp_path / "in.jsonl")
    flags = ("--device", "openai:http://127.0.0.1:9/v1", "--api-key-env", "LAB_KEY")
    assert "has no LAB_KEY" in ran(source, tmp_path / "out.jsonl", *flags, model="tiny", cache=tmp_path, expect=2).stderr
    seat = remote_seat("tiny=theirs", device="openai:http://127.0.0.1:9/v1", key="sk-secret", max_concurrency=7)
    assert "sk-secret" in seat.environ.values()
    assert "sk-secret" not in repr(seat)
    assert remote_seat("tiny", device=seat.device, key=None, max_concurrency=7).fingerprint != seat.fingerprint


def seat_for(folder: Path, **wishes: Any) -> Any:
    notes: list[str] = []
    wishes = {"device": "cpu", "engine": "auto", "mode": "exact"} | wishes
    seat = local_seat(LocalCheckpoint("tiny", folder), cache=folder / "cache", threads=1, note=notes.append, **wishes)
    return seat.engine, seat.mode, seat.folder == folder, " ".join(notes)


def config(folder: Path, model_type: str, architecture: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": [architecture]}))
    return folder


def test_auto_takes_torch_where_no_form_can_be_had_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "servable", lambda: True)
    engine, mode, own, note = seat_for(config(tmp_path, "mpt", "MptForCausalLM"), mode="fast")
    assert (engine, mode, own) == ("torch", "exact", True)
    assert "it is a MptForCausalLM; forms are made of decoders of llama" in note
    assert seat_for(config(tmp_path, "qwen2", "Qwen2Model"))[0] == "torch"  # an encoder made of a decoder
    llama = config(tmp_path, "llama", "LlamaForCausalLM")
    assert seat_for(llama, device="cuda:0") == ("torch", "exact", True, "")
    assert seat_for(llama, device="cuda:0", mode="fast") == seat_for(llama, device="cuda:0", engine="torch", mode="fast") == ("torch", "fast", True, "")
    monkeypatch.setattr(forms, "local", lambda *_, **__: tmp_path / "form")
    assert seat_for(llama, mode="fast") == ("openvino", "fast", False, "")
    monkeypatch.setattr(forms, "servable", lambda: False)
    assert "openvino_genai is not installed" in seat_for(llama)[3]


def test_what_is_asked_for_by_name_and_cannot_be_had_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "servable", lambda: True)
    mpt = config(tmp_path, "mpt", "MptForCausalLM")
    with pytest.raises(BadInput, match="it is a MptForCausalLM"):
        seat_for(mpt, engine="openvino")
    with pytest.raises(BadInput, match="exact only"):
        seat_for(mpt, engine="torch", mode="fast")
    with pytest.raises(BadInput, match="cuda:0 is no CPU"):
        seat_for(mpt, engine="openvino", device="cuda:0")
