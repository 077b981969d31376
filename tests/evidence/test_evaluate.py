"""Models on tasks: every score once, each checkpoint loaded once, failures on record."""

import json
import shutil

import pytest
import torch
from small_language import random_llama

from mergewise.errors import CheckpointError, DataError, MergewiseError, TaskError, TasksFileError
from mergewise.evidence import LiveModel, Score, _run, evaluate, load_tasks, open_model, score
from mergewise.evidence.evaluators.language_model import LanguageModel

ROWS = [{"text": "ein kleiner Satz"}, {"text": "noch einer"}, {"text": "und ein dritter Satz"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(["base", "maths", "code", "merged"]):
        model = random_llama(seed)
        model.module.save_pretrained(root / name)
        model.tokenizer.save_pretrained(root / name)
    return root


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    """A current folder with models, data and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MERGEWISE_CACHE", str(tmp_path / "cache"))
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n")
    return tmp_path


@pytest.fixture
def loads(monkeypatch):
    """(model, role) of every checkpoint that is loaded."""
    seen = []

    def opened(path, role, **options):
        seen.append((path.name, role))
        return open_model(path, role, **options)

    monkeypatch.setattr(_run, "open_model", opened)
    return seen


def task(name="maths", data="rows.jsonl", **more):
    return {"name": name, "kind": "language_model", "data": data, **more}


def both(**more):
    return {"tasks": [task(), task("code", "text.txt")], **more}


def numbers(found):
    return {
        (model, name): dict(result.metrics)
        for model, row in found.scores.items()
        for name, result in row.items()
    }


def test_printed_it_is_a_short_table(here):
    (here / "a_very_long_name_of_a_model_in_a_folder").symlink_to(here / "maths")
    found = evaluate(["merged", "a_very_long_name_of_a_model_in_a_folder"], both())
    title, heading, *rows = repr(found).splitlines()
    assert title == "Evaluation, split test" and str(found) == repr(found)
    assert heading.split() == ["task", "metric", "merged", "…name_of_a_model_in_a_folder"]
    assert [row.split()[:3] for row in rows] == [["maths", "loss", "↓"], ["code", "loss", "↓"]]
    assert rows[0].split()[3] == f"{found.value('merged', 'maths'):.3f}"
    assert max(map(len, repr(found).splitlines())) < 80


def test_scores_are_those_of_the_evaluator_alone(here):
    found = evaluate(["merged"], both())
    live = open_model("merged")
    for entry in load_tasks(both()):
        alone = entry.evaluator.score(live, "test")
        result = found.scores["merged"][entry.name]
        assert result.metrics == alone.metrics
        assert result.outcomes["loss"] == alone.outcomes["loss"]
        assert result.examples == alone.examples and result.seconds > 0


def test_base_and_experts_are_scored_too_and_nothing_twice(here, loads):
    tasks = both(base="base", experts={"maths": "maths", "code": "code"})
    found = evaluate(["merged", here / "base", "./maths"], tasks)
    assert list(found.scores) == ["base", "maths", "code", "merged"]
    assert found.base == "base"
    assert found.experts == {"maths": "maths", "code": "code"}
    assert found.primary == {"maths": ("loss", "min"), "code": ("loss", "min")}
    assert loads == [(name, "causal_lm") for name in ("base", "maths", "code", "merged")]


def test_each_checkpoint_is_loaded_once_for_each_role(here, loads):
    (here / "mine.py").write_text("def f(model, records, split): return {'n': len(records)}\n")
    function = {"kind": "python", "function": "mine:f", "path": ".", "metric": "n"}
    tasks = {
        "tasks": [
            task(),
            {"name": "body", "data": "rows.jsonl", "role": "body", **function},
            task("again"),
            {"name": "lm", "data": "rows.jsonl", "best": "min", **function},
        ]
    }
    found = evaluate(["merged", "base"], tasks)
    assert loads == [(m, role) for m in ("merged", "base") for role in ("causal_lm", "body")]
    assert list(found.scores["base"]) == ["maths", "body", "again", "lm"]
    assert found.scores["base"]["lm"].metrics == {"n": 3.0}
    assert found.primary["body"] == ("n", "max") and found.primary["lm"] == ("n", "min")


def test_a_model_is_gone_before_the_next_is_loaded(here, monkeypatch):
    import weakref

    seen, alive = [], []

    def opened(path, role, **options):
        alive.append(sum(ref() is not None for ref in seen))
        live = open_model(path, role, **options)
        seen.append(weakref.ref(live.module))
        return live

    monkeypatch.setattr(_run, "open_model", opened)
    evaluate(["base", "maths", "code"], both())
    assert alive == [0, 0, 0]


def test_a_second_run_reads_the_cache_and_loads_nothing(here, loads):
    first = evaluate(["merged", "base"], both())
    loads.clear()
    second = evaluate({"other name": "merged", "base": "base"}, both())
    assert (first.cached, second.cached, loads) == (0, 4, [])
    assert second.scores["other name"] == first.scores["merged"]
    again = evaluate(["merged"], both(), cache=False)
    assert (again.cached, loads) == (0, [("merged", "causal_lm")])
    assert numbers(again)["merged", "code"] == numbers(first)["merged", "code"]


def replaced_data(here, tasks):
    (here / "rows.jsonl").write_text('{"text": "something else"}\n')


def replaced_model(here, tasks):
    (here / "merged").unlink()
    shutil.copytree((here / "base").resolve(), here / "merged")


def renamed_data(here, tasks):
    (here / "rows.jsonl").rename(here / "rows.txt")
    tasks["tasks"][0]["data"] = "rows.txt"


CHANGES = {
    "data": replaced_data,
    "model": replaced_model,
    "option": lambda here, tasks: tasks["tasks"][0].update(context=5),
    "limit": lambda here, tasks: tasks["tasks"][0].update(limit=2),
    "kind of data": renamed_data,
    "dtype": lambda here, tasks: tasks.update(model={"dtype": "bfloat16"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_a_score_is_in_its_key(here, change):
    tasks = {"tasks": [task()]}
    before = evaluate(["merged"], tasks)
    CHANGES[change](here, tasks)
    after = evaluate(["merged"], tasks)
    assert after.cached == 0
    assert numbers(after) != numbers(before)


def test_a_new_version_of_evaluator_or_library_scores_anew(here, monkeypatch):
    evaluate(["merged"], both())
    monkeypatch.setattr(LanguageModel, "version", LanguageModel.version + 1)
    assert evaluate(["merged"], both()).cached == 0
    monkeypatch.setattr(_run, "_versions", lambda: {"torch": "9"})
    assert evaluate(["merged"], both()).cached == 0
    assert evaluate(["merged"], both()).cached == 2


def test_changed_code_scores_anew(here, monkeypatch):
    evaluate(["merged"], both())
    monkeypatch.setattr(_run, "code_of", lambda evaluator: "changed")
    assert evaluate(["merged"], both()).cached == 0


def test_trusted_code_of_a_checkpoint_may_give_other_scores(here):
    evaluate(["merged"], both())
    assert evaluate(["merged"], both(), trust_remote_code=True).cached == 0
    assert evaluate(["merged"], both(), trust_remote_code=False).cached == 2


def test_what_nobody_vouches_for_is_not_cached(here):
    anonymous = LiveModel("x", random_llama(3).module, random_llama().tokenizer)
    known = open_model("merged")
    for _ in range(2):
        found = evaluate({"anonymous": anonymous, "known": known}, {"tasks": [task()]})
    assert found.cached == 1
    assert numbers(found)["anonymous", "maths"] == numbers(found)["known", "maths"]
    for _ in range(2):
        assert evaluate([known], {"tasks": [task(data=[{"text": "a b c"}])]}).cached == 0


def test_results_of_foreign_functions_are_not_cached(here):
    (here / "mine.py").write_text("def f(model, records, split): return {'score': 1.0}\n")
    tasks = {"tasks": [{"name": "a", "kind": "python", "function": "mine:f", "path": "."}]}
    for _ in range(2):
        found = evaluate(["merged"], tasks)
        assert (found.cached, numbers(found)["merged", "a"]) == (0, {"score": 1.0})


def test_a_failure_is_recorded_not_cached_and_the_others_go_on(here, loads):
    tasks = {"tasks": [task("bad", context=10_000), *both()["tasks"]]}
    for known in (0, 4):
        found = evaluate(["merged", "base"], tasks)
        assert found.cached == known
        assert [(m, t) for m, t, _ in found.failures] == [("merged", "bad"), ("base", "bad")]
    failure = found.failures[0][2]
    assert failure.kind == "TaskError"
    assert failure.message.startswith("task bad: context 10000 is more than the 512 positions")
    assert "Traceback" in failure.traceback
    assert all(isinstance(found.scores[m]["code"], Score) for m in found.scores)
    assert found.value("base", "bad") is None
    assert found.value("base", "code") == found.scores["base"]["code"].metrics["loss"]


def test_an_evaluator_that_returns_nonsense_fails_alone(here, monkeypatch):
    right = LanguageModel.score

    def nonsense(self, model, split):
        found = right(self, model, split)
        return Score({"loss": None}) if self.task.name == "maths" else found

    monkeypatch.setattr(LanguageModel, "score", nonsense)
    found = evaluate(["merged"], both())
    assert [(m, t, f.kind) for m, t, f in found.failures] == [("merged", "maths", "TypeError")]
    assert found.value("merged", "code") > 0


def test_a_model_that_cannot_be_loaded_fails_at_all_its_tasks(here):
    shutil.copytree((here / "merged").resolve(), here / "broken")
    config = here / "broken/config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "zebra"'))
    found = evaluate(["broken", "merged"], both())
    assert [(m, t) for m, t, _ in found.failures] == [("broken", "maths"), ("broken", "code")]
    assert found.failures[0][2].kind == "CheckpointError"
    assert isinstance(found.scores["merged"]["code"], Score)


def test_interrupted_it_continues_where_it_was(here, loads):
    def stop(step):
        if (step.model, step.task) == ("merged", "code"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(["base", "merged"], both(), progress=stop)
    loads.clear()
    found = evaluate(["base", "merged"], both())
    assert (found.cached, loads) == (3, [("merged", "causal_lm")])


def test_progress_counts_scores_and_what_is_within_them(here):
    steps = []
    evaluate(["base", "merged"], both(), progress=steps.append)
    assert {step.total for step in steps} == {4}
    assert [step.number for step in steps] == sorted(step.number for step in steps)
    assert {(s.number, s.model, s.task) for s in steps} == {
        (0, "base", "maths"), (1, "base", "code"), (2, "merged", "maths"), (3, "merged", "code"),
    }  # fmt: skip
    inside = [(s.done, s.amount) for s in steps if s.number == 0 and s.amount]
    assert inside[-1] == (3, 3)


BAD = {
    "no model": (["nowhere"], both(), {}, CheckpointError, "nowhere"),
    "no file": (["base"], {"tasks": [task(data="no.jsonl")]}, {}, DataError, "cannot be opened"),
    "no rows": (
        ["base"], {"tasks": [task(data={"path": "rows.jsonl", "rows": [9, None]})]}, {},
        TaskError, "rows.jsonl has no rows, or none of those chosen",
    ),
    "no split": (
        ["base"], both(), {"split": "train"}, TaskError, "no split 'train'; it has test",
    ),
    "fields": (
        ["base"], {"tasks": [task(template="{q}")]}, {},
        DataError, "task maths: rows.jsonl: row 1 has no field 'q'; it has text",
    ),
    "no data": (["base"], {"tasks": [task(data=None)]}, {}, TaskError, "it has none"),
    "no head": (["base"], {"tasks": [task(head="h.st")]}, {}, MergewiseError, "h.st"),
    "options": (["base"], {"tasks": [task(context=4, stride=5)]}, {}, TaskError, "stride 5"),
    "device": (["base"], both(), {"device": "cuda:55"}, MergewiseError, "cuda:55"),
    "expert": (
        ["base"], {"tasks": [task(expert="math")], "experts": {"maths": "maths"}}, {},
        TaskError, "no expert 'math'; did you mean 'maths'",
    ),
    "dtype": (["base"], both(model={"dtype": "float17"}), {}, MergewiseError, "'float17': one of"),
    "nothing": ([], both(), {}, TaskError, "no models to score"),
    "expert of none": (
        ["base"], both(), {"experts": {"mats": "maths"}},
        TaskError, "expert 'mats' is the reference of no task; did you mean 'maths'",
    ),
    "whose file": (
        ["base"], {"tasks": [task("x", "no.jsonl")]}, {}, DataError, "^task x: no.jsonl: cannot",
    ),
    "names": (
        {"base": "merged"}, both(base="base"), {}, TaskError, "two models are called 'base'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_can_be_known_is_known_before_a_model_is_loaded(here, loads, case):
    models, tasks, options, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        evaluate(models, tasks, **options)
    assert loads == []


def test_all_problems_are_told_at_once(here, loads):
    tasks = {"tasks": [task(data="no.jsonl"), task("b", context=4, stride=5)]}
    with pytest.raises(TaskError) as caught:
        evaluate(["base", "nowhere"], tasks)
    first, *lines = str(caught.value).splitlines()
    assert first == "3 problems, found before any model was loaded:"
    assert ["nowhere" in lines[0], "no.jsonl" in lines[1], "stride" in lines[2]] == [True] * 3
    with pytest.raises(TasksFileError):
        evaluate(["base"], {"tasks": []})


def test_two_models_in_memory_of_one_name_are_not_mixed_up(here):
    model = random_llama()
    two = [LiveModel("x", model.module, model.tokenizer) for _ in range(2)]
    with pytest.raises(TaskError, match="2 models are called 'x'"):
        evaluate(two, {"tasks": [task()]})


def test_names_are_as_short_as_can_be(here, models):
    for name in ("a/merged", "b/merged"):
        (here / name).parent.mkdir()
        shutil.copytree(models / "merged", here / name)
    one = {"tasks": [task()]}
    assert list(evaluate(["a/merged", "base"], one).scores) == ["merged", "base"]
    assert list(evaluate(["a/merged", "b/merged"], one).scores) == ["a/merged", "b/merged"]
    assert list(evaluate("merged", one).scores) == ["merged"]


def test_as_json(here):
    tasks = both(base="base", experts={"maths": "maths"})
    tasks["tasks"][1]["held_out"] = True
    tasks["tasks"].append(task("bad", context=10_000))
    found = evaluate(["merged"], tasks)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["primary"]["code"] == {"metric": "loss", "best": "min"}
    assert document["held_out"] == ["code"] and document["experts"] == {"maths": "maths"}
    assert document["scores"]["merged"]["bad"]["failed"]["kind"] == "TaskError"
    assert "outcomes" not in document["scores"]["merged"]["maths"]
    full = found.to_dict(outcomes=True)["scores"]["merged"]["maths"]
    assert len(full["outcomes"]["loss"]) == 3
    origin = document["provenance"]
    assert len(origin["models"]["merged"]["fingerprint"]) == 64
    assert len(origin["tasks"]["maths"]["data"]["test"]["fingerprint"]) == 64
    assert origin["tasks"]["bad"]["options"]["context"] == 10_000
    assert origin["settings"]["device"] in ("cpu", "cuda:0")
    assert {"mergewise", "torch", "transformers", "python"} <= origin["versions"].keys()


def test_numbers_that_are_not_finite_are_null_in_json(here):
    model = LiveModel("x", random_llama(3).module, random_llama().tokenizer)
    torch.nn.init.constant_(model.module.lm_head.weight, float("nan"))
    found = evaluate([model], {"tasks": [task()]})
    document = json.loads(json.dumps(found.to_dict(outcomes=True), allow_nan=False))
    result = document["scores"]["x"]["maths"]
    assert "failed" in result or result["metrics"]["loss"] is None


def test_one_model_on_one_task(here):
    found = score("merged", task())
    assert found == numbers(evaluate(["merged"], {"tasks": [task()]}))["merged", "maths"]
    (entry,) = load_tasks({"tasks": [task()]})
    live = open_model("merged")
    assert score(live, entry) == found
    with pytest.raises(TaskError, match=r"task maths: .*context 10000"):
        score(live, task(context=10_000))
