"""Python text as a syntax tree, quietly: model text draws SyntaxWarnings that are nobody's business."""

from __future__ import annotations

import ast
import warnings
from typing import Literal

#: what parsing untrusted text may raise; the deepest nesting ends in RecursionError or MemoryError, by the parser's own limits
BROKEN = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)


def parse(source: str, mode: Literal["exec", "eval"] = "exec") -> ast.AST | None:
    """The tree of ``source``; None where it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source, mode=mode)
        except BROKEN:
            return None
