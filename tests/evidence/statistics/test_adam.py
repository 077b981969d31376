"""Second moments read back from the files optimizers are saved in."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from _gradient_models import settings, texts, tiny_bert, tiny_llama
from safetensors.torch import load_file, save_file

from mergewise.checkpoint import open_checkpoint
from mergewise.errors import CheckpointError, EvidenceError, NonFiniteError
from mergewise.evidence.statistics._adam_names import named_by_order
from mergewise.evidence.statistics._adam_state import OptimizerState, Slot
from mergewise.evidence.statistics.adam import Adam

BETA2 = 0.9
STEPS = 5


def trainer_groups(model):
    """As the Trainer of the installed `transformers` hands them to its optimizer."""
    from transformers import Trainer

    decayed = Trainer.get_decay_parameter_names(None, model)
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if n in decayed], "weight_decay": 0.01},
        {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
    ]


def one_group(model):
    return [{"params": [p for _, p in model.named_parameters()]}]


def named_groups(model):
    return [{"params": [(f"module.{n}", p) for n, p in model.named_parameters()]}]


def train(model, groups=trainer_groups, optimizer=torch.optim.AdamW):
    made = optimizer(groups(model), lr=1e-2, betas=(0.8, BETA2))
    rows = texts((6,) * STEPS)
    for i, ids in enumerate(rows):
        labels = ids if hasattr(model, "lm_head") else [i % 3]
        model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.backward()
        made.step()
        made.zero_grad()
    return made


def run_folder(folder: Path, model, made) -> tuple[Path, dict[str, torch.Tensor]]:
    """A training checkpoint, and the second moments by the names they are saved under."""
    model.save_pretrained(folder)
    torch.save(made.state_dict(), folder / "optimizer.pt")
    moments = {n: made.state[p]["exp_avg_sq"] for n, p in model.named_parameters() if made.state[p]}
    stored = load_file(folder / "model.safetensors")
    assert moments.keys() <= stored.keys()
    return folder, moments


def read(folder: Path, name: str = "optimizer.pt", allow_pickle: bool = True, **options):
    statistic = Adam()
    chosen = settings(statistic, allow_pickle=allow_pickle, **options)
    found: dict[str, dict[str, torch.Tensor]] = {"second_moment": {}, "step": {}}
    for tensor, sum_, value, count in statistic.read(
        open_checkpoint(folder), folder / name, chosen
    ):
        assert tensor not in found[sum_] and count == (sum_ == "second_moment")
        found[sum_][tensor] = value
    return found["second_moment"], found["step"]


def check(found, moments, correct=True):
    assert found.keys() == moments.keys()
    scale = 1 - BETA2**STEPS if correct else 1.0
    for name, value in moments.items():
        torch.testing.assert_close(found[name], value / scale, msg=name)


@pytest.mark.parametrize("groups", [trainer_groups, one_group, named_groups])
@pytest.mark.parametrize("make", [tiny_llama, lambda: tiny_llama(tied=True), tiny_bert])
def test_second_moments_by_name(tmp_path, make, groups):
    model = make()
    folder, moments = run_folder(tmp_path / "run", model, train(model, groups))
    found, steps = read(folder)
    check(found, moments)
    assert {float(step) for step in steps.values()} == {STEPS}
    check(read(folder, correct=False)[0], moments, correct=False)


def old_groups(model):
    """Releases of the Trainer before patterns of names: norms of torch alone are exempt."""
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if "bias" not in n]},
        {"params": [p for n, p in named if "bias" in n]},
    ]


def test_the_order_of_older_trainers(tmp_path):
    model = tiny_llama(attention_bias=True)
    folder, moments = run_folder(tmp_path / "run", model, train(model, old_groups))
    check(read(folder)[0], moments)


def test_a_packed_mixture_of_experts_is_read_by_the_names_on_disk(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=13, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    made = train(model)
    model.save_pretrained(tmp_path / "run")
    torch.save(made.state_dict(), tmp_path / "run/optimizer.pt")
    found, _ = read(tmp_path / "run", correct=False)
    stored = load_file(tmp_path / "run/model.safetensors")
    assert found.keys() == stored.keys()
    assert {n: v.shape for n, v in found.items()} == {n: v.shape for n, v in stored.items()}
    # each moment beside its weight: saving the moments as if they were weights agrees
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(made.state[parameter]["exp_avg_sq"])
    model.save_pretrained(tmp_path / "moments")
    for name, value in load_file(tmp_path / "moments/model.safetensors").items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    "key", ["exp_avg_sq.{name}", "{name}.exp_avg_sq", "state.{index}.exp_avg_sq"]
)
def test_safetensors_need_no_permission(tmp_path, key):
    model = tiny_llama()
    made = train(model, one_group)
    folder, moments = run_folder(tmp_path / "run", model, made)
    file = {key.format(name=n, index=i): v for i, (n, v) in enumerate(moments.items())}
    save_file(file, folder / "adam.safetensors", {"beta2": str(BETA2), "step": str(STEPS)})
    check(read(folder, "adam.safetensors", allow_pickle=False)[0], moments)
    save_file(file, folder / "silent.safetensors")
    with pytest.raises(EvidenceError, match=r"does not tell `step`.*adam\.step"):
        read(folder, "silent.safetensors")
    check(read(folder, "silent.safetensors", step=STEPS, beta2=BETA2)[0], moments)
    check(read(folder, "silent.safetensors", correct=False)[0], moments, correct=False)


def test_the_steps_of_single_tensors(tmp_path):
    model = tiny_llama()
    folder, moments = run_folder(tmp_path / "run", model, train(model))
    file = {f"{n}.exp_avg_sq": v for n, v in moments.items()}
    file |= {f"{n}.step": torch.tensor(float(STEPS)) for n in moments}
    save_file(file, folder / "adam.safetensors", {"beta2": str(BETA2)})
    check(read(folder, "adam.safetensors")[0], moments)


def test_a_parameter_that_never_had_a_gradient_is_left_out(tmp_path):
    model = tiny_llama()
    made = train(model)
    del made.state[model.lm_head.weight]
    folder, moments = run_folder(tmp_path / "run", model, made)
    assert "lm_head.weight" not in moments
    check(read(folder)[0], moments)


def test_a_pickle_is_refused_without_permission(tmp_path):
    model = tiny_llama()
    folder, _ = run_folder(tmp_path / "run", model, train(model))
    with pytest.raises(EvidenceError, match=r"pickle.*adam\.allow_pickle=true"):
        read(folder, allow_pickle=False)


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_hostile_pickle_runs_nothing_even_with_permission(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    Hostile.path = str(tmp_path / "ran")
    torch.save({"state": Hostile(), "param_groups": []}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Hostile()))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(EvidenceError, match=name):
            read(tmp_path, name)
    assert not (tmp_path / "ran").exists()


def test_a_torch_without_a_safe_reader_is_refused(tmp_path, monkeypatch):
    model = tiny_llama()
    folder, _ = run_folder(tmp_path / "run", model, train(model))
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(EvidenceError, match=r"torch 2\.10 or later.*this is 2\.9\.1"):
        read(folder)


def test_another_models_optimizer_is_refused_at_the_first_mismatch(tmp_path):
    model = tiny_llama()
    folder, _ = run_folder(tmp_path / "run", model, train(model))
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    state["state"][3]["exp_avg_sq"] = torch.zeros(7, 8)
    torch.save(state, folder / "changed.pt")
    third = [p for g in trainer_groups(model) for p in g["params"]][3]
    name = next(n for n, p in model.named_parameters() if p is third)
    with pytest.raises(EvidenceError, match=rf"number 3 has shape \[7, 8\], but {re.escape(name)}"):
        read(folder, "changed.pt")


def test_a_run_that_trained_only_some_parameters_is_refused(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    made = train(model, lambda m: [{"params": list(m.model.layers.parameters())}])
    torch.save(made.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(EvidenceError, match="were all parameters trained"):
        read(tmp_path)


def test_a_name_the_model_lacks_is_refused(tmp_path):
    model = tiny_llama()
    folder, moments = run_folder(tmp_path / "run", model, train(model))
    save_file({f"exp_avg_sq.{n}x": v for n, v in moments.items()}, folder / "adam.safetensors")
    with pytest.raises(EvidenceError, match=r"\.weightx, which the model does not have"):
        read(folder, "adam.safetensors")
    wrong = {f"exp_avg_sq.{n}": v.flatten() for n, v in moments.items()}
    save_file(wrong, folder / "adam.safetensors")
    with pytest.raises(EvidenceError, match=r"has shape \[104\], the parameter \[13, 8\]"):
        read(folder, "adam.safetensors")


def test_two_orders_that_both_fit_are_refused():
    # without shapes and groups nothing tells whether the norms came last
    model = tiny_llama()
    slots = tuple(Slot(None, None, lambda: torch.zeros(())) for _ in model.parameters())
    with pytest.raises(
        EvidenceError, match=r"number 8 may be .*_proj.* or .*norm.*both orders fit"
    ):
        named_by_order(OptimizerState(Path("run"), slots), model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not an optimizer's state"),
        ({"state": {}, "param_groups": [{"lr": 1.0}]}, "without `params`"),
        (
            {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"params": [0]}]},
            "it keeps momentum_buffer",
        ),
        (
            {"state": {0: {"exp_avg_sq": torch.ones(2, dtype=torch.uint8)}},
             "param_groups": [{"params": [0]}]},
            "8-bit states are not read",
        ),
    ],
)  # fmt: skip
def test_files_that_are_no_adam(tmp_path, content, message):
    tiny_llama().save_pretrained(tmp_path)
    torch.save(content, tmp_path / "optimizer.pt")
    with pytest.raises(EvidenceError, match=message):
        read(tmp_path)


def test_a_text_is_not_called_a_pickle(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    (tmp_path / "prose.txt").write_text("Call me Ishmael.")
    with pytest.raises(EvidenceError, match=r"prose\.txt: no optimizer's state"):
        read(tmp_path, "prose.txt")


def test_broken_files(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "short.safetensors").write_bytes(b"\x08")
    for name in ("broken.pt", "empty.pt", "absent.pt"):
        with pytest.raises(EvidenceError, match=name):
            read(tmp_path, name)
    for name in ("short.safetensors", "absent.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            read(tmp_path, name)
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(EvidenceError, match="no second moments"):
        read(tmp_path, "other.safetensors")


@pytest.mark.parametrize(
    ("value", "error"), [(float("nan"), NonFiniteError), (-1.0, EvidenceError)]
)
def test_values_no_second_moment_has(tmp_path, value, error):
    model = tiny_llama()
    made = train(model)
    made.state[model.lm_head.weight]["exp_avg_sq"][3, 3] = value
    folder, _ = run_folder(tmp_path / "run", model, made)
    with pytest.raises(error, match=r"second moment of lm_head\.weight"):
        read(folder)
