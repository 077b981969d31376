"""Continue prompts with a language model, so that batches do not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mergewise._lazy import torch
from mergewise.errors import TaskError
from mergewise.evidence._text import encode
from mergewise.evidence.evaluators._likelihood import longest_input, tokenizer_of
from mergewise.evidence.models._live import LiveModel


@dataclass(frozen=True)
class Generation:
    """How to continue.

    Attributes:
        max_new_tokens: the most tokens of a continuation.
        stop: strings at which a continuation ends; they are cut off.
        temperature: 0 takes the likeliest token; otherwise tokens are drawn.
        seed: of the drawing; each prompt has numbers of its own.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        text: without the prompt, the stop string and special tokens.
        finished: whether it ended by itself, not at the limit of tokens.
        cut: whether the prompt was too long and lost tokens at its beginning.
    """

    text: str
    finished: bool
    cut: bool


def generate(
    model: LiveModel,
    prompts: Sequence[str],
    how: Generation,
    batch_size: int,
    task: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Continuation]:
    """Continue each prompt, in their order.

    Runs `generate` of `transformers`, with its cache, on prompts padded at the left; the
    checkpoint's own generation settings (penalties, temperature) are not used, except which
    tokens end a text. Drawing adds seeded Gumbel noise to the logits and takes the largest,
    which draws from the softmax, with a generator for each prompt. So the batch does not matter,
    but for rounding, which in half precision may decide between tokens that are almost as likely.

    Raises:
        TaskError: if the model cannot generate, or the prompt and answer do not fit.
    """
    tokenizer = tokenizer_of(model, task)
    if not hasattr(model.module, "generate"):
        raise TaskError(
            f"task {task}: {model.name} cannot generate; a causal language model of transformers "
            "is needed"
        )
    room = _room(model, how, task)
    ids = [encode(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    found: dict[int, Continuation] = {}
    with torch.inference_mode():
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            # an empty prompt still needs a token to begin from
            held = {i: (ids[i] or [_beginning(model, task)])[-room:] for i in rows}
            for i, out in _batch(model, held, how):
                text, finished = _cut(_suffix(tokenizer, held[i], out), how.stop)
                finished = finished or len(out) < how.max_new_tokens
                found[i] = Continuation(text, finished, len(ids[i]) > room)
            progress(len(found), len(ids))
    return [found[i] for i in range(len(ids))]


def _room(model: LiveModel, how: Generation, task: str) -> int:
    most = longest_input(model)
    if most is None:
        return 1 << 30
    if how.max_new_tokens >= most:
        raise TaskError(
            f"task {task}: max_new_tokens {how.max_new_tokens} leaves no room for a prompt in the "
            f"{most} positions of {model.name}; choose less"
        )
    return most - how.max_new_tokens


def _beginning(model: LiveModel, task: str) -> int:
    for name in ("bos_token_id", "eos_token_id"):
        if isinstance(token := getattr(model.tokenizer, name, None), int):
            return token
    raise TaskError(f"task {task}: an empty prompt, and {model.name} has no token to begin with")


def _batch(
    model: LiveModel, prompts: dict[int, list[int]], how: Generation
) -> Iterator[tuple[int, list[int]]]:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    ends = _ends(model)
    width = max(map(len, prompts.values()))
    pad = ends[0] if ends else 0
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts.values()])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts.values()])
    noise = [_Gumbel(how, list(prompts))] if how.temperature > 0 else []
    stops = [_Stop(model.tokenizer, how.stop, width)] if how.stop else []
    config = GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=list(ends) or None,
    )
    with _only(model.module, config) as module:
        output = module.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList(noise),
            stopping_criteria=StoppingCriteriaList(stops),
        )
    for row, i in enumerate(prompts):
        yield i, _until(output[row, width:].tolist(), ends)


@contextmanager
def _only(module: Any, config: Any) -> Iterator[Any]:
    # what a given config leaves open, transformers takes from the module's own
    own = getattr(module, "generation_config", None)
    module.generation_config = config
    try:
        yield module
    finally:
        module.generation_config = own


def _ends(model: LiveModel) -> tuple[int, ...]:
    config = getattr(model.module, "generation_config", None)
    stored = getattr(config, "eos_token_id", None)
    ends = list(stored) if isinstance(stored, list | tuple) else [stored]
    ends.append(getattr(model.tokenizer, "eos_token_id", None))
    return tuple(dict.fromkeys(int(end) for end in ends if end is not None))


def _until(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[:place]
    return tokens


def _suffix(tokenizer: Any, prompt: list[int], tokens: list[int]) -> str:
    # decoded with the prompt: alone, some tokenizers drop the space that indents a line of code
    style = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(prompt, **style)
    whole = tokenizer.decode(prompt + tokens, **style)
    if whole.startswith(before):
        return str(whole[len(before) :])
    return str(tokenizer.decode(tokens, **style))


def _cut(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    places = [place for s in stop if (place := text.find(s)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


class _Stop:
    """Ends a row in whose last tokens a stop string has appeared."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], begin: int) -> None:
        self.tokenizer, self.stop, self.begin = tokenizer, stop, begin
        # a token holds at least one byte
        self.tail = max(len(s.encode()) for s in stop) + 4

    def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
        tails = ids[:, max(self.begin, ids.shape[1] - self.tail) :].tolist()
        texts = (self.tokenizer.decode(tail) for tail in tails)
        done = [any(s in text for s in self.stop) for text in texts]
        return torch.tensor(done, device=ids.device)


class _Gumbel:
    """Adds to each row's logits noise of its own, so that the largest is a draw."""

    def __init__(self, how: Generation, rows: Sequence[int]) -> None:
        self.temperature = how.temperature
        self.draws = [torch.Generator().manual_seed(_mixed(how.seed, row)) for row in rows]

    def __call__(self, ids: Any, scores: Any) -> Any:
        width = scores.shape[-1]
        uniform = torch.stack([torch.rand(width, generator=d) for d in self.draws])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / self.temperature + noise.to(scores.device)


def _mixed(seed: int, row: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + row * 0xBF58476D1CE4E5B9 + 1) % (1 << 63)
