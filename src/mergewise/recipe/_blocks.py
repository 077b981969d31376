"""Block weights of Stable Diffusion UNets, as the community's tools write them.

One number for each block of a UNet, in the order BASE, IN00 and so on, M00, OUT00 and so on. SD1
has 26 numbers, SDXL 21, the last for the VAE. Each becomes filters for the names of that block, of
single files (``model.diffusion_model.input_blocks.4.``) and of diffusers
(``down_blocks.1.resnets.0.``) alike; everything else has BASE.

Sources: which names belong to which block, and the order: ljleb/sd-mecha b8d4d88 (`sd1-ldm`,
`sdxl-sgm` block configs). Presets: the table of bbc-mc/sdweb-merge-block-weighted-gui 906125e
(``csv/preset.tsv``). Names in diffusers: its `UNet2DConditionModel`, two residual blocks a level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mergewise.recipe._nodes import Node
from mergewise.recipe._problems import Position, Problems, shorten

_STEPS = 24
"""Blocks of SD1 without BASE, less one."""
_FORM = "a preset's name, or 26 numbers (SD1) or 21 (SDXL), one less with `base`"


@dataclass(frozen=True)
class BlockWeight:
    """The number of one block.

    Attributes:
        block: ``BASE``, ``IN00``, ``M00``, ``OUT00``, ``VAE``.
        filters: parts of names; empty for BASE, which everything else has.
    """

    block: str
    filters: tuple[str, ...]
    value: float
    position: Position


def _ones(*places: int) -> list[float]:
    return [float(i in places) for i in range(_STEPS + 1)]


def _curve(function: Callable[[float], float]) -> list[float]:
    return [function(i / _STEPS) for i in range(_STEPS + 1)]


def _ends(count: int) -> list[float]:
    return _ones(*range(count), *range(_STEPS + 1 - count, _STEPS + 1))


def _ring(first: int, last: int, soft: bool = False) -> list[float]:
    half = range(first, last + 1)
    found = _ones(*half, *(_STEPS - i for i in half))
    for i in (first, last, _STEPS - first, _STEPS - last) if soft else ():
        found[i] = 0.5
    return found


def _half(first: int, last: int) -> list[float]:
    return [0.5 * on for on in _ones(*range(first, last + 1))]


PRESETS: dict[str, list[float]] = {
    "GRAD_V": _curve(lambda x: abs(1 - 2 * x)),
    "GRAD_A": _curve(lambda x: 1 - abs(1 - 2 * x)),
    "FLAT_25": _curve(lambda x: 0.25),
    "FLAT_75": _curve(lambda x: 0.75),
    "WRAP08": _ends(4),
    "WRAP12": _ends(6),
    "WRAP14": _ends(7),
    "WRAP16": _ends(8),
    "MID12_50": _half(5, 18),
    "OUT07": _ones(*range(18, 25)),
    "OUT12": _ones(*range(13, 25)),
    "OUT12_5": [0.0] * 12 + [0.5] + [1.0] * 12,
    "RING08_SOFT": _ring(5, 9, soft=True),
    "RING08_5": _ring(6, 9),
    "RING10_5": _ring(5, 9),
    "RING10_3": _ring(6, 10),
    "SMOOTHSTEP": _curve(lambda x: x * x * (3 - 2 * x)),
    "REVERSE_SMOOTHSTEP": _curve(lambda x: 1 - x * x * (3 - 2 * x)),
    "COSINE": _curve(lambda x: (1 + math.cos(math.pi * x)) / 2),
    "REVERSE_COSINE": _curve(lambda x: (1 - math.cos(math.pi * x)) / 2),
}
"""Numbers of SD1's IN00 to OUT11; presets say nothing of BASE."""


