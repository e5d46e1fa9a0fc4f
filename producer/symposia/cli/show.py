"""Results and statuses as a person reads them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from symposia.handle import Handle
from symposia_shared.errors import SymposiaError
from symposia_shared.results import Result, RoundRecord, TurnRecord
from symposia_shared.turns import Completion

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)


def facts(value: Any) -> None:
    """One JSON value on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=None if isinstance(value, str) else 2) + "\n")


def followed(handle: Handle, timeout: float | None) -> Result:
    """Wait for a job, saying on standard error what it waits for while it does."""
    if not err.is_terminal:
        return handle.wait(timeout)
    with err.status(f"job {handle.job_id}") as line:
        import threading

        over = threading.Event()

        def tell() -> None:
            while not over.wait(0.5):
                try:
                    now = handle.status()
                except SymposiaError as error:  # the line is a courtesy; the wait itself reports what is wrong
                    line.update(f"job {handle.job_id}: {error.name}")
                    continue
                waits = "; ".join(now.waiting_for[:3]) + (" ..." if len(now.waiting_for) > 3 else "")
                line.update(f"job {handle.job_id}: {now.state}" + (f", round {now.round}" if now.round is not None else "") + f"  [dim]{waits}[/dim]")

        threading.Thread(target=tell, daemon=True).start()
        try:
            return handle.wait(timeout)
        finally:
            over.set()


def result(found: Result) -> None:
    """The transcript, the verdict, the bill and where the result lies."""
    for record in found.rounds:
        out.print(_round(record))
    if found.verdict is not None and not _said_already(found):
        out.print(_verdict(found))
    if found.error is not None:
        out.print(Panel(Text(found.error.message), title=f"failed: {found.error.type}", border_style="red"))
    if found.state == "cancelled":
        out.print(Panel(Text("cancelled before a verdict"), border_style="yellow"))
    bill = found.bill
    out.print(Text(f"{found.state}  job {found.job_id}  {bill.calls} calls, {bill.prompt_tokens} + {bill.completion_tokens} tokens, "
                   f"{f'{bill.reused_calls} kept replies, ' if bill.reused_calls else ''}"
                   f"{found.ended_at - found.submitted_at:.2f} s", style="dim"))
    out.print(Text(found.result_uri, style="dim"), soft_wrap=True)


def _said_already(found: Result) -> bool:
    """Whether the verdict is the one answer that was given, or vectors, which no verdict has."""
    said = found.completion
    alone = len(found.rounds) == 1 and len(found.rounds[0].turns) == 1
    return said is not None and (said.vectors is not None or (alone and found.verdict is not None and found.verdict.answer == said.text))


def _round(record: RoundRecord) -> Group:
    head = Text(f"round {record.round}", style="bold")
    head.append(f"  closed by {record.closed_by}, {len(record.counted)} of {len(record.turns)} counted", style="dim")
    return Group(head, *(_turn(t) for t in record.turns))


def _turn(item: TurnRecord) -> Panel:
    reply = item.reply
    if reply.kind == "completion":
        seconds = max(0.0, (reply.timing.last_token_at or 0.0) - reply.timing.claimed_at)
        note = f"{reply.usage.completion_tokens} tokens, {seconds:.1f} s, {reply.finish_reason}"
        note += f", {reply.engine}" if reply.engine else ""
        if reply.kept is not None and reply.reused:
            note = f"a kept reply, made in job {reply.kept.made_in}, {reply.finish_reason}"
        note += "" if reply.logprob_mean is None else f", mean logprob {reply.logprob_mean:.3f}"
        return Panel(Group(*_body(reply)), title=Text(item.turn.member), subtitle=note, title_align="left", subtitle_align="right", border_style="cyan")
    return Panel(Text(plain(reply.message), style="dim"), title=Text(f"{item.turn.member}: abstained ({reply.cause})"), title_align="left",
                 border_style="yellow")


def _body(reply: Completion) -> Iterator[Text]:
    """What a member said: its reasoning, its text, and whatever else was asked of it."""
    if reply.reasoning:
        yield Text("reasoning: " + plain(reply.reasoning), style="dim italic")
    if reply.vectors is not None:
        yield Text(f"{len(reply.vectors)} vectors of {len(reply.vectors[0]) if reply.vectors else 0} dimensions")
    else:
        yield Text(plain(reply.text))
    for option, chance in sorted((reply.options or {}).items(), key=lambda o: -o[1]):
        yield Text(f"{chance:7.1%}  {plain(option)}", style="magenta")
    for token in reply.logprobs or ():
        others = "  ".join(f"{_quoted(t)} {p:.3f}" for t, p in token.top)
        yield Text(f"{token.logprob:8.3f}  {_quoted(token.token)}" + (f"   [{others}]" if others else ""), style="dim")


def _quoted(token: str) -> str:
    """A token on one line, its white space seen."""
    return repr(plain(token))


def _verdict(found: Result) -> Panel:
    verdict = found.verdict
    assert verdict is not None  # noqa: S101 - the caller has looked
    body = Text(plain(verdict.answer) if verdict.answer is not None else "no consensus")
    note = ""
    if verdict.agreement is not None:
        note = f"{verdict.rule}: {verdict.agreement:.0%} of {verdict.n} votes" + ("" if verdict.agreed else ", not agreed")
        note += f"; tie: {verdict.tie}" if verdict.tie else ""
    return Panel(body, title="verdict", subtitle=note, title_align="left", subtitle_align="right", border_style="green")


def plain(text: str) -> str:
    """``text`` without control characters: a model's words must not drive a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def table(columns: list[str], rows: list[list[str]]) -> None:
    """Rows on standard output; tab-separated where it is no terminal."""
    if not out.is_terminal:
        for row in rows:
            sys.stdout.write("\t".join(row) + "\n")
        return
    shown = Table(box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    out.print(shown)


def short(text: str, most: int = 60) -> str:
    """``text`` on one line, cut."""
    line = " ".join(plain(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
