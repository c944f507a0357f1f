"""Draws docs/decode.svg, the picture of docs/decode.md: python tools/decode_picture.py."""

from pathlib import Path

OUT = Path(__file__).parent.parent / "docs" / "decode.svg"
WIDTH, HEIGHT = 960, 606
X, H, PARAMS, DRAW, GREY = "#4c78a8", "#f58518", "#54a24b", "#b279a2", "#888888"


def text(x, y, words, size=13, anchor="start", color="#222222", weight="normal"):
    """Return words whose baseline starts (or ends, or is centred) at a point."""
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{color}" font-weight="{weight}"'
    return f'<text x="{x}" y="{y}" {style}>{words}</text>'


def cell(x, y, width, height, fill="none", words="", opacity=0.35, stroke="#444444"):
    """Return a rectangle with words in its middle."""
    box = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" fill-opacity="{opacity}" '
    return f'{box}stroke="{stroke}"/>' + text(x + width / 2, y + height / 2 + 4, words, 12, "middle")


def arrow(x1, y1, x2, y2, color="#444444", dash=""):
    """Return a line with a head at its second end."""
    style = f'stroke="{color}" stroke-width="1.6" stroke-dasharray="{dash}" marker-end="url(#head)"'
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {style}/>'


def network():
    """Draw the values over the positions, and the taps at position 7."""
    shapes = [text(20, 28, "Position t = 7 of a sound: values, taps and the draw", 15, weight="bold")]
    left, size, ys = 96, 52, {"params": 62, "h": 162, "x": 262}
    colors = {"params": PARAMS, "h": H, "x": X}
    kept = {"params": {7}, "h": {5, 6, 7}, "x": {5, 6, 7}}

    def middle(position):
        return left + (position - 2) * size + size / 2

    for name, y in ys.items():
        shapes.append(text(84, y + 25, name, 14, "end", colors[name], "bold"))
        for position in range(2, 8):
            fill = colors[name] if position in kept[name] else "#eeeeee"
            stroke = "#444444" if position in kept[name] else "#cccccc"
            shapes.append(cell(left + (position - 2) * size, y, size, 40, fill, str(position), stroke=stroke))
    for position, row in ((5, -2), (7, 0)):  # layer 2: kernel 2, dilation 2
        shapes.append(arrow(middle(position), 161, middle(7) - 14 * (row < 0), 105, H))
    for position in (5, 6):  # layer 1: kernel 2, one position back
        shapes.append(arrow(middle(position), 261, middle(7) + 24 * (position - 6) + 4, 205, X))
    right = left + 6 * size
    shapes += [
        text(middle(5) - 6, 142, "tap: row −2", 12, "end", H),
        text(middle(7) + 6, 138, "tap: row 0", 12, "start", H),
        text(middle(5) - 6, 242, "taps: rows −2, −1", 12, "end", X),
        f'<path d="M {right} 82 H {right + 56} V 282 H {right + 4}" fill="none" stroke="{DRAW}" '
        'stroke-width="1.6" marker-end="url(#head)"/>',
        text(right + 64, 178, "draw", 13, "start", DRAW, "bold"),
        text(right + 64, 194, "samples x[7]", 12, "start", DRAW),
        text(right + 64, 210, "from params[7]", 12, "start", DRAW),
        text(left, 328, "coloured: rows that the rings hold; grey: overwritten", 12, color=GREY),
    ]
    return shapes


def ring():
    """Draw the ring of h at position 7."""
    left, top = 600, 62
    shapes = [text(left, 28, "Ring of value h: 3 rows, row = t mod 3", 15, weight="bold")]
    for row, (position, what) in enumerate(
        [(6, ""), (7, "written by layer 1"), (5, "read by the tap at row −2")]
    ):
        y = top + row * 34
        opacity = 0.7 if row == 1 else 0.25
        shapes += [
            text(left + 44, y + 21, f"row {row}", 12, "end"),
            cell(left + 52, y, 110, 30, H, f"h[{position}]", opacity),
            text(left + 172, y + 20, what, 12, color=H),
        ]
    shapes.append(text(left + 52, top + 122, "position 8 overwrites row 2", 12, color=GREY))
    return shapes


def panels():
    """Draw the weights of layer 2 in panels."""
    left, top = 652, 254
    shapes = [text(600, 228, "Weights of layer 2: panels of sums", 15, weight="bold")]
    for panel in range(3):
        y = top + panel * 34
        fill = PARAMS if panel == 0 else "#ffffff"
        shapes.append(text(left - 8, y + 21, f"panel {panel}", 12, "end"))
        for strip in range(4):
            shapes.append(cell(left + strip * 58, y, 58, 34, fill, "strip" if panel == 0 else "", 0.35))
    shapes += [
        f'<line x1="{left + 116}" y1="{top - 12}" x2="{left + 116}" y2="{top + 110}" stroke="#222222" '
        'stroke-width="2.5"/>',
        text(left + 58, top - 6, "tap: row −2", 12, "middle"),
        text(left + 174, top - 6, "tap: row 0", 12, "middle"),
        arrow(left, top + 116, left + 232, top + 116),
        text(left, top + 134, "channels of all taps, in the order of memory", 12),
    ]
    return shapes


def steps():
    """Draw the steps of a position and the threads' barriers."""
    top = 432
    shapes = [text(20, top - 18, "Steps of a position", 15, weight="bold")]
    for i, (what, color, inside) in enumerate(
        [
            ("layers: layer 1", X, "writes h"),
            ("layers: layer 2", H, "writes params"),
            ("draw", DRAW, "writes x"),
        ]
    ):
        left = 20 + i * 176
        shapes += [
            cell(left, top, 140, 44, color, "", 0.25),
            text(left + 70, top + 19, what, 13, "middle"),
            text(left + 70, top + 36, inside, 12, "middle", GREY),
            f'<line x1="{left + 158}" y1="{top - 6}" x2="{left + 158}" y2="{top + 50}" stroke="#222222" '
            'stroke-width="3"/>',
        ]
    shapes += [
        text(
            20,
            top + 72,
            "bars: barriers, where all threads meet; each computes its share of a layer's panels;",
            12,
        ),
        text(20, top + 90, "behind the last bar, position 8 begins with its first step", 12),
    ]
    return shapes


def phases():
    """Draw which pixels a layer runs at, by its phase."""
    left, top, size = 652, 452, 34
    shapes = [text(600, 424, "Phases of pixels, for steps of 2", 15, weight="bold")]
    colors = {(0, 0): X, (0, 1): H, (1, 0): PARAMS, (1, 1): DRAW}
    for row in range(4):
        for column in range(4):
            phase = row % 2, column % 2
            words = f"{phase[0]},{phase[1]}"
            shapes.append(cell(left + column * size, top + row * size, size, size, colors[phase], words))
    notes = [
        "0,0: a layer at half",
        "resolution",
        "",
        "0,0 0,1 1,0 1,1:",
        "four layers that",
        "double the resolution",
    ]
    shapes += [text(left + 150, top + 18 + 20 * i, note, 12) for i, note in enumerate(notes)]
    return shapes


def main():
    """Write the picture."""
    shapes = [*network(), *ring(), *panels(), *steps(), *phases()]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="3.5" orient="auto">'
        '<path d="M0,0 L8,3.5 L0,7 z" fill="#444444"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        *shapes,
        "</svg>",
    ]
    OUT.write_text("\n".join(lines) + "\n")


main()
