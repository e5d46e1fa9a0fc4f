"""Results as pictures: python -m benchmarks.engines.plots RESULTS.json FOLDER (matplotlib; no other package is needed)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines.figures import percentile
from benchmarks.engines.report import Results, spread

_OURS, _PEERS = "#1b6ca8", "#9a9a9a"


def draw(results: Results, folder: Path) -> list[Path]:
    """The pictures written: tokens/s all at once, and time to first token under Poisson arrivals."""
    import matplotlib as mpl

    mpl.use("svg")
    # the same results give the same file, and text stays text: a fifth of the size
    mpl.rcParams["svg.hashsalt"], mpl.rcParams["svg.fonttype"] = "symposia", "none"
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if found := results.runs.get("at once"):
        written.append(_bars(plt, folder / "engines-throughput.svg", "new tokens per second, all requests at once (line: min to max)",
                             {name: spread(runs, lambda r: r.tokens_per_s) for name, runs in found.items()}))
    if found := results.runs.get("poisson"):
        written.append(_bars(plt, folder / "engines-first-token.svg", "time to first token, s, median, Poisson arrivals (log scale)",
                             {name: spread(runs, lambda r: percentile(r.ttft_s, 0.5)) for name, runs in found.items()}, log=True))
    return written


def _bars(plt: Any, path: Path, title: str, figures: dict[str, Any], *, log: bool = False) -> Path:
    names = [n for n, s in reversed(figures.items()) if s.median == s.median]
    medians = [figures[n].median for n in names]
    reach = [[figures[n].median - figures[n].least for n in names], [figures[n].most - figures[n].median for n in names]]
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(names) + 1.2), layout="constrained")
    bars = axes.barh(names, medians, xerr=reach, color=[_OURS if n.startswith(("ours", "the queue")) else _PEERS for n in names],
                     error_kw={"lw": 1, "capsize": 2})
    axes.bar_label(bars, labels=[f" {m:.3g}" for m in medians], padding=6)
    axes.set_title(title, fontsize=10)
    if log:
        axes.set_xscale("log")
        axes.set_xlim(left=min(medians) / 2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def main(arguments: Sequence[str]) -> None:
    """RESULTS.json FOLDER."""
    for path in draw(Results.read(Path(arguments[0])), Path(arguments[1])):
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
