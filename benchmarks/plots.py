"""Draws curves with matplotlib (the `bench` extra): one SVG a plot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from records import Curve


def draw(curves: Iterable[Curve], folder: Path) -> None:
    """Draw all plots; curves of one plot share its axes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "eventstore"  # the same ids each time
    plots: dict[str, list[Curve]] = {}
    for curve in curves:
        plots.setdefault(curve.plot, []).append(curve)
    folder.mkdir(exist_ok=True)
    for name, lines in plots.items():
        _draw(lines, folder / f"{name}.svg")


def _draw(curves: list[Curve], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for curve in curves:
        axes.plot(curve.xs, curve.ys, marker="o", markersize=4, label=curve.name)
    axes.set_xlabel(curves[0].x)
    axes.set_ylabel(curves[0].y)
    if curves[0].log:
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
