"""Merged models with other vocabularies: what they compute, and what their files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import State, assert_same, contents, load
from small_vocabularies import (
    added,
    ids_of,
    like,
    model,
    permuted,
    plain,
    shuffled,
    tokenizer_json,
    write_tokenizer,
)

from mergewise.engine import merge
from mergewise.errors import MergewiseError, RecipeError
from mergewise.plan import build_plan

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def linear(*folders: Path, **parts: Any) -> dict[str, Any]:
    weight = 1 / len(folders)
    models = [{"model": str(f), "parameters": {"weight": weight}} for f in folders]
    return {"merge_method": "linear", "models": models, "base_model": str(folders[0])} | parts


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = loaded.eval()(torch.tensor([ids])).logits[0]
    return found


def tokenizer(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("head", [True, False], ids=["untied", "tied"])
def test_a_model_merged_with_itself_in_another_order(head: bool, tmp_path: Path) -> None:
    state = model(tmp_path / "a", tokenizer_json(plain(40)), 40, head=head)
    order = shuffled(40, 3)
    names = {token: order[i] for i, token in enumerate(plain(40))}
    model(tmp_path / "b", tokenizer_json(names), 40, permuted(state, order), head=head)
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union"), tmp_path / "out")
    assert_close(load(tmp_path / "out"), state)
    text = [5, 9, 11, 3]
    assert torch.allclose(logits(tmp_path / "out", text), logits(tmp_path / "a", text), atol=1e-5)
    # seen from the other one, whose order the output then has
    source = str(tmp_path / "b")
    out = tmp_path / "other"
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source=source), out)
    moved = logits(out, [order[i] for i in text])
    assert torch.allclose(moved[:, order], logits(tmp_path / "a", text), atol=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)  # as b's config says


@pytest.mark.parametrize("head", [True, False], ids=["untied", "tied"])
def test_a_model_merged_with_itself_enlarged(head: bool, tmp_path: Path) -> None:
    state = model(tmp_path / "a", tokenizer_json(plain(40)), 40, head=head)
    larger = {n: torch.cat([t, torch.randn(3, 16)]) if n in (EMBEDDING, HEAD) else t
              for n, t in state.items()}  # fmt: skip
    model(tmp_path / "b", tokenizer_json(plain(40), ["<x>", "<y>"]), 43, larger, head=head)
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union"), tmp_path / "out")
    text = [5, 9, 11, 3]
    merged = logits(tmp_path / "out", text)
    assert merged.shape[1] == 42  # of b's 43 rows, one has no token
    assert torch.allclose(merged[:, :40], logits(tmp_path / "a", text), atol=1e-5)
    assert torch.allclose(merged, logits(tmp_path / "b", text)[:, :42], atol=1e-5)


def assert_close(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=1e-6), name


def bytes_like() -> dict[str, Any]:
    """A byte-level BPE that knows every text."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    data = tokenizer_json([*plain(3), *alphabet, "th", "the", "Ġthe"],
                          merges=[("t", "h"), ("th", "e"), ("Ġ", "the")])  # fmt: skip
    spread = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {**data, "pre_tokenizer": spread | {"use_regex": True}, "decoder": spread}


TEXTS = ["the other theatre", "Grüße, мир! 你好 🙂", " two  spaces\n\tand a tab", "<s>the</s>"]


def test_texts_go_round(tmp_path: Path) -> None:
    data = bytes_like()
    count = len(ids_of(data))
    base = model(tmp_path / "a", data, count)
    other = bytes_like()
    chat = ["<|im_start|>", "<|im_end|>"]
    other["added_tokens"] += [added(t, count + i) for i, t in enumerate(chat)]
    model(tmp_path / "b", other, count + 2, like(base, count + 2, 1))
    (tmp_path / "b" / "chat_template.jinja").write_text("{{ messages[0].content }} of b")
    (tmp_path / "a" / "vocab.json").write_text("{}")
    out = tmp_path / "out"
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union"), out)
    made, before = tokenizer(out), tokenizer(tmp_path / "a")
    assert len(made) == count + 2 and not (out / "vocab.json").exists()
    for text in TEXTS:
        ids = made(text)["input_ids"]
        assert ids == before(text)["input_ids"]
        assert made.decode(ids, clean_up_tokenization_spaces=False) == text
    ids = made("<|im_start|>the<|im_end|>")["input_ids"]
    assert ids[0] == count and ids[-1] == count + 1
    assert made.decode(ids, skip_special_tokens=True) == "the"
    assert made.eos_token == "</s>" and not (out / "chat_template.jinja").exists()
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source=str(tmp_path / "b")), out,
          overwrite=True)  # fmt: skip
    assert (out / "chat_template.jinja").read_text().endswith("of b")