def read_blocks(node: Node, where: str, problems: Problems) -> list[BlockWeight] | None:
    """The weights under ``{blocks: …, base: …}``, BASE last; None with the problem reported."""
    for key in node.value if isinstance(node.value, dict) else ():
        if key not in ("blocks", "base"):
            problems.error(
                node.key_position(key), f"{where}: `blocks` and `base` expected, got {shorten(key)}"
            )
            return None
    given = node.get("blocks")
    values = _values(given, f"{where}.blocks", problems) if given else None
    base = _base(node.get("base"), f"{where}.base", problems)
    if given is None or values is None or base is False:
        if given is None:
            problems.error(node.position, f"{where}.blocks: {_FORM}, expected")
        return None
    if isinstance(base, tuple):
        values = [base, *values]
    elif _preset(given):
        problems.error(
            given.position,
            f"{where}: presets say nothing of BASE (text encoder, VAE, time embedding): add `base`",
        )
        return None
    if len(values) not in (21, 26):
        problems.error(
            given.position,
            f"{where}.blocks: {_FORM}, expected; got {len(values) - isinstance(base, tuple)}"
            f"{' besides `base`' if isinstance(base, tuple) else ''}",
        )
        return None
    return list(_named(values))


_Value = tuple[float, Position]


def _preset(node: Node) -> list[float] | None:
    known = node.value.upper().replace("-", "_") if isinstance(node.value, str) else ""
    return PRESETS.get(known)


def _values(node: Node, where: str, problems: Problems) -> list[_Value] | None:
    preset = _preset(node)
    if preset:
        return [(value, node.position) for value in preset]
    if isinstance(node.value, str):
        return _from_text(node, where, problems)
    items = node.value if isinstance(node.value, list) else []
    found = [(n.value, n.position) for n in items if _is_number(n.value)]
    if not items or len(found) < len(items):
        bad = next((n for n in items if not _is_number(n.value)), node)
        problems.error(bad.position, f"{where}: {_FORM}, expected, got {bad.kind}")
        return None
    return [(float(value), at) for value, at in found if isinstance(value, int | float)]


def _from_text(node: Node, where: str, problems: Problems) -> list[_Value] | None:
    """Numbers with commas, as they are passed on between users."""
    parts = [part.strip() for part in str(node.value).split(",")]
    try:
        found = [float(part) for part in parts]
    except ValueError:
        name = shorten(str(node.value))
        problems.error(
            node.position,
            f"{where}: {_FORM}, expected, got {name!r}",
            name,
            [known.lower() for known in PRESETS],
        )
        return None
    return [(value, node.position) for value in found]


def _base(node: Node | None, where: str, problems: Problems) -> _Value | bool | None:
    """The number for BASE; False with the problem reported."""
    if node is None:
        return None
    if isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value), node.position
    problems.error(node.position, f"{where}: a number expected, got {node.kind}")
    return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(values: list[_Value]) -> Iterator[BlockWeight]:
    levels = 12 if len(values) == 26 else 9
    base, *rest = values
    vae = rest.pop() if levels == 9 else base
    names = [*_ins(levels), ("M00", _MIDDLE), *_outs(levels)]
    # of the VAE first: in diffusers its parts are called like those of the UNet
    yield BlockWeight("VAE" if levels == 9 else "BASE", ("first_stage_model.", "vae/"), *vae)
    for (block, filters), value in zip(names, rest, strict=True):
        yield BlockWeight(block, filters, *value)
    yield BlockWeight("BASE", (), *base)


_MIDDLE = ("diffusion_model.middle_block.", "mid_block.")


def _ins(levels: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for k in range(levels):
        level, place = (k - 1) // 3, (k - 1) % 3
        start = f"down_blocks.{level}."
        theirs: tuple[str, ...] = (f"{start}downsamplers.0.",)
        if place < 2:
            theirs = (f"{start}resnets.{place}.", f"{start}attentions.{place}.")
        if k == 0:
            theirs = ("conv_in.",)
        yield f"IN{k:02d}", (f"diffusion_model.input_blocks.{k}.", *theirs)


def _outs(levels: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for k in range(levels):
        level, place = divmod(k, 3)
        start = f"up_blocks.{level}."
        theirs = [f"{start}resnets.{place}.", f"{start}attentions.{place}."]
        if place == 2:
            theirs.append(f"{start}upsamplers.0.")
        if k == levels - 1:
            theirs += ["diffusion_model.out.", "conv_norm_out.", "conv_out."]
        yield f"OUT{k:02d}", (f"diffusion_model.output_blocks.{k}.", *theirs)
