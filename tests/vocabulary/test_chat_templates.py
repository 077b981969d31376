"""Chat templates of recipes: what the named ones write, which one `auto` takes, and the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_vocabularies import model, plain, tokenizer_json

from mergewise.engine import merge
from mergewise.errors import RecipeError
from mergewise.plan import build_plan
from mergewise.recipe import check_recipe
from mergewise.vocabulary import NAMED, template_in

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
SAID = {
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s>[INST] Be kind.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]",
    "alpaca": (
        "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
        "### Instruction:\nBye\n\n### Response:\n"
    ),
    "exaone": (
        "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
        "[|user|]Bye\n[|assistant|]"
    ),
}
CHAT = ["<|im_start|>", "<|im_end|>"]
OWN = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate("abc"):
        model(tmp_path / name, tokenizer_json(plain(40)), 40, seed=seed)
    return tmp_path


def recipe(root: Path, template: str | None, **more: Any) -> dict[str, Any]:
    parts = [{"model": str(root / n), "parameters": {"weight": 0.5}} for n in "abc"]
    document = {"merge_method": "linear", "models": parts, **more}
    return document if template is None else {**document, "chat_template": template}


def say(folder: Path) -> str:
    transformers = pytest.importorskip("transformers")
    made = transformers.AutoTokenizer.from_pretrained(folder)
    return str(made.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_templates_write_their_formats(name: str, models: Path) -> None:
    merge(recipe(models, name), models / "out")
    assert say(models / "out") == SAID[name]
    (models / "out" / "chat_template.jinja").unlink()  # as an older loader sees it
    assert say(models / "out") == SAID[name]


def test_every_other_template_is_replaced(models: Path) -> None:
    more = models / "a" / "additional_chat_templates"
    more.mkdir()
    (more / "tool.jinja").write_text("old")
    (models / "a" / "chat_template.json").write_text('{"chat_template": "old"}')
    (models / "a" / "chat_template.jinja").write_text("old")
    merge(recipe(models, OWN), models / "out")
    out = models / "out"
    assert (out / "chat_template.jinja").read_text() == OWN
    for name in ("chat_template.json", "tokenizer_config.json"):
        assert json.loads((out / name).read_text())["chat_template"] == OWN
    assert not (out / "additional_chat_templates").exists()
    assert say(out) == "Be kind.HiHelloBye"
    before = json.loads((models / "a" / "tokenizer_config.json").read_text())
    after = json.loads((out / "tokenizer_config.json").read_text())
    assert {**before, "chat_template": OWN} == after


def test_auto_is_the_most_common(models: Path) -> None:
    (models / "a" / "chat_template.jinja").write_text("{{ 'rare' }}")
    for name in "bc":
        path = models / name / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        both = [{"name": "tool", "template": "x"}, {"name": "default", "template": OWN}]
        settings["chat_template"] = OWN if name == "b" else both
        path.write_text(json.dumps(settings))
    plan = build_plan(recipe(models, "auto"))
    assert plan.output.template == OWN
    assert any("2 different templates" in text for text in plan.warnings)


def test_auto_among_equals_is_the_bases_and_among_none_is_none(models: Path) -> None:
    plan = build_plan(recipe(models, "auto"))
    assert plan.output.template is None
    assert any("no model has a chat template" in text for text in plan.warnings)
    for name in "abc":
        (models / name / "chat_template.jinja").write_text(f"{{{{ '{name}' }}}}")
    assert build_plan(recipe(models, "auto")).output.template == "{{ 'a' }}"
    base = recipe(models, "auto", base_model=str(models / "b"), merge_method="task_arithmetic")
    assert build_plan(base).output.template == "{{ 'b' }}"


def test_without_the_key_files_are_copied(models: Path) -> None:
    (models / "a" / "chat_template.jinja").write_text("mine")
    merge(recipe(models, None), models / "out")
    assert (models / "out" / "chat_template.jinja").read_text() == "mine"
    old, new = (models / n / "tokenizer_config.json" for n in ("a", "out"))
    assert old.read_bytes() == new.read_bytes()


def test_with_another_tokenizer(models: Path) -> None:
    model(models / "d", tokenizer_json(plain(40), CHAT), 42, seed=9)
    asked = recipe(models, "chatml", tokenizer_source="union")
    asked["models"].append({"model": str(models / "d"), "parameters": {"weight": 0.5}})
    plan = build_plan(asked)
    assert not any("chat_template" in text for text in plan.warnings)
    merge(asked, models / "out")
    assert say(models / "out") == SAID["chatml"]


def test_tokens_that_the_tokenizer_lacks_are_named(models: Path) -> None:
    told = [w for w in build_plan(recipe(models, "chatml")).warnings if "chat_template" in w]
    assert len(told) == 1 and "<|im_start|>" in told[0] and "<|im_end|>" in told[0]
    settings = json.loads((models / "a" / "tokenizer_config.json").read_text())
    settings["eos_token"] = None
    (models / "a" / "tokenizer_config.json").write_text(json.dumps(settings))
    told = [w for w in build_plan(recipe(models, "mistral")).warnings if "chat_template" in w]
    assert len(told) == 1 and "eos_token" in told[0] and "bos_token" not in told[0]


def test_a_template_of_an_earlier_stage_is_carried_on(models: Path) -> None:
    first = {**recipe(models, OWN), "name": "first"}
    second = {"merge_method": "passthrough", "models": [{"model": "first"}]}
    plan = build_plan(_documents(models, first, second))
    assert plan.output.template == OWN


def _documents(root: Path, *stages: dict[str, Any]) -> Path:
    path = root / "stages.yml"
    path.write_text("\n---\n".join(json.dumps(stage) for stage in stages))
    return path


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.content }}", "line 1 of it"),
        ("one {{ line }}\n{% endif %} two", "line 2 of it"),
        ("{{ 'not closed at all' ", "line 1 of it"),
        ("{% include_everything 'x' %} more", "unknown tag"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "nested too deeply"),
        ("chatml2", "chat_template: auto, alpaca"),
        ("{{ x }}", "chat_template: auto, alpaca"),
    ],
)
def test_what_is_no_template_is_told_at_its_line(template: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
        f"chat_template: {json.dumps(template)}\n"
    )
    found = [str(problem) for problem in check_recipe(path)]
    assert len(found) == 1 and words in found[0]
    assert "recipe.yml:3:" in found[0]


@pytest.mark.parametrize(
    "template",
    [
        "{% generation %}{{ messages }}{% endgeneration %}",
        "{% for m in messages %}{% if m %}{% continue %}{% endif %}{% break %}{% endfor %}",
        "{{ messages.__class__.__mro__ }}{{ raise_exception('never run') }}",
    ],
)
def test_templates_are_parsed_and_never_run(template: str, models: Path) -> None:
    assert build_plan(recipe(models, template)).output.template == template


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("tokenizer_config.json", b"[1"),
        ("chat_template.json", b"{"),
    ],
)
def test_broken_templates_of_inputs_come_before_work(name: str, data: bytes, models: Path) -> None:
    (models / "b" / name).write_bytes(data)
    with pytest.raises(RecipeError, match=f"chat_template: .*{name}"):
        build_plan(recipe(models, "auto"))


def test_a_link_out_of_the_folder_is_refused(models: Path) -> None:
    secret = models / "secret"
    secret.write_text("{{ 'secret' }}")
    (models / "b" / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(RecipeError, match="leaves the folder"):
        build_plan(recipe(models, "auto"))
    assert template_in(models / "a") is None
