"""What the OpenAPI page says of bodies. The reading itself is ``symposia_shared.openai``'s."""

from __future__ import annotations

from typing import Any

from symposia_shared.ledger.outbox import EVENTS

KEYED: dict[str, Any] = {"security": [{"key": []}]}
_MODEL = {"type": "string", "minLength": 1, "maxLength": 8000, "description": "A checkpoint, a saved team, or PATTERN:MEMBER,MEMBER;OPTION=VALUE",
          "example": "debate:smollm2-135m,gemma3-270m;rounds=2"}
_SAMPLING: dict[str, Any] = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 10}, "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"type": "integer", "minimum": 0}, "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 10}, "seed": {"type": "integer", "minimum": 0},
    "stop": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "maxItems": 16, "items": {"type": "string", "minLength": 1}}]},
    "n": {"type": "integer", "minimum": 1, "maximum": 128}, "max_tokens": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
    "stream": {"type": "boolean"}, "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}, "additionalProperties": False},
    "structured_outputs": {"type": "object", "description": "One of json, choice and regex"},
    "user": {"type": "string"}, "metadata": {"type": "object"},
    "reuse": {"type": "boolean", "description": "Ours: a reply kept from an equal question of this tenant will do, and this one is kept"},
}
_MESSAGE = {"type": "object", "required": ["role", "content"], "additionalProperties": False, "properties": {
    "role": {"enum": ["system", "developer", "user", "assistant"]},
    "content": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "object", "required": ["type", "text"], "properties": {
        "type": {"const": "text"}, "text": {"type": "string"}}}}]}}}
CHAT: dict[str, Any] = {"type": "object", "required": ["model", "messages"], "additionalProperties": False, "properties": {
    "model": _MODEL, "messages": {"type": "array", "minItems": 1, "items": _MESSAGE}, **_SAMPLING,
    "max_completion_tokens": {"type": "integer", "minimum": 1, "maximum": 1_000_000}, "logprobs": {"type": "boolean"},
    "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20}, "response_format": {"type": "object", "properties": {
        "type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {"type": "object"}}}}}
_TEXTS = {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}]}
COMPLETION: dict[str, Any] = {"type": "object", "required": ["model", "prompt"], "additionalProperties": False, "properties": {
    "model": _MODEL, "prompt": _TEXTS, "suffix": {"type": "string"}, "logprobs": {"type": "integer", "minimum": 0, "maximum": 20}, **_SAMPLING}}
EMBEDDING: dict[str, Any] = {"type": "object", "required": ["model", "input"], "additionalProperties": False, "properties": {
    "model": _MODEL, "input": _TEXTS, "encoding_format": {"enum": ["float", "base64"]}, "user": {"type": "string"},
    "reuse": {"type": "boolean"}}}
_ITEM = {"type": "object", "required": ["role", "content"], "properties": {"type": {"const": "message"}, "role": {"enum": [
    "system", "developer", "user", "assistant"]}, "content": {"oneOf": [{"type": "string"}, {"type": "array", "items": {
        "type": "object", "required": ["type", "text"], "properties": {"type": {"enum": ["input_text", "output_text"]}, "text": {"type": "string"}}}}]}}}
RESPONSE: dict[str, Any] = {"type": "object", "required": ["model", "input"], "additionalProperties": False, "properties": {
    "model": _MODEL, "input": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1, "items": _ITEM}]},
    "instructions": {"type": "string"}, "max_output_tokens": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
    "metadata": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 512}, "maxProperties": 16}, "store": {"type": "boolean"},
    "background": {"type": "boolean"}, "stream": {"type": "boolean"}, "previous_response_id": {"type": "string"},
    "text": {"type": "object", "properties": {"format": {"type": "object", "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}}}},
    "include": {"type": "array", "items": {"const": "message.output_text.logprobs"}}, "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
    "user": {"type": "string"}, **{name: _SAMPLING[name] for name in ("temperature", "top_p", "seed", "stop", "top_k", "min_p", "repetition_penalty")}}}
WEBHOOK: dict[str, Any] = {"type": "object", "required": ["url"], "additionalProperties": False, "properties": {
    "url": {"type": "string", "format": "uri", "maxLength": 2048}, "events": {"type": "array", "items": {"enum": list(EVENTS)}}}}
TEAM: dict[str, Any] = {"oneOf": [
    {"type": "object", "required": ["model"], "additionalProperties": False, "properties": {"model": _MODEL}},
    {"type": "object", "required": ["pattern", "members"], "additionalProperties": False, "properties": {
        "pattern": {"type": "string"}, "options": {"type": "object"}, "members": {"type": "array", "minItems": 1, "items": {
            "type": "object", "required": ["model"], "additionalProperties": False, "properties": {
                "model": {"type": "string"}, "name": {"type": "string"}, "role": {"type": "string"}, "params_b": {"type": "number"}}}}}}]}
ERROR: dict[str, Any] = {"type": "object", "required": ["error"], "properties": {"error": {
    "type": "object", "required": ["message", "type", "param", "code"], "properties": {
        "message": {"type": "string"}, "type": {"type": "string"}, "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]}}}}}


def body(schema: dict[str, Any]) -> dict[str, Any]:
    """What is said of a path that takes this body."""
    return {**KEYED, "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"default": {"description": "An error", "content": {"application/json": {"schema": ERROR}}}}}


BATCH: dict[str, Any] = {"type": "object", "required": ["input_file_id", "endpoint", "completion_window"], "additionalProperties": False, "properties": {
    "input_file_id": {"type": "string", "minLength": 1, "maxLength": 200},
    "completion_window": {"type": "string", "description": "24h, 90m, 7d", "example": "24h"},
    "endpoint": {"enum": ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]},
    "metadata": {"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512}},
    "output_expires_after": {"type": "object", "required": ["anchor", "seconds"], "additionalProperties": False, "properties": {
        "anchor": {"const": "created_at"}, "seconds": {"type": "integer", "minimum": 3600, "maximum": 2_592_000}}},
    "symposia": {"type": "object", "additionalProperties": False, "properties": {
        "auto_model": {"type": "string", "description": "Who answers lines whose model is 'auto'"},
        "mixed": {"type": "boolean", "description": "Lines may have any url that is served"}}}}}
_FILE_FORM = {"type": "object", "required": ["file", "purpose"], "properties": {
    "file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["batch"]}, "expires_after[anchor]": {"const": "created_at"},
    "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000}}}
UPLOAD: dict[str, Any] = {**KEYED, "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FILE_FORM}}},
                          "responses": {"default": {"description": "An error", "content": {"application/json": {"schema": ERROR}}}}}


def query(**parameters: str) -> dict[str, Any]:
    """What is said of a path that takes these parameters in its query, each of a type."""
    return {**KEYED, "parameters": [{"name": name, "in": "query", "schema": {"type": kind}} for name, kind in parameters.items()]}
