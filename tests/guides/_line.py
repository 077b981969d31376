"""Models on a line through a target t, and an evaluator that knows how far each is from it.

All are one tiny Llama but for its norms. t has ones there; a model at c has 1 + c in the last
norm's even places, and 1 + c / 2 in the first layer's, so that every score is exact.
"""

import gc

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS = 3
TASK = {"name": "near", "kind": "python", "function": "_line:near", "role": "causal_lm"}


def tasks(**more):
    """A tasks file's content: minus the squared distance from t."""
    return {"tasks": [TASK | more]}


def target():
    """The model at t."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=16, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save(folder, **places):
    """Checkpoints by name, each at its place on the line, below `folder`."""
    for name, c in places.items():
        module = target()
        with torch.no_grad():
            module.model.norm.weight[::2] += c
            module.model.layers[0].input_layernorm.weight[::2] += c / 2
        module.save_pretrained(folder / name)
    quick()
    return folder


def quick():
    """Every scoring collects garbage; not among all that transformers has imported."""
    gc.freeze()


def soup(folder, names, method="linear", each=None, **parts):
    """A recipe over checkpoints."""
    each = {"weight": 1.0} if each is None else each
    models = [{"model": str(folder / n), "parameters": dict(each)} for n in names]
    return {"merge_method": method, "models": models, **parts}


def near(model, records, split):
    """Minus the squared distance from t."""
    weights = dict(model.module.named_parameters())
    found = [weights[n] for n in ("model.norm.weight", "model.layers.0.input_layernorm.weight")]
    distance = sum(float((w.detach() - 1).double().square().sum()) for w in found)
    return {"score": -distance, "distance": distance}


def labels(guided):
    """The last parts of the models' paths in an explicit recipe."""
    return [source.model.path.rsplit("/", 1)[-1] for source in _sources(guided)]


def weights(guided):
    """The weights of the models in an explicit recipe, where each has one."""
    return [float(s.parameters["weight"].conditions[0].value) for s in _sources(guided)]


def _sources(guided):
    [slice_] = guided.recipe.output.modules[0].slices
    return [source for source in slice_.sources if not source.implicit]
