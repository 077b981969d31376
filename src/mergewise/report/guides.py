"""What there is to know about a guide, from its declaration; and what it found, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise.errors import GuideError
from mergewise.report._heat import Scale, heat_panel, name_panel
from mergewise.report._svg import SIZE, Panel, below, beside, document, label, shorten
from mergewise.report.options import explained, option_dict
from mergewise.report.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from mergewise.guides import Guide, Guided, Map

_TITLE = 26.0
_BOLD = 1.1
"""How much wider bold letters are."""
_LEAST = 220.0
"""Width of a map, for its title."""
_VERIFIED = {
    "code": "against the authors' code",
    "paper": "against the paper's formulas",
    "idea": "the idea only; the formulas are ours",
}


def guides_list(guides: Iterable[Guide]) -> list[RenderableType]:
    """One row for each guide."""
    rows = [[g.name, g.summary, g.data, needs(g), g.verified] for g in guides]
    return [table(["guide", "what it writes", "data", "needs", "verified"], rows)]


def guide_page(guide: Guide) -> list[RenderableType]:
    """One guide: formula, needs, settings, source."""
    rows = [
        ("needs", needs(guide)), ("data", guide.data), ("source", guide.source),
        ("verified", _VERIFIED[guide.verified]),
    ]  # fmt: skip
    if guide.variant:
        rows.append(("variant", guide.variant))
    title = f"{guide.name}: {guide.summary}"
    return explained(title, guide.describe(), rows, guide.params)


def guide_dict(guide: Guide) -> dict[str, Any]:
    """One guide as plain values, ready for JSON."""
    needed = _at_defaults(guide)
    return {
        "name": guide.name,
        "summary": guide.summary,
        "formula": guide.describe(),
        "data": guide.data,
        "needs": {
            "experts": list(needed.experts),
            "base": list(needed.base),
            "data": needed.data,
            "tasks": needed.tasks,
        },
        "source": guide.source,
        "variant": guide.variant,
        "verified": guide.verified,
        "settings": {name: option_dict(param) for name, param in guide.params.items()},
    }


def guided_dict(guided: Guided) -> dict[str, Any]:
    """What a guide found, ready for JSON."""
    return {
        "notes": list(guided.notes),
        "warnings": list(guided.warnings),
        "maps": [
            {"expert": one.expert, "what": one.what, "values": one.values} for one in guided.maps
        ],
    }


def needs(guide: Guide) -> str:
    """What a guide reads beside weights at its defaults, in words."""
    needed = _at_defaults(guide)
    found = []
    if needed.experts:
        both = set(needed.experts) == set(needed.base)
        found.append(f"{', '.join(needed.experts)} of {'experts and base' if both else 'experts'}")
    elif needed.base:
        found.append(f"{', '.join(needed.base)} of the base")
    if needed.data:
        found.append("runs the models on data")
    if needed.tasks:
        found.append("scores models on tasks")
    nothing = "what the method reads" if guide.calibrates else "nothing"
    return "; ".join(found) or nothing


def _at_defaults(guide: Guide) -> Any:
    from mergewise.methods import Settings

    return guide.needs(Settings({name: param.default for name, param in guide.params.items()}))


def picture(guided: Guided, title: str) -> str:
    """Heat maps of layers and components, one for each expert side by side, as SVG text.

    What was measured stands above what became of it.

    Raises:
        GuideError: if the guide found nothing by layers and components.
    """
    if not guided.maps:
        raise GuideError("this guide finds one number a model, so there is no map of layers")
    kinds = list(dict.fromkeys(one.what for one in guided.maps))
    rows = [_row([one for one in guided.maps if one.what == what], what) for what in kinds]
    notes = [f"{', '.join(kinds)} by layer and component; – where nothing is guided"]
    return document(title, below(rows), notes)


def _row(maps: Sequence[Map], what: str) -> Panel:
    layers = list(dict.fromkeys(layer for one in maps for layer in one.values))
    numbers = [v for one in maps for row in one.values.values() for v in row.values()]
    scale = Scale.of(numbers)
    panels = [_panel(one, what, layers, _format(numbers), scale) for one in maps]
    return beside([name_panel(layers), *panels])


def _format(numbers: Sequence[float]) -> str:
    """Two decimals, where they show every number."""
    sizes = [abs(number) for number in numbers if number]
    return ".2f" if not sizes or (max(sizes) <= 2 and min(sizes) >= 0.005) else ".3g"


def _panel(one: Map, what: str, layers: Sequence[str], shown: str, scale: Scale) -> Panel:
    title = f"{what}: {one.expert}"
    rows = [one.values.get(layer, {}) for layer in layers]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = heat_panel(
        layers, columns, [[row.get(name) for name in columns] for row in rows], shown, scale=scale
    )
    width = max(cells.width, _LEAST)
    name = label(0, SIZE, shorten(title, width / _BOLD), bold=True, full=title)
    moved = cells.at(0, _TITLE)
    return Panel(width, cells.height + _TITLE, (name, *moved), cells.top + _TITLE)
