"""One request on its way through an engine: its tokens so far, its text, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from symposia_shared.prompts import Sampling
from symposia_shared.turns import Cause, FinishReason
from symposia_worker.engines.grammar import Grammar, Walk

if TYPE_CHECKING:
    from symposia_worker.engines.prefixes import Prefix

#: tokens that may wait for the rest of a character; a character has at most four bytes, so more are noise
_PENDING = 64


class Transcription:
    """The text of tokens as they come: joined, its pieces are the text of all tokens together, where those are UTF-8.

    A token may hold part of a character, and may be written otherwise at the beginning than after others; so each is
    decoded behind the ones before it (as in vLLM's detokenizer). Of byte tokens that are no UTF-8 a tokenizer that falls back to
    bytes writes the whole run as U+FFFD; what was told of it before stays, so that a newline is not lost to half an emoji behind it.
    """

    def __init__(self, decode: Callable[[Ids[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._from = self._read = 0
        self.text = ""

    def push(self, token: int) -> str:
        """What ``token`` adds; "" while a character is incomplete."""
        self._ids.append(token)
        return self._take(partial=len(self._ids) - self._read > _PENDING)

    def hold(self, token: int) -> None:
        """As ``push``, where nobody asks what it adds before the end."""
        self._ids.append(token)

    def flush(self) -> str:
        """What is left, an incomplete character as U+FFFD."""
        if not self._read:
            whole = self._decode(self._ids)
            if "\ufffd" not in whole:  # UTF-8 throughout: the same as piece by piece
                self._read, self.text = len(self._ids), whole
                return whole
            held, self._ids = self._ids, []
            return "".join(map(self.push, held)) + self._take(partial=True)
        return self._take(partial=True)

    def _take(self, *, partial: bool) -> str:
        before = self._decode(self._ids[self._from : self._read])
        after = self._decode(self._ids[self._from :])
        if len(after) <= len(before) or (after.endswith("\ufffd") and not partial):
            return ""
        self._from, self._read = self._read, len(self._ids)
        more = after[len(before) :]
        self.text += more
        return more


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and its natural log-probability by the model's own distribution (before penalties, temperature and grammar)."""

    token: int
    logprob: float
    #: the likeliest tokens at its place with their log-probabilities, likeliest first, where they were asked for
    top: tuple[tuple[int, float], ...] = ()

    @property
    def sound(self) -> bool:
        """False where the model gave no numbers to choose by."""
        return isfinite(self.logprob)


class Reading:
    """Tokens on their way through an engine for one request, and its end: ``finish``, or ``fault``."""

    #: the first place whose token's log-probability is wanted; None: it is gone on with
    begin: int | None = None
    #: what has been read of it elsewhere
    prefix: Prefix | None = None

    def __init__(self, request_id: str, ids: Ids[int]) -> None:
        self.id = request_id
        self.ids = list(ids)
        self.prompt_tokens = len(self.ids)
        self.finish: FinishReason | None = None
        self.fault: tuple[Cause, str] | None = None
        #: times it has been put back for want of memory
        self.setbacks = 0
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.first_told = False

    @property
    def root(self) -> Reading:
        """What is answered when it ends."""
        return self

    @property
    def spared(self) -> int:
        """The most of its tokens that a prefix may spare: those whose logits are wanted are read."""
        return len(self.ids) - 1 if self.begin is None else self.begin - 1

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be done."""
        return self.finish is not None or self.fault is not None

    def fail(self, cause: Cause, message: str) -> None:
        """End without an answer."""
        self.fault = (cause, message)


class Sequence(Reading):
    """The tokens of one request, prompt and completion.

    ``max_new`` ≥ 1 is what is asked, cut to what is left of the context. The newest token is not yet in the cache.
    """

    def __init__(
        self, request_id: str, prompt: Ids[int], sampling: Sampling, decode: Callable[[Ids[int]], str], *,
        max_new: int, stop_ids: frozenset[int] = frozenset(), stream: bool = False, form: tuple[Grammar, Walk] | None = None,
    ) -> None:
        super().__init__(request_id, prompt)
        self.sampling, self.stream = sampling, stream
        self.max_new, self.stop_ids = max_new, stop_ids
        self.grammar: Grammar | None = form[0] if form else None
        self.walk: Walk | None = form[1] if form else None
        self.transcription = Transcription(decode)
        self.logprob_sum = 0.0
        #: every token chosen, where their log-probabilities were asked for
        self.choices: list[Choice] = []
        #: whether its text is looked at before it ends
        self._watched = stream or bool(sampling.stop) or form is not None
        self._stop_at: int | None = None
        self._told = 0

    @property
    def new_tokens(self) -> int:
        """Tokens generated, the one that ended it included."""
        return len(self.ids) - self.prompt_tokens

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the cache while it is decoded: all but the newest."""
        return len(self.ids) - 1

    @property
    def text(self) -> str:
        """The text so far, up to the stop string that ended it."""
        return self.transcription.text[: self._stop_at]

    @property
    def logprob_mean(self) -> float | None:
        """Mean natural log-probability of the generated tokens, by the model's own distribution."""
        return self.logprob_sum / self.new_tokens if self.new_tokens else None

    def take(self, token: int, logprob: float, at: float, top: tuple[tuple[int, float], ...] = ()) -> None:
        """The next token, its log-probability and the likeliest beside it, and when it was chosen (epoch seconds)."""
        self.ids.append(token)
        self.logprob_sum += logprob
        if self.sampling.logprobs is not None:
            self.choices.append(Choice(token, logprob, top))
        self.first_at, self.last_at = self.first_at or at, at
        if token in self.stop_ids:
            self.finish = "stop"
            self._found_stop(self.transcription.flush())
        elif not self._watched:
            self.transcription.hold(token)
        elif self._found_stop(self.transcription.push(token)) or self._has_its_form(token):
            self.finish = "stop"
        if self.finish is None and self.new_tokens >= self.max_new:
            self.finish = "stop" if self._found_stop(self.transcription.flush()) else "length"
        if self.grammar is not None and self.walk is not None:
            self._check_form(self.grammar, self.walk)

    def fresh_text(self) -> str:
        """Text not yet told, without an end that might turn out to begin a stop string."""
        text = self.text
        end = len(text) if self.ended else len(text) - self._held(text)
        fresh, self._told = text[self._told : end], max(self._told, end)
        return fresh

    def _has_its_form(self, token: int) -> bool:
        """Go on in the grammar; True when nothing can follow."""
        if self.walk is None:
            return False
        self.walk.take(token)
        if self.walk.ended:
            self.transcription.flush()
        return self.walk.ended

    def _check_form(self, grammar: Grammar, walk: Walk) -> None:
        """Fail where the grammar could not go on (it then allows an end), or where the whole text does not have the form."""
        if walk.fault:
            self.fail("bad_prompt", f"The form has become too costly to enforce after {self.new_tokens} tokens: {walk.fault}. Simplify it.")
        elif self.finish == "stop" and not grammar.accepts(self.text):
            self.fail("bug", f"The answer does not have the {grammar.form.kind} form it was held to: its tokens read {self.text[:120]!r}. Report it.")

    def _found_stop(self, more: str) -> bool:
        """Whether a stop string now stands in the text, over whatever token borders; then the text ends before it."""
        if not more or not self.sampling.stop:
            return False
        text = self.transcription.text
        begin = max(0, len(text) - len(more) - max(map(len, self.sampling.stop)) + 1)
        found = [at for stop in self.sampling.stop if stop and (at := text.find(stop, begin)) >= 0]
        self._stop_at = min(found, default=None)
        return bool(found)

    def _held(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max(map(len, self.sampling.stop), default=1) - 1
        return next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in self.sampling.stop)), 0)
