"""Fused norms give what transformers' own give, and what is no such norm is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from symposia_worker.engines.norms import FusedRMSNorm, fuse_norms
from tiny import ARCHITECTURES, tiny_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = torch.tensor([[5, 9, 31, 7, 2]])
#: norms of a block: two, or with those of queries and keys four or six; and the last one
FUSED = {"llama": 5, "qwen2": 5, "phi3": 5}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_with_fused_norms_says_what_it_said(architecture: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path / architecture, architecture)).eval()
    with torch.inference_mode():
        before = model(input_ids=IDS).logits
        fused = fuse_norms(model)
        after = model(input_ids=IDS).logits
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    assert after.argmax(-1).tolist() == before.argmax(-1).tolist()
    assert fused == sum(isinstance(m, FusedRMSNorm) for m in model.modules())
    assert fused == FUSED.get(architecture, fused)


def test_a_norm_that_adds_one_to_its_weight_is_no_such_norm(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path / "gemma3_text", "gemma3_text"))
    assert fuse_norms(model) == 0
    assert any(type(m).__name__.endswith("RMSNorm") for m in model.modules())
