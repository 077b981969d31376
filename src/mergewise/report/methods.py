"""What there is to know about a merge method, from its declaration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mergewise.report._families import family_of
from mergewise.report.options import option_dict
from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import show_value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from mergewise.methods import Method, Param

_BASES = {"required": "yes", "optional": "if given", "ignored": "no"}


def methods_list(methods: Iterable[Method]) -> list[RenderableType]:
    """One row for each method."""
    rows = [[m.name, m.summary, _BASES[m.base], _models(m), _origin(m)] for m in methods]
    return [table(["method", "what it does", "base", "models", "from"], rows)]


def _origin(method: Method) -> str:
    """The paper's number, or what stands before the first bracket."""
    found = re.search(r"arXiv (\d{4}\.\d{4,5})", method.source)
    return f"arXiv {found[1]}" if found else method.source.split(" (")[0]


def method_page(method: Method) -> list[RenderableType]:
    """One method: formula, needs, parameters, example."""
    lines = [
        ("formula", method.formula),
        ("where", symbols(method)),
        ("when", method.advice),
        ("needs", models_needed(method)),
        ("from", method.source),
        ("variant", method.variant),
    ]
    page: list[RenderableType] = [
        text(f"{method.name}: {method.summary}", "bold"),
        indented(facts([line for line in lines if line[1]])),
    ]
    if method.params:
        headers = ["parameter", "type", "default", "allowed", "per model", "meaning"]
        rows = [_parameter(name, param) for name, param in method.params.items()]
        page += [text("Parameters", "bold"), indented(table(headers, rows))]
    if any(p.native for p in method.params.values()):
        page.append(indented(text("* not in mergekit")))
    if method.example:
        page += [text("Example", "bold")]
        page += [text(f"  {line}") for line in method.example.strip().splitlines()]
    return page


def method_dict(method: Method) -> dict[str, Any]:
    """One method as plain values, ready for JSON."""
    least, most = method.experts
    return {
        "name": method.name,
        "summary": method.summary,
        "base": method.base,
        "models_besides_base": {"least": least, "most": most},
        "random": method.random,
        "formula": method.formula,
        "source": method.source,
        "variant": method.variant,
        "advice": method.advice,
        "family": family_of(method),
        "parameters": {name: _param_dict(param) for name, param in method.params.items()},
        "example": method.example.strip(),
    }


def _param_dict(param: Param) -> dict[str, Any]:
    return {**option_dict(param), "per_model": param.per_model, "native": param.native}


def _parameter(name: str, param: Param) -> list[str]:
    default = "required" if param.required else show_value(param.default)
    per_model = "yes" if param.per_model else ""
    mark = "*" if param.native else ""
    return [name + mark, param.kind.__name__, default, param.range, per_model, param.help]


def _models(method: Method) -> str:
    least, most = method.experts
    if most is None:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"


def symbols(method: Method) -> str:
    """What the usual letters of a formula stand for, of those that it uses."""
    used = {found[0] for found in re.findall(r"\b(?:b|N|[xdw](?:_\w)?)\b", method.formula)}
    single = method.experts == (1, 1)
    i, model = ("", "the other model") if single else ("_i", "model i")
    said = {
        "b": "b: the base",
        "x": f"x{i}: {model if 'b' in used or not single else 'the model'}",
        "d": f"d{i}: {model} less the base, its task vector",
        "w": "" if "w_i =" in method.formula else "w_i: the weight of model i",
        "N": "N: how many models",
    }
    return "; ".join(words for letter, words in said.items() if words and letter in used)


def models_needed(method: Method) -> str:
    """How many models, of which kind, and what evidence, in words."""
    plural = "" if method.experts == (1, 1) else "s"
    besides = {
        "required": f"a base model and {_models(method)} other{plural}",
        "optional": f"{_models(method)} model{plural} besides the base; the base may be left out",
        "ignored": f"{_models(method)} model{plural}; a base model counts as one of them",
    }
    seed = "; random, repeatable by `seed`" if method.random else ""
    return besides[method.base] + _evidence(method) + seed


def _evidence(method: Method) -> str:
    whose = {"experts": "of each", "base": "of the base"}
    parts = []
    for of, words in whose.items():
        names = [need.statistic for need in method.needs_at_defaults() if need.of == of]
        parts += [f"; {words}, evidence with {', '.join(names)}"] if names else []
    return "".join(parts)
