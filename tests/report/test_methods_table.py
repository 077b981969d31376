from __future__ import annotations

from pathlib import Path

import pytest

from mergewise.errors import MergewiseError
from mergewise.methods import all_methods
from mergewise.report.methods_table import BEGIN, END, insert, main, methods_table

README = Path(__file__).parents[2] / "README.md"


def test_readme_is_up_to_date():
    text = README.read_text("utf-8")
    assert insert(text, methods_table()) == text, (
        "run: python -m mergewise.report.methods_table --write README.md"
    )


def test_every_method_is_listed_once_with_its_page():
    table = methods_table()
    for name in all_methods():
        assert table.count(f"[`{name}`]") == 1
        assert (README.parent / f"docs/methods/{name}.md").is_file()


def test_write_replaces_only_what_is_between_the_marks(tmp_path):
    file = tmp_path / "x.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["--write", str(file)]) == 0
    assert file.read_text() == f"before\n{BEGIN}\n{methods_table()}\n{END}\nafter\n"


def test_missing_marks_are_reported(tmp_path, capsys):
    with pytest.raises(MergewiseError, match="in this order"):
        insert(f"{END} {BEGIN}", "table")
    file = tmp_path / "x.md"
    file.write_text("nothing here")
    assert main(["--write", str(file)]) == 1
    assert file.read_text() == "nothing here"
    assert "methods:begin" in capsys.readouterr().err
