"""The scripted models, ``test/*``: what each says, as a pure function of what it is asked.

    test/echo           the last user message
    test/say:TEXT       TEXT
    test/slow:MS        "slow MS", after MS milliseconds where an engine paces it
    test/garbage        noise, differing by seed and prompt: control characters, broken JSON, huge numbers, mixed scripts
    test/failing:CAUSE  no answer, for CAUSE; ``crash`` and ``hang`` take an engine process with them

A token is a word with the white space before it (the last one also with what follows), so that joined tokens are the text.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from symposia_shared.likelihoods import chances, scored, vector
from symposia_shared.prompts import ChoiceForm, Message, Sampling
from symposia_shared.turns import Abstention, Cause, Completion, FinishReason, TokenLogprob, Usage, Want

#: what scripted models can do: no grammar is enforced on a script, and it has no hole to fill
CAPABILITIES = ("generate", "instruct", "embed", "score", "choice")

#: words a scripted model can read and write together
CONTEXT = 1_000_000

#: causes ``test/failing`` can fail with as an engine does
EngineCause = Literal["out_of_memory", "device_lost", "throttled", "timeout", "bad_prompt", "refused", "bug"]

#: what it can do to the engine process itself, and the cause a pool sees
FATAL: dict[str, Cause] = {"crash": "device_lost", "hang": "timeout"}

_NAMES = "test/echo, test/say:TEXT, test/slow:MS, test/garbage and test/failing:CAUSE"
_CAUSES: tuple[EngineCause, ...] = get_args(EngineCause)


@dataclass(frozen=True, slots=True)
class Script:
    """What a scripted model is going to do: say ``tokens`` over ``delay_s`` seconds, or fail for ``cause``."""

    tokens: tuple[str, ...] = ()
    #: the joined tokens up to the first stop string
    text: str = ""
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    delay_s: float = 0.0
    cause: Cause | None = None
    message: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    options: dict[str, float] | None = None
    vectors: tuple[tuple[float, ...], ...] | None = None
    #: ``crash`` or ``hang``: what happens to the process that runs it
    fatal: str | None = None

    @property
    def reply(self) -> Completion | Abstention:
        """The reply once it has all been said."""
        if self.cause is not None:
            return Abstention(cause=self.cause, message=self.message)
        usage = Usage(prompt_tokens=self.prompt_tokens, completion_tokens=len(self.tokens))
        mean = math.fsum(t.logprob for t in self.logprobs) / len(self.logprobs) if self.logprobs else None
        return Completion(text=self.text, finish_reason=self.finish_reason, usage=usage, logprob_mean=mean, logprobs=self.logprobs,
                          options=self.options, vectors=self.vectors)


def scripted_reply(model: str, messages: Sequence[Message], sampling: Sampling, *, want: Want = "completion",
                   suffix: str | None = None) -> Completion | Abstention:
    """What ``model`` answers, without its delay and without harm to the process."""
    return script_of(model, messages, sampling, want=want, suffix=suffix).reply


def script_of(model: str, messages: Sequence[Message], sampling: Sampling, *, want: Want = "completion", suffix: str | None = None) -> Script:
    """The script of a ``test/*`` checkpoint for one request. A name that is none fails as ``bad_prompt``.

    A vector, a score or a choice is asked of any but ``failing`` and follows the words of the request (``likelihoods``);
    ``slow`` takes its time over it.
    """
    refusal = _refusal(model, sampling, suffix)
    if refusal:
        return Script(cause="bad_prompt", message=refusal)
    script = _told(model, messages, sampling)
    if script.cause is not None:
        return script
    if want == "embedding":
        return replace(script, tokens=(), text="", finish_reason="stop", vectors=tuple(vector(words(m.content)) for m in messages))
    if want == "score":
        return _score(script, messages)
    if isinstance(sampling.form, ChoiceForm):
        return _choose(script, sampling.form)
    if sampling.logprobs is not None:  # a script says its words with certainty
        sure = tuple(TokenLogprob(token=t, logprob=0.0, top=((t, 0.0),) if sampling.logprobs else ()) for t in script.tokens)
        return replace(script, logprobs=sure)
    return script


def _refusal(model: str, sampling: Sampling, suffix: str | None) -> str:
    if suffix is not None:
        return f"{model} fills no hole: leave 'suffix' out."
    form = sampling.form
    if form is not None and not isinstance(form, ChoiceForm):
        return f"{model} keeps to no {form.kind}, only to a choice: it says what its script says."
    return ""


def _score(script: Script, messages: Sequence[Message]) -> Script:
    asked = words(messages[-1].content)
    given = [w for m in messages[:-1] for w in words(m.content)]
    return replace(script, tokens=(), text=messages[-1].content, finish_reason="stop", logprobs=scored(asked, given))


def _choose(script: Script, form: ChoiceForm) -> Script:
    found = chances(form.options, script.text)
    best = max(found, key=lambda option: found[option])
    return replace(script, tokens=tuple(words(best)), text=best, finish_reason="stop", options=found,
                   logprobs=tuple(TokenLogprob(token=w, logprob=math.log(found[best]) / len(words(best))) for w in words(best)))


def _told(model: str, messages: Sequence[Message], sampling: Sampling) -> Script:
    kind, _, argument = model.removeprefix("test/").partition(":")
    prompt_tokens = sum(len(words(m.content)) for m in messages)
    if prompt_tokens == 0:
        return Script(cause="bad_prompt", message="The prompt is empty: say what is asked in at least one message.")
    if prompt_tokens >= CONTEXT:
        return Script(cause="prompt_too_long", message=f"The prompt has {prompt_tokens} words and {model} reads {CONTEXT - 1}: shorten it.")
    sampling = sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, CONTEXT - prompt_tokens)})
    if kind == "failing":
        return _failing(argument)
    if kind == "echo":
        return _say(_last_question(messages), sampling, prompt_tokens)
    if kind == "say" and argument:
        return _say(argument, sampling, prompt_tokens)
    if kind == "slow" and argument.isascii() and argument.isdigit():
        return _say(f"slow {argument}", sampling, prompt_tokens, delay_s=int(argument) / 1000)
    if kind == "garbage":
        return _say(garbage(_seed(messages, sampling)), sampling, prompt_tokens)
    return Script(cause="bad_prompt", message=f"{model!r} is not a test checkpoint: they are {_NAMES}.")


def words(text: str) -> list[str]:
    """``text`` cut into words that keep their white space; joined they are ``text``. Only white space is one word."""
    if not text or text.isspace():  # the pattern would try each of its characters as a beginning
        return [text] if text else []
    return re.findall(r"\s*\S+(?:\s+\Z)?", text)


def garbage(seed: str, longest: int = 600) -> str:
    """1 to ``longest`` words of noise, the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - noise that must repeat
    return "".join(_noise(rng) + rng.choice((" ", " ", " ", "\n", "\t")) for _ in range(rng.randint(1, longest)))


def _say(text: str, sampling: Sampling, prompt_tokens: int, *, delay_s: float = 0.0) -> Script:
    every = words(text)
    said = every[: sampling.max_tokens]
    finish: FinishReason = "length" if len(said) < len(every) else "stop"
    whole = "".join(said)
    stops = [(at, at + len(stop)) for stop in sampling.stop if stop and (at := whole.find(stop)) >= 0]
    if stops:
        at, end = min(stops)
        said, finish = _until(said, end), "stop"
        whole = whole[:at]
    return Script(tokens=tuple(said), text=whole, finish_reason=finish, prompt_tokens=prompt_tokens, delay_s=delay_s)


def _until(tokens: list[str], length: int) -> list[str]:
    """The fewest leading tokens that have ``length`` characters."""
    total = 0
    for count, token in enumerate(tokens, start=1):
        total += len(token)
        if total >= length:
            return tokens[:count]
    return tokens


def _failing(cause: str) -> Script:
    if cause in FATAL:
        verb = "kills" if cause == "crash" else "stops"
        return Script(cause=FATAL[cause], fatal=cause, message=f"test/failing:{cause} {verb} the engine process, as it was asked to.")
    for known in _CAUSES:
        if known == cause:
            return Script(cause=known, message=f"test/failing:{cause} failed, as it was asked to.")
    allowed = ", ".join((*_CAUSES, *FATAL))
    return Script(cause="bad_prompt", message=f"test/failing knows no cause {cause!r}: give one of {allowed}.")


def _last_question(messages: Sequence[Message]) -> str:
    asked = [m.content for m in messages if m.role == "user"]
    return asked[-1] if asked else messages[-1].content


def _seed(messages: Sequence[Message], sampling: Sampling) -> str:
    asked = "\x1e".join(f"{m.role}\x1f{m.content}" for m in messages)
    return f"{sampling.seed or 0}:{hashlib.sha256(asked.encode()).hexdigest()}"


_SCRIPTS = ("абвгдеёжз", "漢字仮名交じり文", "אבגדהוזח", "ابتثجحخد", "🙂🧪🧵🪡👩‍🔬", "ąčęėįšųū", "a\u0301e\u0308o\u0302\u200b\u202e")
_BROKEN = (
    '{"answer":', '"yes",}', "[1,2,", "```json", "```", "<think>", "</think>", "\\boxed{", "}}}", "NaN", "null", "</s>", "'''",
    '{"a":{"a":',
)
_CONTROLS = "".join(chr(n) for n in (*range(9), *range(14, 28), 27, 127, 0x9B, 0xFFFD, 0xFEFF))


def _noise(rng: random.Random) -> str:
    """One word without white space in it."""
    kind = rng.randrange(6)
    if kind == 0:
        return "".join(rng.choices(_CONTROLS, k=rng.randint(1, 5)))
    if kind == 1:
        return rng.choice(_BROKEN)
    if kind == 2:
        return rng.choice(("-", "", "+")) + str(rng.getrandbits(rng.choice((8, 64, 512)))) + rng.choice(("", "e999", ".0.0", ",5", "/0"))
    if kind == 3:
        return "".join(rng.choices(rng.choice(_SCRIPTS), k=rng.randint(1, 8)))
    if kind == 4:
        return rng.choice(("Answer:", "yes", "no", "#", "((((", "A)", "B.", "...", "42", "The", "answer", "is"))
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 12)))
