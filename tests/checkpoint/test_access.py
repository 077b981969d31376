"""What may be opened is said by the caller, and lasts as long as the `with`."""

import pytest
from click.testing import CliRunner

import mergewise
from mergewise.checkpoint import access
from mergewise.cli._app import cli
from mergewise.cli._options import access_options, our_command


def test_nothing_is_allowed_until_it_is() -> None:
    assert not access().pickle and not access().dequantize
    with mergewise.allow(pickle=True):
        with mergewise.allow(dequantize=True):
            assert access().pickle and access().dequantize
        assert access().pickle and not access().dequantize
    assert not access().pickle


def test_an_error_inside_ends_it_too() -> None:
    with pytest.raises(KeyError), mergewise.allow(pickle=True):
        raise KeyError
    assert not access().pickle


def test_options_allow_for_one_command() -> None:
    seen = []

    @our_command()
    @access_options
    def command(out: object) -> None:
        seen.append(access())

    assert CliRunner().invoke(command, ["--allow-pickle"]).exit_code == 0
    assert CliRunner().invoke(command, ["--dequantize"]).exit_code == 0
    assert [(s.pickle, s.dequantize) for s in seen] == [(True, False), (False, True)]
    assert not access().pickle and not access().dequantize


def test_every_command_that_opens_models_has_them() -> None:
    for name in ("merge", "plan", "check", "inspect", "evaluate", "collect", "guide", "transform"):
        text = CliRunner().invoke(cli, [name, "--help"]).output
        assert "--allow-pickle" in text and "--dequantize" in text, name
