"""What is compared with uniform density: guides, controls, and scores of single elements.

An arm that this version cannot run yet (a setting that no guide knows) is left out, and said to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mergewise.errors import MergewiseError
from mergewise.guides import get_guide
from mergewise.guides._ask import settings_of
from mergewise.methods import get_method

UNIFORM = "uniform"
ALONE, TOGETHER = "alone", "all"
SETS = (ALONE, TOGETHER)
OWN, OTHER, NOISE = "own", "other", "noise"
CALIBRATIONS = (OWN, OTHER, NOISE)
"""The target task's own examples, those of the next expert, and noise."""
EXAMPLES = 15
"""Calibration examples, as many as LEWIS takes."""
DENSITIES = (0.3, 0.5, 0.7)
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ties": {},
    "dare_ties": {"rescale_by": "density"},
    "della": {},
}
"""By method: parameters that are not the method's own defaults, as in the lab's other tables."""


@dataclass(frozen=True)
class Arm:
    """One way to spread a mean density.

    Attributes:
        name: what tables call it.
        settings: of the guide besides the mean density.
        guide: "" for scores of elements at uniform density.
        change: done to the guide's densities: ``reversed`` about their mean, or ``shuffled``; or
            ``measured`` for densities in the order of measured sensitivities.
        parameters: of the method, for scores of elements.
        calibrations: what it is collected on.
        sets: whether it is asked of one expert, of all, or of both.
        extra: a question of its own, asked only where there is time.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    guide: str = "lewis"
    change: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    calibrations: tuple[str, ...] = CALIBRATIONS
    sets: tuple[str, ...] = SETS
    extra: bool = False

    def on(self, set_: str) -> tuple[str, ...]:
        """What it is calibrated on for one expert, or for all; for all on their own tasks alone."""
        if set_ not in self.sets:
            return ()
        return self.calibrations if set_ == ALONE else (OWN,)

    def missing(self) -> str | None:
        """Why it cannot be run in this version; None if it can."""
        try:
            if self.guide:
                guide = get_guide(self.guide)
                guide.needs(settings_of(guide, {**self.settings, "mean_density": 0.5}))
        except MergewiseError as error:
            return str(error)
        return None if any(self.fits(method) for method in METHODS) else "no method knows it"

    def fits(self, method: str) -> bool:
        """Whether a method has the parameters, and takes these values."""
        params = get_method(method).params
        return all(
            name in params and params[name].problem(value) is None
            for name, value in self.parameters.items()
        )


def _lewis(name: str, *calibrations: str, sets: tuple[str, ...] = SETS, **settings: Any) -> Arm:
    return Arm(name, settings, calibrations=calibrations or CALIBRATIONS, sets=sets)


def _score(kind: str, sets: tuple[str, ...] = SETS) -> Arm:
    name, parameters = f"score {kind}", {"score": kind}
    return Arm(name, guide="", parameters=parameters, calibrations=(OWN, NOISE), sets=sets)


ARMS: tuple[Arm, ...] = (
    _lewis("wanda", importance="wanda"),
    _lewis("activation", importance="activation"),
    _lewis("delta", importance="delta"),
    _lewis("wanda pruned", OWN, importance="wanda", propagation="pruned"),
    _lewis("curvature", OWN, NOISE, variant="curvature"),
    _lewis("gain", OWN, sets=(TOGETHER,), variant="gain"),
    _score("activation"),
    _score("fisher"),
    _score("gain", (TOGETHER,)),
    _score("activation_gain", (TOGETHER,)),
    Arm("wanda reversed", {"importance": "wanda"}, change="reversed", calibrations=(OWN,)),
    Arm("wanda shuffled", {"importance": "wanda"}, change="shuffled", calibrations=(OWN,)),
    Arm("measured", guide="", change="measured", calibrations=(OWN,)),
    Arm("wanda by component", {"importance": "wanda", "scope": "component"},
        calibrations=(OWN,), extra=True),
    Arm("wanda by rank", {"importance": "wanda", "scope": "rank"}, calibrations=(OWN,),
        extra=True),
    Arm("wanda narrow", {"importance": "wanda", "density_min": 0.4, "density_max": 0.6},
        calibrations=(OWN,), extra=True),
    Arm("delta reversed", {"importance": "delta"}, change="reversed", calibrations=(OWN,),
        extra=True),
    Arm("delta narrow", {"importance": "delta", "density_min": 0.4, "density_max": 0.6},
        calibrations=(OWN,), extra=True),
)  # fmt: skip
