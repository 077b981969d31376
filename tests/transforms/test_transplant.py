"""A model with another's tokenizer: its rows, its files, what it computes, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import llama_config, llama_shapes, load, random_state, save
from small_vocabularies import (
    added,
    ids_of,
    model,
    permuted,
    plain,
    shuffled,
    tokenizer_json,
    write_tokenizer,
)

from mergewise.errors import CheckpointError, NonFiniteError, OutputError, TransformError
from mergewise.transforms import transform, transplant

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def reordered(count: int, order: list[int]) -> dict[str, Any]:
    """The tokenizer of `plain`, with id i moved to ``order[i]``."""
    return tokenizer_json({token: order[i] for i, token in enumerate(plain(count))})


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = net(torch.tensor([ids])).logits[0]
    return found


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("method", ["omp", "nearest", "subword", "mean", "zero", "random"])
def test_its_own_tokenizer_changes_nothing(method, tmp_path):
    state = model(tmp_path / "a", tokenizer_json(plain(60)), 64, seed=1)
    done = transplant(tmp_path / "a", tmp_path / "a", tmp_path / "out", method=method)
    assert done.changed == ()
    made = load(tmp_path / "out")
    assert all(torch.equal(made[name], value) for name, value in state.items())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


@pytest.mark.parametrize("head", [True, False])
def test_a_permuted_tokenizer_permutes_rows_and_keeps_logits(head, tmp_path):
    order = shuffled(64, 3)
    state = model(tmp_path / "a", tokenizer_json(plain(64)), 64, seed=1, head=head)
    model(tmp_path / "d", reordered(64, order), 64, seed=2, bos_token_id=order[0],
          eos_token_id=order[1], pad_token_id=order[1])  # fmt: skip
    done = transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out")
    assert set(done.changed) == ({EMBED, HEAD} if head else {EMBED})
    made, expected = load(tmp_path / "out"), permuted(state, order)
    assert all(torch.equal(made[name], value) for name, value in expected.items())
    found = config(tmp_path / "out")
    assert (found["bos_token_id"], found["eos_token_id"]) == (order[0], order[1])
    ids = [5, 9, 33, 2]
    before = logits(tmp_path / "a", ids)
    after = logits(tmp_path / "out", [order[i] for i in ids])
    torch.testing.assert_close(after[:, torch.tensor(order)], before, rtol=1e-5, atol=1e-6)


def test_rows_of_a_sparse_donor_are_the_same_combination_in_the_model(tmp_path):
    state = model(tmp_path / "a", tokenizer_json(plain(64)), 64, seed=1)
    shapes = llama_shapes(vocab=66, hidden=96)
    theirs = random_state(shapes, 2, torch.float32)
    picks, factors = torch.tensor([[4, 40, 9], [63, 5, 30]]), torch.tensor([1.0, -0.5, 2.0])
    for name in (EMBED, HEAD):
        theirs[name][64:] = torch.einsum("k,tkd->td", factors, theirs[name][picks])
    save(tmp_path / "d", theirs, llama_config(shapes))
    write_tokenizer(tmp_path / "d", tokenizer_json(plain(66)))
    done = transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out", k=8)
    made = load(tmp_path / "out")
    for name in (EMBED, HEAD):
        assert torch.equal(made[name][:64], state[name])
        expected = torch.einsum("k,tkd->td", factors, state[name][picks])
        torch.testing.assert_close(made[name][64:], expected, rtol=1e-3, atol=1e-4)
    assert done.numbers["relative_residual"][EMBED] < 1e-4
    assert done.numbers["input"]["exact"] == 64 and done.numbers["input"]["made"] == 2
    found = config(tmp_path / "out")
    assert found["vocab_size"] == 66 and found["hidden_size"] == config(tmp_path / "a")[
        "hidden_size"]  # fmt: skip
    assert logits(tmp_path / "out", [64, 65]).shape == (2, 66)


def test_a_tied_donor_lends_its_embedding_to_both(tmp_path):
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1)
    model(tmp_path / "d", tokenizer_json(plain(44)), 44, seed=2, head=False)
    done = transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out", k=4)
    assert list(done.numbers["relative_residual"]) == [EMBED]
    assert set(done.changed) == {EMBED, HEAD}


def test_a_stored_head_that_is_tied_stays_the_embedding(tmp_path):
    state = random_state(llama_shapes(vocab=40), 1, torch.float32)
    state[HEAD] = state[EMBED].clone()
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, state, tie_word_embeddings=True)
    model(tmp_path / "d", tokenizer_json(plain(44)), 44, seed=2)
    transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out", k=4)
    made = load(tmp_path / "out")
    assert torch.equal(made[EMBED], made[HEAD]) and made[HEAD].shape[0] == 44


@pytest.mark.parametrize("method", ["mean", "zero", "random"])
def test_rows_without_the_donors_help(method, tmp_path):
    state = model(tmp_path / "a", tokenizer_json(plain(60)), 64, seed=1)
    (tmp_path / "d").mkdir()
    write_tokenizer(tmp_path / "d", tokenizer_json(plain(90)))
    rows = {}
    for name, seed in (("out", 1), ("again", 1), ("other", 2)):
        done = transplant(tmp_path / "a", tmp_path / "d", tmp_path / name, method=method, seed=seed)
        rows[name] = load(tmp_path / name)[EMBED]
    assert torch.equal(rows["out"][:60], state[EMBED][:60])
    new, own = rows["out"][60:], state[EMBED][:60].double()
    if method == "zero":
        assert not new.any() and done.numbers["input"]["zero"] == 30
    if method == "mean":
        assert done.numbers["input"]["mean"] == 30
        torch.testing.assert_close(new, own.mean(0).float().expand(30, -1))
    assert torch.equal(rows["out"], rows["again"])
    if method == "random":
        assert not torch.equal(rows["out"], rows["other"])
        deviations = (new.double() - own.mean(0)) / own.std(0, correction=0)
        assert abs(float(deviations.mean())) < 0.1 and 0.9 < float(deviations.std()) < 1.1
        assert not torch.equal(load(tmp_path / "out")[HEAD][60:], new)


def test_pieces_of_the_models_own_tokenizer(tmp_path):
    pytest.importorskip("tokenizers")
    pieces = ["<s>", "</s>", "<unk>", "a", "b", "ab"]
    state = model(tmp_path / "a", tokenizer_json(pieces, merges=[["a", "b"]]), 6, seed=1)
    (tmp_path / "d").mkdir()
    more = tokenizer_json([*pieces, "aba", "q"])
    write_tokenizer(tmp_path / "d", more)
    done = transplant(
        tmp_path / "a", tmp_path / "d", tmp_path / "out", method="subword", subword="first_last"
    )
    made = load(tmp_path / "out")
    assert torch.equal(made[EMBED][6], state[EMBED][3])  # the last piece of ab a
    assert torch.equal(made[HEAD][6], state[HEAD][5])  # the first
    torch.testing.assert_close(made[EMBED][7], state[EMBED].mean(0))
    assert any("'q'" in text for text in done.warnings)
    assert done.numbers["input"] | {"made": 1, "mean": 1} == done.numbers["input"]


def test_prefixes_for_the_head_alone(tmp_path):
    pieces = ["<s>", "</s>", "<unk>", "a", "b"]
    state = model(tmp_path / "a", tokenizer_json(pieces), 5, seed=1)
    (tmp_path / "d").mkdir()
    write_tokenizer(tmp_path / "d", tokenizer_json([*pieces, "ba"]))
    for where, which, other in (("lm_head", HEAD, EMBED), ("embed", EMBED, HEAD)):
        transplant(tmp_path / "a", tmp_path / "d", tmp_path / where, method="zero", match="prefix",
                   match_for=where)  # fmt: skip
        made = load(tmp_path / where)
        assert torch.equal(made[which][5], state[which][4]) and not made[other][5].any()


def test_sizes_and_padding(tmp_path):
    state = model(tmp_path / "a", tokenizer_json(plain(60)), 64, seed=1)
    model(tmp_path / "d", tokenizer_json(plain(50)), 72, seed=2)
    transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out")
    made = load(tmp_path / "out")[EMBED]
    assert made.shape[0] == 72 and torch.equal(made[60:64], state[EMBED][60:64])
    torch.testing.assert_close(made[64], state[EMBED][:60].double().mean(0).float())
    transplant(tmp_path / "a", tmp_path / "d", tmp_path / "small", pad_to_multiple_of=8)
    assert load(tmp_path / "small")[EMBED].shape[0] == 56
    assert config(tmp_path / "small")["vocab_size"] == 56


def test_a_bias_of_the_head_goes_along(tmp_path):
    state = random_state(llama_shapes(vocab=40), 1, torch.float32)
    state["lm_head.bias"] = torch.arange(40.0)
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, state)
    order = shuffled(40, 5)
    model(tmp_path / "d", reordered(40, order), 40, seed=2)
    transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out")
    made = load(tmp_path / "out")["lm_head.bias"]
    assert made[torch.tensor(order)].tolist() == list(range(40))


def test_files_and_ids_are_the_donors(tmp_path):
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1, suppress_tokens=[7, 39])
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": [1, 39]}')
    (tmp_path / "a" / "chat_template.jinja").write_text("mine {{ messages }}")
    (tmp_path / "a" / "vocab.json").write_text("{}")
    data = tokenizer_json(plain(39), ["<|im_end|>"])
    model(tmp_path / "d", data, 40, seed=2, eos_token_id=39, pad_token_id=None)
    (tmp_path / "d" / "chat_template.jinja").write_text("theirs {{ messages }}")
    done = transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out", k=4)
    out = tmp_path / "out"
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "d/tokenizer.json").read_bytes()
    assert (out / "chat_template.jinja").read_text().startswith("theirs")
    assert not (out / "vocab.json").exists()
    found = config(out)
    assert (found["eos_token_id"], found["bos_token_id"]) == (39, 0)
    assert found["suppress_tokens"] == [7]
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [1]}
    assert any("suppress_tokens 39" in text for text in done.warnings)
    record = json.loads((out / "mergewise_provenance.json").read_text())
    assert record["transform"] == "transplant" and record["settings"]["k"] == 4
    assert record["measured"]["input"]["exact"] == 39
    assert [entry["model"] for entry in record["inputs"]] == ["checkpoint", "donor"]


def test_types_are_kept(tmp_path):
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1, dtype=torch.bfloat16)
    model(tmp_path / "d", tokenizer_json(plain(48)), 48, seed=2, dtype=torch.float16)
    transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out", k=4)
    assert {value.dtype for value in load(tmp_path / "out").values()} == {torch.bfloat16}


def refused(tmp_path: Path, kind: type[Exception], words: str, **options: Any) -> None:
    with pytest.raises(kind, match=words):
        transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_is_refused(tmp_path):
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1)
    refused(tmp_path, CheckpointError, "no such|not found|does not exist|is not there")
    (tmp_path / "d").mkdir()
    refused(tmp_path, CheckpointError, "d")
    write_tokenizer(tmp_path / "d", tokenizer_json(plain(50)))
    refused(tmp_path, TransformError, "tokenizer alone.*subword")
    refused(tmp_path, TransformError, "method.*one of omp", method="opm")
    refused(tmp_path, TransformError, "no setting 'kk'", kk=3)
    refused(tmp_path, TransformError, "k: ", k=0)
    (tmp_path / "a" / "tokenizer.json").unlink()
    refused(tmp_path, TransformError, "no tokenizer", method="mean")


def test_nothing_in_common(tmp_path):
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1)
    other = tokenizer_json([f"+{i}" for i in range(40)])
    other["model"]["unk_token"] = None
    model(tmp_path / "d", other, 40, seed=2)
    refused(tmp_path, TransformError, "no token in common")


def test_bad_numbers_and_folders(tmp_path):
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1)
    state = random_state(llama_shapes(vocab=44), 2, torch.float32)
    state[EMBED][3, 3] = float("nan")
    model(tmp_path / "d", tokenizer_json(plain(44)), 44, state)
    refused(tmp_path, NonFiniteError, EMBED)
    with pytest.raises(OutputError, match="folder of the input"):
        transplant(tmp_path / "a", tmp_path / "d", tmp_path / "d", method="mean")
    with pytest.raises(TransformError, match="one donor, got 2"):
        transform("transplant", tmp_path / "a", tmp_path / "out",
                  models=[tmp_path / "a", tmp_path / "d"])  # fmt: skip


def test_broken_tokenizers_are_named(tmp_path):
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1)
    model(tmp_path / "d", tokenizer_json(plain(44)), 44, seed=2)
    path = tmp_path / "d" / "tokenizer.json"
    for text in ("{", "[]", '{"model": 3}', '{"model": {"vocab": {"a": -1}}}'):
        path.write_text(text)
        refused(tmp_path, CheckpointError, "tokenizer.json")
    path.write_text(json.dumps(tokenizer_json(plain(44))))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "d" / name).write_text("[1")
        refused(tmp_path, CheckpointError, name, method="mean")
        (tmp_path / "d" / name).unlink()


def test_gpt2_and_bert_names(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    )
    bert = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=44, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32,
        )
    )  # fmt: skip
    for name, net, count in (("gpt", gpt, 40), ("bert", bert, 44)):
        net.save_pretrained(tmp_path / name)
        write_tokenizer(tmp_path / name, tokenizer_json(plain(count)))
    done = transplant(tmp_path / "gpt", tmp_path / "bert", tmp_path / "one", k=4)
    assert done.changed == ("transformer.wte.weight",)
    assert logits(tmp_path / "one", [43]).shape == (1, 44)
    back = transplant(tmp_path / "bert", tmp_path / "gpt", tmp_path / "two", k=4)
    assert "bert.embeddings.word_embeddings.weight" in back.changed
    assert "cls.predictions.bias" in back.changed
    made = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "two")
    assert made.get_input_embeddings().weight.shape == (40, 24)


def test_added_tokens_and_special_ones_of_the_donor(tmp_path):
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1)
    data = tokenizer_json(plain(40), ["<|x|>"])
    data["added_tokens"].append(added("plain text", 41, special=False))
    model(tmp_path / "d", data, 42, seed=2)
    assert ids_of(data)["plain text"] == 41
    done = transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out", k=4)
    assert done.numbers["input"]["made"] == 2


def test_an_interruption_leaves_nothing(tmp_path):
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1)
    model(tmp_path / "d", tokenizer_json(plain(44)), 44, seed=2)
    stages = []

    def stop(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if stage.startswith("omp"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out", k=4, progress=stop)
    assert stages and not (tmp_path / "out").exists()
    done = transplant(tmp_path / "a", tmp_path / "d", tmp_path / "out", k=4)
    assert done.out == tmp_path / "out" and (tmp_path / "out" / "config.json").exists()


def test_an_adapter_on_top_is_written_as_part_of_the_model(tmp_path):
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model(tmp_path / "a", tokenizer_json(plain(40)), 40, seed=1)
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    config_ = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    tuned = get_peft_model(net, config_)
    tuned.save_pretrained(tmp_path / "lora")
    order = shuffled(40, 3)
    model(tmp_path / "d", reordered(40, order), 40, seed=2)
    transplant(f"{tmp_path / 'a'}+{tmp_path / 'lora'}", tmp_path / "d", tmp_path / "out")
    merged = tuned.merge_and_unload().state_dict()["model.embed_tokens.weight"]
    made = load(tmp_path / "out")[EMBED][torch.tensor(order)]
    torch.testing.assert_close(made, merged, rtol=1e-5, atol=1e-6)
