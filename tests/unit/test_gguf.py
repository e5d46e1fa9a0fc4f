"""A GGUF file on its way into transformers."""

from __future__ import annotations

from types import SimpleNamespace

import gguf
import pytest
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from symposia_worker.families.gguf import read_once


def test_transformers_reads_what_is_read_already_and_names_of_tensors_are_listed_once() -> None:
    before, asked = (gguf.GGUFReader, gguf.get_tensor_name_map), (gguf.MODEL_ARCH.LLAMA, 2)
    with read_once(SimpleNamespace(fields={"general.architecture": SimpleNamespace(parts=[b"unheard of"], types=[gguf.GGUFValueType.STRING], data=[0])},
                                   tensors=[])):
        with pytest.raises(ValueError, match="unheard of is not supported"):
            load_gguf_checkpoint("nowhere.gguf")
        assert gguf.get_tensor_name_map(*asked) is gguf.get_tensor_name_map(*asked)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
    with pytest.raises(KeyError), read_once(None):
        raise KeyError
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
