"""Masks over a task vector: both ends, the gradient, the memory of the model, the files."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_language import random_llama

from mergewise.errors import DataError, EvidenceError, NonFiniteError
from mergewise.evidence import LiveModel, collect, load_evidence, merge_evidence
from mergewise.evidence._mask_file import entries_of_masks, overlaps
from mergewise.evidence._mask_loss import batch_loss
from mergewise.evidence._mask_top import at_most, largest_changes
from mergewise.evidence._mask_training import MaskSettings, _Training, train_mask
from mergewise.evidence.models._call import Fed
from mergewise.evidence.models._masked import Masked
from mergewise.evidence.models._names import Names
from mergewise.evidence.statistics._file import Record, StatisticRecord, write_evidence

torch.set_num_threads(1)


def _data(seed=0, count=96):
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=draw)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long() + (inputs[:, 2] > 0.5)


def _network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 24), torch.nn.Tanh(), torch.nn.Linear(24, 24), torch.nn.Tanh(),
        torch.nn.Linear(24, 3),
    )  # fmt: skip


class _Called(torch.nn.Module):
    """A network that is called by name, as models of text and images are."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x)


@pytest.fixture(scope="module")
def tuned():
    """A base, an expert trained from it, and the batches it was trained on."""
    module = _Called(_network())
    base = {name: value.clone() for name, value in module.state_dict().items()}
    inputs, labels = _data()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), labels).backward()
        optimizer.step()
    expert = {name: value.clone() for name, value in module.state_dict().items()}
    return base, expert, _batches(32)


def _batches(size):
    inputs, labels = _data()
    parts = zip(inputs.split(size), labels.split(size), strict=True)
    return [
        Fed({"x": x}, None, y, tuple((i, j) for j in range(len(x))), 1)
        for i, (x, y) in enumerate(parts)
    ]


def _live(state):
    module = _Called(_network(1))
    module.load_state_dict(state)
    return LiveModel("tiny", module.eval())


def _trained(tuned, batches=None, tensors=None, expert=None, **settings):
    base, own, usual = tuned
    model = _live(own)
    return train_mask(
        model, Names(model.module), base, expert or own, tensors or list(base),
        batches or usual, MaskSettings(**settings),
    )  # fmt: skip


def _loss(tuned, masks):
    base, expert, batches = tuned
    state = {
        name: torch.where(masks[name], expert[name], base[name]) if name in masks else base[name]
        for name in base
    }
    module = _live(state).module
    with torch.no_grad():
        losses = [batch_loss(module, fed, None, torch.device("cpu")) for fed in batches]
    return sum(float(loss) for loss, _ in losses) / sum(count for _, count in losses)


class TestEnds:
    @pytest.mark.parametrize(("density", "which"), [(0.0, 0), (1.0, 1)])
    def test_all_changes_make_the_expert_and_none_the_base(self, tuned, density, which):
        found = _trained(tuned, density=density, epochs=0)
        assert found.density == density
        everything = {name: torch.full(v.shape, bool(which)) for name, v in tuned[0].items()}
        assert found.loss == pytest.approx(_loss(tuned, everything), rel=1e-6)

    def test_shares_of_zero_and_one_are_exact(self, tuned):
        base, expert, _ = tuned
        model = _live(expert)
        masked = Masked(model.module, Names(model.module), base, expert, list(base))
        for share, wanted in ((0.0, base), (1.0, expert)):
            masked.put(lambda name, share=share: share)
            assert all(torch.equal(v, wanted[n]) for n, v in model.module.state_dict().items())

    def test_the_model_is_left_as_it_was(self, tuned):
        base, expert, batches = tuned
        model = _live(expert)
        model.module.train()
        train_mask(
            model, Names(model.module), base, expert, ["body.0.weight"], batches,
            MaskSettings(epochs=2),
        )  # fmt: skip
        assert all(torch.equal(v, expert[n]) for n, v in model.module.state_dict().items())
        assert model.module.training
        assert all(p.grad is None and p.requires_grad for p in model.module.parameters())

    def test_and_when_it_is_interrupted(self, tuned):
        base, expert, batches = tuned
        model = _live(expert)

        def stop(at):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train_mask(
                model, Names(model.module), base, expert, list(base), batches, MaskSettings(),
                progress=stop,
            )  # fmt: skip
        assert all(torch.equal(v, expert[n]) for n, v in model.module.state_dict().items())

    def test_tensors_without_a_mask_are_the_bases(self, tuned):
        found = _trained(tuned, tensors=["body.0.weight"], density=1.0, epochs=0)
        assert set(found.masks) == {"body.0.weight"}
        assert found.loss == pytest.approx(_loss(tuned, found.masks), rel=1e-6)


