"""A tiny Llama and two experts with a tokenizer, and evidence of all three."""

from types import SimpleNamespace

import pytest
from _guided_models import nudge, save
from small_language import random_llama

from mergewise.evidence import collect, load_evidence

TEXTS = {
    "a": ["a rose is a rose", "by any other name", "would smell as sweet"],
    "b": ["1 + 1 = 2", "2 + 2 = 4 and 4 + 4 = 8"],
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """``base``, ``a``, ``b`` and their evidence; not to be written to."""
    root = tmp_path_factory.mktemp("guided")
    both = "input_moments,output_moments"
    for name, seed in (("base", None), ("a", 1), ("b", 2)):
        module = random_llama(0).module
        if seed:
            nudge(module, seed)
        save(module, root / name)
    found = {name: collect(both, root / name, TEXTS[name], root / f"{name}.evd") for name in "ab"}
    for name in "ab":
        found[f"base_{name}"] = collect(both, root / "base", TEXTS[name], root / f"base_{name}.evd")
    return SimpleNamespace(root=root, **found)


@pytest.fixture
def evidence(models):
    """What `guide` takes, opened anew."""
    own = {name: load_evidence(models.root / f"{name}.evd") for name in "ab"}
    return {**own, "base": [load_evidence(models.root / f"base_{name}.evd") for name in "ab"]}


@pytest.fixture
def recipe(models):
    """A function that makes a recipe over the experts."""

    def make(method="ties", experts="ab", each=None, **parts):
        each = {"weight": 1.0, "density": 0.5} if each is None else each
        return {
            "merge_method": method,
            "base_model": str(models.root / "base"),
            "models": [
                {"model": str(models.root / name), "parameters": dict(each)} for name in experts
            ],
            **parts,
        }

    return make
