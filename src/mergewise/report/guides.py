"""What there is to know about a guide, from its declaration; and what it found, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from mergewise.report._heat import heat_panel, name_panel
from mergewise.report._svg import SIZE, Panel, beside, document, label
from mergewise.report.options import option_dict
from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import show_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import RenderableType

    from mergewise.guides import Guide, Guided, Map

_TITLE = 26.0


def guides_list(guides: Iterable[Guide]) -> list[RenderableType]:
    """One row for each guide."""
    rows = [[g.name, g.summary, g.data, needs(g)] for g in guides]
    return [table(["guide", "what it writes", "data", "needs"], rows)]


def guide_page(guide: Guide) -> list[RenderableType]:
    """One guide: formula, needs, settings, source."""
    rows = [("needs", needs(guide)), ("data", guide.data), ("source", guide.source)]
    if guide.variant:
        rows.append(("variant", guide.variant))
    page: list[RenderableType] = [text(f"{guide.name}: {guide.summary}", "bold")]
    formula = Text("\n").join(text(line) for line in guide.describe().splitlines())
    page += [indented(formula), indented(facts(rows))]
    headers = ["setting", "type", "default", "allowed", "meaning"]
    settings = [
        [n, p.kind.__name__, "required" if p.required else show_value(p.default), p.range, p.help]
        for n, p in guide.params.items()
    ]
    return [*page, text("Settings", "bold"), indented(table(headers, settings))]


def guide_dict(guide: Guide) -> dict[str, Any]:
    """One guide as plain values, ready for JSON."""
    needed = _at_defaults(guide)
    return {
        "name": guide.name,
        "summary": guide.summary,
        "formula": guide.describe(),
        "data": guide.data,
        "needs": {"experts": list(needed.experts), "base": list(needed.base)},
        "source": guide.source,
        "variant": guide.variant,
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
    """The statistics that a guide reads at its defaults, in words."""
    needed = _at_defaults(guide)
    if not needed.experts:
        return "nothing"
    both = set(needed.experts) == set(needed.base)
    return f"{', '.join(needed.experts)} of {'experts and base' if both else 'experts'}"


def _at_defaults(guide: Guide) -> Any:
    from mergewise.methods import Settings

    return guide.needs(Settings({name: param.default for name, param in guide.params.items()}))


def picture(guided: Guided, what: str, title: str) -> str:
    """Heat maps of layers and components side by side, one for each expert, as SVG text.

    Args:
        what: which of the maps, such as ``density``.
    """
    maps = [one for one in guided.maps if one.what == what]
    layers = list(dict.fromkeys(layer for one in maps for layer in one.values))
    panels = [_panel(one, layers) for one in maps]
    notes = [f"{what} by layer and component; a cell without a number is not guided"]
    return document(title, beside([name_panel(layers), *panels]), notes)


def _panel(one: Map, layers: Sequence[str]) -> Panel:
    rows = [one.values.get(layer, {}) for layer in layers]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = heat_panel(layers, columns, [[row.get(name) for name in columns] for row in rows])
    name = label(0, SIZE, one.expert, bold=True)
    moved = cells.at(0, _TITLE)
    return Panel(cells.width, cells.height + _TITLE, (name, *moved), cells.top + _TITLE)