class TestStart:
    def test_the_largest_over_all_tensors_and_of_equal_ones_the_first(self):
        base = {"a": torch.zeros(2, 2), "b": torch.zeros(3)}
        expert = {"a": torch.tensor([[1.0, -3.0], [0.5, 2.0]]), "b": torch.tensor([2.0, -2.0, 0])}
        masks = largest_changes(base, expert, ["b", "a"], 3 / 7)
        assert masks["a"].tolist() == [[False, True], [False, True]]
        assert masks["b"].tolist() == [True, False, False]

    @pytest.mark.parametrize("density", [0.0, 0.1, 0.37, 0.5, 0.999, 1.0])
    def test_exactly_as_many_as_asked_for(self, density):
        draw = torch.Generator().manual_seed(0)
        # rounding makes many equal changes
        expert = {n: torch.randn(11, 7, generator=draw).mul(2).round() for n in "abc"}
        base = {n: torch.zeros(11, 7) for n in "abc"}
        masks = largest_changes(base, expert, "abc", density)
        assert sum(int(m.sum()) for m in masks.values()) == round(density * 231)

    def test_only_the_highest_positive_logits_stay(self):
        logits = {"a": torch.tensor([1.0, 5.0, -1.0]), "b": torch.tensor([3.0, -2.0])}
        assert at_most(logits, 0.4)["a"].tolist() == [False, True, False]
        assert at_most(logits, 0.4)["b"].tolist() == [True, False]
        assert at_most(logits, 0.8)["a"].tolist() == [True, True, False]


class TestStep:
    """What one step does to the logits, beside derivatives found by differences."""

    LR, L1 = 100.0, 0.02

    @pytest.mark.parametrize("regularizer", ["l1", "polarize"])
    @pytest.mark.parametrize("noise", [0.0, 0.4])
    def test_gradient_is_that_of_the_loss(self, tuned, regularizer, noise):
        base, expert = ({n: v.double() for n, v in s.items()} for s in tuned[:2])
        settings = MaskSettings(
            density=0.3, bias=0.5, noise=noise, epochs=1, lr=self.LR, l1=self.L1,
            regularizer=regularizer,
        )  # fmt: skip
        before, after = self._logits(base, expert, tuned[2], settings)
        elements = [("body.0.weight", (3, 1)), ("body.2.weight", (5, 7)), ("body.4.bias", (1,))]
        for name, place in elements:
            slope = self._slope(base, expert, tuned[2], before, name, place)
            s = float(before[name][place])
            steep = 1 / (1 + math.exp(-s)) * (1 - 1 / (1 + math.exp(-s)))
            push = 1.0 if regularizer == "l1" else -math.copysign(1.0, s)
            wanted = s - self.LR * slope - self.L1 * push * steep
            assert float(after[name][place]) == pytest.approx(wanted, rel=1e-4)
            assert abs(self.LR * slope) > 1e-4

    def _logits(self, base, expert, batches, settings):
        model = _live({n: v.float() for n, v in expert.items()})
        model.module.double()
        wide = [Fed({"x": b.inputs["x"].double()}, None, b.labels, b.keys, 1) for b in batches]
        masked = Masked(model.module, Names(model.module), base, expert, list(base))
        work = _Training(model, masked, wide, settings, None, None)
        work.logits = {name: value.double() for name, value in work.logits.items()}
        before = {name: value.clone() for name, value in work.logits.items()}
        work.run()
        return before, work.logits

    def _slope(self, base, expert, batches, logits, name, place):
        """dL/dS of one logit: L at S + h less L at S - h, over 2 h."""
        h, losses = 1e-5, []
        inputs = torch.cat([fed.inputs["x"] for fed in batches]).double()
        labels = torch.cat([fed.labels for fed in batches])
        for sign in (1, -1):
            moved = {n: v.clone() for n, v in logits.items()}
            moved[name][place] += sign * h
            state = {n: base[n] + torch.sigmoid(moved[n]) * (expert[n] - base[n]) for n in base}
            module = _Called(_network()).double()
            module.load_state_dict(state)
            with torch.no_grad():
                losses.append(float(torch.nn.functional.cross_entropy(module(inputs), labels)))
        return (losses[0] - losses[1]) / (2 * h)

    def test_the_size_of_batches_changes_nothing(self, tuned):
        one = _trained(tuned, density=0.1, lr=3e3)
        other = _trained(tuned, batches=_batches(7), density=0.1, lr=3e3)
        assert one.losses == pytest.approx(other.losses, rel=1e-4)

    def test_the_same_twice(self, tuned):
        one, other = (_trained(tuned, lr=1e5, noise=1.0, seed=3) for _ in range(2))
        assert one.losses == other.losses
        assert all(torch.equal(m, other.masks[n]) for n, m in one.masks.items())
        assert _trained(tuned, lr=1e5, noise=1.0, seed=4).losses != one.losses


