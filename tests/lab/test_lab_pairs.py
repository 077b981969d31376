"""Two experts: who takes part, in which place, and the table."""

from __future__ import annotations

import torch

from benchmarks.lab.__main__ import _command
from benchmarks.lab._contenders import NO_ROW, contenders, tuned_parameter
from benchmarks.lab._family import Models
from benchmarks.lab._given import Given, marks, merged
from benchmarks.lab._pairs import ALONE, FORGETTING, pair_contenders, pairs_of
from benchmarks.lab._pairs_table import two_experts
from benchmarks.lab._results import PRETRAINED, TUNED, Column, Results, Row, Run
from benchmarks.lab._table import absent
from mergewise.methods import all_methods

BASE = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
A = {"w": torch.tensor([[2.0, 2.0], [3.0, 6.0]])}
B = {"w": torch.tensor([[1.0, 4.0], [5.0, 4.0]])}
MODELS = Models(BASE, {"a": A, "b": B})


def test_each_expert_is_in_one_pair_and_three_pairs_are_enough() -> None:
    assert pairs_of(["a"]) == []
    assert pairs_of(["a", "b", "c"]) == [("a", "b")]
    assert pairs_of(list("abcdefgh")) == [("a", "b"), ("c", "d"), ("e", "f")]


def test_every_method_is_in_one_of_the_tables_or_says_why_not() -> None:
    chosen, left_out = contenders(5, 10, [3] * 5, True)
    rows = {c.method for c in chosen} | {c.method for c in pair_contenders(5, 10)}
    assert all_methods().keys() - rows == {"adamergex", "passthrough"}
    assert NO_ROW.keys() == {"adamergex", "ext_sub", "passthrough"}
    assert left_out.keys() - rows == {"adamergex", "passthrough"}


def test_methods_that_must_be_told_are_left_out_where_nobody_knows() -> None:
    _, left_out = contenders(5, 10)
    assert left_out["fednova"] == "needs steps, for which there is no value that fits all"
    assert "adam" in left_out["ota"] and "gradient_matching" not in left_out
    assert "gradient_matching" in contenders(5, 0)[1]
    told = {c.method: c for c in contenders(2, 10, [3, 7], True)[0]}
    assert told["fednova"].parameters["steps"] == [3, 7]
    assert (told["ota"].examples, told["ota"].data) == (0, "the optimizer's second moments")


def test_without_examples_only_what_reads_none_takes_part() -> None:
    names = {c.name for c in pair_contenders(5, 0)}
    assert {"slerp", "nuslerp (base)", "tsv_m"} <= names
    assert names.isdisjoint({"aim after linear", "bcwi", "regmean"})


def test_a_run_of_other_methods_alone_tries_no_pairs() -> None:
    assert pair_contenders(5, 10, ["ties"]) == [] == pair_contenders(5, 10, ["task_arithmetic"])
    names = {c.name for c in pair_contenders(5, 10, ["slerp"])}
    assert "slerp" in names and names.isdisjoint(FORGETTING)
    assert set(FORGETTING) <= {c.name for c in pair_contenders(5, 10, ["ext_sub"])}
    assert pair_contenders(1, 10) == []


def test_scales_that_are_none_are_not_tuned() -> None:
    by_name = {c.name: c for c in pair_contenders(5, 10)}
    assert (by_name["slerp"].scale, by_name["slerp"].default) == ("t", 0.5)
    near = by_name["nearswap t .01"]
    assert near.scale is None and near.at(None) == {"t": 0.01}
    assert by_name["nuslerp"].scale is None  # equal weights, whatever their size
    assert tuned_parameter(all_methods()["gradient_matching"]) == "weight"
    assert by_name["linear"].at(None) == {"weight": 0.5}


def test_the_first_expert_stands_where_a_method_has_its_base() -> None:
    by_name = {c.name: c for c in pair_contenders(5, 10)}
    for t, wanted in ((0.0, A), (1.0, B)):
        torch.testing.assert_close(merged(MODELS, by_name["slerp"], t, Given())["w"], wanted["w"])
    band = merged(MODELS, by_name["copy_region"], None, Given())["w"]
    assert torch.equal(band, torch.stack([B["w"][0], A["w"][1]]))
    minus = merged(MODELS, by_name[FORGETTING[1]], None, Given())["w"]
    assert torch.equal(minus, A["w"] - B["w"] + BASE["w"])