def test_pieces_of_other_models_are_found_in_texts(tmp_path: Path) -> None:
    """What the base puts together stays so; a piece of the other comes from what is left."""
    data = bytes_like()
    count = len(ids_of(data))
    base = model(tmp_path / "a", data, count)
    more, merges = ["an", "ha"], [("h", "a"), ("a", "n")]
    other = tokenizer_json([*data["model"]["vocab"], *more], merges=merges)
    model(tmp_path / "b", other, count + 2, like(base, count + 2, 1))
    out = tmp_path / "out"
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union"), out)
    made = tokenizer(out)
    assert made.convert_ids_to_tokens(made("than")["input_ids"]) == ["th", "an"]
    assert made.decode(made("than the")["input_ids"]) == "than the"


def test_the_same_tokens_and_other_padding_need_no_word(tmp_path: Path) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    wider = like(base, 48, 1)
    model(tmp_path / "b", tokenizer_json(plain(40)), 48, wider)
    plan = build_plan(linear(tmp_path / "a", tmp_path / "b"))
    assert any("and the same tokens: merged by token" in warning for warning in plan.warnings)
    merge(plan, tmp_path / "out")
    merged = load(tmp_path / "out")[HEAD]
    assert torch.allclose(merged[:40], (base[HEAD] + wider[HEAD][:40]) / 2, atol=1e-6)
    assert torch.allclose(merged[40:], wider[HEAD][40:], atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 48


def test_padding_is_kept_when_a_tokenizer_is_asked_for(tmp_path: Path) -> None:
    """As Qwen's 152,064 rows for 151,665 tokens, which mergekit cuts off."""
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 48)
    model(tmp_path / "b", tokenizer_json(plain(40), ["<x>"]), 41, like(base, 41, 1))
    for source in ("base", "union"):
        out = tmp_path / source
        merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source=source), out)
        assert load(out)[HEAD].shape[0] == 48
        assert torch.allclose(load(out)[HEAD][42:], base[HEAD][42:], atol=1e-6)


def test_vocabularies_that_differ_are_explained(tmp_path: Path) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    model(tmp_path / "b", tokenizer_json(plain(40), ["<x>", "<y>"]), 42, like(base, 42, 1))
    with pytest.raises(RecipeError) as caught:
        build_plan(linear(tmp_path / "a", tmp_path / "b"))
    text = str(caught.value)
    for words in (
        "40 rows in",
        "42 rows in",
        "2 tokens only in",
        "'<x>'",
        "tokenizer_source: union",
    ):
        assert words in text
    (tmp_path / "b" / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match=r"no tokenizer in .*b that would"):
        build_plan(linear(tmp_path / "a", tmp_path / "b"))


def test_equal_sizes_with_other_ids_are_told(tmp_path: Path) -> None:
    state = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    order = [0, 1, 2, 4, 3, *range(5, 40)]
    names = {token: order[i] for i, token in enumerate(plain(40))}
    model(tmp_path / "b", tokenizer_json(names), 40, permuted(state, order))
    [told] = [w for w in build_plan(linear(tmp_path / "a", tmp_path / "b")).warnings if "ids" in w]
    assert "2 tokens with other ids ('_tok_3', '_tok_4')" in told and "row by row" in told


