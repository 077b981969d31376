"""What a comparison of guides leaves behind: JSON, a picture, a page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lab._guides_arms import ALONE, NOISE, OTHER, OWN, TOGETHER, UNIFORM, Arm
from benchmarks.lab._guides_compare import (
    Difference,
    Verdict,
    by,
    contrast,
    differences,
    verdict,
)
from benchmarks.lab._guides_layers import agreements, means
from benchmarks.lab._guides_layers import picture as layers_picture
from benchmarks.lab._guides_layers import sentences as layers_sentences
from benchmarks.lab._guides_layers import table as layers_table
from benchmarks.lab._guides_run import Found
from benchmarks.lab._words import capital
from mergewise.checkpoint import write_file
from mergewise.report.chart import heat_map

PAPER = ("wanda", "activation", "delta")
"""LEWIS' importances."""
MAIN = ("nll", "loss")
"""Metrics that verdicts are of: losses see more than shares of right answers."""
SAID = {OWN: "its own task", OTHER: "another task", NOISE: "noise"}
TITLES = {ALONE: "One expert alone", TOGETHER: "All experts together"}


@dataclass
class Report:
    """A family's comparison, ready to be written."""

    family: str
    title: str
    arms: Sequence[Arm]
    found: Found
    left_out: dict[str, str]
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.all = differences(self.found.outcomes)
        metrics = list(dict.fromkeys(d.metric for d in self.all))
        self.metrics = sorted(metrics, key=lambda m: m not in MAIN)
        self.sets = [s for s in TITLES if any(d.set == s for d in self.all)]

    def part(self, **wanted: Any) -> list[Difference]:
        """Differences whose attributes are these."""
        return [d for d in self.all if all(getattr(d, k) == v for k, v in wanted.items())]

    def rows(self, set_: str) -> Iterator[tuple[Arm, str, dict[str, Verdict]]]:
        """Every arm and calibration, with a verdict by metric."""
        for arm in self.arms:
            for calibration in arm.on(set_):
                groups = {
                    m: self.part(set=set_, arm=arm.name, calibration=calibration, metric=m)
                    for m in self.metrics
                }
                if found := {m: verdict(group) for m, group in groups.items() if group}:
                    yield arm, calibration, found

    @property
    def main(self) -> str:
        """The metric that verdicts are of."""
        return self.metrics[0] if self.metrics else "loss"

    def spread(self) -> float:
        """The largest difference of a mean density from what it should be."""
        means = [abs(o.mean - o.cell.density) for o in self.found.outcomes if o.scores]
        return max(means, default=math.nan)

    def failures(self) -> Counter[tuple[str, str]]:
        """How often an arm could not be run, by arm and reason."""
        return Counter((o.cell.arm, o.failure) for o in self.found.outcomes if o.failure)


def write_report(report: Report, folder: Path, pages: Path | None) -> list[Path]:
    """Write a family's files into `folder`, and into `pages` too if they are to be published."""
    name = f"guides-{report.family}"
    files = {
        f"{name}.json": json.dumps(document(report), indent=1) + "\n",
        f"{name}.svg": picture(report),
        f"{name}.md": page(report),
    }
    if layers := layers_picture(capital(report.title), report.found.maps):
        files[f"{name}-layers.svg"] = layers
    written = []
    for place in [folder, *([pages] if pages else [])]:
        place.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            write_file(place / file, text.encode())
            written.append(place / file)
    cells = [asdict(o) for o in report.found.outcomes]
    write_file(folder / f"{name}-cells.json", (json.dumps(cells) + "\n").encode())
    return written


def document(report: Report) -> dict[str, Any]:
    """Everything but the single cells, as JSON."""
    rows = [
        {"set": set_, "arm": arm.name, "calibration": calibration, "metric": metric,
         **asdict(found), "word": found.word}
        for set_ in report.sets
        for arm, calibration, verdicts in report.rows(set_)
        for metric, found in verdicts.items()
    ]  # fmt: skip
    parts = [
        {"set": key[0], "arm": key[1], "calibration": key[2], "method": key[3], "density": key[4],
         "metric": report.main, "mean": math.fsum(d.gain for d in group) / len(group),
         "cells": len(group)}
        for key, group in by(
            report.part(metric=report.main),
            lambda d: (d.set, d.arm, d.calibration, d.method, d.density),
        ).items()
    ]  # fmt: skip
    return {
        "family": report.family,
        "title": report.title,
        "seeds": list(report.found.references),
        **report.about,
        "largest_difference_of_mean_densities": report.spread(),
        "left_out": report.left_out,
        "failures": [
            {"arm": arm, "reason": why, "cells": n} for (arm, why), n in report.failures().items()
        ],
        "words": sentences(report),
        "rows": rows,
        "parts": parts,
        "contrasts": [
            {"arm": arm, "against": other, **asdict(found), "word": found.word}
            for arm, other, found in contrasts(report)
        ],
        "levels": levels(report),
        "agreements": agreements(report.found.maps),
        "layers": means(report.found.maps),
    }


