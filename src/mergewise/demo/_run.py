"""The demo from end to end: train or reuse, merge every example recipe, score, show."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergewise.demo._data import encode, find_examples, read_texts
from mergewise.demo._settings import FAST, FULL, Settings
from mergewise.errors import MergewiseError, MissingExtraError, OutputError

if TYPE_CHECKING:
    from rich.console import Console

RESULTS = "results.json"
PICTURE = "results.svg"
HEAT = "lewis.svg"
TASKS = "tasks.yml"
"""The only example that is no recipe."""


def run_demo(
    out: Path,
    *,
    fast: bool = False,
    console: Console | None = None,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Train a base and two experts on real text, merge them, and compare.

    Models are trained once and reused while the schedule and the texts are unchanged; merging and
    scoring are done every time.

    Args:
        out: folder to fill: `models`, `merged`, `recipes`, `results.json`, `results.svg` and the
            guided merge's heat maps, `lewis.svg`.
        fast: much smaller models and schedule, for a look at the mechanics only.
        console: where progress and the table go; standard error if absent.
        settings: other sizes; overrides `fast`.

    Returns:
        What is written to `results.json`: ``scores[model][kind]`` with ``loss`` in nats a token
        and ``accuracy`` from 0 to 1, and ``seconds`` by phase.

    Raises:
        MissingExtraError: if transformers and tokenizers are not installed.
        MergewiseError: if the texts are not found.
        OutputError: if `out` holds something that is not an earlier demo.
    """
    _require_transformers()
    from rich.console import Console

    from mergewise.demo._models import ensure_models

    console = console or Console(stderr=True)
    settings = settings or (FAST if fast else FULL)
    examples = find_examples()
    recipes = _recipes(examples, settings)
    _claim(out)
    clock = _Clock()
    with _threads(4), _quiet_transformers():
        reused = ensure_models(out / "models", read_texts(examples, "train"), settings, console)
        clock.lap("training")
        merged, took = _merge_all(recipes, examples, out, console)
        clock.lap("merging")
        scores = _score_all(out, merged, read_texts(examples, "heldout"), settings, console)
        clock.lap("scoring")
    results = {
        "scores": scores, "seconds": clock.laps, "merges": took, "models_reused": reused,
    }  # fmt: skip
    _show(results, out, console)
    return results


def _require_transformers() -> None:
    import importlib.util

    for package in ("transformers", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("hf", package)


def _recipes(examples: Path, settings: Settings) -> list[Path]:
    found = sorted(path for path in examples.glob("*.yml") if path.name != TASKS)
    chosen = [path for path in found if not settings.examples or path.stem in settings.examples]
    if not chosen:
        wanted = ", ".join(settings.examples) or "*.yml"
        have = ", ".join(path.stem for path in found) or "none"
        raise MergewiseError(f"no recipe to run in {examples}: wanted {wanted}, have {have}")
    # what is guided comes last, after what it is to be compared with
    return sorted(chosen, key=lambda path: ("\nguide:" in path.read_text("utf-8"), path.stem))


def _claim(out: Path) -> None:
    """Refuse a folder with other people's files in it; mark ours."""
    marker = out / ".mergewise-demo"
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give the demo a new folder")
    if out.is_dir() and not marker.exists() and any(out.iterdir()):
        raise OutputError(
            f"{out} is not empty and was not made by the demo; give another: mergewise demo FOLDER"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror}; give another folder") from None


def _merge_all(
    recipes: list[Path], examples: Path, out: Path, console: Console
) -> tuple[dict[str, Path], dict[str, float]]:
    """Every recipe's folder, and the seconds that each merge took."""
    here = out / "recipes"
    here.mkdir(exist_ok=True)
    merged, seconds = {}, {}
    for recipe in recipes:
        local = here / recipe.name
        text = recipe.read_text("utf-8").replace("demo/models/", f"{out.as_posix()}/models/")
        text = text.replace("examples/data/", f"{(examples / 'data').as_posix()}/")
        local.write_text(text, "utf-8")
        start = time.perf_counter()
        _merge(local, out, console)
        seconds[recipe.stem] = round(time.perf_counter() - start, 2)
        console.print(f"merged {recipe.stem} in {seconds[recipe.stem]:.2f} s")
        merged[recipe.stem] = out / "merged" / recipe.stem
    return merged, seconds


def _merge(recipe: Path, out: Path, console: Console) -> None:
    """Merge as one recipe says; draw what its guide found, if it has one."""
    import mergewise
    from mergewise.guides import follow

    folder = out / "merged" / recipe.stem
    folder.parent.mkdir(exist_ok=True)
    loaded = mergewise.load_recipe(recipe)
    if loaded.output.guide is not None:
        from mergewise.report.guides import picture

        begun = time.perf_counter()
        found = follow(
            loaded,
            folder,
            overwrite=True,
            told=lambda line: console.print(f"  {line}", soft_wrap=True),
        )
        (out / HEAT).write_text(picture(found, "What LEWIS found in each expert"), "utf-8")
        console.print(f"  guided in {time.perf_counter() - begun:.2f} s; heat maps: {out / HEAT}")
        loaded = found.recipe
    mergewise.merge(loaded, folder, overwrite=True)


def _score_all(
    out: Path, merged: dict[str, Path], texts: dict[str, str], settings: Settings, console: Console
) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from mergewise.demo._evaluate import score_folder
    from mergewise.demo._models import folders

    models = folders(out / "models")
    tokenizer = AutoTokenizer.from_pretrained(models["base"])
    streams = {name: encode(tokenizer, text) for name, text in texts.items()}
    scores = {}
    for name, folder in {**models, **merged}.items():
        with console.status(f"scoring {name}"):
            scores[name] = score_folder(folder, streams, settings.context, settings.heldout_tokens)
    return scores


def _show(results: dict[str, Any], out: Path, console: Console) -> None:
    from mergewise.demo._picture import picture
    from mergewise.demo._table import table

    (out / RESULTS).write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (out / PICTURE).write_text(picture(results["scores"]), "utf-8")
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in results["seconds"].items())
    console.print(table(results["scores"]))
    console.print(f"{seconds}. Numbers: {out / RESULTS}. Picture: {out / PICTURE}")
    console.print("Each folder is an ordinary Hugging Face model. Try one:")
    console.print(try_command(out / "merged" / "ties"), style="bold", soft_wrap=True, markup=False)


def try_command(folder: Path) -> str:
    """A shell command that loads `folder` with Transformers and lets it write."""
    code = (
        "from transformers import pipeline; "
        f"print(pipeline('text-generation', '{folder.as_posix()}')"
        "('Question: Tom has 3 apples', max_new_tokens=60)[0]['generated_text'])"
    )
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return f'{python} -c "{code}"'


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._start, 2)
        self._start = now


@contextmanager
def _threads(most: int) -> Iterator[None]:
    """Models this small only slow down on many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar for each of a dozen small models."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
