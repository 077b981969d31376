"""Expression graphs (`_trace`) as C: one loop over the block, whatever the method does in it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from mergewise.engine._trace import Expr, as_float

# storage type, load, store
_TYPES = {
    "float32": ("float", "{}", "{}"),
    "bfloat16": ("uint16_t", "mw_from_bf16({})", "mw_to_bf16({})"),
    "float16": ("_Float16", "(float){}", "(_Float16)({})"),
    "bool": ("uint8_t", "{}", "{}"),
}
FUSIBLE = frozenset(("float32", "bfloat16", "float16"))
MOST_INPUTS = 63
"""A bit each in the mask that a loop returns, and one for its output."""

_CODE = {
    "add": "({} + {})", "sub": "({} - {})", "mul": "({} * {})", "div": "({} / {})",
    "neg": "(-{})", "abs": "fabsf({})", "sqrt": "sqrtf({})",
    "max": "({0} > {1} ? {0} : {1})", "min": "({0} < {1} ? {0} : {1})",
    "gt": "({} > {})", "ge": "({} >= {})", "lt": "({} < {})", "le": "({} <= {})",
    "eq": "({} == {})", "ne": "({} != {})",
    "and": "({} & {})", "or": "({} | {})", "not": "(!{})",
    "where": "({} ? {} : {})", "to_float": "((float){})",
    "hash": "mw_hash2(lo, hi, {}, {})", "order": "mw_order2(lo, hi, {}, {})",
    "uniform": "mw_uniform({})",
}  # fmt: skip
_C_KIND = {"f": "float", "i": "int32_t", "b": "int32_t"}


def _literal(value: float) -> str:
    if value in (float("inf"), float("-inf")):
        return "INFINITY" if value > 0 else "(-INFINITY)"
    rounded = struct.unpack("f", struct.pack("f", value))[0]
    return f"{float(rounded).hex()}f"


class _Writer:
    """Lines of C for a graph; equal subexpressions are written once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._names: dict[tuple[Any, ...], str] = {}
        self._known: dict[Expr, str] = {}

    def name(self, e: Expr) -> str:
        # without what is known, a node would be walked as often as there are paths to it
        if e not in self._known:
            self._known[e] = self._named(e)
        return self._known[e]

    def _named(self, e: Expr) -> str:
        parts = tuple(self.name(a) if isinstance(a, Expr) else a for a in e.args)
        key = (e.op, *parts)
        if key not in self._names:
            self._names[key] = self._write(e, parts)
        return self._names[key]

    def _write(self, e: Expr, parts: tuple[Any, ...]) -> str:
        if e.op == "const_f":
            return _literal(parts[0])
        if e.op == "const_b":
            return str(int(parts[0]))
        if e.op in ("input", "fs", "is"):
            return {"input": "x", "fs": "f", "is": "k"}[e.op] + str(parts[0])
        variable = f"t{len(self._names)}"
        self.lines.append(f"{_C_KIND[e.kind]} {variable} = {_CODE[e.op].format(*parts)};")
        return variable


def emit(
    symbol: str,
    inputs: Sequence[str],
    outputs: Sequence[tuple[Expr, str]],
    sums: Mapping[str, Expr],
    floats: int,
    ints: int,
) -> str:
    """A C function computing `outputs` (expression, dtype name) and the `sums` of a block.

    Its arguments are ``(in, out, floats, ints, start, n, sums)``; it returns a bit mask: bit 0 if
    an output, bit i + 1 if input i held a number that is not finite.

    Args:
        inputs: dtype names, at most `MOST_INPUTS`.
    """
    writer = _Writer()
    body = []
    for i, dtype in enumerate(inputs):
        kind = "int32_t" if dtype == "bool" else "float"
        body.append(f"{kind} x{i} = {_TYPES[dtype][1].format(f'in{i}[i]')};")
    results = [(writer.name(e if d == "bool" else as_float(e)), d) for e, d in outputs]
    totals = [writer.name(as_float(e)) for e in sums.values()]
    body += writer.lines
    numbers = [i for i, dtype in enumerate(inputs) if dtype != "bool"]
    body += [f"bad{i} |= mw_not_finite(x{i});" for i in numbers]
    for j, (value, dtype) in enumerate(results):
        body.append(f"out{j}[i] = {_TYPES[dtype][2].format(value)};")
        if dtype == "bool":
            continue
        stored = _TYPES[dtype][1].format(f"out{j}[i]") if dtype == "float16" else value
        body.append(f"badout |= mw_not_finite({stored});")
    body += [f"sum{j} += (double){value};" for j, value in enumerate(totals)]

    flags = [f"bad{i}" for i in numbers] + ["badout"]
    accumulators = [f"sum{j}" for j in range(len(totals))]
    reductions = [f"reduction(|:{','.join(flags)})"]
    if accumulators:
        reductions.append(f"reduction(+:{','.join(accumulators)})")
    lines = [
        f"uint64_t {symbol}(void *const *in, void *const *out, const float *fs, const int32_t *is,",
        "    uint64_t start, int64_t n, double *sums) {",
        *(f"const {_TYPES[d][0]} *restrict in{i} = in[{i}];" for i, d in enumerate(inputs)),
        *(f"{_TYPES[d][0]} *restrict out{j} = out[{j}];" for j, (_, d) in enumerate(results)),
        *(f"const float f{j} = fs[{j}];" for j in range(floats)),
        *(f"const int32_t k{j} = is[{j}];" for j in range(ints)),
        *(f"uint32_t {flag} = 0;" for flag in flags),
        *(f"double {a} = 0;" for a in accumulators),
        "const uint32_t lo0 = (uint32_t)start, hi0 = (uint32_t)(start >> 32);",
        f"#pragma omp simd {' '.join(reductions)}",
        "for (int64_t i = 0; i < n; i++) {",
        "const uint32_t lo = lo0 + (uint32_t)i, hi = hi0 + (lo < lo0);",
        *body,
        "}",
        *(f"sums[{j}] = {a};" for j, a in enumerate(accumulators)),
        "uint64_t bad = 0;",
        *(f"bad |= (uint64_t)(bad{i} != 0) << {i + 1};" for i in numbers),
        "return bad | (uint64_t)(badout != 0);",
        "}",
    ]
    return "\n".join(lines) + "\n"
