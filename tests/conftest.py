"""Its presence lets every test import the helper modules beside it (`small_models`, …)."""