class TestTraining:
    @pytest.mark.parametrize("lr", [1e4, 1e5])
    def test_better_than_the_largest_changes_of_the_same_number(self, tuned, lr):
        found = _trained(tuned, lr=lr, epochs=20)
        same = largest_changes(tuned[0], tuned[1], list(tuned[0]), found.density)
        assert 0.02 < found.density < 0.5
        assert found.loss == pytest.approx(_loss(tuned, found.masks), rel=1e-5)
        assert found.loss < 0.8 * _loss(tuned, same)

    def test_the_penalty_makes_masks_smaller(self, tuned):
        sizes = [_trained(tuned, lr=1e5, epochs=20, l1=l1).density for l1 in (0.0, 10.0, 100.0)]
        assert sizes[0] > sizes[1] > sizes[2]

    def test_the_best_of_all_epochs(self, tuned):
        by_epoch = [_trained(tuned, lr=1e8, epochs=n, l1=0.0).loss for n in range(1, 7)]
        best = _trained(tuned, lr=1e8, epochs=6, l1=0.0, keep="best")
        assert best.loss == pytest.approx(min(by_epoch))
        assert by_epoch[best.kept - 1] == pytest.approx(min(by_epoch))
        assert best.kept != 6, "the case shows nothing if the last is the best"

    def test_at_most_so_many(self, tuned):
        whole = _trained(tuned, lr=1e5, epochs=20)
        part = _trained(tuned, lr=1e5, epochs=20, most=0.05)
        elements = sum(mask.numel() for mask in part.masks.values())
        assert sum(int(m.sum()) for m in part.masks.values()) == round(0.05 * elements)
        assert all(bool((whole.masks[n] | ~m).all()) for n, m in part.masks.items())


class TestRefusals:
    def test_no_tensor(self, tuned):
        with pytest.raises(EvidenceError, match="no tensor to train a mask over"):
            train_mask(
                _live(tuned[1]), Names(torch.nn.Linear(1, 1)), {}, {}, [], [], MaskSettings()
            )

    def test_a_tensor_that_the_base_has_in_another_shape(self, tuned):
        base = tuned[0] | {"body.4.bias": torch.zeros(5)}
        with pytest.raises(EvidenceError, match=r"body\.4\.bias: \[5\] in the base and \[3\]"):
            _trained((base, *tuned[1:]))

    def test_a_tensor_that_no_parameter_holds(self, tuned):
        with pytest.raises(EvidenceError, match=r"body\.9\.weight is in no parameter"):
            _trained(tuned, tensors=["body.9.weight"])

    def test_no_examples(self, tuned):
        with pytest.raises(EvidenceError, match="no predictions"):
            _trained(tuned, batches=iter([]))

    def test_no_labels(self, tuned):
        fed = Fed(tuned[2][0].inputs, None, None, tuned[2][0].keys, 1)
        with pytest.raises(DataError, match="no class for each; expected a whole number"):
            _trained(tuned, batches=[fed])

    def test_a_label_of_no_class(self, tuned):
        fed = Fed(tuned[2][0].inputs, None, tuned[2][0].labels + 1, tuned[2][0].keys, 1)
        with pytest.raises(DataError, match="for 3 classes; expected whole numbers from 0 to 2"):
            _trained(tuned, batches=[fed])

    def test_a_weight_that_is_not_finite(self, tuned):
        broken = tuned[1] | {"body.4.bias": torch.tensor([0.0, math.nan, 0.0])}
        with pytest.raises(NonFiniteError, match=r"body\.4\.bias holds NaN"):
            _trained(tuned, expert=broken)


