"""Who takes part: every registered method that fits the number of experts, and some variants.

Coefficients. A parameter that must be given is `weight`, the same for every expert: 1 for task
vectors (a method with a `lambda`), 1/T for averages of T models. `lambda` stays at the method's own
default, except where a method adds up task vectors (its `normalize` is false): there it is 0.3,
Task Arithmetic's usual value for many tasks (arXiv 2212.04089). A method whose base is optional
takes part without it and with it. All other parameters are at their defaults, or as `VARIANTS` say.

The one scale that is tuned is `lambda`; without one `weight`, if it must be given and the method
does not divide it out; without that `t`. A method with none of them, or whose variants give it, has
nothing to tune.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mergewise.evidence.statistics import get_statistic
from mergewise.methods import Method, all_methods

SUM = 0.3
GRID = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
"""Values a scale may take; the literature's range for task vectors."""

EXAMPLES = "examples of each expert's data"

VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "ties": {"keep .2": {"density": 0.2}, "keep all": {}},
    "dare_linear": {
        "drop .5": {"density": 0.5, "rescale_by": "density"},
        "drop .9": {"density": 0.1, "rescale_by": "density"},
    },
    "dare_ties": {"drop .5": {"density": 0.5, "rescale_by": "density"}},
    "breadcrumbs": {"keep .9": {"density": 0.9}},
    "breadcrumbs_ties": {"keep .9": {"density": 0.9}},
    "della": {"keep .5": {"density": 0.5}},
    "della_linear": {"keep .5": {"density": 0.5}},
    "model_stock": {"": {}, "by row": {"filter_wise": True}},
    "sce": {"top .1": {"select_topk": 0.1}, "all": {}},
    "lota": {"keep .1": {"density": 0.1}},
    "pcb": {"": {}, "pairs": {"inter": "pairs"}},
    "regmean": {
        "": {},
        "16": {EXAMPLES: 16, "off_diagonal": 1.0},
        "16 .95": {EXAMPLES: 16, "off_diagonal": 0.95},
    },
    "nearswap": {"t .001": {"t": 0.001}, "t .01": {"t": 0.01}},
    "rotate": {"": {}, "half": {"alignment": 0.5, "alpha": 0.5}},
}
"""By method: what a row adds to its name, and parameters (or the number of calibration examples).
At mergekit's default density of 1 the sparse methods drop nothing and are all task arithmetic, so
they take part at published values."""

NO_ROW: Mapping[str, str] = {
    "adamergex": "is for three IA3 adapters, which no expert here is",
    "ext_sub": "is for a second model that is to be forgotten",
    "passthrough": "copies one model",
}
"""Methods that no table of experts to be kept can judge, and why."""

ADAM = "adam"
MOMENTS = "the optimizer's second moments"

_GIVEN = ("weight",)
_DIVIDED = {"nuslerp"}
"""Methods whose weights matter by their ratio alone, with no parameter that says so."""
_SUMMED = {"gradient_matching"}
"""Methods that add up task vectors by weights with a default and have no other scale."""


