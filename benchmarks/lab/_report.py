"""What a run leaves behind: JSON, a figure, and a page of Markdown."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.lab._exact import Exact
from benchmarks.lab._family import Gate
from benchmarks.lab._orders import Finding
from benchmarks.lab._pairs_table import two_experts
from benchmarks.lab._results import Column, Measures, Results, Setting, spread
from benchmarks.lab._table import headline, lines, markdown
from benchmarks.lab._words import capital
from mergewise._lazy import torch
from mergewise.checkpoint import write_file
from mergewise.report.chart import Dot, dot_rows, heat_map

RULE = "A tuned scale is chosen on the validation split, separately for each seed."
LEAST = -50.0
"""Where figures of the way from base (0) to experts (100) begin."""
PACKAGES = ("mergewise", "torch", "transformers", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Of everything that decides a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def hardware(device: str) -> dict[str, Any]:
    """The machine, in words and numbers."""
    from mergewise.engine import processors

    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": processors(),
        "memory_gib": round(_memory() / 2**30, 1),
        "system": platform.system(),
        "torch_threads": torch.get_num_threads(),
        "device": device,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def write_all(
    folder: Path,
    results: Results,
    gates: Sequence[Gate],
    findings: Sequence[Finding],
    exact: Sequence[Exact],
    pages: Path | None,
) -> list[Path]:
    """Write the results into `folder`, and into `pages` too if they are to be published.

    Returns:
        The files written.
    """
    document = results.to_json() | {
        "gates": [asdict(gate) for gate in gates],
        "orders": [finding.to_json() for finding in findings],
        "exact": [asdict(property_) for property_ in exact],
    }
    del document["pairs"]
    name = results.family
    files = {
        f"{name}.json": json.dumps(document, indent=1) + "\n",
        f"{name}.svg": figure(results),
        f"{name}-tasks.svg": task_figure(results),
        f"{name}.md": page(results, gates, findings, exact),
    }
    return [*_write(files, folder, pages), *write_pairs(folder, results, pages)]


def write_pairs(folder: Path, results: Results, pages: Path | None) -> list[Path]:
    """Write the results of pairs of experts, as `write_all` does; nothing if there are none."""
    if not results.pairs:
        return []
    document = {
        "family": results.family,
        "title": results.title,
        "seeds": results.seeds,
        "about": results.about,
        "pairs": [asdict(pair) for pair in results.pairs],
    }
    name = f"{results.family}-pairs"
    files = {
        f"{name}.json": json.dumps(document, indent=1) + "\n",
        f"{name}.md": pairs_page(results),
    }
    return _write(files, folder, pages)


def _write(files: Mapping[str, str], folder: Path, pages: Path | None) -> list[Path]:
    written = []
    for place in [folder, *([pages] if pages else [])]:
        place.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            write_file(place / file, text.encode())
            written.append(place / file)
    return written


def figure(results: Results) -> str:
    """A row of dots for every method: at its default and tuned, mean and spread over seeds."""
    rows: dict[str, dict[str, Dot]] = {}
    marks: dict[str, float] = {}
    factor = _factor(results)
    for row, setting in lines(results):
        found = spread(results, row, setting, Measures(results).quality)
        if found is None:
            continue
        if setting == "reference":
            if row.name != "experts elsewhere":
                marks[row.name] = factor * found.mean
            continue
        half = found.deviation or 0.0
        value: Dot = (
            factor * found.mean, factor * (found.mean - half), factor * (found.mean + half)
        )  # fmt: skip
        rows.setdefault(row.name, {})[setting] = value if half else factor * found.mean
    return dot_rows(
        f"{capital(results.title)}: every method",
        list(rows.items()),
        _axis(results),
        notes=[f"{_shown(results)}. {RULE}"],
        lines=marks,
        least=None if results.one_metric else LEAST,
    )


def _factor(results: Results) -> float:
    share = results.trained[0].share if results.one_metric else True
    return 100.0 if share else 1.0


def _axis(results: Results) -> str:
    if not results.one_metric:
        return "mean way from base (0) to experts (100), right is better"
    column = results.trained[0]
    what = f"mean test {column.metric} over {len(results.trained)} tasks"
    return f"{what}, percent, right is better" if column.share else f"− {what}, right is better"


def _shown(results: Results) -> str:
    few = len(results.seeds)
    return "One seed" if few == 1 else f"{few} seeds; bars are one standard deviation"


def task_figure(results: Results) -> str:
    """A coloured table, methods by tasks; colours by the way from base to expert."""
    names, values, shades = [], [], []
    best: dict[str, Setting] = {}
    for row, setting in lines(results):
        best[row.name] = setting  # the tuned line comes after the default one
    for name, setting in best.items():
        names.append(name)
        means = [_mean(results, name, setting, column) for column in results.columns]
        values.append([_text(value, c) for value, c in zip(means, results.columns, strict=True)])
        shades.append(_shades(results, means))
    return heat_map(
        f"{capital(results.title)}: tasks",
        names,
        [column.name for column in results.columns],
        values,
        notes=["Colour: 0 is the base, 1 the task's own expert. Tuned rows where there is a "
               "scale to tune. " + RULE],
        shades=shades,
    )  # fmt: skip


def _mean(results: Results, name: str, setting: Setting, column: Column) -> float | None:
    row = results.row(name)
    if row is None:
        return None
    found = spread(results, row, setting, lambda scores, seed: scores.get(column.name))
    return found.mean if found else None


def _text(value: float | None, column: Column) -> float | str | None:
    if value is None:
        return None
    return f"{100 * value:.1f}" if column.share else f"{value:.3f}"


def _shades(results: Results, means: Sequence[float | None]) -> list[float | None]:
    base = [_mean(results, "pretrained", "reference", c) for c in results.columns]
    own = [_mean(results, "fine-tuned", "reference", c) for c in results.columns]
    shades: list[float | None] = []
    for mine, low, high in zip(means, base, own, strict=True):
        if mine is None or low is None:
            shades.append(None)
        elif high is None or high == low:
            shades.append(0.0)
        else:
            shades.append(min(1.0, max(-0.5, (mine - low) / (high - low))))
    return shades


def page(
    results: Results, gates: Sequence[Gate], findings: Sequence[Finding], exact: Sequence[Exact]
) -> str:
    """The results as Markdown."""
    parts = [
        f"# {capital(results.title)}",
        "",
        f"{_what(results)}; mean over {_seeds(results)}. In percent: {headline(results)}.",
        "",
        _made(results),
        "",
        *(f"* {note}" for note in results.notes),
        "",
        *(f"* {'met' if gate.holds else '**not met**'}: {gate.text}" for gate in gates),
        "",
        markdown(results),
        f"![every method]({results.family}.svg)",
        "",
        f"![methods by tasks]({results.family}-tasks.svg)",
        "",
        *_to_pairs(results),
        "## Published orders",
        "",
        "| claim | class | from | here |",
        "|---|---|---|---|",
        *(
            f"| {f.claim.text} | {f.claim.strength} | {f.claim.source} | {f} |"
            for f in findings
            if f.gap is not None
        ),
        "",
        "Not tried, for want of methods:",
        "",
        *(
            f"* {f.claim.text} ({f.claim.strength}; no {f.missing})"
            for f in findings
            if f.gap is None
        ),
        "",
        "Exact properties, on the first seed's experts:",
        "",
        *(f"* {found.text}: {found}" for found in exact),
        "",
    ]
    return "\n".join(parts)


def pairs_page(results: Results) -> str:
    """The results of pairs of experts, as Markdown."""
    parts = [
        f"# Two experts of {results.family}",
        "",
        f"Pairs of the experts of [{results.family}]({results.family}.md); mean over "
        f"{_seeds(results)}.",
        "",
        _made(results),
        "",
        *two_experts(results),
    ]
    return "\n".join(parts)


def _to_pairs(results: Results) -> list[str]:
    if not results.pairs:
        return []
    return [f"Methods for two models: [pairs of experts]({results.family}-pairs.md).", ""]


def _made(results: Results) -> str:
    about = results.about
    machine = about.get("hardware", {})
    cores = machine.get("cores", "?")
    return (
        f"Made by `{about.get('command', '')}` on {machine.get('gpu') or machine.get('cpu', '?')}, "
        f"{cores} core{'' if cores == 1 else 's'}, in {about.get('minutes', 0):.1f} minutes"
        f"{', not counting what earlier runs had left' if about.get('resumed') else ''}; "
        + ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
        + "."
    )


def _what(results: Results) -> str:
    if results.one_metric:
        return f"Scores are {results.trained[0].metric} on test splits"
    return "Tasks differ in metric, so methods are ordered by NAI, the way from base to experts"


def _seeds(results: Results) -> str:
    few = len(results.seeds)
    said = f"{few} seed{'s' if few > 1 else ''} ({', '.join(map(str, results.seeds))})"
    return said if few >= 3 else f"{said}: too few for a spread that means much"
