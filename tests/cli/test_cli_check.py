"""`mergewise check`: diagnostics are its data."""

import json

WRONG = """\
merge_method: tiess
base_modle: base
models:
  - model: expert_a
    parameters: {weight: 0.5, density: 2}
"""


def test_a_good_recipe_prints_nothing_on_stdout(run):
    result = run("check", "ties.yml")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no mistakes found" in result.stderr


def test_every_mistake_is_listed_with_its_place(run, here):
    (here / "wrong.yml").write_text(WRONG)
    result = run("check", "wrong.yml")
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert any(line.startswith("wrong.yml:1:15: ") and "`ties`" in line for line in lines)
    assert any(line.startswith("wrong.yml:2:1: ") and "`base_model`" in line for line in lines)
    assert result.stderr.splitlines()[-1].startswith(f"{len(lines)} errors, 0 warnings")


def test_no_model_is_opened(run, here):
    for model in ("base", "expert_a", "expert_b"):
        (here / model).unlink()
    assert run("check", "ties.yml").exit_code == 0


def test_lenient_turns_unknown_keys_into_warnings(run, here):
    (here / "old.yml").write_text((here / "ties.yml").read_text() + "cuda: true\n")
    assert run("check", "old.yml").exit_code == 2
    result = run("check", "old.yml", "--lenient")
    assert result.exit_code == 0
    assert "old.yml:13:1: warning: " in result.stdout
    assert "0 errors, 1 warning" in result.stderr


def test_overrides_are_checked_too(run):
    assert run("check", "ties.yml", "--set", "parameters.normalize=false").exit_code == 0
    result = run("check", "ties.yml", "--set", "models.0.parameters.density=7")
    assert result.exit_code == 2
    assert result.stdout.startswith("--set models.0.parameters.density=7:")
    assert "0 <= x <= 1 expected, got 7" in result.stdout


def test_several_recipes_at_once(run, here):
    (here / "wrong.yml").write_text("merge_method: linear\n")
    result = run("check", "ties.yml", "wrong.yml", "absent.yml")
    assert result.exit_code == 2
    assert "absent.yml:1:1: no such file" in result.stdout
    assert result.stderr.startswith("3 recipes: ")


def test_json_has_every_diagnostic(run, here):
    (here / "wrong.yml").write_text(WRONG)
    result = run("check", "ties.yml", "wrong.yml", "--json")
    good, wrong = json.loads(result.stdout)
    assert result.exit_code == 2
    assert good == {"recipe": "ties.yml", "ok": True, "diagnostics": []}
    assert not wrong["ok"]
    assert wrong["diagnostics"][0].keys() == {"path", "line", "column", "severity", "message"}


def test_control_characters_do_not_reach_the_terminal(run, here):
    (here / "evil.yml").write_text('merge_method: "ties\\e[2J"\n"a\\e]0;b\\a": 1\n')
    result = run("check", "evil.yml")
    assert result.exit_code == 2
    assert "\x1b" not in result.output and "\x07" not in result.output