@dataclass(frozen=True)
class Contender:
    """A method with its parameters; one row of the table.

    Attributes:
        parameters: besides the scale's value.
        base: whether the base model is given to the method.
        scale: the parameter that is tuned, None if there is none.
        default: its value at the defaults.
        data: the class of data it needs besides the models.
        examples: how many examples of it.
        walked: its evidence is measured behind merged layers.
        first: the first of two experts stands where the method has its base.
        after: the method, at its defaults, whose merge of the experts it is given as its one model.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    base: bool = True
    scale: str | None = None
    default: float | None = None
    data: str = "none"
    examples: int = 0
    walked: bool = False
    first: bool = False
    after: str = ""

    def at(self, value: float | None) -> dict[str, Any]:
        """All parameters with the scale at `value`."""
        return dict(self.parameters) | ({self.scale: value} if self.scale else {})


def contenders(
    experts: int, calibrating: int, steps: Sequence[int] = (), moments: bool = False
) -> tuple[list[Contender], dict[str, str]]:
    """Those who take part among `experts` models, and why other methods do not, by name.

    Args:
        calibrating: examples of each expert's data there are for methods that read evidence.
        steps: how many each expert was trained for; empty if that is not known.
        moments: whether Adam's second moments of the experts' training can be had.
    """
    chosen: list[Contender] = []
    left_out: dict[str, str] = {}
    for name, method in all_methods().items():
        reason = _misfit(method, experts) or _lack(method, calibrating, bool(steps), moments)
        if reason is not None:
            left_out[name] = reason
            continue
        known = {"steps": list(steps)} if "steps" in method.params else {}
        chosen += rows_of(method, experts, calibrating, known)
    return [*chosen, *_walked(chosen)], left_out


def rows_of(
    method: Method, experts: int, calibrating: int, known: Mapping[str, Any] | None = None
) -> list[Contender]:
    """A method's rows: one for each variant, without a base and with it where it is optional.

    Args:
        known: parameters besides the variant's.
    """
    found = []
    for suffix, parameters in VARIANTS.get(method.name, {"": {}}).items():
        for base in _bases(method):
            label = " ".join([method.name, *([suffix] if suffix else []), *_said(method, base)])
            given = {EXAMPLES: calibrating, **(known or {}), **parameters}
            found.append(_contender(label, method, given, base, experts))
    return found


def _walked(chosen: Sequence[Contender]) -> list[Contender]:
    """RegMean++: RegMean as it is by default, with Gram matrices from behind merged layers."""
    return [
        replace(contender, name="regmean_plus_plus", walked=True)
        for contender in chosen
        if contender.name == "regmean"
    ]


def _misfit(method: Method, experts: int) -> str | None:
    least, most = method.experts
    if method.name in NO_ROW:
        return NO_ROW[method.name]
    if most is not None and experts > most:
        return "needs two models"
    return f"needs {least} models or more" if experts < least else None


def _lack(method: Method, calibrating: int, steps: bool, moments: bool) -> str | None:
    """What a method must be told or given that is not there."""
    known = {*_GIVEN, tuned_parameter(method), *(["steps"] if steps else [])}
    for name, param in method.params.items():
        if param.required and name not in known:
            return f"needs {name}, for which there is no value that fits all"
    needs = [need.statistic for need in method.needs_at_defaults()]
    for statistic in needs:
        if get_statistic(statistic).need == "file" and not (statistic == ADAM and moments):
            return f"needs {statistic}, which is not kept of the experts' training"
    if [name for name in needs if name != ADAM] and not calibrating:
        return f"needs {', '.join(needs)} of every expert, which this family does not collect"
    return None


def _bases(method: Method) -> tuple[bool, ...]:
    return {"required": (True,), "ignored": (False,), "optional": (False, True)}[method.base]


def _said(method: Method, base: bool) -> list[str]:
    return ["(base)"] if method.base == "optional" and base else []


def _contender(
    label: str, method: Method, given: Mapping[str, Any], base: bool, experts: int
) -> Contender:
    scale = tuned_parameter(method)
    parameters = dict(given)
    examples = parameters.pop(EXAMPLES)
    params = method.params
    needs = {need.statistic for need in method.needs_at_defaults()}
    reads = bool(needs - {ADAM})
    if scale in parameters:
        scale = None
    if "weight" in params and params["weight"].required and scale != "weight":
        parameters.setdefault("weight", 1.0 if "lambda" in params else 1.0 / experts)
    return Contender(
        name=label,
        method=method.name,
        parameters=parameters,
        base=base,
        scale=scale,
        default=_default(method, scale, parameters, experts),
        data="unlabelled" if reads else MOMENTS if needs else "none",
        examples=examples if reads else 0,
    )


def tuned_parameter(method: Method) -> str | None:
    """The one scale that is tuned, or None; see the module."""
    params = method.params
    if "lambda" in params:
        return "lambda"
    divided = method.name in _DIVIDED or any(
        name.startswith("normalize") and p.default for name, p in params.items()
    )
    summed = method.name in _SUMMED
    if summed or ("weight" in params and params["weight"].required and not divided):
        return "weight"
    return "t" if "t" in params else None


def _default(
    method: Method, scale: str | None, parameters: Mapping[str, Any], experts: int
) -> float | None:
    if scale is None:
        return None
    param = method.params[scale]
    if scale == "lambda":
        adds_up = not parameters.get("normalize", _own(method, "normalize", True))
        return SUM if adds_up and param.default == 1.0 else float(param.default)
    if param.required or param.default is None:
        return 1.0 / experts if scale == "weight" else 0.5
    return float(param.default)


def _own(method: Method, name: str, otherwise: Any) -> Any:
    return method.params[name].default if name in method.params else otherwise
