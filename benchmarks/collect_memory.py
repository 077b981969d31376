"""Peak memory of collecting statistics from a model that stays on disk.

    python benchmarks/collect_memory.py [--size 1.1B] [--statistics input_moments,input_gram]

A random bfloat16 checkpoint of Llama's shape is made in a temporary folder (2.2 GB for 1.1B), and
`mergewise collect … --offload` runs on it in a process of its own, whose largest resident memory
the system reports. The sums of input_gram are larger than the model: they are added up in a
temporary file, so 15 GB of disk are needed. Exit code 1 if the limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from models import SHAPES, made_apart

LIMIT = 1_500_000_000
WORDS = [
    "a", "river", "runs", "through", "the", "town", "and", "under", "seven", "bridges", "built",
    "by", "hand", "long", "ago",
]  # fmt: skip


def main() -> int:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="mergewise-collect-", dir=options.folder))
    try:
        model = made_apart(folder, options.size, experts=0)[0]
        _tokenizer(model)
        texts = folder / "texts.jsonl"
        texts.write_text("".join(_text(i, options.words) for i in range(options.texts)))
        peak, seconds = _run(_command(options, model, texts, folder / "stats.evd"))
        size = (folder / "stats.evd").stat().st_size
        part = _show(folder / "stats.evd")["parts"][0]
    finally:
        shutil.rmtree(folder)
    print(f"model          {options.size}, bfloat16, offloaded")
    print(f"statistics     {options.statistics}, {size / 1e9:.2f} GB")
    print(f"data           {part['records']} texts, {part['tokens']} tokens")
    print(f"wall time      {seconds:.0f} s")
    print(f"peak memory    {peak / 1e6:.0f} MB resident (limit {LIMIT / 1e6:.0f})")
    return int(peak > LIMIT)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SHAPES), default="1.1B")
    parser.add_argument("--statistics", default="input_moments,input_gram")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--memory", default="200MB", help="for sums")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is")
    return parser.parse_args()


def _tokenizer(model: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", *WORDS]))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(model / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))


def _text(number: int, words: int) -> str:
    # of different lengths, so that there is padding
    chosen = [WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(words - number)]
    return json.dumps({"text": " ".join(chosen)}) + "\n"


def _command(options: argparse.Namespace, model: Path, texts: Path, out: Path) -> list[str]:
    return [
        sys.executable, "-m", "mergewise", "collect", options.statistics, str(model),
        "--data", str(texts), "-o", str(out), "--offload", "--memory", options.memory,
        "--batch-size", str(options.batch_size),
    ]  # fmt: skip


def _run(command: list[str]) -> tuple[int, float]:
    """Peak resident bytes and seconds of a process."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"the command failed: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit, time.monotonic() - start


def _show(file: Path) -> dict[str, list[dict[str, int]]]:
    command = [sys.executable, "-m", "mergewise", "evidence", "show", str(file), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
