"""llama.cpp's own server, from the xllamacpp wheel, in a process of its own on a loopback port; and a tiny GGUF for it.

``python llamacpp.py GGUF PORT ALIAS CONTEXT SLOTS [embed]`` serves until it is killed.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

#: of the tiny model
LAYERS, WIDTH, HEADS, CONTEXT = 2, 64, 4, 512


def tiny_gguf(path: Path, *, seed: int = 0) -> Path:
    """A llama of 2 layers with random weights and a byte-level BPE of four merges."""
    import numpy as np
    from gguf import GGUFWriter, TokenType

    special, merges = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["t h", "th e", "Ġ the", "i s"]
    tokens = [*special, *_byte_characters(), *(m.replace(" ", "") for m in merges)]
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if t in special else TokenType.NORMAL for t in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    dice = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return dice.normal(0.0, 0.2, shape).astype(np.float32)

    writer.add_tensor("token_embd.weight", drawn(len(tokens), WIDTH))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    output = drawn(len(tokens), WIDTH)
    output[[i for i, t in enumerate(tokens) if t in special or ord(t[0]) > 126]] = 0.0  # never the likeliest: greedy answers are ASCII
    writer.add_tensor("output.weight", output)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", drawn(WIDTH, WIDTH))
        for name, shape in (("ffn_gate", (2 * WIDTH, WIDTH)), ("ffn_up", (2 * WIDTH, WIDTH)), ("ffn_down", (WIDTH, 2 * WIDTH))):
            writer.add_tensor(f"blk.{layer}.{name}.weight", drawn(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte_characters() -> list[str]:
    """The printable stand-ins of the 256 bytes, as in GPT-2's tokenizer."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in printable else chr(256 + sum(x not in printable for x in range(b))) for b in range(256)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def llamacpp_server(gguf: Path, alias: str, *, context: int = CONTEXT, slots: int = 4, embed: bool = False, port: int | None = None) -> Iterator[str]:
    """Its URL, from ready to stopped."""
    port = port or free_port()
    command = [sys.executable, __file__, str(gguf), str(port), alias, str(context), str(slots), *(["embed"] if embed else [])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            assert process.poll() is None, "llama.cpp's server has ended"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    break
            assert time.monotonic() < until, "llama.cpp's server is not ready"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def serve(gguf: str, port: str, alias: str, context: str, slots: str, embed: bool) -> None:
    """Serve until killed."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path, p.hostnames, p.port, p.model_alias = gguf, ["127.0.0.1"], int(port), {alias}
    p.n_parallel, p.n_ctx, p.cont_batching, p.warmup, p.n_gpu_layers = int(slots), int(context) * int(slots), True, False, 0
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
    p.n_threads_http, p.ui, p.verbosity, p.cache_ram_mib, p.kv_unified = 24, False, 0, 0, False
    p.embedding = embed
    if embed:
        p.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(p)
    assert server.listening_address
    threading.Event().wait()


if __name__ == "__main__":
    serve(*sys.argv[1:6], embed="embed" in sys.argv[6:])
