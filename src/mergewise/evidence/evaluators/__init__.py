"""Kinds of evaluation task; one file a kind."""
