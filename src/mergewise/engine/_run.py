"""Run a recipe: checkpoints in, a checkpoint folder out."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergewise._allocator import give_back_freed_memory
from mergewise._device import pick_device
from mergewise._lazy import torch
from mergewise._units import parse_bytes, show_bytes
from mergewise.checkpoint import (
    FileReader,
    ShardLayout,
    cache_folder,
    check_room,
    on_one_disk,
    placed,
    plan_files,
    to_fetch,
)
from mergewise.constants import DEFAULT_SHARD_BYTES, FUSE_FROM_ELEMENTS
from mergewise.engine import _compile
from mergewise.engine._budget import choose_workers, estimate
from mergewise.engine._device import explained_memory
from mergewise.engine._journal import Workspace
from mergewise.engine._publish import publish
from mergewise.engine._schedule import Scheduler
from mergewise.engine._shards import ShardWriter
from mergewise.engine._stages import Task, Tasks
from mergewise.engine._stream import StreamedReader, most_at_once, uses
from mergewise.engine._task import Options
from mergewise.engine._threads import one_torch_thread
from mergewise.engine._work import Work
from mergewise.errors import (
    Diagnostic,
    InterruptedMergeError,
    MergewiseError,
    OutputError,
    RecipeError,
)
from mergewise.plan import MergePlan, build_plan
from mergewise.recipe import Recipe, load_recipe
from mergewise.vocabulary import OutputFiles

Progress = Callable[[int, int], None]
"""Called with (bytes written so far, bytes to write in all), from any thread."""


@dataclass(frozen=True)
class MergeResult:
    """What a merge made.

    Attributes:
        out: the output folder.
        files: shards, in order.
        bytes_written: of tensors, in this run and resumed ones together.
        resumed: shards taken over from an interrupted run.
        warnings: what is odd, but no reason to refuse.
        streamed: of inputs that were fetched as they were read: bytes in all, and at most at once.
    """

    out: Path
    files: tuple[str, ...]
    bytes_written: int
    resumed: int
    warnings: tuple[str, ...]
    streamed: tuple[int, int] | None = None


def merge(
    recipe: Recipe | MergePlan | str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    memory: str | int | None = None,
    shard_size: str | int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    restart: bool = False,
    lenient: bool = False,
    overrides: Sequence[str] = (),
    allow_nonfinite: bool = False,
    full_hashes: bool = False,
    stream_inputs: bool = False,
    on_resume: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge checkpoints as a recipe says and write the result as a Hugging Face folder.

    Interrupted or killed, it is continued by the same call: what is finished is kept in
    ``out/.mergewise``, and the final bytes are those of an uninterrupted run.

    Args:
        recipe: a file, YAML text, a mapping, a loaded recipe, or a plan.
        out: the output folder; must be absent or empty unless `overwrite`.
        device: ``auto`` (a CUDA device if there is one, else ``cpu``), ``cpu`` or ``cuda:N``.
        workers: threads; by default one per processor. The bytes do not depend on it.
        memory: most resident memory to plan for, such as ``4GB``.
        shard_size: most bytes of one output file, such as ``5GB``.
        overwrite: replace a model that is in `out` already.
        restart: discard an unfinished merge in `out` instead of continuing it.
        lenient: take unknown recipe keys as warnings; only for a recipe yet to be read.
        overrides: ``KEY=VALUE`` changes to the recipe, as by ``--set``; likewise.
        allow_nonfinite: go on when an input holds NaN or infinity.
        full_hashes: record SHA-256 of all inputs and outputs (reads everything once more).
        stream_inputs: fetch files of the Hub when they are first read, and drop them after their
            last use, instead of downloading all into its cache first.
        on_resume: called before the work if an unfinished merge in `out` is continued.
        progress: called as bytes are written.

    Raises:
        RecipeError: everything wrong with the recipe or its models, before any data is read.
        OutputError: if `out` cannot be written or must not be.
        CheckpointError: if an input breaks or changes during the merge.
        NonFiniteError: if an input holds NaN or infinity.
        InterruptedMergeError: on Ctrl-C.
    """
    plan = _plan(recipe, lenient, overrides)
    _refuse_guided(plan.recipe)
    if estimate(plan).decomposes:
        give_back_freed_memory()
    return _Run(
        plan,
        Path(out),
        device=pick_device(device),
        workers=choose_workers(plan, workers, parse_bytes(memory) if memory else None),
        shard_bytes=parse_bytes(shard_size),
        overwrite=overwrite,
        restart=restart,
        check=not allow_nonfinite,
        full_hashes=full_hashes,
        stream=stream_inputs,
        on_resume=on_resume,
        progress=progress,
    ).run()


