"""Which of several files of evidence a guide reads."""

from mergewise.evidence import collect
from mergewise.guides import guide


def test_of_several_files_the_one_with_the_options_asked_is_read(
    models, recipe, evidence, tmp_path
):
    data = ["a rose is a rose"]
    pruned = {
        name: collect(
            "input_moments", models.root / name, data, tmp_path / f"{name}.evd",
            options={"input_moments": {"pruned": 0.5}},
        )
        for name in ("base", "a")
    }  # fmt: skip
    dense = {n: collect("input_moments", models.root / n, data, tmp_path / n) for n in pruned}
    for order in (1, -1):
        files = {name: [pruned[name], dense[name]][::order] for name in pruned}
        one = recipe(experts="a")
        wanda = {"importance": "wanda"}
        assert guide(one, "lewis", files, **wanda).text == guide(one, "lewis", dense, **wanda).text
        wanda["propagation"] = "pruned"
        other = guide(one, "lewis", files, **wanda).text
        assert other == guide(one, "lewis", pruned, **wanda).text
