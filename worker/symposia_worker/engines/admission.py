"""From a request to what a batch advances, and from what it became to a completion: checks first, before any forward pass."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from symposia_shared.errors import BadInput, PromptTooLong
from symposia_shared.prompts import ChoiceForm, Message, Sampling
from symposia_shared.turns import Completion, Timing, TokenLogprob, Usage
from symposia_worker.engines.grammar import Grammar, Vocabulary, Walk, compile_form
from symposia_worker.engines.loading import Model
from symposia_worker.engines.protocol import Delta, Done, Event, Failed, First, Generate
from symposia_worker.engines.scoring import Options, Scored
from symposia_worker.engines.sequence import Choice, Reading, Sequence
from symposia_worker.families import Renderer
from symposia_worker.families.kinds import Kind


def capabilities_of(kind: Kind, renderer: Renderer) -> tuple[str, ...]:
    """What can be asked of a checkpoint that is served by one of our own engines."""
    if kind != "generate":
        return (kind,)
    told = (*(["instruct"] if renderer.instruct else []), *(["infill"] if renderer.infill else []))
    forms = ("json_schema", "regex") if Vocabulary.suits(renderer.tokenizer) else ()
    return ("generate", *told, "score", "choice", *forms)


@dataclass(slots=True)
class Admission:
    """The door of one resident checkpoint."""

    model: Model
    _vocabulary: list[Vocabulary] = field(default_factory=list)

    def reading(self, request: Generate) -> Reading:
        """What a request asks for. Raises BadInput (PromptTooLong among it)."""
        if request.want == "embedding":
            raise BadInput(f"{request.checkpoint} is a decoder ({self.model.model_type}) and makes no vectors.", field="want", value=request.want,
                           remedy="Ask a checkpoint with the capability 'embed'.")
        if request.want == "score":
            return self._score(request)
        if isinstance(request.sampling.form, ChoiceForm):
            return self._choice(request, request.sampling.form.options)
        return self._sequence(request)

    def _sequence(self, request: Generate) -> Sequence:
        renderer, sampling = self.model.renderer, request.sampling
        form = self._form(sampling)
        ids = self._checked(renderer.prompt_ids(request.messages, raw=request.raw, suffix=request.suffix), request, more=1)
        return Sequence(request.id, ids, sampling, renderer.text, stream=request.stream, stop_ids=renderer.stop_ids, form=form,
                        max_new=min(sampling.max_tokens, self.model.context - len(ids)))

    def _form(self, sampling: Sampling) -> tuple[Grammar, Walk] | None:
        if sampling.form is None:
            return None
        if sampling.stop:
            raise BadInput("typed output ends where its form does, and stop strings might cut it.", field="stop", value=sampling.stop,
                           remedy="Leave 'stop' out, or say it in the form.")
        grammar = compile_form(sampling.form)
        if not self._vocabulary:
            model = self.model
            if not Vocabulary.suits(model.renderer.tokenizer):
                raise BadInput(f"{model.checkpoint}'s tokenizer has no table of tokens a form could be enforced with.", field="form",
                               remedy="Ask a checkpoint with the capability 'json_schema'.")
            self._vocabulary.append(Vocabulary(model.renderer.tokenizer, size=min(model.renderer.vocabulary, model.embeddings),
                                               stop_ids=model.renderer.stop_ids))
        return grammar, grammar.start(self._vocabulary[0])

    def _score(self, request: Generate) -> Scored:
        """The last message as said by the model after the ones before it. Without any before it, all but its first token (which bos is
        where there is one) is scored: nothing comes before that."""
        *earlier, last = request.messages
        if request.suffix is not None or request.sampling.form is not None:
            raise BadInput("a score is of the last message as it stands.", field="suffix" if request.suffix is not None else "form",
                           remedy="Leave 'suffix' and 'form' out.")
        if not last.content:
            raise BadInput("the text to be scored is empty.", field="messages", remedy="Put it in the last message.")
        ids = self._checked(self._continued(earlier, [last.content], request)[0], request)
        begin = _shared(ids, self._opening(earlier, request)) if earlier else 1
        if not 1 <= begin < len(ids):
            raise BadInput(f"the text has {len(ids)} tokens, and none that another comes before.", field="messages", remedy="Score a longer one.")
        return Scored(request.id, ids, begin=begin, top=request.sampling.logprobs or 0, text=last.content)

    def _choice(self, request: Generate, options: tuple[str, ...]) -> Options:
        if request.suffix is not None:
            raise BadInput("a choice is made behind the prompt, not within it.", field="suffix", remedy="Leave 'suffix' out.")
        if len(set(options)) < len(options):
            raise BadInput("two options are the same.", field="form.options", remedy="Name each once.")
        self._opening(request.messages, request)  # an empty prompt is refused
        asked = [self._checked(ids, request) for ids in self._continued(request.messages, options, request)]
        made = Options(request.id, options, asked, stop_ids=self.model.renderer.stop_ids, stream=request.stream)
        if made.prompt_tokens < 1:
            raise BadInput("the prompt runs into the options from its first token on, so that nothing comes before them.", field="messages",
                           remedy="Give a longer prompt, or options that begin with a space.")
        return made

    def _continued(self, messages: Many[Message], texts: Many[str], request: Generate) -> list[list[int]]:
        """The prompt gone on with by each text, tokenised together, since a tokenizer may join the last of one and the first of the
        other: to a chat as the assistant's message, begun or gone on with; else right behind the last message."""
        renderer = self.model.renderer
        if not messages:
            return [renderer.prompt_ids((Message(role="user", content=text),), raw=True) for text in texts]
        *before, last = messages
        if renderer.instruct and not request.raw and last.role != "assistant":
            return [renderer.prompt_ids((*messages, Message(role="assistant", content=text))) for text in texts]
        return [renderer.prompt_ids((*before, Message(role=last.role, content=last.content + text)), raw=request.raw) for text in texts]

    def _opening(self, messages: Many[Message], request: Generate) -> list[int]:
        return self.model.renderer.prompt_ids(messages, raw=request.raw)

    def _checked(self, ids: list[int], request: Generate, *, more: int = 0) -> list[int]:
        model = self.model
        if len(ids) + more > model.context:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens and {request.checkpoint} reads {model.context} with its answer.",
                                field="messages", remedy="Shorten it, or choose a checkpoint with a longer context.")
        if max(ids) >= model.embeddings:
            raise BadInput(f"the prompt has token {max(ids)}, and {request.checkpoint} knows {model.embeddings}.", field="messages",
                           remedy="Push the checkpoint again with the tokenizer it was trained with.")
        return ids


