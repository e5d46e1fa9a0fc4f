"""Programs: read out of their fences, compared by syntax tree where they were not run."""

from __future__ import annotations

import ast
import hashlib
import textwrap

from symposia_shared.answers.reading import said
from symposia_shared.answers.syntax import parse

#: longer programs are no answer
LONGEST_PROGRAM = 100_000


def extract_code(text: str) -> str | None:
    """The program of a text, as its author wrote it; None where nothing in it parses as Python.

    Of several fenced blocks the first that defines something, or the last one that defines the same again. Without
    a fence the whole text must be a program, or the body of a function (as completion models write it).
    """
    heard = said(text)
    pieces = heard.split("```")
    blocks = [_without_language(piece) for piece in pieces[1::2]]
    chosen, names = None, frozenset[str]()
    for block in blocks:
        defined = _defined(block)
        if defined and (chosen is None or not names or names <= defined):
            chosen, names = block, defined
        elif chosen is None and _tree(block) is not None:
            chosen = block
    if chosen is not None or blocks:
        return chosen
    tree = _tree(heard)
    return heard if tree is not None and not _is_prose(tree) else None


def code_digest(source: str) -> str:
    """16 hex digits, equal for programs that differ in layout, comments, docstrings and names of locals only."""
    tree = _tree(source)
    try:
        told = source if tree is None else ast.dump(_Plain().visit(tree))
    except RecursionError:
        told = source
    return hashlib.sha256(told.encode("utf-8", "replace")).hexdigest()[:16]


def _tree(source: str) -> ast.Module | None:
    """The syntax tree of a program, or of a function around it where it is only a body."""
    if len(source) > LONGEST_PROGRAM or not source.strip():
        return None
    for program in (source, textwrap.dedent(source), "def _():\n" + source, "def _():\n    " + source.lstrip(" ")):
        tree = parse(program)
        if isinstance(tree, ast.Module):
            return tree
    return None


def _defined(block: str) -> frozenset[str]:
    tree = _tree(block)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds)) if tree else frozenset()


def _is_prose(tree: ast.Module) -> bool:
    """Whether there is no statement in it: "Yes" and "None, really" parse too."""
    return all(isinstance(node, ast.Expr | ast.AnnAssign) for node in tree.body)


def _without_language(piece: str) -> str:
    first, newline, rest = piece.partition("\n")
    return rest if newline and (not first.strip() or first.strip().isalnum()) else piece


class _Plain(ast.NodeTransformer):
    """Drops docstrings and gives the locals of each function names by their order."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        node.body = _without_docstring(node.body)
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = _without_docstring(node.body)
        names: dict[str, str] = {}
        for inner in ast.walk(node):
            if isinstance(inner, ast.arg):
                names.setdefault(inner.arg, f"v{len(names)}")
            elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                names.setdefault(inner.id, f"v{len(names)}")
        for inner in ast.walk(node):
            if isinstance(inner, ast.arg):
                inner.arg, inner.annotation = names.get(inner.arg, inner.arg), None
            elif isinstance(inner, ast.Name):
                inner.id = names.get(inner.id, inner.id)
        node.returns = None
        self.generic_visit(node)
        return node


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    is_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if is_doc and len(body) > 1 else body
