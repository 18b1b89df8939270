"""Line plots as SVG, written by hand so that the same figures give the same bytes, and as text. Colours follow the reader's
light or dark setting."""

from html import escape
from math import floor, log10

WIDTH, HEIGHT = 460, 300  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 34, 46
STYLE = """
svg { --ink: #1f2328; --faint: #d8dee4; --paper: #ffffff; --a: #0969da; --b: #bc4c00; --c: #6e7781; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6edf3; --faint: #30363d; --paper: #0d1117; --a: #58a6ff; --b: #f0883e; --c: #9198a1; }
}
text { font: 12px system-ui, sans-serif; fill: var(--ink); }
.title { font-weight: 600; font-size: 13px; }
.paper { fill: var(--paper); }
.grid { stroke: var(--faint); stroke-width: 1; }
.line { fill: none; stroke-width: 2; }
.a { stroke: var(--a); } .b { stroke: var(--b); } .c { stroke: var(--c); }
.dots { fill: var(--paper); stroke-width: 2; } .dots.full.a { fill: var(--a); } .dots.full.b { fill: var(--b); }
.dots.full.c { fill: var(--c); }
.dash { stroke-dasharray: 5 4; }
"""


def ticks(most, wanted=5):
    """Round numbers from 0 to at least `most`."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / wanted
    power = 10.0 ** floor(log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    count = 1
    while step * count < most * 0.999:
        count += 1
    return [round(step * i, 10) for i in range(count + 1)]


def number(value):
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def series(name, points, color="a", dash=False, hollow=False):
    return {"name": name, "points": points, "class": color, "dash": dash, "hollow": hollow}


def marker(x, y, one):
    full = "" if one["hollow"] else " full"
    return f'<circle class="dots{full} {one["class"]}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'


def stroke(points, one):
    dash = " dash" if one["dash"] else ""
    return f'<polyline class="line {one["class"]}{dash}" points="{points}"/>'


def panel(left, top, title, x_label, y_label, lines, doubling=False):
    """Elements of one plot with its corner at (left, top). doubling: equal steps for x, 2x, 4x. Both axes begin at 0, the
    doubling one at its first x."""
    values = sorted({x for one in lines for x, _ in one["points"]})
    most = ticks(max((y for one in lines for _, y in one["points"]), default=1))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    right = values[-1] if values else 1
    marks = values if doubling else ticks(right)

    def at_x(x):
        if not doubling:
            return left + LEFT + wide * x / marks[-1]
        if len(values) < 2:
            return left + LEFT + wide / 2
        place = next(i for i, v in enumerate(values) if v >= x)
        return left + LEFT + wide * (0.04 + 0.92 * place / (len(values) - 1))

    def at_y(y):
        return top + TOP + high * (1 - y / most[-1])

    out = [f'<text class="title" x="{left + LEFT}" y="{top + 18}">{escape(title)}</text>']
    for y in most:
        out.append(
            f'<line class="grid" x1="{left + LEFT}" x2="{left + WIDTH - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>'
        )
        out.append(f'<text x="{left + LEFT - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in marks:
        out.append(
            f'<text x="{at_x(x):.1f}" y="{top + HEIGHT - BOTTOM + 18}" text-anchor="middle">{number(x)}</text>'
        )
    out.append(
        f'<text x="{left + LEFT + wide / 2:.1f}" y="{top + HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    up = f"{left + 14} {top + TOP + high / 2:.1f}"
    out.append(
        f'<text transform="translate({up}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for one in lines:
        places = [(at_x(x), at_y(y)) for x, y in one["points"]]
        out.append(stroke(" ".join(f"{x:.1f},{y:.1f}" for x, y in places), one))
        out += [marker(x, y, one) for x, y in places]
    return out


def legend(left, top, lines, columns=3):
    out = []
    for i, one in enumerate(lines):
        x, y = left + 300 * (i % columns), top + 20 * (i // columns)
        out.append(stroke(f"{x},{y} {x + 34},{y}", one))
        out.append(marker(x + 17, y, one))
        out.append(f'<text x="{x + 42}" y="{y + 4}">{escape(one["name"])}</text>')
    return out


def picture(title, panels, key):
    """The whole file: panels, two a row, as (title, x label, y label, lines, doubling), and the legend `key`."""
    head = 34 + 20 * ((len(key) + 2) // 3)
    height = head + HEIGHT * ((len(panels) + 1) // 2) + 10
    body = [f'<text class="title" x="16" y="20">{escape(title)}</text>', *legend(20, 40, key)]
    for i, one in enumerate(panels):
        body += panel(10 + WIDTH * (i % 2), head + HEIGHT * (i // 2), *one)
    full = 2 * WIDTH + 20
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full} {height}" width="{full}" height="{height}" '
            f'role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="paper" width="{full}" height="{height}"/>',
            *body,
            "</svg>\n",
        ]
    )


def bars(title, rows, width=48):
    """Text: one line for each (name, value), bars from 0."""
    most = max((value for _, value in rows), default=0) or 1
    wide = max((len(name) for name, _ in rows), default=0)
    lines = [title]
    for name, value in rows:
        lines.append(f"  {name:<{wide}} {'#' * round(width * value / most):<{width}} {number(round(value, 2))}")
    return "\n".join(lines)
