"""Turn finished shards into a model folder: small files, index, and config.json last."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergewise.checkpoint import (
    PICKLE_ENDINGS,
    TORCH_NAMES,
    CardInput,
    ChangedRef,
    Checkpoint,
    PackedRef,
    ShardLayout,
    TensorRef,
    access,
    copied_files,
    copy_parts,
    copy_tokenizer,
    edited_config,
    fingerprint,
    index_files,
    make_folder,
    model_card,
    origin_of,
    placed,
    provenance,
    sha256_file,
    stated_licence,
    versions,
    write_config,
    write_file,
)
from mergewise.engine._journal import Workspace
from mergewise.engine._record import stage_records
from mergewise.errors import OutputError
from mergewise.methods import get_method
from mergewise.plan import MergePlan
from mergewise.vocabulary import OutputFiles, write_template

RECIPE_FILE = "mergekit_config.yml"
PROVENANCE_FILE = "mergewise_provenance.json"
_STEM = r"(model|diffusion_pytorch_model)"
_WEIGHTS = re.compile(_STEM + r"(\.\w+)?(-\d{5}-of-\d{5})?(\.\w+)?\.safetensors")
_INDEX = re.compile(r".*\.safetensors\.index(\.\w+)?\.json")
_LAST = ("config.json", "model_index.json")
"""Files without which a folder is visibly unfinished."""


def publish(
    plan: MergePlan,
    space: Workspace,
    layouts: Sequence[ShardLayout],
    *,
    tied: bool | None,
    settings: Mapping[str, Any],
    full_hashes: bool,
    files: OutputFiles | None = None,
) -> list[str]:
    """Move the shards into the output folder and write everything else; returns warnings.

    `files` are those of an output that has not simply its donor's tokenizer.

    The config comes last: whatever interrupts this, a folder with a config is complete.

    Raises:
        OutputError: if a file cannot be written, moved or removed.
    """
    config = describe(plan, tied)
    small = space.folder / "files"
    try:
        shutil.rmtree(small, ignore_errors=True)
        small.mkdir()
        donor = plan.output.donor.folder
        copied = files.write(small) if files else copy_tokenizer(donor, small)
        if plan.output.template is not None:
            write_template(small, plan.output.template)
        write_file(small / RECIPE_FILE, plan.recipe.text.encode())
        names = [layout.filename for layout in layouts]
        record = _provenance(plan, space, names, settings, full_hashes)
        write_file(small / PROVENANCE_FILE, record)
        write_file(small / "README.md", _card(plan, space.out).encode())
        for name, index in index_files(layouts).items():
            make_folder((small / name).parent)
            write_file(small / name, index)
        warnings = list(copied.warnings)
        if plan.donor and plan.donor.pipeline:
            warnings += copy_parts(plan.donor, small).warnings
        if config is not None:
            write_config(small, config)
        move_in(space, small, names)
    except OSError as error:
        raise OutputError(
            f"{space.out}: the finished merge cannot be moved there: {error}; "
            "see to it, and run the same command again"
        ) from None
    space.remove()
    return warnings


def move_in(space: Workspace, small: Path, names: Sequence[str]) -> None:
    """Move finished shards and a folder of small files into the output folder, config last.

    Raises:
        OSError: if a file cannot be moved or removed.
    """
    space.begin_publishing()
    _move_weights(space, set(names))
    _move_small(small, space.out)


def _move_weights(space: Workspace, names: set[str]) -> None:
    """Replace the weights in the output folder by the new ones, which makes it unfinished."""
    out = space.out
    kept = {placed(name) for name in names}
    for stale in (out / name for name in _LAST):
        stale.unlink(missing_ok=True)
    for folder in [out, *{(out / place).parent for place in kept} - {out}]:
        make_folder(folder)
        for old in sorted(folder.iterdir()):
            weights = _WEIGHTS.fullmatch(old.name) and old.relative_to(out).as_posix() not in kept
            if weights or _INDEX.fullmatch(old.name):
                old.unlink()
    for small in copied_files(out):  # of a model with another tokenizer, perhaps
        if small.is_file() or small.is_symlink():
            small.unlink()
    for name in sorted(names):
        if (space.folder / name).exists():
            (space.folder / name).replace(out / placed(name))


def _move_small(small: Path, out: Path) -> None:
    files = sorted(path for path in small.rglob("*") if path.is_file())
    last = [small / name for name in _LAST]
    for file in files:
        if file not in last:
            target = out / file.relative_to(small)
            if target.parent != out:
                make_folder(target.parent)
            file.replace(target)
    for file in last:
        if file.exists():
            _flush(out)
            file.replace(out / file.name)
    _flush(out)


def _flush(folder: Path) -> None:
    """Have the renames so far on disk."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def describe(plan: MergePlan, tied: bool | None) -> dict[str, Any] | None:
    """The output's config; None if the donor has none.

    Raises:
        CheckpointError: if the donor's config cannot describe the output's layers.
    """
    output = plan.output
    if output.config is None:
        return None
    sizes: dict[str, int] = {}
    for tensor in output.tensors.values():
        if tensor.meta.dtype.startswith(("F", "BF")):
            sizes[tensor.meta.dtype] = sizes.get(tensor.meta.dtype, 0) + tensor.meta.nbytes
    main = max(sizes, key=lambda code: sizes[code]) if sizes else None
    return edited_config(
        output.config,
        dtype=TORCH_NAMES[main] if main else None,
        tie_word_embeddings=tied,
    )