def completion_of(r: Reading, model: Model) -> Completion:
    """What a request that has ended says."""
    timing = Timing(first_token_at=r.first_at, last_token_at=r.last_at)
    if isinstance(r, Options):
        text, best = r.best
        usage = Usage(prompt_tokens=r.prompt_tokens, completion_tokens=sum(len(s.choices) for s in r.scored))
        return Completion(text=text, usage=usage, timing=timing, options=r.probabilities, logprob_mean=_mean(best.choices))
    if isinstance(r, Scored):
        usage = Usage(prompt_tokens=r.prompt_tokens, completion_tokens=len(r.choices))
        return Completion(text=r.text, usage=usage, timing=timing, logprob_mean=_mean(r.choices), logprobs=_by_token(r.ids, r.choices, model))
    assert isinstance(r, Sequence)  # noqa: S101
    typed = r.grammar is not None
    reasoning, text = (None, r.text) if typed else model.renderer.split_reasoning(r.text)
    return Completion(
        text=text, reasoning=reasoning, finish_reason=r.finish or "stop", logprob_mean=r.logprob_mean, timing=timing,
        usage=Usage(prompt_tokens=r.prompt_tokens, completion_tokens=r.new_tokens),
        logprobs=None if r.sampling.logprobs is None else _by_token(r.ids, r.choices, model),
    )


def _mean(choices: list[Choice]) -> float:
    return sum(c.logprob for c in choices) / len(choices)


def _by_token(ids: list[int], choices: list[Choice], model: Model) -> tuple[TokenLogprob, ...]:
    """The last tokens of ``ids``, one for each choice, as they are written behind the token before each."""
    begin = len(ids) - len(choices)
    return tuple(TokenLogprob(token=write(c.token), logprob=c.logprob, top=tuple((write(t), p) for t, p in c.top))
                 for n, c in enumerate(choices) for write in [_writer(model, ids[begin + n - 1])])


def _writer(model: Model, before: int) -> Callable[[int], str]:
    """A token as text: a tokenizer may drop a space at a text's beginning, and writes special tokens only if asked."""
    decode = model.renderer.tokenizer.decode

    def written(*ids: int) -> str:
        text: str = decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    head = written(before)

    def write(token: int) -> str:
        both = written(before, token)
        return both[len(head) :] if both.startswith(head) else written(token)

    return write


def _shared(ids: list[int], opening: list[int]) -> int:
    """Tokens that a text and its beginning have in common."""
    return next((n for n, (a, b) in enumerate(zip(ids, opening, strict=False)) if a != b), min(len(ids), len(opening)))


def told(r: Reading, model: Model) -> list[Event]:
    """What a request's last step means to the one who asked."""
    events: list[Event] = []
    if r.first_at is not None and not r.first_told:
        r.first_told = True
        events.append(First(id=r.id, at=r.first_at))
    if isinstance(r, Sequence) and r.stream and (text := r.fresh_text()):
        events.append(Delta(id=r.id, text=text))
    if isinstance(r, Options) and r.stream and r.finish is not None:
        events.append(Delta(id=r.id, text=r.best[0]))
    if r.fault is not None:
        events.append(Failed(id=r.id, cause=r.fault[0], message=r.fault[1]))
    elif r.finish is not None:
        events.append(Done(id=r.id, completion=completion_of(r, model)))
    return events
