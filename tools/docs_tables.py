"""Write the tables of benchmark figures in docs/, each between two comments, from the CSVs of the benchmarks.

`python tools/docs_tables.py benchmarks/results/NAME.csv`, where NAME is

    cpu           written by `gmfast bench`, for docs/benchmarks.md
    sampling      written by `gmfast bench --sampling`, for the same page
    flows         written by benchmarks/flows.py, for the same page
    diffusion     written by benchmarks/diffusion.py, for the same page
    k_diffusion   written by benchmarks/k_diffusion.py, for docs/k_diffusion.md
    accelerate    written by benchmarks/accelerate.py, for docs/diffusers.md
    scaling       written by benchmarks/scaling.py, for docs/scaling.md
    transforms_…  written by tests/transforms/harness.py, for docs/transforms.md
"""

import csv
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"
#: Pages of tables that are not in benchmarks.md.
PAGES = {"accelerate": "diffusers.md", "k_diffusion": "k_diffusion.md", "scaling": "scaling.md"}


def main(path):
    """Replace the table that a CSV's columns name, with its machine, date and commit above it."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if "subject" in rows[0]:
        name = Path(path).stem
        return replace(
            DOCS / "transforms.md", name, [f"([as CSV](results/{name}.csv))", "", *transforms(rows)]
        )
    kinds = {
        "flow": ("flows", flows),
        "over_naive": ("sampling", sampling),
        "accelerated_us": ("accelerate", accelerated),
        "denoiser": ("diffusion", loops),
        "over_k_diffusion": ("k_diffusion", loops_of_k_diffusion),
        "what": ("scaling", scaling),
        "operation": ("bench", operations),
    }
    name, table_of = next(kind for column, kind in kinds.items() if column in rows[0])
    table, first = table_of(rows), rows[0]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    where = first["gpu"] or first["processor"]
    where += f", {first['cores']} cores" if name == "sampling" else f", threads: {first['threads']}"
    page = DOCS / PAGES.get(name, "benchmarks.md")
    link = f"results/{Path(path).name}"  # docs/results links to benchmarks/results
    measured = (
        f"{where}, torch {first['torch']}, {first['date'][:10]}, commit {commits} ([every figure]({link})):"
    )
    replace(page, name, [measured, "", *table])


def replace(page, name, lines):
    """Put lines between the two comments of a table."""
    lines = [f"<!-- {name}: tools/docs_tables.py -->", *lines, f"<!-- end of {name} -->"]
    pattern = f"{re.escape(lines[0])}.*?{re.escape(lines[-1])}"
    text = "\n".join(lines)
    page.write_text(re.sub(pattern, lambda _: text, page.read_text(), flags=re.S))


def transforms(rows):
    """Yield the lines of a matrix of transforms: refusals are numbered, and their sentences follow."""
    titles = [title for title in rows[0] if title != "subject"]
    yield f"| | {' | '.join(titles)} |"
    yield f"|---|{':-:|' * len(titles)}"
    numbers = {}
    for row in rows:
        cells = []
        for title in titles:
            cell = row[title]
            if cell not in ("", "works"):
                cell = f"[{numbers.setdefault(cell, len(numbers) + 1)}]"
            cells.append({"": "–", "works": "✓"}.get(cell, cell))
        yield f"| `{row['subject']}` | {' | '.join(cells)} |"
    if numbers:
        yield ""
    for sentence, number in numbers.items():
        yield f"{number}. `{sentence}`"


def operations(rows):
    """Yield the lines of the cases with a target and of those that `torch.compile` wins."""
    yield "| operation | case | direction | eager | compile | gmfast | × eager | × compile | × peer | copy |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        if row["target"] or row["slower_than_compile"] == "yes":
            yield (
                f"| {row['operation']} | {row['case']} | {row['direction']} "
                f"| {time(row['eager_ms'])} | {time(row['compile_ms'])} | {time(row['gmfast_ms'])} "
                f"| {ratio(row['over_eager'])} | {ratio(row['over_compile'])} "
                f"| {ratio(row['over_peer'])}{' ' + row['peer'] if row['peer'] else ''} "
                f"| {percent(row['share'])} |"
            )


def flows(rows):
    peers = {"zuko_ms": "zuko", "nflows_ms": "nflows", "normflows_ms": "normflows"}
    yield "| flow | work | gmfast | peer | × peer |"
    yield "|---|---|--:|--:|--:|"
    for row in rows:
        times = {name: float(row[column]) for column, name in peers.items() if row[column]}
        if times:
            peer = min(times, key=times.get)
            yield (
                f"| {row['flow']} | {row['work']} | {time(row['gmfast_ms'])} | {time(times[peer])} {peer} "
                f"| {float(row['over_peer']):.3g} |"
            )


def sampling(rows):
    """Yield the lines of the works that have a baseline."""
    yield "| model | weights | batch | threads | passes | Python loop | gmfast | × passes | × loop | kHz |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        if row["naive_s"] or row["loop_s"]:
            yield (
                f"| {row['work']} | {row['weights']} | {row['batch']} | {row['threads']} "
                f"| {seconds(row['naive_s'])} | {seconds(row['loop_s'])} | {seconds(row['gmfast_s'])} "
                f"| {whole(row['over_naive'])} | {ratio(row['over_loop'])} | {ratio(row['kHz'])} |"
            )


def by_shape(rows, key):
    """Group rows by the column `key`, then by shape."""
    found = {}
    for row in rows:
        found.setdefault(row[key], {}).setdefault(row["shape"], []).append(row)
    return found


def loops(rows):
    shapes = "(1,4,64,64), no network | a tiny one | (64,3,64,64), no network | a tiny one"
    yield f"| times diffusers' loop | {shapes} |"
    yield "|---|--:|--:|--:|--:|"
    for sampler, shapes in by_shape(rows, "sampler").items():
        cells = [
            next(ratio(row["over_diffusers"]) for row in shapes[shape] if row["denoiser"] == denoiser)
            for shape in ("1x4x64x64", "64x3x64x64")
            for denoiser in ("none", "tiny")
        ]
        yield f"| `{sampler}` | " + " | ".join(cells) + " |"


def loops_of_k_diffusion(rows):
    yield "| times k-diffusion's loop | (1,4,64,64) | with `seed` | (64,3,64,64) | with `seed` |"
    yield "|---|--:|--:|--:|--:|"
    for sampler, shapes in by_shape(rows, "sampler").items():
        cells = [
            ratio(row[column])
            for shape in ("1x4x64x64", "64x3x64x64")
            for row in shapes[shape]
            for column in ("over_k_diffusion", "seed_over_k_diffusion")
        ]
        yield f"| `{sampler}` | " + " | ".join(cells) + " |"


def accelerated(rows):
    columns = "diffusers | accelerated | keyed"
    yield f"| µs | (1,4,64,64): {columns} | (64,3,64,64): {columns} |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for scheduler, shapes in by_shape(rows, "scheduler").items():
        cells = [
            cell
            for shape in ("1x4x64x64", "64x3x64x64")
            for row in shapes[shape]
            for cell in (
                whole(row["diffusers_us"]),
                f"{whole(row['accelerated_us'])}, {ratio(row['accelerated_over_diffusers'])}×",
                f"{whole(row['keyed_us'])}, {ratio(row['keyed_over_diffusers'])}×",
            )
        ]
        yield f"| {scheduler} | " + " | ".join(cells) + " |"


def scaling(rows):
    """Yield the lines of loading, memory, steps and recovery."""
    yield "| | case | gmfast | beside | ratio |"
    yield "|---|---|--:|--:|--:|"
    for row in rows:
        beside = f"{readable(row['beside'])} ({row['beside_is']})" if row["beside"] else ""
        number = readable(row["value"])
        yield f"| {row['what']} | {row['case']} | {number} | {beside} | {ratio(row['ratio'])} |"


def readable(value):
    number = float(value)
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def seconds(value):
    return (
        time(1e3 * float(value)) if value and float(value) < 1 else f"{float(value):.3g} s" if value else ""
    )


def whole(value):
    return f"{float(value):.0f}" if value else ""


def time(ms):
    if not ms:
        return ""
    if float(ms) >= 1000:
        return f"{float(ms) / 1e3:.3g} s"
    return f"{float(ms):.3g} ms" if float(ms) >= 0.1 else f"{1e3 * float(ms):.3g} µs"


def ratio(value):
    return f"{float(value):.1f}" if value else ""


def percent(value):
    return f"{100 * float(value):.0f}%" if value else ""


if __name__ == "__main__":
    main(sys.argv[1])
