"""Puts figures of `gmfast bench`, or of `gmfast bench --sampling`, into the README:

python tools/readme_table.py benchmarks/results/cpu.csv
python tools/readme_table.py benchmarks/results/sampling.csv
"""

import csv
import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def main(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    name, table = ("sampling", sampling(rows)) if "over_naive" in rows[0] else ("bench", operations(rows))
    first = rows[0]
    where = first["gpu"] or first["processor"]
    where += f", {first['threads']} threads" if name == "bench" else f", {first['cores']} cores"
    lines = [
        f"<!-- {name}: tools/readme_table.py -->",
        f"{where}, torch {first['torch']}, {first['date'][:10]}, commit {first['commit']} "
        f"([every figure]({path})):",
        "",
        *table,
        f"<!-- end of {name} -->",
    ]
    pattern = f"{re.escape(lines[0])}.*?{re.escape(lines[-1])}"
    text = "\n".join(lines)
    README.write_text(re.sub(pattern, lambda _: text, README.read_text(), flags=re.S))


def operations(rows):
    yield "| operation | case | direction | eager | compile | gmfast | × eager | × compile | bandwidth |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        if row["layout"] == "contiguous" and row["direction"] != "recorded":
            yield (
                f"| {row['operation']} | {row['case']} | {row['direction']} "
                f"| {time(row['eager_ms'])} | {time(row['compile_ms'])} | {time(row['gmfast_ms'])} "
                f"| {ratio(row['over_eager'])} | {ratio(row['over_compile'])} | {percent(row['share'])} |"
            )


def sampling(rows):
    """What was measured beside a baseline."""
    yield "| model | weights | batch | threads | passes | Python loop | gmfast | × passes | × loop | kHz |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        if row["naive_s"] or row["loop_s"]:
            yield (
                f"| {row['work']} | {row['weights']} | {row['batch']} | {row['threads']} "
                f"| {seconds(row['naive_s'])} | {seconds(row['loop_s'])} | {seconds(row['gmfast_s'])} "
                f"| {whole(row['over_naive'])} | {ratio(row['over_loop'])} | {ratio(row['kHz'])} |"
            )


def seconds(value):
    return (
        time(1e3 * float(value)) if value and float(value) < 1 else f"{float(value):.3g} s" if value else ""
    )


def whole(value):
    return f"{float(value):.0f}" if value else ""


def time(ms):
    if not ms:
        return ""
    return f"{float(ms):.3g} ms" if float(ms) >= 0.1 else f"{1e3 * float(ms):.3g} µs"


def ratio(value):
    return f"{float(value):.1f}" if value else ""


def percent(value):
    return f"{100 * float(value):.0f}%" if value else ""


main(sys.argv[1])