def test_ids_in_configs_follow_their_tokens(tmp_path: Path) -> None:
    """The tokenizer's model says what begins and ends a text, in the ids of the output."""
    state = model(tmp_path / "a", tokenizer_json(plain(40)), 40, eos_token_id=1)
    names = {t: (i + 5) % 40 for i, t in enumerate(plain(40))}
    order = [(i + 5) % 40 for i in range(40)]
    data = tokenizer_json(names, ["<|im_end|>"])
    model(tmp_path / "b", data, 41, like(permuted(state, order), 41, 1),
          bos_token_id=5, eos_token_id=40, pad_token_id=None)  # fmt: skip
    generation = {"eos_token_id": [40, 6], "suppress_tokens": [8], "temperature": 0.5}
    (tmp_path / "b" / "generation_config.json").write_text(json.dumps(generation))
    config = tmp_path / "a" / "config.json"
    extra = {"image_token_id": 7, "text_config": {"vocab_size": 40, "decoder_start_token_id": 3}}
    config.write_text(json.dumps(json.loads(config.read_text()) | extra))
    out = tmp_path / "union"
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union"), out)
    made = json.loads((out / "config.json").read_text())
    assert (
        made["eos_token_id"] == 1 and made["text_config"]["vocab_size"] == made["vocab_size"] == 41
    )
    out = tmp_path / "b's"
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source=str(tmp_path / "b")), out)
    made = json.loads((out / "config.json").read_text())
    assert (made["bos_token_id"], made["eos_token_id"], made["pad_token_id"]) == (5, 40, None)
    assert made["image_token_id"] == 12 and made["text_config"]["decoder_start_token_id"] == 8
    assert json.loads((out / "generation_config.json").read_text()) == generation
    # the other way round, b's ids in a's vocabulary; <|im_end|> is new there
    both = linear(tmp_path / "b", tmp_path / "a")
    out = tmp_path / "a's"
    merge(both | {"tokenizer_source": str(tmp_path / "a")}, out)
    found = json.loads((out / "generation_config.json").read_text())
    assert found["eos_token_id"] == [1] and found["suppress_tokens"] == [3]


def test_special_tokens_without_a_row_leave_all_files(tmp_path: Path) -> None:
    """A padding token that was added and never given a row."""
    base = model(tmp_path / "a", tokenizer_json(plain(40), ["<pad>"]), 40)
    decoder = {"40": {k: v for k, v in added("<pad>", 40).items() if k != "id"}}
    write_tokenizer(tmp_path / "a", tokenizer_json(plain(40), ["<pad>"]), pad_token="<pad>",
                    added_tokens_decoder=decoder)  # fmt: skip
    model(tmp_path / "b", tokenizer_json(plain(40), ["<x>"]), 41, like(base, 41, 1))
    out = tmp_path / "out"
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union"), out)
    made = tokenizer(out)
    assert made.get_vocab()["<x>"] == 40 and "<pad>" not in made.get_vocab() and len(made) == 41
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert (
        settings["added_tokens_decoder"]["40"]["content"] == "<x>" and "pad_token" not in settings
    )


def test_a_stage_has_a_vocabulary_too(tmp_path: Path) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    model(tmp_path / "b", tokenizer_json(plain(40), ["<x>"]), 41, like(base, 41, 1))
    model(tmp_path / "c", tokenizer_json(plain(40), ["<y>"]), 41, like(base, 41, 2))
    first = linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union") | {"name": "first"}
    second = linear(Path("first"), tmp_path / "c", tokenizer_source="union") | {"name": "second"}
    third = linear(Path("second"), Path("first"), tokenizer_source="base")
    text = "\n---\n".join(json.dumps(part) for part in (first, second, third))
    merge(text, tmp_path / "out")
    tokens = tokenizer(tmp_path / "out").get_vocab()
    assert (tokens["<x>"], tokens["<y>"], len(tokens)) == (40, 41, 42)
    states = {n: load(tmp_path / n)[HEAD] for n in "abc"}
    one = torch.cat([(states["a"] + states["b"][:40]) / 2, states["b"][40:]])
    two = torch.cat([(one[:40] + states["c"][:40]) / 2, one[40:], states["c"][40:]])
    wanted = torch.cat([(two[:41] + one) / 2, two[41:]])
    assert torch.allclose(load(tmp_path / "out")[HEAD], wanted, atol=1e-6)
    # only the first stage changes anything: its tokenizer goes on
    last = linear(Path("first"))
    merge("\n---\n".join(json.dumps(part) for part in (first, last)), tmp_path / "kept")
    assert tokenizer(tmp_path / "kept").get_vocab()["<x>"] == 40
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["vocab_size"] == 41


