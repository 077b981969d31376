"""One document to one `Stage`, every problem on the way reported."""

from __future__ import annotations

import difflib
from typing import Literal

from mergewise.methods import Method, all_methods, spelled
from mergewise.recipe import _keys
from mergewise.recipe._fields import (
    read_batch_norm,
    read_dtype,
    read_evidence,
    read_exclude,
    read_guide,
    read_layer_range,
    read_missing,
    read_name,
    read_seed,
)
from mergewise.recipe._form import read_form
from mergewise.recipe._keys import check_keys
from mergewise.recipe._nodes import Node
from mergewise.recipe._parameters import ParameterReader
from mergewise.recipe._problems import Problems, shorten
from mergewise.recipe._recipe import Module, Slice, Source, Stage
from mergewise.recipe._reference import ModelRef, read_reference
from mergewise.recipe._tokenizer import read_chat_template, read_tokenizer

FORMS: tuple[Literal["models", "slices", "modules"], ...] = ("models", "slices", "modules")


def read_stage(document: Node, problems: Problems) -> Stage | None:
    """The stage; None if the document is not a recipe or has no known method.

    What could not be understood is left out, so the result is only of use if `problems` holds
    no error.
    """
    if not _is_recipe(document, problems):
        return None
    return _StageReader(document, problems).read()


def _is_recipe(document: Node, problems: Problems) -> bool:
    at = document.position
    if isinstance(document.value, str):
        quoted = "\n" in document.raw or "merge_method" in document.raw
        hint = "the whole document is inside quotes: remove them" if quoted else "see the guide"
        problems.error(at, f"a recipe (a mapping with `merge_method`) expected, got text; {hint}")
    elif not isinstance(document.value, dict):
        problems.error(
            at, f"a recipe (a mapping with `merge_method`) expected, got {document.kind}"
        )
    elif document.has("experts") or document.has("gate_mode"):
        key = "experts" if document.has("experts") else "gate_mode"
        problems.error(
            document.key_position(key),
            f"`{key}` makes this a mixture-of-experts file (mergekit-moe), not a merge recipe; "
            "a merge recipe has `merge_method` and `models` or `slices`",
        )
    elif document.has("genome"):
        problems.error(
            document.key_position("genome"),
            "`genome` makes this a search file (mergekit-evolve), not a merge recipe; "
            "a merge recipe has `merge_method` and `models` or `slices`",
        )
    else:
        return True
    return False


