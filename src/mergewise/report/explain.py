"""All that is known of one output tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise.methods import get_method
from mergewise.plan import StagePlan, tensor_dict
from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import show_shape, show_value

if TYPE_CHECKING:
    from rich.console import RenderableType


def tensor_page(stage: StagePlan, name: str, *, named: bool = False) -> list[RenderableType]:
    """One tensor: fate, inputs, parameters with their origins, formula.

    Args:
        stage: the stage it is an output of.
        name: its name there.
        named: whether to say which stage it is.
    """
    known = explanation(stage, name)
    title = f"{name} ({stage.label})" if named else name
    page: list[RenderableType] = [text(title, "bold"), indented(facts(_facts(known)))]
    if known["fate"] == "omitted":
        return page
    page += [text("Inputs", "bold"), indented(_sources(known))]
    if known["statistics"]:
        rows = [[s["sum"], f"{s['over']:,}", s["file"]] for s in known["statistics"]]
        page += [text("Evidence", "bold"), indented(table(["sum", "over", "file"], rows, ["over"]))]
    if known["parameters"]:
        page += [text("Parameters", "bold"), indented(_parameters(known))]
    return page


def explanation(stage: StagePlan, name: str) -> dict[str, Any]:
    """The same as plain values, ready for JSON."""
    known = tensor_dict(stage, name)
    if known["fate"] == "merge":
        method = get_method(known["method"])
        known |= {"formula": method.formula, "method_source": method.source}
    return known


def _facts(known: dict[str, Any]) -> list[tuple[str, str]]:
    if known["fate"] == "omitted":
        return [("fate", f"not written: {known['reason']}")]
    lines = [("output", f"{known['dtype']} {show_shape(known['shape'])}")]
    if known["fate"] == "copy":
        return [("fate", f"copied: {known['reason']}"), *lines]
    if known["fate"] == "pool":
        return [("fate", f"pooled: {known['reason']}"), *lines, ("formula", known["formula"])]
    if known["inputs_rounded_to"]:
        lines.append(("inputs", f"rounded to {known['inputs_rounded_to']} first (dtype)"))
    if known["reason"]:
        lines.append(("evidence", known["reason"]))
    return [
        ("fate", f"merged by {known['method']}"),
        *lines,
        ("formula", known["formula"]),
        ("from", known["method_source"]),
    ]


def _sources(known: dict[str, Any]) -> RenderableType:
    rows = [
        [s["model"], s["role"], s["tensor"], _type(s), show_shape(s["shape"]), _file(s)]
        for s in known["sources"]
    ]
    return table(["model", "role", "tensor", "dtype", "shape", "file"], rows)


def _type(source: dict[str, Any]) -> str:
    stored = source.get("stored_as")
    return f"{stored} as {source['dtype']}" if stored else source["dtype"]


def _file(source: dict[str, Any]) -> str:
    adapter = source.get("adapter")
    if adapter is None:
        return source["file"] or "made by that stage"
    told = ", ".join(f"{key} {adapter[key]:g}" for key in ("rank", "scale") if key in adapter)
    change = f"{adapter['kind']} {adapter['file']}" + (f" ({told})" if told else "")
    return f"{source['file']}, changed by {change}"


def _parameters(known: dict[str, Any]) -> RenderableType:
    rows = []
    for name, found in known["parameters"].items():
        for entry in found if isinstance(found, list) else [found]:
            model = entry.get("model", "")
            rows.append([name, model, show_value(entry["value"]), entry["origin"]])
    return table(["parameter", "model", "value", "given at"], rows, ["value"])