def test_workers_and_resuming_change_nothing(tmp_path: Path) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    order = shuffled(40, 1)
    names = {token: order[i] for i, token in enumerate(plain(40))}
    model(tmp_path / "b", tokenizer_json(names, ["<x>"]), 41, like(permuted(base, order), 41, 1))
    asked = {"tokenizer": {"source": "union", "pad_to_multiple_of": 16}}
    document = linear(tmp_path / "a", tmp_path / "b") | asked | {"merge_method": "slerp"}
    document["parameters"] = {"t": 0.3}
    for entry in document["models"]:
        del entry["parameters"]
    for workers in (1, 3):
        merge(document, tmp_path / f"{workers}/out", workers=workers, shard_size=4000)
    assert contents(tmp_path / "1/out") == contents(tmp_path / "3/out")

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises((MergewiseError, KeyboardInterrupt)):
        merge(document, tmp_path / "cut", workers=1, shard_size=4000, progress=stop)
    assert merge(document, tmp_path / "cut", shard_size=4000).resumed
    assert_same(load(tmp_path / "cut"), load(tmp_path / "1/out"))


def test_another_tokenizer_is_another_merge(tmp_path: Path) -> None:
    """A tokenizer that changed between two runs must not be resumed into."""
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    model(tmp_path / "b", tokenizer_json(plain(40), ["<x>"]), 41, like(base, 41, 1))
    document = linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union")
    before = build_plan(document).digest()
    write_tokenizer(tmp_path / "b", tokenizer_json(plain(40), ["<z>"]))
    assert build_plan(document).digest() != before


def test_every_kind_of_token_source_at_once(tmp_path: Path) -> None:
    """The README's fragments: a model, force, a token renamed by name and by id, zeros, padding."""
    a = model(tmp_path / "a", tokenizer_json(plain(40), ["<|original|>"]), 41)
    b = like({n: t[:40] if n in (EMBEDDING, HEAD) else t for n, t in a.items()}, 42, 1)
    model(tmp_path / "b", tokenizer_json(plain(40), ["<|im_start|>", "<|special|>"]), 42, b)
    renamed = {"kind": "model_token", "model": str(tmp_path / "a")}
    asked = {"source": "union", "pad_to_multiple_of": 64, "tokens": {
        "<|im_start|>": {"source": str(tmp_path / "b")},
        "_tok_9": {"source": str(tmp_path / "a"), "force": True},
        "<|renamed|>": {"source": renamed | {"token": "<|original|>"}},
        "<|by_id|>": {"source": renamed | {"token_id": 12}},
        "<|unused|>": {"source": {"kind": "zero"}},
    }}  # fmt: skip
    out = tmp_path / "out"
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer=asked), out)
    merged, tokens = load(out)[HEAD], tokenizer(out).get_vocab()
    wanted = {"<|im_start|>": b[HEAD][40], "_tok_9": a[HEAD][9], "<|renamed|>": a[HEAD][40],
              "<|by_id|>": a[HEAD][12], "<|unused|>": torch.zeros(16)}  # fmt: skip
    for token, row in wanted.items():
        assert torch.allclose(merged[tokens[token]], row, atol=1e-6), token
    assert len(merged) == 64


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ({"<n>": {"source": "{b}"}}, "{b} has no token '<n>' with a row"),
        ({"<n>": {"source": {"kind": "model_token", "model": "{a}", "token_id": 40}}}, "40"),
        ({"<n>": {"source": {"kind": "model_token", "model": "{b}", "token": "?"}}}, "'?'"),
        ({"<n>": {"source": "{a}/nothing"}}, "no such"),
    ],
)
def test_token_sources_that_are_not_there(
    tokens: dict[str, Any], words: str, tmp_path: Path
) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    model(tmp_path / "b", tokenizer_json(plain(40), ["<x>"]), 41, like(base, 41, 1))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    asked = json.loads(json.dumps(tokens).replace("{a}", a).replace("{b}", b))
    with pytest.raises(RecipeError) as caught:
        document = linear(tmp_path / "a", tmp_path / "b")
        build_plan(document | {"tokenizer": {"source": "union", "tokens": asked}})
    assert words.replace("{b}", b) in str(caught.value) and "tokenizer: " in str(caught.value)


