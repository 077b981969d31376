"""Where guides put density, and whether the experts' losses say the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.lab._guides_arms import OWN
from benchmarks.lab._guides_compare import Difference, verdict
from benchmarks.lab._guides_measured import MEASURED, LayerMap, agreement
from mergewise.report.chart import heat_map

Maps = Sequence[LayerMap]


def agreements(maps: Maps) -> list[dict[str, Any]]:
    """Rank correlations of each arm's densities with measured sensitivities, over experts."""
    known = {(m.seed, m.expert): m.values for m in maps if m.arm == MEASURED}
    groups: dict[tuple[str, str], list[Difference]] = {}
    for one in maps:
        measured = known.get((one.seed, one.expert))
        if one.arm == MEASURED or measured is None:
            continue
        rho = agreement(one.values, measured)
        if math.isfinite(rho):
            groups.setdefault((one.arm, one.calibration), []).append(
                Difference(one.arm, one.calibration, "", "", "", 0, (one.seed, one.expert), rho)
            )
    found = []
    for (arm, calibration), group in groups.items():
        told = verdict(group)
        found.append({"arm": arm, "calibration": calibration, "correlation": told.mean,
                      "low": told.low, "high": told.high, "experts": told.clusters})  # fmt: skip
    return found


def table(maps: Maps, said: Mapping[str, str]) -> list[str]:
    """The same as Markdown; empty if nothing was measured."""
    rows = agreements(maps)
    if not rows:
        return []
    return [
        "Rank correlation, over guided tensors, of an arm's densities with how much the expert's "
        "validation loss rises by trimming each tensor alone to 0.3, by element. Mean over "
        "experts, one alone; 1 is the same order.",
        "",
        "| densities by | calibrated on | correlation | 95 % interval |",
        "|---|---|---|---|",
        *(
            f"| {r['arm']} | {said[r['calibration']]} | {_signed(r['correlation'])} | "
            f"{_signed(r['low'])} to {_signed(r['high'])} |"
            for r in rows
        ),
    ]


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{abs(value):.2f}" if math.isfinite(value) else "?"


def sentences(maps: Maps) -> Iterator[str]:
    """Which arms agree with the measurement, and which do the opposite."""
    rows = [row for row in agreements(maps) if row["calibration"] == OWN]
    for word, chosen in (
        ("put more density where trimming costs more", [r for r in rows if r["low"] > 0]),
        ("put less density where trimming costs more", [r for r in rows if r["high"] < 0]),
    ):
        if chosen:
            named = ", ".join(f"{r['arm']} ({_signed(r['correlation'])})" for r in chosen)
            yield f"Calibrated on its own task, these {word} (rank correlation): {named}."


def means(maps: Maps) -> dict[str, dict[str, float]]:
    """Mean density by arm (own calibration), then tensor; sensitivities as `MEASURED`."""
    groups: dict[str, list[LayerMap]] = {}
    for one in maps:
        if one.calibration == OWN:
            groups.setdefault(one.arm, []).append(one)
    return {
        arm: {
            name: math.fsum(one.values[name] for one in group) / len(group)
            for name in group[0].values
        }
        for arm, group in groups.items()
    }


def picture(title: str, maps: Maps) -> str | None:
    """Densities by tensor and arm, with sensitivities as shares of the largest."""
    found = means(maps)
    if not found:
        return None
    measured = found.pop(MEASURED, None)
    arms = list(found)
    tensors = list(next(iter(found.values())))
    rows: dict[str, Mapping[str, float]] = {arm: found[arm] for arm in arms}
    if measured is not None:
        most = max(map(abs, measured.values()), default=1.0) or 1.0
        rows["sensitivity, measured"] = {name: value / most for name, value in measured.items()}
    return heat_map(
        f"{title}: where density goes",
        tensors,
        list(rows),
        [[rows[column].get(tensor) for column in rows] for tensor in tensors],
        notes=["Densities of experts alone, calibrated on their own task, mean over seeds and "
               "experts. Sensitivity: what trimming the tensor alone costs an element, as a share "
               "of the largest."],
        format=".2f",
    )  # fmt: skip