def _provenance(
    plan: MergePlan,
    space: Workspace,
    names: Sequence[str],
    settings: Mapping[str, Any],
    full_hashes: bool,
) -> bytes:
    record = provenance(
        recipe=plan.recipe.text,
        seeds=plan.seeds,
        inputs={label: c.files for label, c in plan.checkpoints.items()},
        outputs={placed(name): space.done[name] for name in names},
        config={"recipe_digest": plan.recipe.digest, **settings},
    )
    record["stages"] = stage_records(plan)
    for model, checkpoint in zip(record["inputs"], plan.checkpoints.values(), strict=True):
        model.update(_origins(checkpoint))
    if plan.evidence:
        record["evidence"] = [
            {"name": known.path.name, "fingerprint": fingerprint(known.path), **known.summary}
            for known in plan.evidence.values()
        ]
    if full_hashes:
        for model, checkpoint in zip(record["inputs"], plan.checkpoints.values(), strict=True):
            for entry, path in zip(model["files"], checkpoint.files, strict=True):
                entry["sha256"] = entry.get("sha256") or sha256_file(path)
        record["outputs_sha256"] = {placed(n): sha256_file(space.locate(n)) for n in names}
    return (json.dumps(record, indent=2) + "\n").encode()


def _origins(checkpoint: Checkpoint) -> dict[str, Any]:
    """Repository and commit of a model and of its adapter, as far as they are the Hub's."""
    places = {"hub": checkpoint.folder, "adapter_hub": checkpoint.adapter}
    found = {key: origin_of(place) for key, place in places.items() if place is not None}
    return {
        key: {"repository": origin.repo, "commit": origin.commit}
        for key, origin in found.items()
        if origin is not None
    }


def _card_inputs(plan: MergePlan) -> list[CardInput]:
    """The models, and apart from their bases the adapters: each has its licence and its mark."""
    base = str(plan.output.stage.base_model)
    plain = {c.folder: "base" if label == base else "expert"
             for label, c in plan.checkpoints.items() if c.adapter is None}  # fmt: skip
    found: dict[Path, CardInput] = {}
    for checkpoint in plan.checkpoints.values():
        folder, adapter = checkpoint.folder, checkpoint.adapter
        role = plain.get(folder, "base of an adapter")
        found[folder] = _card_input(folder, role, checkpoint.files[0])
        if adapter is not None:
            weights = next(f for f in checkpoint.files if f.parent == adapter)
            found[adapter] = _card_input(adapter, f"adapter of {found[folder].name}", weights)
    return list(found.values())


def _card_input(folder: Path, role: str, file: Path) -> CardInput:
    licence, origin = stated_licence(folder), origin_of(folder)
    if origin is not None:
        return CardInput(origin.repo, role, licence, f"commit {origin.commit[:12]}", hub=True)
    # a local folder, however much its path looks like a Hub name
    return CardInput(folder.resolve().name, role, licence, fingerprint(file)[:16])


def _card(plan: MergePlan, out: Path) -> str:
    method = get_method(plan.output.stage.method)
    donor = plan.output.donor.config or {}
    architectures = donor.get("architectures") or [None]
    return model_card(
        title=plan.output.stage.name or out.resolve().name,
        method=method.name,
        summary=method.summary,
        source=method.source,
        inputs=_card_inputs(plan),
        recipe=plan.recipe.text,
        command=" ".join(
            ["mergewise merge", RECIPE_FILE, shlex.quote(out.resolve().name), *_leave(plan)]
        ),
        seed=plan.seeds_in_words,
        versions=versions(),
        architecture=architectures[0],
        library=_library(plan),
        dialect=not any(stage.stage.native for stage in plan.stages),
    )


def _leave(plan: MergePlan) -> list[str]:
    """The flags without which these models are not opened."""
    found = plan.checkpoints.values()
    pickles = any(file.suffix in PICKLE_ENDINGS for c in found for file in c.files)
    packed = any(_is_packed(ref) for c in found for ref in c.tensors.values())
    variant = access().variant
    return [
        *(["--allow-pickle"] if pickles else []),
        *(["--dequantize"] if packed else []),
        *(["--variant", shlex.quote(variant)] if variant else []),
    ]


def _is_packed(ref: TensorRef) -> bool:
    stored = ref.stored if isinstance(ref, ChangedRef) else ref
    return isinstance(stored, PackedRef)


def _library(plan: MergePlan) -> str | None:
    """What loads the result, as the Hub calls it; None for a plain state dict."""
    config = plan.output.config or {}
    if (plan.donor and plan.donor.pipeline) or "_class_name" in config:
        return "diffusers"
    return "transformers" if config else None