def test_a_token_of_a_model_that_is_not_merged(tmp_path: Path) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    model(tmp_path / "b", tokenizer_json(plain(40)), 40, like(base, 40, 1))
    donor = model(tmp_path / "c", tokenizer_json(plain(40), ["<x>"]), 41, like(base, 41, 2))
    asked = {"source": "base", "tokens": {"<x>": {"source": str(tmp_path / "c")}}}
    plan = build_plan(linear(tmp_path / "a", tmp_path / "b", tokenizer=asked))
    assert str(tmp_path / "c") in plan.checkpoints
    merge(plan, tmp_path / "out")
    assert torch.allclose(load(tmp_path / "out")[HEAD][40], donor[HEAD][40], atol=1e-6)


def test_biases_have_a_vocabulary_too(tmp_path: Path) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    chat = like(base, 42, 1)
    a = base | {"lm_head.bias": torch.randn(40), "final_logits_bias": torch.randn(1, 40)}
    b = chat | {"lm_head.bias": torch.randn(42), "final_logits_bias": torch.randn(1, 42)}
    model(tmp_path / "a", tokenizer_json(plain(40)), 40, a)
    model(tmp_path / "b", tokenizer_json(plain(40), ["<x>", "<y>"]), 42, b)
    merge(linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union"), tmp_path / "out")
    made = load(tmp_path / "out")
    for name in ("lm_head.bias", "final_logits_bias"):
        wanted = torch.cat([(a[name] + b[name][..., :40]) / 2, b[name][..., 40:]], -1)
        assert torch.allclose(made[name], wanted, atol=1e-6), name


def test_chat_vector_with_special_tokens_of_its_own(tmp_path: Path) -> None:
    """θ_CP + (θ_chat − θ_base), where chat has tokens that the others lack, and they it.

    Their rows are the chat model's as they are, not differences (Huang et al., 2024,
    arXiv 2310.04799; its code takes the base's rows there by mistake).
    """
    base = model(tmp_path / "base", tokenizer_json(plain(40)), 40)
    chat = like(base, 42, 1)
    model(tmp_path / "chat", tokenizer_json(plain(40), ["<|im_start|>", "<|im_end|>"]), 42, chat)
    pretrained = like(base, 43, 2)
    tokens = ["你", "好", "吗"]
    model(tmp_path / "cp", tokenizer_json([*plain(40), *tokens]), 43, pretrained)
    document = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / n), "parameters": {"weight": 1.0}}
                   for n in ("chat", "cp")],
        "tokenizer_source": "union",
    }  # fmt: skip
    out = tmp_path / "out"
    merge(document, out)
    made, ids = load(out), tokenizer(out).get_vocab()
    for name in (EMBEDDING, HEAD):
        wanted = pretrained[name][:40] + chat[name][:40] - base[name]
        assert torch.allclose(made[name][:40], wanted, atol=1e-5)
        for i, token in enumerate(["<|im_start|>", "<|im_end|>"]):
            assert torch.allclose(made[name][ids[token]], chat[name][40 + i], atol=1e-6)
        for i, token in enumerate(tokens):
            assert torch.allclose(made[name][ids[token]], pretrained[name][40 + i], atol=1e-6)
    norm = "model.norm.weight"
    assert torch.allclose(made[norm], pretrained[norm] + chat[norm] - base[norm], atol=1e-6)


def test_folders_without_tokenizers_are_merged_by_row(tmp_path: Path) -> None:
    base = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    model(tmp_path / "b", tokenizer_json(plain(40)), 40, like(base, 40, 1))
    (tmp_path / "b" / "tokenizer.json").unlink()
    (tmp_path / "b" / "tokenizer_config.json").unlink()
    plan = build_plan(linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union"))
    assert any("taken to be" in warning for warning in plan.warnings)
    (tmp_path / "a" / "tokenizer.json").unlink()
    (tmp_path / "a" / "tokenizer_config.json").unlink()
    plan = build_plan(linear(tmp_path / "a", tmp_path / "b", tokenizer_source="union"))
    assert plan.output.vocabulary is None


def test_a_tokenizer_alone_can_be_the_source(tmp_path: Path) -> None:
    state = model(tmp_path / "a", tokenizer_json(plain(40)), 40)
    (tmp_path / "t").mkdir()
    write_tokenizer(tmp_path / "t", tokenizer_json(plain(30)))
    merge(linear(tmp_path / "a", tokenizer_source=str(tmp_path / "t")), tmp_path / "out")
    assert torch.equal(load(tmp_path / "out")[HEAD], state[HEAD][:30])
