"""The plot of bench.grid: how much is done in time, a curve for each way, as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.grid_run import Outcome

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44
COLOURS = ("#1b7837", "#4393c3", "#d6604d", "#8073ac", "#999999")
POINTS = 400  # of a curve at most


def plot(outcomes: Sequence[Outcome], blocks: int) -> str:
    """Draw the share of blocks that is done over the time in hours, and the ideal as a dashed line.

    Parameters
    ----------
    outcomes
        Of the runs, at least one.
    blocks
        In all.

    Returns
    -------
    str
        An SVG document.
    """
    ideal_h = outcomes[0].ideal_s / 3600
    # A way that takes many times as long as the others is cut at the right edge.
    end_h = max(min(o.makespan_s / 3600, 2.2 * ideal_h) for o in outcomes) * 1.02
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(hours: float, share: float) -> str:
        return f"{LEFT + across * hours / end_h:.1f},{TOP + down * (1 - share):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for tenth in range(0, 11, 2):
        y = at(0, tenth / 10).split(",")[1]
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{10 * tenth} %</text>')
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if end_h / s <= 12)
    for n in range(int(end_h / step) + 1):
        x = at(n * step, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{n * step:g}</text>')
    parts.append(f'<text x="{LEFT + across / 2}" y="{HEIGHT - 8}" text-anchor="middle">hours</text>')
    line = f"{at(0, 0)} {at(ideal_h, 1)}"
    parts.append(f'<polyline points="{line}" fill="none" stroke="#000" stroke-dasharray="4 3"/>')
    for n, outcome in enumerate(outcomes):
        curve = [(s / 3600, done / blocks) for s, done in outcome.curve if s / 3600 <= end_h]
        curve = curve[:: len(curve) // POINTS + 1] + curve[-1:]
        points = " ".join(at(hours, share) for hours, share in curve)
        colour = COLOURS[n % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for n, name in enumerate([*(o.name for o in outcomes), "ideal"]):
        colour = COLOURS[n % len(COLOURS)] if n < len(outcomes) else "#000"
        base = HEIGHT - BOTTOM - 16 - 18 * n
        parts.append(
            f'<path d="M{WIDTH - 210} {base - 4}h24" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{WIDTH - 180}" y="{base}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
