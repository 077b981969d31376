"""Chat templates: named ones, those of a folder, and how one is written beside a tokenizer.

`transformers` reads ``chat_template.jinja`` first, and older versions ``chat_template`` in
``tokenizer_config.json``; both are written. Formats: ChatML and Llama 3 as their authors document
them, Mistral as in the first version of its instruct models, Alpaca as in its repository, EXAONE 3
as in llama.cpp's list of templates (from memory).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergewise.checkpoint import parse_object, read_small, stays_inside, where, write_file
from mergewise.errors import CheckpointError
from mergewise.vocabulary._tokenizer_json import MAX_FILE

JINJA = "chat_template.jinja"
_OLD = "chat_template.json"
_MORE = "additional_chat_templates"
_CONFIG = "tokenizer_config.json"
_MARKS = re.compile(r"<\|[\w-]+\|>|\[\|[\w-]+\|\]|<(?:start|end)_of_\w+>|</?s>")
_VARIABLES = ("bos_token", "eos_token")

_CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

_MISTRAL = """\
{{- bos_token }}
{%- set notes = namespace(system='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set notes.system = message['content'] + '\\n\\n' %}
    {%- elif message['role'] == 'user' %}
        {{- '[INST] ' + notes.system + message['content'] + ' [/INST]' }}
        {%- set notes.system = '' %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

_ALPACA = """\
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- '### Instruction:\\n' + message['content'] + '\\n\\n' }}
    {%- else %}
        {{- '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\\n' }}
{%- endif %}
"""

_EXAONE = """\
{%- for message in messages %}
    {{- '[|' + message['role'] + '|]' + message['content'] }}
    {{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[|assistant|]' }}
{%- endif %}
"""

NAMED: Mapping[str, str] = {
    "alpaca": _ALPACA, "chatml": _CHATML, "llama3": _LLAMA3, "mistral": _MISTRAL,
    "exaone": _EXAONE,
}  # fmt: skip


def template_in(folder: Path) -> str | None:
    """The chat template of a model folder, as `transformers` would find it; None without one.

    Raises:
        CheckpointError: if a file is broken, or a link that leaves the folder.
    """
    data = _read(folder, JINJA)
    if data is not None:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{where(folder / JINJA)}: not UTF-8 text") from None
    for name in (_CONFIG, _OLD):
        data = _read(folder, name)
        if data is not None:
            found = _stated(parse_object(data, folder / name, name).get("chat_template"))
            if found:
                return found
    return None


def _stated(value: Any) -> str | None:
    """Of a list of named ones, the default."""
    if isinstance(value, list):
        named = [v for v in value if isinstance(v, dict) and v.get("name") == "default"]
        value = named[0].get("template") if named else None
    return value if isinstance(value, str) else None


def _read(folder: Path, name: str) -> bytes | None:
    path = folder / name
    if not path.is_file():
        return None
    if not stays_inside(path, folder):
        raise CheckpointError(f"{where(path)}: a link that leaves the folder; copy the file itself")
    return read_small(path, MAX_FILE)


def lacking(text: str, tokens: Mapping[str, int], folder: Path) -> list[str]:
    """Special tokens that a template writes and a tokenizer has not, in their order.

    Args:
        tokens: of the tokenizer.
        folder: where the tokenizer's settings lie, which say what ``bos_token`` is.
    """
    found = [token for token in dict.fromkeys(_MARKS.findall(text)) if token not in tokens]
    data = _read(folder, _CONFIG)
    settings = parse_object(data, folder / _CONFIG, _CONFIG) if data else {}
    used = [name for name in _VARIABLES if re.search(rf"\b{name}\b", text)]
    return found + [name for name in used if not settings.get(name)]


def write_template(folder: Path, text: str) -> None:
    """Make a text the only chat template of a folder of small files.

    Raises:
        OutputError: if it cannot be written.
        CheckpointError: if ``tokenizer_config.json`` cannot be read.
    """
    write_file(folder / JINJA, text.encode("utf-8", "surrogatepass"))
    shutil.rmtree(folder / _MORE, ignore_errors=True)
    for name in (_CONFIG, _OLD):
        path = folder / name
        if path.is_file():
            found = parse_object(read_small(path, MAX_FILE), path, name)
            found["chat_template"] = text
            write_file(path, (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
