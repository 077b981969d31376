"""What an evidence file holds, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mergewise._units import show_bytes
from mergewise.report.tables import facts, indented, table, text
from mergewise.report.text import show_shape

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mergewise.evidence import Evidence

_SHOWN = 5


def evidence_page(evidence: Evidence, every: bool = False) -> list[RenderableType]:
    """The file on a page.

    Args:
        every: with one row for each tensor.
    """
    model = evidence.record.model
    rows = [
        ("model", f"{model.get('name')} ({model.get('class')}, {model.get('dtype')})"),
        ("fingerprint", str(model.get("fingerprint"))),
        ("versions", ", ".join(f"{k} {v}" for k, v in evidence.record.versions.items())),
    ]
    page: list[RenderableType] = [text(str(evidence.path), "bold"), indented(facts(rows))]
    page += [text("Data", "bold"), indented(_parts(evidence))]
    page += [text("Statistics", "bold"), indented(_statistics(evidence))]
    if every:
        page += [text("Tensors", "bold"), indented(_tensors(evidence))]
    uncovered = evidence.record.uncovered
    if uncovered:
        shown = uncovered if every else uncovered[:_SHOWN]
        more = "" if len(shown) == len(uncovered) else f" and {len(uncovered) - len(shown)} more"
        page += [text("Not described", "bold"), indented(text(", ".join(shown) + more))]
    if evidence.record.notes:
        page += [text("Notes", "bold")]
        page += [indented(text(note)) for note in evidence.record.notes]
    return page


def _parts(evidence: Evidence) -> RenderableType:
    headers = ["data", "share", "records", "tokens", "settings"]
    return table(headers, [_part(part) for part in evidence.record.parts], {"records", "tokens"})


def _part(part: dict[str, Any]) -> list[str]:
    share: Any = part.get("share")
    whole = isinstance(share, list) and [type(n) for n in share] == [int, int]
    named = f"{share[0] + 1}/{share[1]}" if whole else ""
    told = [f"{n} {part[n]}" for n in ("batch_size", "max_length", "template") if part.get(n)]
    counts = [str(part.get(name, "")) for name in ("records", "tokens")]
    return [str(part.get("data")), named, *counts, ", ".join(told)]


def _statistics(evidence: Evidence) -> RenderableType:
    rows = []
    for name, known in evidence.record.statistics.items():
        tensors = evidence.tensors(name)
        size = sum(ref.nbytes for t in tensors for ref in evidence.entries[name, t].values())
        sums = dict.fromkeys(sum_ for t in tensors for sum_ in evidence.entries[name, t])
        options = ", ".join(f"{k}={v}" for k, v in known.options.items() if v is not None)
        rows.append([name, f"{len(tensors):,}", ", ".join(sums), show_bytes(size), options])
    headers = ["statistic", "tensors", "sums", "size", "options"]
    return table(headers, rows, {"tensors", "size"})


def _tensors(evidence: Evidence) -> RenderableType:
    rows = [
        [
            tensor,
            statistic,
            ", ".join(f"{name} {show_shape(ref.shape)}" for name, ref in sums.items()),
            ", ".join(f"{n:,} {u}" for u, n in evidence.counts(statistic, tensor).items()),
        ]
        for (statistic, tensor), sums in evidence.entries.items()
    ]
    return table(["tensor", "statistic", "sums", "counts"], rows)


def evidence_dict(evidence: Evidence) -> dict[str, Any]:
    """The file as plain values, ready for JSON."""
    return {
        "path": str(evidence.path),
        **evidence.provenance,
        "tensors": {
            name: {
                tensor: {
                    "counts": evidence.counts(name, tensor),
                    "sums": {n: list(r.shape) for n, r in evidence.entries[name, tensor].items()},
                }
                for tensor in evidence.tensors(name)
            }
            for name in evidence.statistics
        },
    }
