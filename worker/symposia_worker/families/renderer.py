"""Messages to token ids, token ids to text: a family bound to one checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from symposia_shared.errors import BadInput
from symposia_shared.prompts import Message
from symposia_worker.families.family import TURN_ENDS, Family
from symposia_worker.families.infill import Infill, infill_of


class Renderer:
    """Renders for one checkpoint. ``tokenizer`` is a transformers tokenizer, ``eos`` the ids of configuration and generation_config.

    ``keeps_end``: an eos that the tokenizer puts behind a text stays, as encoders were trained with it.
    """

    def __init__(self, family: Family, tokenizer: Any, *, eos: Sequence[int] = (), keeps_end: bool = False) -> None:
        self.family, self.tokenizer, self._keeps_end = family, tokenizer, keeps_end
        #: ids from here on are padding of the model's vocabulary: never sampled
        self.vocabulary: int = max(tokenizer.get_vocab().values(), default=-1) + 1
        #: whether it has a chat template
        self.instruct = bool(tokenizer.chat_template)
        #: how a hole is put to it; None: it cannot infill
        self.infill: Infill | None = infill_of(tokenizer)
        self.stop_ids = self._stop_ids(eos)
        added = tokenizer.get_added_vocab()
        self._thinks = family.reasoning_marks[1] in added

    def prompt_ids(self, messages: Sequence[Message], *, raw: bool = False, suffix: str | None = None) -> list[int]:
        """The prompt's token ids: by chat template, or the contents as plain text. Raises BadInput.

        ``raw``: the contents one after another as they stand, also to a chat model. ``suffix``: what follows the hole behind the
        last message; the contents before it stand as they are too.
        """
        if not any(m.content.strip() for m in messages) and not (suffix or "").strip():
            raise BadInput("the prompt is empty.", field="messages", remedy="Say what is asked in at least one message.")
        if suffix is not None:
            ids = self._plain_ids(self._around_hole("".join(m.content for m in messages), suffix))
        elif raw:
            ids = self._plain_ids("".join(m.content for m in messages))
        elif self.instruct:
            # the template writes bos where the family wants one
            ids = self.tokenizer(self._by_template(messages), add_special_tokens=False)["input_ids"]
        else:
            ids = self._plain_ids(self.family.joint.join(m.content for m in messages if m.content))
        if not ids:
            raise BadInput("the prompt has no tokens.", field="messages", remedy="Say what is asked in at least one message.")
        return list(ids)

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = list(self.tokenizer(text)["input_ids"])
        if not self._keeps_end and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id and not text.endswith(self.tokenizer.eos_token):
            ids = ids[:-1]  # a tokenizer that ends every text would have the model begin another one
        return ids

    def _around_hole(self, prefix: str, suffix: str) -> str:
        if self.infill is None:
            raise BadInput("this checkpoint cannot infill: its tokenizer has no tokens that mark a hole.", field="suffix", value=suffix[:80],
                           remedy="Leave 'suffix' out, or ask a checkpoint with the capability 'infill'.")
        return self.infill.prompt(prefix, suffix)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ``ids`` as it was written: no special tokens, no clean-up of spaces."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def split_reasoning(self, text: str) -> tuple[str | None, str]:
        """(reasoning or None, answer). A reasoning that was cut off leaves no answer."""
        opening, closing = self.family.reasoning_marks
        if not self._thinks:
            return None, text
        begun = text.lstrip().startswith(opening)
        if closing not in text and not begun:
            return None, text
        reasoning, _, answer = text.partition(closing)  # the opening mark may stand in the prompt, written by the template
        return reasoning.lstrip().removeprefix(opening).strip(), answer.lstrip()

    def _stop_ids(self, eos: Sequence[int]) -> frozenset[int]:
        added: dict[str, int] = self.tokenizer.get_added_vocab()
        own = self.tokenizer.eos_token_id
        ends = (*TURN_ENDS, *self.family.stops) if self.instruct else self.family.stops  # a base model may write them as text
        named = [added[name] for name in ends if name in added]
        if self.infill is not None:
            vocabulary = self.tokenizer.get_vocab()
            named += [vocabulary[name] for name in self.infill.ends if name in vocabulary]
        return frozenset({*eos, *([] if own is None else [own]), *named})

    def _by_template(self, messages: Sequence[Message]) -> str:
        """The chat as one text. A template that takes no system message, or no two of one role in a row, is given none."""
        chat = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._apply(chat)
        except Exception as first:  # jinja's, raised by the template or by what it trips over
            try:
                return self._apply(_alternating(messages))
            except Exception:
                raise BadInput(f"this checkpoint's chat template refuses the messages: {first}.", field="messages",
                               remedy="Begin with a user message and alternate user and assistant.") from None

    def _apply(self, chat: list[dict[str, str]]) -> str:
        goes_on = chat[-1]["role"] == "assistant"
        text: str = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on)
        return text


def _alternating(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The same chat with system messages told by the user, and neighbours of one role joined."""
    chat: list[dict[str, str]] = []
    for m in messages:
        role = "user" if m.role == "system" else m.role
        if chat and chat[-1]["role"] == role:
            chat[-1]["content"] += "\n\n" + m.content
        else:
            chat.append({"role": role, "content": m.content})
    return chat
