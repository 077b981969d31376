"""Which tensors are cells, how matrices of other layouts are read, how names become filters."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from mergewise.checkpoint import FileReader, open_checkpoint
from mergewise.errors import EvidenceError, NonFiniteError
from mergewise.guides._document import Values, _lines
from mergewise.guides._measures import _weights
from mergewise.guides._measures._cells import find_cells
from mergewise.guides._measures._weights import driven_square
from mergewise.recipe import load_recipe


def stage(**shapes):
    tensors = {
        name: SimpleNamespace(fate="merge", meta=SimpleNamespace(shape=shape))
        for name, shape in shapes.items()
    }
    return SimpleNamespace(tensors=tensors)


def test_cells_of_mixtures_fused_projections_and_several_stacks():
    cells = find_cells(
        stage(
            **{
                "model.layers.0.mlp.experts.0.w1.weight": (4, 2),
                "model.layers.0.mlp.experts.1.w1.weight": (4, 2),
                "model.layers.0.attn.qkv.weight": (6, 2),
                "model.layers.0.norm.weight": (2,),
                "encoder.block.0.layer.1.wi.weight": (4, 2),
                "encoder.block.0.layer.2.wi.weight": (4, 2),
                "layer1.0.conv1.weight": (4, 2, 3, 3),
                "lm_head.weight": (9, 2),
            }
        )
    )
    assert {(cell.component, len(cell.tensors), cell.elements) for cell in cells} == {
        ("model.layers.*.mlp.experts.*.w1.weight", 2, 16),
        ("model.layers.*.attn.qkv.weight", 1, 12),
        ("encoder.block.*.layer.*.wi.weight", 2, 16),
        ("layer1.*.conv1.weight", 1, 72),
    }
    assert {cell.place for cell in cells} == {"model.layers.0", "encoder.block.0", "layer1.0"}


@pytest.mark.parametrize(
    ("shape", "inputs", "turned"),
    [((6, 4), 4, False), ((4, 6), 4, True), ((4, 4), 4, True), ((6, 4, 3, 2), 24, False),
     ((6, 1, 3), 18, False), ((6, 2, 3), 18, False)],
)  # fmt: skip
def test_sums_over_any_layout(tmp_path, monkeypatch, shape, inputs, turned):
    monkeypatch.setattr(_weights, "_PIECE", 7)
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(shape, generator=draw) for _ in range(2))
    save_file({"w": one, "v": other.bfloat16()}, tmp_path / "model.safetensors")
    s = torch.rand(inputs, generator=draw, dtype=torch.float64)
    x = torch.diag(s.sqrt()).T  # inputs whose second moments are s
    checkpoint = open_checkpoint(tmp_path)
    for minus, weight in ((None, one), ("v", one.double() - other.bfloat16().double())):
        with FileReader(checkpoint.stamps) as reader:
            ref = checkpoint.tensors["w"]
            found = driven_square(
                reader, ref, s, turned, checkpoint.tensors[minus] if minus else None
            )
        if turned:
            outputs = x @ weight.double()
        else:
            groups = inputs // weight[0].numel()
            matrix = torch.block_diag(*weight.double().flatten(1).chunk(groups))
            outputs = x @ matrix.T
        assert found == pytest.approx(float(outputs.square().sum()), rel=1e-12)


def test_bad_weights_and_sizes_are_named(tmp_path):
    save_file({"w": torch.tensor([[1.0, float("nan")]])}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with FileReader(checkpoint.stamps) as reader:
        ref = checkpoint.tensors["w"]
        with pytest.raises(NonFiniteError, match="w holds NaN"):
            driven_square(reader, ref, torch.ones(2, dtype=torch.float64), False)
        with pytest.raises(EvidenceError, match=r"shape \[1, 2\].*3 input channels"):
            driven_square(reader, ref, torch.ones(3, dtype=torch.float64), False)


def test_a_name_within_another_does_not_catch_it():
    names = ["layers.0.w.weight", "encoder.layers.0.w.weight", "layers.0.w.weight_scale",
             'odd "name".0.w', "head.weight"]  # fmt: skip
    values = Values("density", {names[0]: 0.5, names[1]: 0.25, names[3]: 0.125}, 1.0)
    lines = "\n".join(f"        {line}" for line in _lines(values, names))
    recipe = load_recipe(
        "merge_method: ties\nbase_model: b\nmodels:\n  - model: a\n    parameters:\n"
        f"      weight: 1\n      density:\n{lines}\n"
    )
    setting = recipe.output.modules[0].slices[0].sources[0].parameters["density"]
    assert {name: setting.at(0, name)[0] for name in names} == {
        names[0]: 0.5, names[1]: 0.25, names[2]: 1.0, names[3]: 0.125, names[4]: 1.0,
    }  # fmt: skip