class _StageReader:
    def __init__(self, document: Node, problems: Problems) -> None:
        self.document = document
        self.problems = problems
        self.method = self._method()
        self.parameters = ParameterReader(self.method, problems)
        self.names = self.parameters.declared.keys()
        self.evidence = False

    def read(self) -> Stage | None:
        doc, problems = self.document, self.problems
        check_keys(doc, _keys.TOP, "", problems, self.names)
        form = self._form()
        base = self._base(doc, "base_model")
        parameters = self.parameters.read(doc.get("parameters"), "parameters")
        modules = self._modules(form, base) if form else ()
        fields = {
            "name": read_name(doc.get("name"), problems),
            "dtype": read_dtype(doc, "dtype", problems),
            "out_dtype": read_dtype(doc, "out_dtype", problems),
            "tokenizer": read_tokenizer(doc, problems),
            "chat_template": read_chat_template(doc.get("chat_template"), problems),
            "seed": read_seed(doc.get("seed"), problems),
            "exclude": read_exclude(doc.get("exclude"), problems),
            "missing": read_missing(doc.get("missing"), problems),
            "guide": read_guide(doc.get("guide"), problems),
            "makes": read_form(doc.get("form"), problems),
            "batch_norm": read_batch_norm(doc.get("batch_norm"), problems),
        }
        if self.method is None or form is None:
            return None
        return Stage(
            method=self.method.name,
            base_model=base,
            modules=modules,
            form=form,
            parameters=parameters,
            native=self.parameters.native or self.evidence or any(map(doc.has, _keys.NATIVE)),
            position=doc.position,
            positions={key: child.position for key, child in doc.items()},
            **fields,
        )

    def _method(self) -> Method | None:
        node = self.document.get("merge_method")
        methods = all_methods()
        if node is None:
            at = self.document.key_position("merge_method")
            self.problems.error(at, "`merge_method` is missing at the top level of the document")
        elif isinstance(node.value, dict | list):
            self.problems.error(node.position, f"merge_method: a name expected, got {node.kind}")
        elif node.raw in methods:
            return methods[node.raw]
        elif here := spelled(node.raw, methods):
            self.problems.error(
                node.position,
                f"no merge method is called {shorten(node.raw)!r}; here that is {here}",
            )
        else:
            word = node.raw[:64].lower().replace("-", "_")
            near = difflib.get_close_matches(word, methods, n=2, cutoff=0.6)
            close = [word] if word in methods else near
            hint = f"did you mean `{'` or `'.join(close)}`?" if close else "there are: "
            known = "" if close else ", ".join(methods)
            self.problems.error(
                node.position, f"unknown merge method {shorten(node.raw)!r}; {hint}{known}"
            )
        return None

    def _form(self) -> Literal["models", "slices", "modules"] | None:
        given = [form for form in FORMS if self.document.get(form) is not None]
        if len(given) == 1:
            return given[0]
        if given:
            at = self.document.key_position(given[1])
            got = " and ".join(f"`{form}`" for form in given)
            self.problems.error(at, f"exactly one of {', '.join(FORMS)} expected, got {got}")
        else:
            self.problems.error(
                self.document.position, "one of `models`, `slices` and `modules` expected, got none"
            )
        return None

    def _base(self, node: Node, key: str, where: str = "") -> ModelRef | None:
        child = node.get(key)
        return read_reference(child, where + key, self.problems) if child is not None else None

    def _modules(
        self, form: Literal["models", "slices", "modules"], base: ModelRef | None
    ) -> tuple[Module, ...]:
        if form != "modules":
            return (Module(None, self._slices(self.document, form, "", base), {}),)
        node = self.document.get("modules")
        assert node is not None
        if not isinstance(node.value, dict) or not node.value:
            self.problems.error(
                node.position, f"modules: a mapping of modules by name expected, got {node.kind}"
            )
            return ()
        read = [self._module(name, child, base) for name, child in node.value.items()]
        return tuple(module for module in read if module is not None)

    def _module(self, name: str, node: Node, base: ModelRef | None) -> Module | None:
        where = f"modules.{shorten(name)}"
        if not isinstance(node.value, dict):
            self.problems.error(
                node.position, f"{where}: a mapping with `slices` or `models` expected"
            )
            return None
        check_keys(node, _keys.MODULE, f"{where}: ", self.problems, self.names)
        given = [form for form in ("models", "slices") if node.get(form) is not None]
        parameters = self.parameters.read(node.get("parameters"), f"{where}.parameters")
        if len(given) != 1:
            got = " and ".join(given) or "neither"
            self.problems.error(
                node.position, f"{where}: one of `models` and `slices` expected, got {got}"
            )
            return None
        return Module(name, self._slices(node, given[0], f"{where}.", base), parameters)

    def _slices(
        self, holder: Node, form: str, where: str, base: ModelRef | None
    ) -> tuple[Slice, ...]:
        node = holder.get(form)
        assert node is not None
        if not isinstance(node.value, list) or not node.value:
            got = "an empty list" if isinstance(node.value, list) else node.kind
            self.problems.error(node.position, f"{where}{form}: a list expected, got {got}")
            return ()
        if form == "models":
            sources = self._sources(node, f"{where}models", ranged=False)
            return (Slice(self._with_base(sources, base, holder), base, {}, node.position),)
        read = [
            self._slice(child, f"{where}slices[{i}]", base, holder)
            for i, child in enumerate(node.value)
        ]
        return tuple(slice_ for slice_ in read if slice_ is not None)

    def _slice(self, node: Node, where: str, base: ModelRef | None, holder: Node) -> Slice | None:
        if not isinstance(node.value, dict):
            self.problems.error(
                node.position, f"{where}: a mapping with `sources` expected, got {node.kind}"
            )
            return None
        check_keys(node, _keys.SLICE, f"{where}: ", self.problems, self.names)
        if node.has("residual_weight"):
            at = node.key_position("residual_weight")
            self.problems.warn(at, f"{where}.residual_weight has never had an effect; remove it")
        own = self._base(node, "base_model", f"{where}.")
        parameters = self.parameters.read(node.get("parameters"), f"{where}.parameters")
        inner = node.get("sources")
        if inner is None or not isinstance(inner.value, list) or not inner.value:
            at = inner.position if inner else node.position
            self.problems.error(at, f"{where}.sources: a list of models with layer_range expected")
            return None
        sources = self._sources(inner, f"{where}.sources", ranged=True)
        self._check_lengths(sources, where)
        base = own or base
        added = self._with_base(sources, base, node if own else self.document)
        return Slice(added, base, parameters, node.position)

    def _check_lengths(self, sources: list[Source], where: str) -> None:
        lengths = [s.layer_range[1] - s.layer_range[0] for s in sources if s.layer_range]
        for source in sources:
            taken = source.layer_range
            if taken and taken[1] - taken[0] != lengths[0]:
                self.problems.error(
                    source.position,
                    f"{where}: all sources of a slice must have equally many layers; "
                    f"{source.model} has {taken[1] - taken[0]}, the first has {lengths[0]}",
                )

    def _sources(self, node: Node, where: str, ranged: bool) -> list[Source]:
        items = node.value if isinstance(node.value, list) else []
        read = [self._source(n, f"{where}[{i}]", ranged) for i, n in enumerate(items)]
        return [source for source in read if source is not None]

    def _source(self, node: Node, where: str, ranged: bool) -> Source | None:
        if not isinstance(node.value, dict):
            hint = f"; write `- model: {shorten(node.raw)}`" if node.raw else ""
            self.problems.error(
                node.position, f"{where}: a mapping with `model` expected, got {node.kind}{hint}"
            )
            return None
        known = _keys.SOURCE if ranged else _keys.MODEL
        check_keys(node, known, f"{where}: ", self.problems, self.names)
        parameters = self.parameters.read(node.get("parameters"), f"{where}.parameters", True)
        model = node.get("model")
        ref = read_reference(model, f"{where}.model", self.problems) if model else None
        if model is None:
            self.problems.error(node.position, f"{where}: `model` is missing")
        layers = node.get("layer_range") if ranged else None
        taken = None
        if layers is not None:
            taken = read_layer_range(layers, f"{where}.layer_range", self.problems)
        elif ranged:
            self.problems.error(
                node.position,
                f"{where}: `layer_range: [from, to]` is missing; whole models go under `models:`",
            )
        evidence = read_evidence(node.get("evidence"), f"{where}.evidence", self.problems)
        self.evidence = self.evidence or bool(evidence)
        if ref is None or model is None:
            return None
        return Source(ref, taken, parameters, model.position, evidence=evidence)

    def _with_base(
        self, sources: list[Source], base: ModelRef | None, holder: Node
    ) -> tuple[Source, ...]:
        """The dialect's rule: a base that no source names is added as a source."""
        if base is None or not sources or any(s.model == base for s in sources):
            return tuple(sources)
        node = holder.get("base_model") or self.document.get("base_model")
        at = node.position if node else holder.position
        return (*sources, Source(base, sources[0].layer_range, {}, at, implicit=True))