def _plan(
    recipe: Recipe | MergePlan | str | Path | Mapping[str, Any],
    lenient: bool,
    overrides: Sequence[str],
) -> MergePlan:
    if isinstance(recipe, MergePlan | Recipe):
        if overrides or lenient:
            kind = "plan" if isinstance(recipe, MergePlan) else "loaded recipe"
            raise MergewiseError(
                f"overrides and lenient change how a recipe is read, and a {kind} was given; "
                "pass them to load_recipe, or give the recipe's file, text or mapping"
            )
        return recipe if isinstance(recipe, MergePlan) else build_plan(recipe)
    return build_plan(load_recipe(recipe, lenient=lenient, overrides=overrides))


def _refuse_guided(recipe: Recipe) -> None:
    """Numbers that a guide has yet to find are not run as if they were its.

    Nor is a checkpoint written where something else is asked for.
    """
    if recipe.output.makes is not None:
        at = recipe.output.positions["form"]
        raise RecipeError(
            [
                Diagnostic(
                    at.path, at.line, at.column,
                    f"form: {recipe.output.makes.name} is made by mergewise.merge and `mergewise "
                    "merge`; the engine writes checkpoints",
                )
            ]
        )  # fmt: skip
    for stage in recipe.stages:
        if stage.guide is not None:
            at = stage.positions["guide"]
            raise RecipeError(
                [
                    Diagnostic(
                        at.path, at.line, at.column,
                        f"guide: {stage.guide['name']} has not been run; mergewise.merge and "
                        "`mergewise merge` run it first, `mergewise guide` writes its recipe",
                    )
                ]
            )  # fmt: skip


