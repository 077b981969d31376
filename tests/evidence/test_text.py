"""Records to texts, and token ids to padded batches."""

import pytest

from mergewise.errors import DataError
from mergewise.evidence._text import encode, padded, render, text_of, windows


def test_templates_name_fields_and_nothing_else():
    record = {"q": "2+2?", "a": 4, "x.y": "dotted"}
    assert render("{q} = {a} {{}}", record, 0) == "2+2? = 4 {}"
    assert render("{x.y}", record, 0) == "dotted"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{b}", "row 8 has no field 'b'; it has q"),
        ("{q.__class__}", "row 8 has no field 'q.__class__'"),
        ("{q[0]}", "no field"),
        ("{}", "no field"),
        ("{q", "template '{q'"),
        ("{q:d}", "template"),
    ],
)
def test_templates_that_do_not_fit_are_explained(template, message):
    with pytest.raises(DataError, match=message):
        render(template, {"q": "x"}, 7)


def test_usual_fields():
    assert text_of({"text": "a", "question": "q", "answer": "b"}, 0) == "a"
    assert text_of({"question": "q", "answer": "b"}, 0) == "q\nb"
    assert text_of({"prompt": "p", "completion": "c"}, 0) == "p\nc"
    assert text_of({"prompt": "p"}, 0) == "p"
    with pytest.raises(DataError, match=r"row 3 has no text: .* it has label"):
        text_of({"label": 1}, 2)


def test_half_characters_are_refused_before_a_tokenizer_sees_them():
    with pytest.raises(DataError, match="row 1: half a character"):
        text_of({"text": "a\ud800b"}, 0)
    with pytest.raises(DataError, match="row 5: half a character"):
        render("{a}", {"a": "\udfff"}, 4)


class Tokenizer:
    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    def apply_chat_template(self, messages, tokenize):
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)


def test_chats_go_through_the_tokenizers_template():
    messages = [{"role": "user", "content": "hi"}]
    assert text_of({"messages": messages}, 0, tokenizer=Tokenizer()) == "<user>hi"
    with pytest.raises(DataError, match=r"row 2: .*chat template"):
        text_of({"messages": [{"role": "user"}]}, 1, tokenizer=Tokenizer())


def test_encode_adds_special_tokens_and_cuts():
    assert encode(Tokenizer(), "ab") == [1, 97, 98]
    assert encode(Tokenizer(), "abc", 2) == [1, 97]


def test_windows_cover_everything_once():
    assert list(windows(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_batches_keep_order_and_mark_padding():
    one, two = padded([[1, 2, 3], [], [4], [5, 6]], size=2, pad=9)
    assert one.ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert one.mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert (one.rows, one.tokens) == ((0, 2), 4)
    assert (two.rows, two.ids.tolist()) == ((3,), [[5, 6]])
    assert two.to("cpu").rows == two.rows
