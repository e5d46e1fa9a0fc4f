"""What a person sees of a running stack: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from symposia_worker.stack.folder import Folder
    from symposia_worker.stack.state import StackState

COLOURS = {"ready": "green", "starting": "yellow", "waiting": "red", "ended": "dim", "stopping": "yellow"}


class Display:
    """Listens to a supervisor. ``as_json``: the story goes to stderr, and the facts to stdout once all is ready."""

    def __init__(self, folder: Folder, *, as_json: bool = False) -> None:
        self.folder, self.as_json = folder, as_json
        self.console = Console(stderr=as_json, soft_wrap=True, highlight=False)
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self._phase = ""

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """One line, with the time."""
        with suppress(OSError):  # a full disk or a closed terminal behind it is no reason to end a stack
            self.console.print(f"{time.strftime('%H:%M:%S')} {escape(line)}")

    def show(self, stack: StackState) -> None:
        """The table anew; outside a terminal, a line where the phase has changed."""
        with suppress(OSError):
            self._show(stack)

    def _show(self, stack: StackState) -> None:
        if self._live:
            self._live.update(table(stack, self.folder), refresh=True)
        if stack.state == self._phase:
            return
        self._phase = stack.state
        if not self._live:
            self.say(f"the stack in {self.folder.path} is {stack.state}")
        if stack.state == "ready":
            if self.as_json:
                print(json.dumps(stack.facts(self.folder)), flush=True)
            elif not self._live:
                self.console.print(addresses(stack.facts(self.folder)))


def table(stack: StackState, folder: Folder) -> Group:
    """Processes and addresses."""
    rows = Table(title=f"Symposia · {folder.path} · {stack.state}", title_justify="left", title_style="bold", expand=False)
    for heading in ("role", "device", "pid", "state", "restarts"):
        rows.add_column(heading, justify="right" if heading in ("pid", "restarts") else "left")
    for process in stack.processes:
        state = Text(process.state, style=COLOURS[process.state])
        rows.add_row(process.role, process.device or "", str(process.pid or ""), state, str(process.restarts or ""))
    hint = "Ctrl-C again hurries." if stack.state == "stopping" else "Ctrl-C stops it."
    return Group(rows, addresses(stack.facts(folder)), Text(hint, style="dim"))


def addresses(facts: Mapping[str, Any]) -> Text:
    """Where to look, and with what."""
    shown = {name: facts[name] for name in ("broker", "store", "api", "flower")} | {"credentials": facts["credentials_file"]}
    return Text("\n".join(f"{name:<12} {value}" for name, value in shown.items() if value))