def contrasts(report: Report) -> Iterator[tuple[str, str, Verdict]]:
    """Own calibration against another task's and against noise, one expert alone."""
    for arm in report.arms:
        own = report.part(set=ALONE, arm=arm.name, calibration=OWN, metric=report.main)
        for other in (OTHER, NOISE):
            theirs = report.part(set=ALONE, arm=arm.name, calibration=other, metric=report.main)
            if found := contrast(own, theirs):
                yield arm.name, other, verdict(found)


def levels(report: Report) -> list[dict[str, Any]]:
    """Mean scores of base, expert and uniform density: what there is to gain."""
    found = []
    for metric in report.metrics:
        for who in ("base", "expert"):
            values = [
                scores[metric]
                for refs in report.found.references.values()
                for scores in refs[who].values()
                if metric in scores
            ]
            found.append({"what": who, "metric": metric, "mean": _mean(values)})
        for set_ in report.sets:
            uniform = [
                o
                for o in report.found.outcomes
                if o.cell.arm == UNIFORM and o.cell.set == set_ and o.scores
            ]
            keys = sorted({(o.cell.method, o.cell.density) for o in uniform})
            for method, density in keys:
                values = [
                    scores[metric]
                    for o in uniform
                    if (o.cell.method, o.cell.density) == (method, density)
                    for scores in o.scores.values()
                    if metric in scores
                ]
                found.append(
                    {"what": UNIFORM, "set": set_, "method": method, "density": density,
                     "metric": metric, "mean": _mean(values)}
                )  # fmt: skip
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


# words


def sentences(report: Report) -> list[str]:
    """What the numbers say, in words made of them."""
    lines = [*_claim(report)]
    if TOGETHER in report.sets:
        lines += [*_best(report, TOGETHER)]
    if ALONE in report.sets:
        lines += [*_best(report, ALONE), *_calibration(report)]
    return [*lines, *layers_sentences(report.found.maps)]


def _claim(report: Report) -> Iterator[str]:
    """LEWIS' claim: guided beats uniform on the task that the calibration resembles."""
    for name in PAPER:
        found = report.part(set=ALONE, arm=name, calibration=OWN, metric=report.main)
        if found:
            yield f"Claim with importance {name}: {claimed(verdict(found), report.main)}."


def claimed(found: Verdict, metric: str) -> str:
    """Whether guided beats uniform, in words."""
    begin = {"better": "holds here", "worse": "is reversed here: uniform is better",
             "undecided": "cannot be told from no difference"}[found.word]  # fmt: skip
    return f"{begin}; {_numbers(found, metric)}"


def _numbers(found: Verdict, metric: str) -> str:
    return (
        f"{show(found.mean, metric)} (95 % {show(found.low, metric)} to "
        f"{show(found.high, metric)}), better in {found.better} and worse in {found.worse} of "
        f"{found.cells} cells, p = {found.p:.2g} over {found.clusters} experts"
    )


def _best(report: Report, set_: str) -> Iterator[str]:
    rows = [
        (found[report.main], arm.name)
        for arm, calibration, found in report.rows(set_)
        if calibration == OWN and report.main in found
    ]
    if not rows:
        return
    good = sorted((r for r in rows if r[0].word == "better"), key=lambda r: -r[0].mean)
    bad = [name for found, name in rows if found.word == "worse"]
    what = TITLES[set_].lower()
    if good:
        listed = ", ".join(f"{name} ({show(found.mean, report.main)})" for found, name in good)
        yield f"Better than uniform, {what}, calibrated on its own task: {listed}."
    else:
        yield f"No arm is better than uniform, {what}, calibrated on its own task."
    if bad:
        yield f"Worse than uniform there: {', '.join(bad)}."


def _calibration(report: Report) -> Iterator[str]:
    found = list(contrasts(report))
    for other in (OTHER, NOISE):
        mine = [(arm, v) for arm, against, v in found if against == other]
        helps = [f"{arm} ({show(v.mean, report.main)})" for arm, v in mine if v.word == "better"]
        harms = [f"{arm} ({show(v.mean, report.main)})" for arm, v in mine if v.word == "worse"]
        rest = [arm for arm, v in mine if v.word == "undecided"]
        told = [
            f"{word} for {', '.join(names)}"
            for word, names in (("helps", helps), ("harms", harms), ("makes no difference that "
                                "can be told", rest))
            if names
        ]  # fmt: skip
        if told:
            yield f"Calibrating on its own task instead of {SAID[other]} {'; '.join(told)}."


def show(value: float, metric: str) -> str:
    """A gain with its sign and unit."""
    if not math.isfinite(value):
        return "?"
    sign = "−" if value < 0 else "+"
    if metric in MAIN:
        return f"{sign}{abs(value):.4f}"
    return f"{sign}{100 * abs(value):.2f}"


