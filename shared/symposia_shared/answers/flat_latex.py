"""LaTeX on one line: fractions, roots, powers and groups written with slashes and parentheses."""

from __future__ import annotations

import re
from collections.abc import Callable

#: braces nested deeper are no answer
DEEPEST = 40
_COMMAND = re.compile(r"\\[a-zA-Z]+|\\.?")


def without_text(s: str) -> str:
    """``\\text{...}`` dropped, unless the answer is nothing else."""
    if "\\text" not in s:
        return s
    dropped = _replace_command(s, r"\text", lambda inside: "," if inside.strip() in ("and", "or") else "")
    kept = _replace_command(s, r"\text", lambda inside: inside)
    return dropped if re.search(r"\w", dropped) else re.sub(r"[()]", "", kept)


def _replace_command(s: str, command: str, become: Callable[[str], str]) -> str:
    out: list[str] = []
    at = 0
    while True:
        start = s.find(command, at)
        if start < 0:
            return "".join((*out, s[at:]))
        inside, end = _argument(s, start + len(command))
        out += [s[at:start], become(inside)]
        at = end


def _argument(s: str, at: int) -> tuple[str, int]:
    """The argument at ``at``, braced or one token long, and where it ends."""
    while at < len(s) and s[at] == " ":
        at += 1
    if at >= len(s):
        return "", at
    if s[at] == "{":
        depth = 0
        for i in range(at, len(s)):
            depth += {"{": 1, "}": -1}.get(s[i], 0)
            if depth == 0:
                return s[at + 1:i], i + 1
        return s[at + 1:], len(s)
    if s[at] == "\\":
        m = _COMMAND.match(s, at)
        assert m is not None  # noqa: S101 - the pattern matches any backslash
        return m[0], m.end()
    return s[at], at + 1


def on_one_line(s: str, depth: int = 0) -> str:
    """``\\frac{a+b}{c}`` as ``(a+b)/c``, ``\\sqrt{3}`` as ``sqrt(3)``, ``x^{12}`` as ``x^(12)``. Raises RecursionError beyond DEEPEST."""
    if depth > DEEPEST:
        raise RecursionError
    out: list[str] = []
    at = 0
    while at < len(s):
        if s.startswith("\\frac", at):
            over, at = _argument(s, at + 5)
            under, at = _argument(s, at)
            out.append(_over(on_one_line(over, depth + 1), on_one_line(under, depth + 1)))
        elif s.startswith("\\sqrt", at) and not s.startswith("[", at + 5):
            inside, at = (s[at + 6:_closing(s, at + 5)], _closing(s, at + 5) + 1) if s.startswith("(", at + 5) else _argument(s, at + 5)
            out.append(f"sqrt({on_one_line(inside, depth + 1)})")
        elif s.startswith("\\sqrt[", at):
            close = s.find("]", at)
            close = close if close > 0 else len(s)
            inside, end = _argument(s, close + 1)
            out.append(f"\\sqrt[{s[at + 6:close]}]{{{on_one_line(inside, depth + 1)}}}")
            at = end
        elif s[at] in "^_" and s.startswith("{", at + 1):
            inside, end = _argument(s, at + 1)
            flat = on_one_line(inside, depth + 1)
            out.append(s[at] + (flat if len(flat) == 1 else f"({flat})"))
            at = end
        elif s.startswith(("\\begin{", "\\end{"), at):
            close = s.find("}", at)
            close = close if close > 0 else len(s)
            out.append(s[at:close + 1])
            at = close + 1
        elif s[at] == "{":
            inside, at = _argument(s, at)
            out.append(on_one_line(inside, depth + 1))
        else:
            if s[at] != "}":
                out.append(s[at])
            at += 1
    return "".join(out)


def _closing(s: str, at: int) -> int:
    depth = 0
    for i in range(at, len(s)):
        depth += {"(": 1, ")": -1}.get(s[i], 0)
        if depth == 0:
            return i
    return len(s)


def _over(over: str, under: str) -> str:
    def held(s: str) -> str:
        s = s.strip()
        return s if re.fullmatch(r"[\w.]+", s) else f"({s})"
    return f"{held(over)}/{held(under)}"
