"""Its presence lets every test import the helper modules beside it (`small_models`, …)."""

from mergewise.constants import yield_processors

yield_processors()
