"""A placement drawn: bars in the terminal, and an SVG."""

from __future__ import annotations

from html import escape

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from symposia_worker.placing.problem import Problem, Site
from symposia_worker.placing.solution import Plan
from symposia_worker.stack.amounts import shown

COLOURS = ("#3b6ea5", "#c46f3b", "#4f8f5b", "#8b5fa8", "#b0923c", "#4a9a9c", "#a8505f", "#6d6d6d")
#: columns of a bar in the terminal; checkpoints named in a legend
WIDTH, NAMED = 22, 8


def drawn(problem: Problem, plan: Plan) -> RenderableType:
    """One row a pool: its memory, filled by checkpoint, and its load beside the busiest's."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("pool", "memory", "", "load"):
        table.add_column(heading, no_wrap=True)
    for site in problem.sites:
        used = sum(p.bytes for p in plan.on(site.pool))
        table.add_row(site.pool, _memory(site, plan), f"{shown(used)} of {shown(site.memory_bytes)}", _load(problem, plan, site))
    return Group(table, *(_legend(plan, site) for site in problem.sites))


def _memory(site: Site, plan: Plan) -> Text:
    bar, filled = Text(), 0.0
    for k, placed in enumerate(plan.on(site.pool)):
        before, filled = round(filled), filled + WIDTH * placed.bytes / site.memory_bytes
        bar.append("█" * (round(filled) - before), style=COLOURS[k % len(COLOURS)])
    return bar.append("·" * max(0, WIDTH - len(bar)), style="dim")


def _load(problem: Problem, plan: Plan, site: Site) -> Text:
    load = plan.load(site.pool)
    told = f" {load:.0%}" if problem.absolute else f" {load / (plan.peak or 1):.2f} of peak"
    return Text("▇" * round(8 * load / (plan.peak or 1)) + told, style="bold" if load >= plan.peak * 0.999 else "")


def _legend(plan: Plan, site: Site) -> Text:
    rows = plan.on(site.pool)
    line = Text(f"{site.pool}: ", style="dim")
    for k, placed in enumerate(rows[:NAMED]):
        line.append("█ ", style=COLOURS[k % len(COLOURS)]).append(f"{placed.checkpoint} {placed.share:.0%}  ")
    return line.append(f"and {len(rows) - NAMED} more" if len(rows) > NAMED else "", style="dim")


def svg(problem: Problem, plan: Plan) -> str:
    """The same as an image: a bar a pool, as long as its memory, each checkpoint as long as its bytes."""
    scale = 900 / max(s.memory_bytes for s in problem.sites)
    height = 44 * len(problem.sites) + 20
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="1180" height="{height}" font-family="sans-serif" font-size="12">']
    for row, site in enumerate(problem.sites):
        parts += _bar(plan, site, y=10 + 44 * row, scale=scale)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(plan: Plan, site: Site, *, y: int, scale: float) -> list[str]:
    parts = [f'<text x="4" y="{y + 20}">{escape(site.pool)}</text>',
             f'<rect x="160" y="{y}" width="{site.memory_bytes * scale:.1f}" height="30" fill="none" stroke="#888"/>']
    x = 160.0
    for k, placed in enumerate(plan.on(site.pool)):
        width = placed.bytes * scale
        told = f"{placed.checkpoint}: {shown(placed.bytes)}, {placed.share:.0%} of its traffic, load {placed.load:.3g}"
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="30" fill="{COLOURS[k % len(COLOURS)]}"><title>{escape(told)}</title></rect>')
        if width > 7 * len(placed.checkpoint):
            parts.append(f'<text x="{x + 4:.1f}" y="{y + 20}" fill="#fff">{escape(placed.checkpoint)}</text>')
        x += width
    return [*parts, f'<text x="{170 + site.memory_bytes * scale:.1f}" y="{y + 20}">load {plan.load(site.pool):.3g}</text>']
