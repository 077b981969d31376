"""Quantised weights, read as the floating-point numbers that they stand for."""