# page and picture


def page(report: Report) -> str:
    """The comparison as Markdown."""
    about = report.about
    parts = [
        f"# Guided against uniform: {capital(report.title)}",
        "",
        *(f"* {line}" for line in sentences(report)),
        "",
        f"Made by `{about.get('command', '')}` on {about.get('hardware', {}).get('cpu', '?')}; "
        + ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
        + ".",
        "",
        *(f"* {note}" for note in notes(report)),
        "",
    ]
    for set_ in report.sets:
        parts += [f"## {TITLES[set_]}", "", *_table(report, set_), ""]
    parts += [f"![gains by method and density](guides-{report.family}.svg)", ""]
    if layers := layers_table(report.found.maps, SAID):
        picture_ = f"![densities by tensor](guides-{report.family}-layers.svg)"
        parts += ["## Do densities go where they matter?", "", *layers, "", picture_, ""]
    parts += ["## What there is to gain", "", *_levels_table(report), ""]
    return "\n".join(parts)


def notes(report: Report) -> list[str]:
    """What a reader must know to read the tables."""
    seeds = ", ".join(map(str, report.found.references))
    unit = "nats (log loss)" if report.main == "nll" else "nats a token"
    rows = sum(1 for set_ in report.sets for _ in report.rows(set_))
    lines = [
        f"seeds {seeds}; gains are uniform's loss less the guided one's, {unit}, on test examples "
        "of the experts' own tasks, so that + is better; shares of right answers are in points",
        f"{report.about.get('examples', '?')} calibration examples of each expert",
        "densities: the same mean over the elements of guided tensors in both arms (the largest "
        f"difference was {report.spread():.1e}); all other tensors at density 1 in both",
        "the interval is of means over resampled experts (of every seed), p is Wilcoxon's over "
        "their means; the standard error takes cells for independent, which they are not",
        "together, the tasks of a seed are scores of one merged model, so that interval and p are "
        "rather too sure there",
        f"{rows} rows: about one in twenty intervals leaves out 0 by chance",
        *report.notes,
    ]
    lines += [f"left out, {name}: {why}" for name, why in report.left_out.items()]
    lines += [f"{arm}: {n} cells failed: {why}" for (arm, why), n in report.failures().items()]
    return lines


def _table(report: Report, set_: str) -> list[str]:
    others = report.metrics[1:]
    head = ["densities or scores by", "calibrated on", "gain", "s.e.", "95 % interval",
            "better : worse", "p", *(f"{m}, points" for m in others)]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm, calibration, found in report.rows(set_):
        main = found.get(report.main)
        if main is None:
            continue
        name = f"**{arm.name}**" if main.word == "better" else arm.name
        cells = [
            name, SAID[calibration], show(main.mean, report.main), f"{main.error:.4f}",
            f"{show(main.low, report.main)} to {show(main.high, report.main)}",
            f"{main.better} : {main.worse}", f"{main.p:.2g}",
            *(show(found[m].mean, m) if m in found else "–" for m in others),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", "Bold: the interval lies above 0."]


def _levels_table(report: Report) -> list[str]:
    rows: dict[tuple[Any, ...], dict[str, float]] = {}
    for level in levels(report):
        key = (level["what"], level.get("set", ""), level.get("method", ""),
               level.get("density", ""))  # fmt: skip
        rows.setdefault(key, {})[level["metric"]] = level["mean"]
    head = ["", "experts", "method", "density", *report.metrics]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for key, values in rows.items():
        told = [_level(values.get(m), m) for m in report.metrics]
        lines.append("| " + " | ".join([*map(str, key), *told]) + " |")
    return lines


def _level(value: float | None, metric: str) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.4f}" if metric in MAIN else f"{100 * value:.1f} %"


def picture(report: Report) -> str:
    """Gains by arm, over sets, methods and densities."""
    columns = [
        (set_, method, density)
        for set_ in report.sets
        for method in dict.fromkeys(d.method for d in report.all)
        for density in sorted({d.density for d in report.all})
    ]
    groups = by(
        report.part(metric=report.main),
        lambda d: (d.arm, d.calibration, d.set, d.method, d.density),
    )
    names, values = [], []
    for arm in report.arms:
        for calibration in arm.calibrations:
            row = [groups.get((arm.name, calibration, *column)) for column in columns]
            if any(row):
                names.append(f"{arm.name} · {calibration}")
                values.append([_mean([d.gain for d in g]) * 1000 if g else None for g in row])
    return heat_map(
        f"{capital(report.title)}: guided against uniform",
        names,
        [f"{set_} {method} {density:g}" for set_, method, density in columns],
        values,
        notes=["Thousandths of a nat by which guided is better (blue) or worse (orange) than "
               "uniform at the same mean density; mean over seeds and experts.",
               "own, other, noise: what was calibrated on. alone: one expert; all: all of them."],
        format="+.1f",
        centre=0.0,
    )  # fmt: skip
