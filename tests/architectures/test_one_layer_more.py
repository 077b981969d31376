"""Every architecture with its last layer repeated loads complete, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from _zoo import BY_ID

from mergewise import merge
from mergewise.checkpoint import find_modules, open_checkpoint
from mergewise.errors import RecipeError

REFUSED = {
    "Swin": "depths", "ResNet": "states no number of layers",
    "ConvNeXt": "states no number of layers", "T5": "several parts", "BART": "several parts",
    "Marian": "several parts", "Whisper": "several parts",
}  # fmt: skip
WITHOUT = {"ALBERT"}  # one set of weights, whatever the depth


@pytest.mark.parametrize("name", sorted(BY_ID.keys() - WITHOUT))
def test_the_last_layer_repeated(name: str, tmp_path: Path) -> None:
    entry, base = BY_ID[name], tmp_path / "base"
    entry.make().save_pretrained(base)
    modules = find_modules(open_checkpoint(base).tensors)
    main = modules.get("default") or modules.get("text_decoder") or modules["decoder"]
    assert main.layers is not None
    count = main.layers.count
    spans = [(0, count), (count - 1, count)]
    slices = [{"sources": [{"model": str(base), "layer_range": list(span)}]} for span in spans]
    document = {"merge_method": "passthrough", "slices": slices}
    if name in REFUSED:
        with pytest.raises(RecipeError, match=REFUSED[name]):
            merge(document, tmp_path / "out")
        return
    merge(document, tmp_path / "out")
    kind = getattr(transformers, entry.model)
    _, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