class TestLanguage:
    """Causal language models: next tokens, padding left out, packed and tied parameters."""

    @pytest.mark.parametrize("kind", ["tied", "mixture"])
    def test_every_tensor_reaches_its_place(self, kind, tmp_path):
        module = _language_model(kind)
        base = _stored(module, tmp_path / "base")
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape))
        expert = _stored(module, tmp_path / "expert")
        masked = Masked(module, Names(module, expert), base, expert, list(base))
        for share, wanted in ((0.0, base), (1.0, expert)):
            masked.put(lambda name, share=share: share)
            assert _same(_stored(module, tmp_path / str(share)), wanted)

    @pytest.mark.parametrize("kind", ["tied", "mixture"])
    def test_a_mask_lowers_the_loss(self, kind, tmp_path):
        module = _language_model(kind)
        base = _stored(module, tmp_path / "base")
        fed = Fed({"input_ids": torch.tensor([[1, 5, 6, 7, 5, 6, 7]])}, None, None, ((0,),), 1)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for _ in range(5):
            optimizer.zero_grad()
            batch_loss(module, fed, "causal_lm", torch.device("cpu"))[0].backward()
            optimizer.step()
        module.zero_grad()
        expert = _stored(module, tmp_path / "expert")
        inner = [name for name in base if ".layers." in name]
        found = train_mask(
            LiveModel("tiny", module), Names(module, expert), base, expert, inner, [fed],
            MaskSettings(lr=1e5),
        )  # fmt: skip
        assert set(found.masks) == set(inner)
        assert found.loss < 0.9 * found.losses[0]
        assert _same(_stored(module, tmp_path / "after"), expert)

    def test_loss_of_real_tokens_alone(self):
        model = random_llama()
        rows = [[1, 5, 6, 7], [1, 9]]
        ids = torch.tensor([rows[0], [*rows[1], 0, 0]])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        fed = Fed({"input_ids": ids, "attention_mask": mask}, mask, None, ((0,), (1,)), 2)
        loss, count = batch_loss(model.module, fed, "causal_lm", torch.device("cpu"))
        apart = [_nll(model.module, row) for row in rows]
        assert count == 4
        assert loss.item() == pytest.approx(sum(apart), rel=1e-5)


def _language_model(kind):
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
        "max_position_embeddings": 32, "initializer_range": 0.2,
    }  # fmt: skip
    if kind == "tied":
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).eval()
    return MixtralForCausalLM(
        MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=2)
    ).eval()


def _stored(module, folder):
    module.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def _same(one, other):
    return one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())


def _nll(module, row):
    with torch.no_grad():
        table = torch.log_softmax(module(input_ids=torch.tensor([row])).logits[0], -1)
    return -sum(float(table[i, token]) for i, token in enumerate(row[1:]))


class TestFiles:
    """Masks as evidence."""

    def _file(self, path, **masks):
        made = {name: torch.tensor(values, dtype=torch.bool) for name, values in masks.items()}
        counts = {name: {"examples": 1} for name in made}
        record = Record({"mask": StatisticRecord({}, counts)}, {"name": "m", "fingerprint": "f"})
        write_evidence(path, record, entries_of_masks(made))
        return load_evidence(path)

    def test_one_byte_an_element(self, tmp_path):
        found = self._file(tmp_path / "m.evd", a=[[1, 0], [1, 1]], b=[0])
        assert found.values("mask", "a")["mask"].tolist() == [[1, 0], [1, 1]]
        assert found.sums("mask", "b")["mask"].dtype == torch.uint8
        assert found.entries["mask", "a"]["mask"].nbytes == 4

    def test_overlap_is_common_elements_of_all(self, tmp_path):
        files = [
            self._file(tmp_path / "1.evd", a=[1, 1, 0, 0], b=[1, 0]),
            self._file(tmp_path / "2.evd", a=[1, 0, 1, 0], b=[1, 0]),
            self._file(tmp_path / "3.evd", a=[0, 0, 0, 1]),
        ]
        assert overlaps(files) == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]

    def test_masks_of_several_runs_add_up(self, tmp_path):
        for i, values in enumerate(([1, 1, 0], [1, 0, 0])):
            self._file(tmp_path / f"{i}.evd", a=values)
        both = merge_evidence([tmp_path / "0.evd", tmp_path / "1.evd"], tmp_path / "both.evd")
        assert both.values("mask", "a")["mask"].tolist() == [1, 0.5, 0]

    def test_masks_of_others_are_read_from_their_file(self, tmp_path):
        module = _language_model("tied")
        module.save_pretrained(tmp_path / "m")
        name = "model.layers.0.mlp.up_proj.weight"
        mask = torch.rand(24, 16) < 0.3
        save_file({name: mask}, tmp_path / "mask.safetensors")
        found = collect("mask", tmp_path / "m", tmp_path / "mask.safetensors", tmp_path / "m.evd")
        assert torch.equal(found.values("mask", name)["mask"].bool(), mask)
        assert found.tensors("mask") == (name,)

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("model.norm.bias", torch.ones(16), "is no tensor of"),
            ("model.norm.weight", torch.ones(3), r"has shape \[3\], expected \[16\]"),
            ("model.norm.weight", torch.full((16,), 0.5), "is no mask; expected zeros and ones"),
        ],
    )
    def test_files_that_are_no_masks(self, tmp_path, name, value, said):
        _language_model("tied").save_pretrained(tmp_path / "m")
        save_file({name: value}, tmp_path / "mask.safetensors")
        with pytest.raises(EvidenceError, match=said):
            collect("mask", tmp_path / "m", tmp_path / "mask.safetensors", tmp_path / "m.evd")