def test_a_stage_is_given_the_merge_before_it() -> None:
    aim = next(c for c in pair_contenders(5, 10) if c.method == "aim")
    strength = {"input_moments": {"w": torch.tensor([1.0, 0.0])}}
    found = merged(MODELS, aim, None, Given(base_evidence=strength))["w"]
    average = (A["w"] + B["w"]) / 2
    torch.testing.assert_close(found[:, 1], average[:, 1])  # never driven
    torch.testing.assert_close(found[:, 0], BASE["w"][:, 0] + 0.4 * (average - BASE["w"])[:, 0])


def test_the_journal_is_told_nothing_new_of_rows_it_knows() -> None:
    by_name = {c.name: c for c in contenders(5, 10, [3] * 5, True)[0]}
    odd = {name for name, contender in by_name.items() if marks(contender)}
    assert odd == {"gradient_matching", "ota"}
    pairs = {c.name: marks(c) for c in pair_contenders(5, 10)}
    assert pairs["slerp"] == {"first": True} and pairs["aim after linear"]["after"] == "linear"


def _pair(of: str, scores: float) -> Results:
    one, two = of
    pair = Results("digits", f"{one} + {two}", [
        Column(one, "accuracy", "max", of=one), Column(two, "accuracy", "max", of=two)
    ], [0], of=[one, two])  # fmt: skip
    for name, a, b in ((PRETRAINED, 0.2, 0.2), (TUNED, 0.7, 0.7), (ALONE[0], 0.7, 0.2)):
        row = Row(name)
        row.add("reference", 0, Run({one: a, two: b}))
        pair.rows.append(row)
    for name in ("slerp", "ext_sub"):
        row = Row(name, method=name, scale="t")
        row.add("default", 0, Run({one: scores, two: 0.3}, 0.5, 1.0, 1.0))
        pair.rows.append(row)
    return pair


def test_the_table_has_pairs_means_and_each_place() -> None:
    results = Results("digits", "Digits", [], [0], pairs=[_pair("ab", 0.7), _pair("cd", 0.6)])
    page = "\n".join(two_experts(results))
    keeping, _, forgetting = page.partition("To keep the first")
    assert "| method |  | a + b | c + d | NAI | mean accuracy | first | second |" in keeping
    assert "| pretrained |  | 0.0 | 0.0 | 0.0 | 20.0 | 0.0 | 0.0 |" in keeping
    line = "| default | 60.0 | 50.0 | 55.0 | 47.5 | 90.0 | 20.0 | t 0.5 | 1.00 | none |"
    assert f"| slerp {line}" in keeping and "ext_sub" not in keeping
    assert f"| ext_sub {line}" in forgetting
    results.left_out = {"slerp": "needs two models", "passthrough": "copies one model"}
    assert absent(results) == ["Not tried, copies one model: passthrough."]


def test_an_expert_that_gained_nothing_is_left_out_of_the_means() -> None:
    pairs = [_pair("ab", 0.7), _pair("cd", 0.6)]
    flat = pairs[1].row(TUNED)
    assert flat is not None
    flat.add("reference", 0, Run({"c": 0.2, "d": 0.7}))
    page = "\n".join(two_experts(Results("digits", "Digits", [], [0], pairs=pairs)))
    assert "| slerp | default | 60.0 | 20.0 | 40.0 | 47.5 | 100.0 | 20.0 |" in page


def test_a_pair_that_failed_leaves_no_mean() -> None:
    pairs = [_pair("ab", 0.7), _pair("cd", 0.6)]
    row = pairs[1].row("slerp")
    assert row is not None
    row.failure = "odd"
    row.runs.clear()
    page = "\n".join(two_experts(Results("digits", "Digits", [], [0], pairs=pairs)))
    assert "| slerp | default | 60.0 | – | – | – | – | – |" in page
    assert "* failed: slerp: odd" in page
    assert two_experts(Results("digits", "Digits", [], [0])) == []


def test_the_command_on_a_page_names_no_folder() -> None:
    words = ["digits", "--lab", "/x/y", "--seeds", "3", "--data=/z", "--publish"]
    assert _command(words) == "python -m benchmarks.lab digits --seeds 3 --publish"
