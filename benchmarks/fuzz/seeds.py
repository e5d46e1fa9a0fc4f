"""Sound examples of every form, which the fuzz then spoils a little: junk alone never comes past the first look."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from benchmarks.chaos.jobs import asked
from symposia.testing import ScriptedClient
from symposia_shared.jobs import Job
from symposia_shared.results import Result


@cache
def jobs() -> tuple[Job, ...]:
    """Jobs of every kind."""
    return tuple(asked(7, n, healthy=True).job for n in range(48))


@cache
def results() -> tuple[Result, ...]:
    """Their results, as the scripted client plays them."""
    client = ScriptedClient()
    client.say("test/echo", "42")
    return tuple(client.submit(job).wait() for job in jobs()[:24])


def job_dicts() -> list[Any]:
    """Jobs as they stand in files."""
    return [json.loads(job.to_json()) for job in jobs()]


def result_dicts() -> list[Any]:
    """Transcripts as they stand in files."""
    return [json.loads(found.model_dump_json()) for found in results()]


TOOL = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT: list[Any] = [
    {"model": "test/echo", "messages": [{"role": "user", "content": "hello"}]},
    {"model": "auto", "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}], "n": 2,
     "temperature": 0.3, "top_p": 0.9, "seed": 4, "stop": ["\n", "END"], "max_tokens": 8, "logprobs": True, "top_logprobs": 3},
    {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "stream_options": {"include_usage": True}},
    {"model": "m", "messages": [{"role": "user", "content": "x"}],
     "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": TOOL}}},
    {"model": "ensemble:test/echo,test/echo,test/say:7;consensus=majority_vote", "messages": [{"role": "user", "content": "7 or 8?"}]},
]
COMPLETIONS: list[Any] = [{"model": "m", "prompt": "once"},
                          {"model": "m", "prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2, "suffix": "end", "echo": False}]
EMBEDDINGS: list[Any] = [{"model": "m", "input": "a text"}, {"model": "m", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}]
_CALLS = [("/v1/chat/completions", CHAT[0]), ("/v1/completions", COMPLETIONS[0]), ("/v1/embeddings", EMBEDDINGS[1])]
LINES: list[Any] = [{"custom_id": f"row-{n}", "method": "POST", "url": url, "body": body} for n, (url, body) in enumerate(_CALLS)]
TEAMS = ["ensemble:a,b,c", "debate:x=test/echo,y=test/say:7;rounds=2", "pipeline:a,b;deadline_s=5", 'ensemble:a,b,c;weights={"a":1}', "adversarial:m%2Cn,b"]
CRONS = ["0 4 * * *", "*/5 1-3 * 2 1,2", "59 23 29 2 0", "0 0 1 1 *"]
CHECKPOINT: dict[str, Any] = {
    "id": "lab/one", "base": "lab/one", "revision": "main",
    "source": {"kind": "hub", "repo": "lab/one", "revision": "main"}, "architecture": "LlamaForCausalLM",
    "parameters": 1000, "context": 128, "licence": "Apache-2.0", "capabilities": ["generate"],
}
FACTS: dict[str, Any] = {
    "architecture": "LlamaForCausalLM", "model_type": "llama", "parameters": 100, "context": 128, "vocab": 320, "longest_token_bytes": 16,
    "capabilities": ["generate"], "licence": "Apache-2.0", "source": "folder:made", "bits_per_byte": 0.9, "dtype": "float32",
}
CREDENTIALS: dict[str, Any] = {
    "broker_url": "redis://:secret@127.0.0.1:6379/0", "message_key": "k" * 32, "api_key": "sym-1", "prefix": "mine:",
    "s3": {"endpoint_url": "http://127.0.0.1:1", "region": "us-east-1", "access_key": "a", "secret_key": "b", "bucket": "c"},
}
HEADERS: dict[str, Any] = {"task": "symposia.turn", "id": "a", "root_id": "a", "eta": None, "retries": 0, "sig": "x" * 22}
BODY: list[Any] = [["job", 0, 0], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
