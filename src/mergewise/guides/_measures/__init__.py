"""Cells of a model, and measures of what experts changed in them and how much it matters."""
