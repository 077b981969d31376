"""Run commands in a folder of tiny models."""

import pytest
from click.testing import CliRunner
from small_models import family

from mergewise.cli import cli

TIES = """\
merge_method: ties
base_model: base
models:
  - model: expert_a
    parameters: {weight: 0.7, density: 0.5}
  - model: expert_b
    parameters:
      weight: 0.3
      density: [0.2, 0.4, 0.6]
parameters:
  normalize: true
dtype: bfloat16
"""


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """base, expert_a and expert_b, as the methods' examples name them; not to be written to."""
    return family(tmp_path_factory.mktemp("models"), layers=3)


@pytest.fixture
def here(tiny_models, tmp_path, monkeypatch):
    """A fresh current folder with the tiny models (links) and ``ties.yml``."""
    for model in tiny_models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    (tmp_path / "ties.yml").write_text(TIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def run(here):
    """Run ``mergewise ARGUMENTS``; the result has exit_code, stdout and stderr."""

    def invoke(*arguments):
        result = CliRunner().invoke(cli, [str(a) for a in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
