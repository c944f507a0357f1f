"""Puts figures of `gmfast bench` into the README: tools/readme_table.py benchmarks/results/cpu.csv"""

import csv
import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- bench: tools/readme_table.py -->", "<!-- end of bench -->"


def main(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    lines = [
        START,
        f"{first['gpu'] or first['processor']}, {first['threads']} threads, torch {first['torch']}, "
        f"{first['date'][:10]}, commit {first['commit']} ([every figure]({path})):",
        "",
        "| operation | case | direction | eager | compile | gmfast | × eager | × compile | bandwidth |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['operation']} | {row['case']} | {row['direction']} "
        f"| {time(row['eager_ms'])} | {time(row['compile_ms'])} | {time(row['gmfast_ms'])} "
        f"| {ratio(row['over_eager'])} | {ratio(row['over_compile'])} | {percent(row['share'])} |"
        for row in rows
        if row["layout"] == "contiguous" and row["direction"] != "recorded"
    ]
    text = README.read_text()
    table = "\n".join([*lines, END])
    README.write_text(re.sub(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: table, text, flags=re.S))


def time(ms):
    if not ms:
        return ""
    return f"{float(ms):.3g} ms" if float(ms) >= 0.1 else f"{1e3 * float(ms):.3g} µs"


def ratio(value):
    return f"{float(value):.1f}" if value else ""


def percent(value):
    return f"{100 * float(value):.0f}%" if value else ""


main(sys.argv[1])
