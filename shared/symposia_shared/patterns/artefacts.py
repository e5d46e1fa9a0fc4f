"""What a member wrote, as its peers are shown it."""

from __future__ import annotations

from symposia_shared.answers.reading import said
from symposia_shared.turns import Reply

#: what stands for the middle of a text that was cut
ELISION = "\n[...]\n"


def spoken(reply: Reply | None) -> str | None:
    """What a reply says aloud; None for an abstention and for a text that says nothing.

    Thinking is left out, also where an engine left it in the text; ``Completion.reasoning`` is never looked at.
    """
    if reply is None or reply.kind != "completion":
        return None
    # a lone surrogate, which an endpoint's JSON may carry, could not be sent on
    return said(reply.text).strip().encode("utf-8", "replace").decode() or None


def cut(text: str, most: int) -> str:
    """``text``, without its middle where it is longer than ``most`` characters: the end is where an answer stands."""
    if len(text) <= most:
        return text
    half = max(1, (most - len(ELISION)) // 2)
    return text[:half] + ELISION + text[-half:]


def page(*sections: str) -> str:
    """A prompt of several sections, an empty line between them; empty sections are left out."""
    return "\n\n".join(s for s in sections if s)


def section(title: str, body: str | None) -> str:
    """A titled section; empty where there is no body."""
    return f"{title}:\n{body}" if body else ""
