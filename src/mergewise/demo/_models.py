"""The three trained folders: made once, reused while nothing they depend on has changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise.demo._data import encode, train_tokenizer
from mergewise.demo._settings import EXPERTS, Settings
from mergewise.demo._train import new_model, train

if TYPE_CHECKING:
    from rich.console import Console

NOTE = "trained.json"
"""Written last, so that an interrupted training is done again."""


def folders(models: Path) -> dict[str, Path]:
    """The base and the experts by name."""
    return {name: models / name for name in ("base", *EXPERTS)}


def ensure_models(
    models: Path, texts: Mapping[str, str], settings: Settings, console: Console
) -> bool:
    """Train the base and the experts into `models`, unless they are there; True if they were."""
    import transformers

    mark = {"fingerprint": settings.fingerprint(texts)}
    if _note(models) == mark and all(
        (folder / "model.safetensors").is_file() for folder in folders(models).values()
    ):
        console.print(f"using the models already trained in {models}")
        return True
    (models / NOTE).unlink(missing_ok=True)
    transformers.set_seed(settings.seed)
    _train_all(models, texts, settings, console)
    (models / NOTE).write_text(json.dumps(mark) + "\n", "utf-8")
    return False


def _note(models: Path) -> Any:
    try:
        return json.loads((models / NOTE).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _train_all(
    models: Path, texts: Mapping[str, str], settings: Settings, console: Console
) -> None:
    tokenizer = train_tokenizer(texts, settings.vocabulary, 2 * settings.context)
    streams = {name: encode(tokenizer, text) for name, text in texts.items()}
    base = new_model(settings, tokenizer)
    count = sum(parameter.numel() for parameter in base.parameters())
    console.print(
        f"training a Llama of {count / 1e6:.2f} M parameters on "
        f"{sum(map(len, streams.values())):,} tokens of maths, code and prose"
    )
    work = {"base": (base, settings.base_mix, settings.base_steps, settings.base_rate)}
    _train_one("base", work["base"], streams, settings, console)
    _save(base, tokenizer, models / "base")
    for name in EXPERTS:
        job = (copy.deepcopy(base), _mix(name, settings), settings.expert_steps)
        _train_one(name, (*job, settings.expert_rate), streams, settings, console)
        _save(job[0], tokenizer, models / name)


def _mix(name: str, settings: Settings) -> dict[str, float]:
    mix = {kind: share * (1 - settings.expert_mix) for kind, share in settings.base_mix.items()}
    mix[name] += settings.expert_mix
    return mix


def _train_one(
    name: str, job: tuple[Any, Any, int, float], streams: Any, settings: Settings, console: Console
) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    model, mix, steps, rate = job
    columns = (
        TextColumn("{task.description:5}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]:.2f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(name, total=steps, loss=0.0)

        def report(step: int, loss: float) -> None:
            progress.update(bar, completed=step, loss=loss)

        train(model, streams, mix, steps=steps, rate=rate, settings=settings, report=report)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    import torch

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
