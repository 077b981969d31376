"""Which chat template a stage's output gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mergewise.checkpoint import shown
from mergewise.errors import MergewiseError
from mergewise.plan._model import View
from mergewise.plan._tokenizers import Tokenizers
from mergewise.plan._vocabulary import StageVocabulary
from mergewise.recipe import Stage
from mergewise.vocabulary import NAMED, Tokenizer, lacking, template_in


@dataclass(frozen=True)
class Told:
    """A template, and what there is to say about it."""

    template: str | None
    warnings: tuple[str, ...] = ()


def stage_template(
    stage: Stage,
    views: Sequence[View],
    vocabulary: StageVocabulary | None,
    tokenizers: Tokenizers,
) -> Told:
    """The template that is to be written; None to keep that of the tokenizer.

    With ``auto`` it is the one that most models have; of several, the one whose model comes first.

    Args:
        views: the stage's models; the first is the donor.

    Raises:
        CheckpointError: if a model's templates cannot be read.
    """
    if stage.chat_template is None:
        return Told(views[0].template)
    warnings = []
    text = NAMED.get(stage.chat_template, stage.chat_template)
    if stage.chat_template == "auto":
        folders = [view.tokenizer.folder if view.tokenizer else view.folder for view in views]
        pairs = zip(views, folders, strict=True)
        found = [t for view, folder in pairs if (t := view.template or template_in(folder))]
        if not found:
            return Told(None, ("chat_template: auto: no model has a chat template",))
        text = Counter(found).most_common(1)[0][0]  # the first of those that are as common
        if len(set(found)) > 1:
            warnings.append(
                f"chat_template: auto: {len(set(found))} different templates in {len(views)} "
                f"models; the output gets the one that {found.count(text)} of them have"
            )
    return Told(text, (*warnings, *_lacking(text, views[0], vocabulary, tokenizers)))


def _lacking(
    text: str, donor: View, vocabulary: StageVocabulary | None, tokenizers: Tokenizers
) -> list[str]:
    try:
        known: Tokenizer | None = vocabulary.tokenizer if vocabulary else tokenizers.of(donor)
        if known is None:
            return ["chat_template: the output has no tokenizer; the template is written alone"]
        odd = lacking(text, known.tokens, known.folder)
    except MergewiseError as error:
        told = " ".join(str(error).split())
        return [f"chat_template: not compared with the tokenizer's tokens: {told}"]
    if not odd:
        return []
    some = ", ".join(shown(token, 40) for token in odd[:5])
    return [
        f"chat_template: the output's tokenizer has no {some}, which the template writes; they "
        "will be cut into pieces. Take a tokenizer that has them (tokenizer_source), or add them "
        "(tokenizer.tokens)"
    ]
