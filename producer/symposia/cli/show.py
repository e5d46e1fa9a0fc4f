"""Results and statuses as a person reads them."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from symposia.handle import Handle
from symposia_shared.errors import SymposiaError
from symposia_shared.results import Result, RoundRecord, TurnRecord

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
    if found.verdict is not None:
        out.print(_verdict(found))
    if found.error is not None:
        out.print(Panel(Text(found.error.message), title=f"failed: {found.error.type}", border_style="red"))
    if found.state == "cancelled":
        out.print(Panel(Text("cancelled before a verdict"), border_style="yellow"))
    bill = found.bill
    out.print(Text(f"{found.state}  job {found.job_id}  {bill.calls} calls, {bill.prompt_tokens} + {bill.completion_tokens} tokens, "
                   f"{found.ended_at - found.submitted_at:.2f} s", style="dim"))
    out.print(Text(found.result_uri, style="dim"), soft_wrap=True)


def _round(record: RoundRecord) -> Group:
    head = Text(f"round {record.round}", style="bold")
    head.append(f"  closed by {record.closed_by}, {len(record.counted)} of {len(record.turns)} counted", style="dim")
    return Group(head, *(_turn(t) for t in record.turns))


def _turn(item: TurnRecord) -> Panel:
    reply = item.reply
    if reply.kind == "completion":
        seconds = max(0.0, (reply.timing.last_token_at or 0.0) - reply.timing.claimed_at)
        note = f"{reply.usage.completion_tokens} tokens, {seconds:.1f} s, {reply.finish_reason}"
        return Panel(Text(plain(reply.text)), title=Text(item.turn.member), subtitle=note, title_align="left", subtitle_align="right", border_style="cyan")
    return Panel(Text(plain(reply.message), style="dim"), title=Text(f"{item.turn.member}: abstained ({reply.cause})"), title_align="left",
                 border_style="yellow")


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
