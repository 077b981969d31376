"""What `import mergewise` offers, and that it costs nothing before it is used."""

import subprocess
import sys

import pytest

import mergewise
from mergewise import evidence


def test_every_name_is_there_and_no_other():
    assert sorted(mergewise.__all__) == dir(mergewise)
    for name in mergewise.__all__:
        assert getattr(mergewise, name) is not None
    assert mergewise.evaluate is evidence.evaluate
    assert mergewise.collect is evidence.collect
    with pytest.raises(AttributeError, match="no attribute 'merg'"):
        mergewise.merg  # noqa: B018


def test_nothing_is_imported_before_it_is_used():
    code = "import mergewise, sys; print([m for m in sys.modules if m.startswith('mergewise.')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
