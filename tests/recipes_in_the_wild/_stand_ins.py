"""Small checkpoints in the places that a published recipe names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from small_adapters import lora
from small_models import load, near, save
from small_parts import made
from small_vocabularies import plain, tokenizer_json, write_tokenizer

from mergewise.recipe import ModelRef, Recipe, load_recipe

VOCAB = 64
KINDS = (
    (r"gemma-3|Lambent_Mira", "gemma3"),
    (r"gemma-2", "gemma2"),
    (r"Qwen3", "qwen3"),
)
_ROOTED = re.compile(r"(?<![\w./:])/(?=[\w.]+/)")
# tokens that a recipe wants of a model, and how many others it must have
WANTED = {
    "constructed__tokenizer_tokens_all_source_kinds": {
        "path/to/model": (1240, ["<|original_token|>", "<|special|>"]),
        "path/to/chatml/model": (1240, ["<|im_start|>"]),
    }
}


class StandIns:
    """Makes checkpoints once, and links them to where recipes look for them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: dict[tuple[object, ...], Path] = {}

    def place(self, recipe: Path, where: Path, lenient: bool) -> Path:
        """A copy of the recipe in a folder below `where` in which all its models are found."""
        here = where / "work" / "here"
        here.mkdir(parents=True)
        # what begins at the root of a disk is looked for here
        text = _ROOTED.sub("", recipe.read_text(encoding="utf-8"))
        copied = here / recipe.name
        copied.write_text(text, encoding="utf-8")
        loaded = load_recipe(copied, lenient=lenient)
        refs = references(loaded)
        kind = kind_of(refs)
        layers = layers_needed(loaded)
        differ = any("union" in str(s.tokenizer) or "tokens" in (s.tokenizer or {})
                     for s in loaded.stages)  # fmt: skip
        wanted = WANTED.get(recipe.stem, {})
        for i, path in enumerate(dict.fromkeys(ref.path for ref in refs)):
            pieces, extra = wanted.get(path, (VOCAB, [f"<own_{i}>"] if differ and i else []))
            self._link(here / path, self.model(kind, layers, i, pieces, tuple(extra)))
        for i, ref in enumerate(ref for ref in refs if ref.lora):
            assert ref.lora is not None
            self._link(here / ref.lora.path, self.adapter(kind, layers, i))
        return copied

    def _link(self, place: Path, target: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(target)

    def model(
        self, kind: str, layers: int, number: int, pieces: int = VOCAB, extra: Sequence[str] = ()
    ) -> Path:
        """The base (number 0) or one of its experts, with a tokenizer of its own."""
        key = kind, layers, number, pieces, extra
        if key not in self.made:
            folder = self.root / str(len(self.made))
            self.made[key] = folder
            if number == 0 and not extra and pieces == VOCAB:
                made(kind, folder, 7, layers)
                _narrow(folder)
            else:
                base = self.model(kind, layers, 0)
                _expert(base, folder, number, pieces + len(extra))
            write_tokenizer(folder, tokenizer_json(plain(pieces), extra))
        return self.made[key]

    def adapter(self, kind: str, layers: int, number: int) -> Path:
        key = kind, layers, "adapter", number
        if key not in self.made:
            base = load(self.model(kind, layers, 0))
            found = [n for n in base if re.search(r"layers\.\d+\.self_attn\.[qv]_proj\.weight", n)]
            text = [n.removesuffix(".weight") for n in found if "vision" not in n]
            self.made[key] = lora(self.root / f"adapter-{len(self.made)}", base, text, seed=number)
        return self.made[key]


def references(recipe: Recipe) -> list[ModelRef]:
    """Every model on disk that a recipe names, also as the source of a tokenizer or a token."""
    found: dict[ModelRef, None] = {}
    for stage in recipe.stages:
        for ref in [*stage.models, *_of_tokenizer(stage.tokenizer)]:
            if recipe.stage_of(ref, stage) is None:
                found[ref] = None
    return list(found)


def _of_tokenizer(asked: Any) -> list[ModelRef]:
    named = [(asked or {}).get("source")]
    for token in ((asked or {}).get("tokens") or {}).values():
        source = token.get("source")
        named.append(source.get("model") if isinstance(source, dict) else source)
    return [n if isinstance(n, ModelRef) else ModelRef.parse(str(n)) for n in named
            if n and str(n) not in ("union", "base")]  # fmt: skip


def kind_of(refs: Sequence[ModelRef]) -> str:
    names = " ".join(ref.path for ref in refs)
    return next((kind for pattern, kind in KINDS if re.search(pattern, names)), "llama")


def layers_needed(recipe: Recipe) -> int:
    """How many layers every stand-in has: enough for all ranges, three if there is none."""
    ends = [
        source.layer_range[1]
        for stage in recipe.stages
        for module in stage.modules
        for slice_ in module.slices
        for source in slice_.sources
        if source.layer_range
    ]
    return max(ends, default=3)


def _narrow(folder: Path) -> None:
    """The base in bfloat16, as such models are published."""
    save_as(folder, {n: t.bfloat16() for n, t in load(folder).items()})


def save_as(folder: Path, state: dict[str, torch.Tensor], **config: Any) -> None:
    told = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    text = told.get("text_config", told)
    text.update(config)
    save(folder, state, told)


def _expert(base: Path, folder: Path, number: int, rows: int) -> None:
    folder.mkdir(parents=True)
    shutil.copy(base / "config.json", folder)
    state = near(load(base), number)
    draw = torch.Generator().manual_seed(number)
    for name in state:
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            old = state[name]
            new = torch.randn(rows, old.shape[1], generator=draw).mul(0.1).to(old.dtype)
            new[: len(old)] = old
            state[name] = new[:rows]
    save_as(folder, state, vocab_size=rows)
