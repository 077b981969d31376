"""The model card: README.md with the front matter that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from mergewise.checkpoint._output._licence import merged_licence

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

_BODY = """\
# {{ title }}

A merge of trained models, made with mergewise {{ versions.get("mergewise", "") }}.

## Method

`{{ method }}`{% if summary %}: {{ summary }}{% endif %}
{% if source %}

Source: {{ source }}
{% endif %}

## Inputs

| model | role | licence | fingerprint |
| --- | --- | --- | --- |
{% for row in inputs %}
| {{ row.name | cell }} | {{ row.role | cell }} | {{ (row.licence or "not stated") | cell }} \
| {{ row.fingerprint | cell }} |
{% endfor %}
{% if licence_note %}

{{ licence_note }}
{% endif %}

## Recipe

{{ fence }}yaml
{{ recipe }}
{{ fence }}

## How to reproduce

{{ command_fence }}sh
{{ command }}
{{ command_fence }}

Seed {{ seed }}{% for name, version in versions.items() %}, {{ name }} {{ version }}{% endfor %}.
`mergewise_provenance.json` holds every input file's fingerprint and every output file's checksum.
"""


@dataclass(frozen=True)
class CardInput:
    """One input of a merge, as the card names it.

    Attributes:
        name: a Hub name (``org/model``) or a local folder; of a folder only its last part is
            shown, because the card is made to be published.
        role: ``base`` or ``expert``.
        licence: as stated by the input, or None.
        fingerprint: of its files, shortened, or its commit; may be empty.
        hub: `name` is its name on the Hub.
    """

    name: str
    role: str = "expert"
    licence: str | None = None
    fingerprint: str = ""
    hub: bool = False

    @property
    def public_name(self) -> str:
        if _HUB_NAME.fullmatch(self.name):
            return self.name
        return PurePath(self.name).name or "model"


def model_card(
    *,
    title: str,
    method: str,
    inputs: Sequence[CardInput],
    recipe: str,
    command: str,
    seed: str,
    versions: Mapping[str, str],
    summary: str = "",
    source: str = "",
    architecture: str | None = None,
    library: str | None = "transformers",
    dialect: bool = True,
) -> str:
    """The text of README.md.

    Args:
        method: the merge method's name; `summary` and `source` describe it.
        recipe: the recipe, verbatim.
        command: what to type to make this merge again.
        versions: of mergewise, torch and so on, in the order to show them.
        architecture: the config's class; a causal language model gets a ``pipeline_tag``.
        library: what loads the result, as the Hub calls it; None for nothing in particular.
        dialect: whether mergekit can run the recipe too; then the card has its tag.
    """
    import jinja2
    import yaml

    licence, note = merged_licence([(item.public_name, item.licence) for item in inputs])
    # the Hub can link its own models only; where there are none, names say at least something
    linked = [item.public_name for item in inputs if item.hub]
    names = list(dict.fromkeys(linked or [item.public_name for item in inputs]))
    front = _front_matter(names, licence, architecture, library, dialect)
    # the text is Markdown of our own making; HTML escaping would damage the recipe
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    rows = [
        {"name": i.public_name, "role": i.role, "licence": i.licence, "fingerprint": i.fingerprint}
        for i in inputs
    ]
    body = environment.from_string(_BODY).render(
        title=_line(title),
        method=_line(method),
        summary=_line(summary),
        source=_linked(_line(source)),
        inputs=rows,
        licence_note=note,
        recipe=recipe.rstrip("\n"),
        fence=_fence(recipe),
        command=command,
        command_fence=_fence(command),
        seed=seed,
        versions=dict(versions),
    )
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n{body}"


def _front_matter(
    names: list[str], licence: str, architecture: str | None, library: str | None, dialect: bool
) -> dict[str, Any]:
    front: dict[str, Any] = {
        "base_model": names,
        "base_model_relation": "merge",
    }
    if library:
        front["library_name"] = library
    if architecture and architecture.endswith(("ForCausalLM", "LMHeadModel")):
        front["pipeline_tag"] = "text-generation"
    front["license"] = licence
    front["tags"] = ["merge", *(["mergekit"] if dialect else []), "mergewise"]
    return front


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _linked(text: str) -> str:
    """A link to the paper, from which the Hub also makes its tag."""
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _cell(text: str) -> str:
    escaped = re.sub(r"([\\|<>\[\]`*])", r"\\\1", _line(text))
    return escaped or "-"
