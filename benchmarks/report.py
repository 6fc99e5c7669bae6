"""What is printed and written: the table (losses first), the JSON, the chart."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from benchmarks.figures import TARGETS
from benchmarks.runner import CONTENT_REQUESTS, Row, missed, passthrough

RESULTS = Path(__file__).resolve().parent / "results"
NOISY = 1.5
"""From here on a row's bare rounds differ too much."""
FAILED = ("dies", "fail")
VERDICT = {True: "yes", False: "NO", None: "–"}


def format_seconds(seconds: float | None) -> str:
    """`1.23 s` or `4.5 ms`."""
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def format_ratio(ratio: float) -> str:
    """Two decimals where they may matter, fewer where they do not."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def lines_up(table: Sequence[Sequence[str]]) -> str:
    """Pad the columns: the first one to the left, the others to the right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    text = []
    for line in table:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip())
    text.insert(1, "─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(text)


def table(rows: Sequence[Row], systems: Sequence[str]) -> str:
    """The comparison, the row with the largest loss first; failures are explained below it."""
    others = [name for name in systems if name != "bare"]
    lines = [["job", "bare", *others, "first", "met", "goal", "met"]]
    notes = []
    for row in sorted(rows, key=lambda row: -row.loss()):
        cells = []
        for name in others:
            failure, ratio = row.failure(name), row.ratio(name)
            if failure is not None:
                cells.append(failure.split(maxsplit=1)[0] if failure[:4] in FAILED else "no mount")
                notes.append(f"{name}, {row.job}: {failure}")
            else:
                cells.append("–" if ratio is None else format_ratio(ratio))
        unasked = {sample.unasked for sample in row.samples.get("modamafs", [])} - {None}
        notes += [f"modamafs, {row.job}: {text}" for text in unasked]
        target = TARGETS[row.job]
        lines.append(
            [
                row.label,
                ("~" if row.noise() > NOISY else "") + format_seconds(row.seconds("bare")),
                *cells,
                f"≤ {target.first:g}",
                VERDICT[row.first_met()],
                target.goal_text,
                VERDICT[row.goal_met()],
            ]
        )
    if "modamafs" in systems and any(row.data for row in rows):
        counts = passthrough(rows)
        seen = "?" if counts is None else str(sum(counts.values()))
        met = VERDICT[counts == dict.fromkeys(CONTENT_REQUESTS, 0)]
        peers = ["–"] * (len(others) - 1)
        name = "reads and writes seen by the daemon"
        lines.append([name, "–", *peers, seen, "0", met, "0", met])
    if any(line[1].startswith("~") for line in lines):
        notes.append(f"~ bare's own rounds differ by more than {NOISY:g}×: measure again")
    return "\n".join([lines_up(lines), *(["", *notes] if notes else [])])


def summary(rows: Sequence[Row]) -> str:
    """One line: what is missed."""
    if not any(row.samples.get("modamafs") for row in rows):
        return "modamafs was not measured"
    misses = missed(rows)
    if misses:
        return f"to reach first: MISSED by {len(misses)}: {'; '.join(misses)}"
    return f"to reach first: met by all {len(rows)} rows"


def stem(suffix: str = "") -> str:
    """`<date>-<kernel>`, the name of a result."""
    return f"{datetime.now().astimezone():%Y-%m-%d}-{platform.release()}{suffix}"


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write one result, readable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def record(
    rows: Sequence[Row], machine: dict[str, object], run: dict[str, object]
) -> dict[str, object]:
    """Everything that was measured, raw samples included."""
    return {
        "machine": machine,
        "run": run,
        "passthrough": passthrough(rows),
        "missed": missed(rows),
        "rows": [
            {
                "job": row.job,
                "label": row.label,
                "first": TARGETS[row.job].first,
                "goal": TARGETS[row.job].goal or "bindfs",
                "first_met": row.first_met(),
                "goal_met": row.goal_met(),
                "ratios": {name: row.ratio(name) for name in row.samples},
                "samples": {
                    name: [asdict(sample) for sample in samples]
                    for name, samples in row.samples.items()
                },
            }
            for row in rows
        ],
    }


STYLES = {
    "bindfs": ("s", "#8c6bb1"),
    "mergerfs": ("D", "#41ab5d"),
    "pyfuse3": ("^", "#f16913"),
    "modamafs": ("o", "#08519c"),
}


def chart(rows: Sequence[Row], systems: Sequence[str], title: str, path: Path) -> None:
    """One line a job, one mark a system, ratios to bare on a logarithmic axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = list(rows)
    figure, axes = plt.subplots(figsize=(10, 1.6 + 0.42 * len(shown)), layout="constrained")
    for place, row in enumerate(shown):
        target = TARGETS[row.job].first
        axes.plot([target, target], [place - 0.36, place + 0.36], color="#cb181d", lw=2, zorder=2)
        failures = []
        for name, (marker, colour) in STYLES.items():
            ratio = row.ratio(name)
            if ratio is not None:
                size = 80 if name == "modamafs" else 45
                axes.scatter(ratio, place, size, colour, marker=marker, zorder=3, edgecolor="white")
            elif (failure := row.failure(name)) is not None:
                failures.append(f"{name} {failure.split(maxsplit=1)[0]}")
        axes.text(
            1.01,
            place,
            ", ".join(failures),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color="#555555",
        )
    for name, (marker, colour) in STYLES.items():
        if name in systems:
            axes.scatter([], [], 60, colour, marker=marker, label=name)
    axes.plot([], [], color="#cb181d", lw=2, label="to reach first")
    axes.axvline(1, color="black", lw=1, label="bare", zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="x", which="both", color="#e5e5e5", zorder=0)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(shown)), [row.label for row in shown])
    axes.invert_yaxis()
    axes.set_xlabel("time, as a ratio to the bare directory (less is better)")
    axes.set_title(title, fontsize=10, loc="left")
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
