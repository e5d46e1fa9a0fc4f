"""A collaboration asked through OpenAI's bodies: the team stands in the place of the model.

What the body does not say of sampling is the pattern's own default. A chat becomes one question: a single message is it; a system message
stands before it; of a longer chat every message is told with its role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from symposia_shared.errors import BadInput
from symposia_shared.jobs import Collaboration
from symposia_shared.openai.requests import Request, read_request
from symposia_shared.prompts import Message, Sampling
from symposia_shared.results import Result, RoundRecord
from symposia_shared.teams import Team, pattern_named

#: the body's name of a field of ``Sampling``, where it has another
_NAMES: Mapping[str, tuple[str, ...]] = {"max_tokens": ("max_tokens", "max_completion_tokens"), "form": ("response_format", "structured_outputs")}
_TELLERS = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A collaboration to be run, and the request it answers."""

    request: Request
    job: Collaboration


def read_collaboration(endpoint: str, body: Mapping[str, Any], team: Team, *, model: str) -> Asked:
    """The collaboration a body asks for; ``model`` is the team's name in it. Raises BadInput, whose ``field`` is the parameter at fault."""
    if endpoint == "/v1/embeddings":
        raise BadInput("a collaboration has no vectors.", field="model", value=model, remedy="Name a checkpoint that can embed.")
    # read as if the first member were asked, so that one reader knows what a body may say
    request = read_request(endpoint, body, model=team.members[0].model)
    for name in ("logprobs", "suffix"):
        if body.get(name) not in (None, False):
            raise BadInput(f"the parameter {name!r} is not supported for a collaboration.", field=name, value=body[name], remedy="Remove it.")
    if len(request.jobs) != 1:
        field = "n" if request.choices_per_prompt > 1 else "prompt"
        raise BadInput(f"a collaboration gives one answer, and {field!r} asks for {len(request.jobs)}.", field=field, value=body.get(field),
                       remedy="Ask once for each.")
    turn = request.jobs[0].turn
    given = {name: getattr(turn.sampling, name) for name in Sampling.model_fields
             if any(body.get(said) is not None for said in _NAMES.get(name, (name,)))}
    base = pattern_named(team.pattern).model_fields["sampling"].get_default(call_default_factory=True)
    job = team.job(question(turn.messages), sampling=base.model_copy(update=given), **({"reuse": True} if request.jobs[0].reuse else {}))
    return Asked(replace(request, model=model), job)


def question(messages: Sequence[Message]) -> str:
    """A chat as one text."""
    told = [m for m in messages if m.role != "system"]
    if len(told) == 1 and told[0].role == "user" and messages[-1] is told[0]:
        return "\n\n".join(m.content for m in messages)
    return "\n\n".join(f"{_TELLERS[m.role]}: {m.content}" for m in messages)


def extension(result: Result) -> dict[str, Any]:
    """What the field ``symposia`` says of a collaboration that has ended."""
    verdict = result.verdict
    return {
        "job_id": result.job_id, "pattern": result.job.get("kind"),
        "verdict": None if verdict is None else verdict.model_dump(mode="json", exclude={"votes"}),
        "agreement": verdict.agreement if verdict else None, "agreed": verdict.agreed if verdict else None,
        "votes": [] if verdict is None else [{**v.model_dump(mode="json"), "answer": v.answer} for v in verdict.votes],
        "rounds": len(result.rounds), "bill": result.bill.model_dump(mode="json"), "result_uri": result.result_uri,
    }


def round_extension(job_id: str, record: RoundRecord) -> dict[str, Any]:
    """What the field ``symposia`` says of a round that was closed."""
    replies = [{"member": t.turn.member, "model": t.turn.model, "spoke": t.reply.spoke,
                **({"text": t.reply.text} if t.reply.kind == "completion" else {"cause": t.reply.cause})} for t in record.turns]
    return {"job_id": job_id, "round": record.round, "closed_by": record.closed_by, "counted": list(record.counted), "replies": replies}


def collaboration_body(request: Request, result: Result, *, id: str, created: int) -> dict[str, Any]:
    """The body that answers with a collaboration's verdict. Where the members came to none, a chat's ``refusal`` says so."""
    chat = request.endpoint == "/v1/chat/completions"
    answer = result.answer
    said = {"message": {"role": "assistant", "content": answer, "refusal": None if answer is not None else NO_VERDICT}} if chat else {"text": answer or ""}
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{id}", "object": "chat.completion" if chat else "text_completion", "created": created,
        "model": request.model, "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": "stop"}],
        "usage": bill_usage(result), "symposia": extension(result),
    }


def bill_usage(result: Result) -> dict[str, int]:
    """The tokens of all turns."""
    bill = result.bill
    return {"prompt_tokens": bill.prompt_tokens, "completion_tokens": bill.completion_tokens, "total_tokens": bill.tokens}


#: said in the place of an answer
NO_VERDICT = "The members came to no common answer; their votes are in the field 'symposia'."
