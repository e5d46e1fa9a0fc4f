"""Messages to token ids, token ids to text: a family bound to one checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from symposia_shared.errors import BadInput
from symposia_shared.prompts import Message
from symposia_worker.families.family import TURN_ENDS, Family


class Renderer:
    """Renders for one checkpoint. ``tokenizer`` is a transformers tokenizer, ``eos`` the ids of configuration and generation_config."""

    def __init__(self, family: Family, tokenizer: Any, *, eos: Sequence[int] = ()) -> None:
        self.family, self.tokenizer = family, tokenizer
        #: ids from here on are padding of the model's vocabulary: never sampled
        self.vocabulary: int = max(tokenizer.get_vocab().values(), default=-1) + 1
        #: whether it has a chat template
        self.instruct = bool(tokenizer.chat_template)
        self.stop_ids = self._stop_ids(eos)
        added = tokenizer.get_added_vocab()
        self._thinks = family.reasoning_marks[1] in added

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids: by chat template, or the contents as plain text. Raises BadInput."""
        if not any(m.content.strip() for m in messages):
            raise BadInput("the prompt is empty.", field="messages", remedy="Say what is asked in at least one message.")
        if self.instruct:
            # the template writes bos where the family wants one
            ids = self.tokenizer(self._by_template(messages), add_special_tokens=False)["input_ids"]
        else:
            ids = self.tokenizer(self.family.joint.join(m.content for m in messages if m.content))["input_ids"]
            if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]  # a tokenizer that ends every text would have the model begin another one
        if not ids:
            raise BadInput("the prompt has no tokens.", field="messages", remedy="Say what is asked in at least one message.")
        return list(ids)

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
        named = (added[name] for name in ends if name in added)
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
