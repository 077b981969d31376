"""Random checkpoints of a few kilobytes, and ways to look at folders byte by byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_evidence import base_evidence_for, evidence_for, write_means

from mergewise.methods import Method, all_methods, get_method

State = dict[str, torch.Tensor]


def llama_shapes(
    layers: int = 2, hidden: int = 16, vocab: int = 40, inner: int = 24, head: bool = True
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama with two key-value heads of four."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        start = f"model.layers.{i}."
        half = hidden // 2
        for part, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (half, hidden),
            "self_attn.v_proj": (half, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"{start}{part}.weight"] = shape
    shapes["model.norm.weight"] = (hidden,)
    if head:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def llama_config(shapes: Mapping[str, tuple[int, ...]], **more: Any) -> dict[str, Any]:
    """The config.json that belongs to `llama_shapes`; tied if they hold no head."""
    vocab, hidden = shapes["model.embed_tokens.weight"]
    layers = {name.split(".")[2] for name in shapes if name.startswith("model.layers.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": len(layers),
        "vocab_size": vocab,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "torch_dtype": "bfloat16",
        **more,
    }


def random_state(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.bfloat16
) -> State:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=draw).mul(0.1).to(dtype) for n, s in shapes.items()}


def near(base: State, seed: int, scale: float = 0.02) -> State:
    """An expert: the base and a small random change of every floating-point tensor."""
    draw = torch.Generator().manual_seed(1000 + seed)
    return {
        n: (t.float() + scale * torch.randn(t.shape, generator=draw)).to(t.dtype)
        if t.is_floating_point()
        else t.clone()
        for n, t in base.items()
    }


def save(folder: Path, state: State, config: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint folder; with a config it also has a (pretended) tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    return folder


def family(root: Path, experts: int = 2, dtype: torch.dtype = torch.bfloat16, **shape: Any) -> Path:
    """Folders ``base``, ``expert_a``, ``expert_b``, … of one small Llama; returns `root`."""
    shapes = llama_shapes(**shape)
    base = random_state(shapes, 0, dtype)
    save(root / "base", base, llama_config(shapes))
    for i in range(experts):
        save(root / f"expert_{'abcdef'[i]}", near(base, i), llama_config(shapes))
    return root


def recipe(root: Path, method: str, experts: int = 2, **parts: Any) -> dict[str, Any]:
    """A recipe over a `family`, with the parameters that methods need.

    Keyword arguments are the document's other keys; `parameters` joins the defaults, `each` is
    given to every expert.
    """
    chosen = get_method(method)
    each = {"weight": 0.5} if "weight" in chosen.params else {}
    each |= parts.pop("each", {})
    models = [
        {"model": str(root / f"expert_{'abcdef'[i]}"), **({"parameters": each} if each else {})}
        for i in range(experts)
    ]
    whose = {need.of for need in chosen.needs_at_defaults()}
    if "experts" in whose:
        for model in models:
            folder = Path(model["model"])
            [means] = evidence_for(chosen, [load(folder)])
            model["evidence"] = _evidence_file(folder, chosen, means)
    if "base" in whose:
        means = base_evidence_for(chosen, load(root / "base"))
        file = _evidence_file(root / "base", chosen, means)
        models.append({"model": str(root / "base"), "evidence": file})
    document: dict[str, Any] = {"merge_method": method, "models": models}
    if method not in NO_BASE:
        document["base_model"] = str(root / "base")
    shared = dict(PARAMETERS.get(method, {})) | parts.pop("parameters", {})
    if shared:
        document["parameters"] = shared
    return document | parts


def _evidence_file(folder: Path, method: Method, means: dict[str, Any]) -> str:
    file = folder.parent / f"{folder.name}.{method.name}.safetensors"
    return str(write_means(file, method, means))


NO_BASE = {name for name, method in all_methods().items() if method.base != "required"}
PARAMETERS: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.4},
    "nearswap": {"t": 0.01},
    "ties": {"density": 0.4},
    "dare_ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.2},
    "della_linear": {"density": 0.5, "epsilon": 0.2},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.1},
    "sce": {"select_topk": 0.5},
    "fednova": {"steps": 100},
}


def load(folder: Path) -> State:
    """All tensors of a folder's safetensors files."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same(one: State, other: State) -> None:
    """Equal names, dtypes, shapes and bits (NaN included)."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        match = other[name]
        assert (tensor.dtype, tensor.shape) == (match.dtype, match.shape), name
        same = torch.equal(
            tensor.contiguous().flatten().view(torch.uint8),
            match.contiguous().flatten().view(torch.uint8),
        )
        assert same, name