@dataclass
class _Run:
    plan: MergePlan
    out: Path
    device: str
    workers: int
    shard_bytes: int
    overwrite: bool
    restart: bool
    check: bool
    full_hashes: bool
    stream: bool
    on_resume: Callable[[], None] | None
    progress: Progress | None

    def run(self) -> MergeResult:
        self._refuse_own_inputs()
        self.files = self._output_files()
        fuse = self._fuses()
        # what the bytes depend on; workers, say, are not among it
        self.settings = {
            "device": self.device.split(":")[0],
            "kernels": "compiled" if fuse else "torch",
            "shard_size": self.shard_bytes,
        }
        identity = {"plan": self.plan.digest(), "check": self.check, **self.settings}
        space = Workspace(self.out, identity, overwrite=self.overwrite, restart=self.restart)
        try:
            self._check_space(space)
            if space.resumed and self.on_resume:
                self.on_resume()
            return self._merge(space, fuse)
        except InterruptedMergeError:
            kept, more = len(space.done), space.tensors_done
            space.abandon(unfinished=True)
            raise InterruptedMergeError(
                f"stopped; {kept} finished shard{'s' * (kept != 1)} kept in {space.folder}, and "
                f"{more} tensors of an unfinished one. Run the same command again to go on"
            ) from None
        except BaseException:
            space.abandon()
            raise

    def _merge(self, space: Workspace, fuse: bool) -> MergeResult:
        plan = self.plan
        options = Options(device=self.device, fuse=fuse, check=self.check)
        scheduler = Scheduler(self.workers)
        with (
            self._reader(space, scheduler) as reader,
            one_torch_thread(),
            explained_memory(self.device),
        ):
            tasks = Tasks(plan, reader, options)
            tasks.check_evidence(scheduler)
            tasks.look_ahead(scheduler)
            tied = self._tied(tasks, scheduler)
            layouts = self._layouts(tied)
            streamed = reader if isinstance(reader, StreamedReader) else None
            resumed = self._write_shards(space, tasks, layouts, scheduler, streamed)
            recorded = tasks.recorded()
            reader.verify_unchanged()
        settings: dict[str, Any] = self.settings
        if recorded:
            settings = {**settings, "whole_model": recorded}
        bad = sorted(options.nonfinite)
        if bad:
            settings = {**settings, "nonfinite": bad}
        warnings = publish(
            plan,
            space,
            layouts,
            tied=tied,
            settings=settings,
            full_hashes=self.full_hashes,
            files=self.files,
        )
        if bad:
            some = ", ".join(bad[:5]) + (", …" if bad[5:] else "")
            warnings.append(f"NaN or infinity let through in {len(bad)} tensors: {some}")
        return MergeResult(
            out=self.out,
            files=tuple(placed(layout.filename) for layout in layouts),
            bytes_written=sum(sum(layout.sizes.values()) for layout in layouts),
            resumed=resumed,
            warnings=(*plan.warnings, *warnings),
            streamed=(streamed.fetched, streamed.most) if streamed else None,
        )

    def _reader(self, space: Workspace, scheduler: Scheduler) -> FileReader:
        """All inputs, open; those on the Hub are downloaded first, or else as they are read."""
        plan = self.plan
        stamps = {p: s for c in plan.checkpoints.values() for p, s in c.stamps.items()}
        stamps |= {known.path: known.stamp for known in plan.evidence.values()}
        if not self.stream:
            return FileReader(stamps)
        inputs = space.folder / "inputs"
        return StreamedReader(stamps, inputs, uses(plan), lambda: scheduler.stopped)

    def _output_files(self) -> OutputFiles | None:
        """The output's tokenizer, if it is not simply a copy; trouble with it comes before work."""
        output = self.plan.output
        if output.vocabulary is None:
            return None
        vocabulary = output.vocabulary
        return OutputFiles(
            vocabulary.tokenizer, vocabulary.rows, output.donor.folder, vocabulary.special
        )

    def _write_shards(
        self,
        space: Workspace,
        tasks: Tasks,
        layouts: list[ShardLayout],
        scheduler: Scheduler,
        turns: StreamedReader | None,
    ) -> int:
        total = sum(sum(layout.sizes.values()) for layout in layouts)
        count = _Counter(total, self.progress)
        resumed = 0
        for layout in layouts:
            writer = ShardWriter(space.folder, layout, tasks, count.add, turns)
            recorded = space.done.get(layout.filename)
            if recorded and writer.intact(space.locate(layout.filename), recorded):
                count.add(sum(layout.sizes.values()))
                resumed += 1
                if turns is not None:
                    turns.all_finished(layout.offsets)
                continue
            space.finished(layout.filename, writer.write(scheduler))
        return resumed

    def _tied(self, tasks: Tasks, scheduler: Scheduler) -> bool | None:
        """Whether the output's head is its embedding; None if the config already says so."""
        output = self.plan.output
        if output.tied:
            return True
        if not output.maybe_tied:
            return None
        head, embedding = output.maybe_tied
        pair = tasks.output(head), tasks.output(embedding)
        found: bool = scheduler.run_one(_equal(*pair, tasks))
        return found

    def _layouts(self, tied: bool | None) -> list[ShardLayout]:
        output = self.plan.output
        left_out = output.maybe_tied[0] if output.maybe_tied and tied else None
        specs = [
            (t.meta.name, t.meta.dtype, t.meta.shape)
            for name, t in output.tensors.items()
            if name != left_out
        ]
        return plan_files(specs, self.shard_bytes, self.plan.donor)

    def _fuses(self) -> bool:
        large = self.plan.elements >= FUSE_FROM_ELEMENTS
        return large and self.device == "cpu" and _compile.helpers() is not None

    def _refuse_own_inputs(self) -> None:
        out = self.out.resolve()
        for label, checkpoint in self.plan.checkpoints.items():
            # files may be links into the output folder
            folders = {checkpoint.folder.resolve(), *(f.resolve().parent for f in checkpoint.files)}
            if out in folders:
                raise OutputError(
                    f"{self.out}: is the folder of the input {label}, or holds its files; "
                    "choose another output folder"
                )

    def _check_space(self, space: Workspace) -> None:
        places = [space.locate(name) for name in space.done]
        need = self.plan.bytes_write - sum(p.stat().st_size for p in places if p.is_file())
        if self.stream:
            come, cache = most_at_once(self.plan), space.folder
        else:
            come = sum(each.file.size for each in to_fetch(self.plan.checkpoints.values()))
            cache = cache_folder() if come else space.folder
        check_room(come, cache)
        if on_one_disk(cache, space.folder):
            need += come
        free = shutil.disk_usage(space.folder).free
        if need > free:
            raise OutputError(
                f"{self.out}: {show_bytes(need)} are needed on this disk and {show_bytes(free)} "
                "are free; make room, or choose another folder"
            )


def _equal(a: Task, b: Task, tasks: Tasks) -> Work:
    """Whether two output tensors are the same; stops at the first block that differs."""
    yield from a.prepare(tasks.shared(a.name))
    yield from b.prepare(tasks.shared(b.name))
    if a.shape != b.shape or a.out_dtype != b.out_dtype:
        return False
    # a copied block may lie in the buffer that reading the other one reuses
    return all(torch.equal(a.merged(where).clone(), b.merged(where)) for where in a.ranges())


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:  # also so that the numbers reported never fall
            self._done += count
            if self._progress:
                self._progress(self._done, self._total)
