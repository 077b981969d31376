"""Weights of checkpoints from logs."""

import itertools
import json
import math
import shutil

import _line
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergewise.errors import GuideError
from mergewise.guides import guide
from mergewise.guides.mwa import metric_weights

STEPS = (100, 200, 300)
LOSSES = (2.0, 1.0, 0.5)
METRICS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6)


def state(step, known=STEPS):
    """What a trainer keeps: all entries up to its step, others between them."""
    history = []
    for at, loss in zip(known, LOSSES, strict=True):
        if at <= step:
            history += [{"step": at, "loss": loss, "epoch": at / 100}]
            history += [{"step": at, "eval_loss": loss * 2, "eval_accuracy": 1 / loss}]
    return {"global_step": step, "log_history": history, "best_metric": None}


@pytest.fixture
def run(tmp_path):
    """Three checkpoints of a run."""
    for step in STEPS:
        folder = tmp_path / f"checkpoint-{step}"
        _line.save(tmp_path, **{folder.name: step / 1000})
        (folder / "trainer_state.json").write_text(json.dumps(state(step)))
    return tmp_path


def found(run, steps=STEPS, **settings):
    return guide(_line.soup(run, [f"checkpoint-{s}" for s in steps]), "mwa", **settings)


def test_weights_follow_the_loss_at_each_checkpoints_step(run):
    assert _line.weights(found(run)) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert _line.weights(found(run, p=2)) == pytest.approx([1 / 21, 4 / 21, 16 / 21])
    assert _line.weights(found(run, p=0)) == pytest.approx([1 / 3] * 3)
    made = found(run, metric="eval_loss")
    assert _line.weights(made) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert any(n.endswith("checkpoint-200: eval_loss 2, weight 0.285714") for n in made.notes)


def test_weights_follow_the_step_or_what_is_said_to_be_better(run):
    assert _line.weights(found(run, metric="step")) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert _line.weights(found(run, metric="eval_accuracy")) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert _line.weights(found(run, metric="loss", better="more")) == pytest.approx(
        [4 / 7, 2 / 7, 1 / 7]
    )


@given(METRICS, st.booleans())
def test_exact_properties(metrics, less):
    for p in (0.0, 1.0, 3.0, 500.0):
        weights = metric_weights(metrics, p, less)
        assert sum(weights) == pytest.approx(1)
        pairs = sorted(zip(metrics, weights, strict=True), reverse=less)
        ordered = [weight for _, weight in pairs]
        assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(ordered))
        same = metric_weights([metrics[0]] * len(metrics), p, less)
        assert same == pytest.approx([1 / len(metrics)] * len(metrics))
    assert metric_weights(metrics, 0.0, less) == pytest.approx([1 / len(metrics)] * len(metrics))
    best = (min if less else max)(metrics)
    if metrics.count(best) == 1 and all(
        m == best or abs(math.log(m / best)) > 0.1 for m in metrics
    ):
        assert max(metric_weights(metrics, 1e3, less)) == pytest.approx(1)


def test_one_checkpoint_has_all(run):
    assert _line.weights(found(run, steps=(200,))) == [1.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.csv", "checkpoint,loss\ncheckpoint-100,2\ncheckpoint-200,1\ncheckpoint-300,0.5\n"),
        ("log.csv", "step,loss\n50,9\n100,2\n150,\n200,1\n290,0.5\n310,7\n"),
        ("log.jsonl", '{"step": 300, "loss": 0.5}\n{"step": 200, "loss": 1}\n'
                      '{"step": 100, "loss": 2}\n'),
        ("log.json", json.dumps([{"model": f"checkpoint-{s}", "loss": x}
                                 for s, x in zip(STEPS, LOSSES, strict=True)])),
        ("trainer_state.json", json.dumps(state(300))),
    ],
)  # fmt: skip
def test_other_logs(run, name, text):
    (run / name).write_text(text)
    for step in STEPS:  # its name tells the step
        (run / f"checkpoint-{step}/trainer_state.json").unlink()
    made = found(run, log=str(run / name))
    assert _line.weights(made) == pytest.approx([1 / 7, 2 / 7, 4 / 7])


def broken(run, **change):
    file = run / "checkpoint-200/trainer_state.json"
    file.write_text(json.dumps(state(200) | change))


def test_what_a_log_does_not_say(run):
    with pytest.raises(GuideError, match=r"no eval_lost of .*checkpoint-100.*eval_loss, loss"):
        found(run, metric="eval_lost", better="less")
    with pytest.raises(GuideError, match=r"is less or more grad_norm better\?"):
        found(run, metric="grad_norm")
    broken(run, log_history=[{"step": 200, "loss": math.nan}])
    with pytest.raises(GuideError, match=r"loss of .*-200: a finite number expected, got nan"):
        found(run)
    broken(run, log_history=[{"step": 200, "loss": 0.0}])
    with pytest.raises(GuideError, match=r"loss of .*-200 is 0; .*above 0"):
        found(run)
    broken(run, log_history=3)
    with pytest.raises(GuideError, match="`log_history`, a list, expected"):
        found(run)
    (run / "checkpoint-200/trainer_state.json").write_text("{")
    with pytest.raises(GuideError, match="no JSON"):
        found(run)
    (run / "checkpoint-200/trainer_state.json").unlink()
    with pytest.raises(GuideError, match=r"checkpoint-200 has no trainer_state.json.*log=FILE"):
        found(run)
    with pytest.raises(GuideError, match="nowhere"):
        found(run, log="nowhere.csv")


def test_a_checkpoint_whose_step_nobody_knows(run):
    shutil.move(run / "checkpoint-100", run / "first")
    (run / "first/trainer_state.json").unlink()
    (run / "log.csv").write_text("step,loss\n100,2\n")
    with pytest.raises(GuideError, match="does not end in a number"):
        guide(_line.soup(run, ["first"]), "mwa", log=str(run / "log.csv"))
