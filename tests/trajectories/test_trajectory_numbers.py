"""Weights of checkpoints, against definitions and the specification's worked examples."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergewise.errors import TrajectoryError
from mergewise.trajectories._numbers import ema, swad

COUNTS, DECAYS = st.integers(1, 12), st.floats(0, 0.999)
GOLDEN = Path(__file__).resolve().parents[1] / "golden/swad.json"
VALLEY = [5, 4, 3, 2, 1.0, 1.1, 1.2, 1.3, 1.2, 1.1]


def folded(values, decay, corrected, warm):
    """The moving average, one checkpoint after the other."""
    mean, left = (0.0, 1.0) if corrected else (values[0], 0.0)
    for t, value in enumerate(values if corrected else values[1:], 1):
        d = min(decay, (1 + t) / (10 + t)) if warm else decay
        mean, left = d * mean + (1 - d) * value, d * left
    return mean / (1 - left)


@given(COUNTS, DECAYS, st.booleans(), st.booleans())
def test_ema_is_the_fold(count, decay, corrected, warm):
    values = [float(i * i - 3) for i in range(count)]
    shares = ema(count, decay, corrected, warm)
    assert sum(shares) == pytest.approx(1)
    merged = sum(share * value for share, value in zip(shares, values, strict=True))
    assert merged == pytest.approx(folded(values, decay, corrected, warm), abs=1e-9)


def test_ema_by_hand():
    assert ema(3, 0.5) == [0.25, 0.25, 0.5]
    assert ema(3, 0.5, corrected=True) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    assert ema(4, 0.0) == [0, 0, 0, 1] == ema(4, 0.0, corrected=True)
    # the decay is 2/11, then 3/12
    assert ema(3, 0.9, warm=True) == pytest.approx([2 / 11 / 4, 9 / 11 / 4, 3 / 4])


@pytest.mark.parametrize("tail", [[8] * 9, [9] * 8])
def test_swad_of_the_specifications_example(tail):
    assert swad(VALLEY + tail, 3, 6, 0.3) == (4, 9)


@pytest.mark.parametrize("run", json.loads(GOLDEN.read_text()))
def test_swad_ends_where_the_authors_code_does(run):
    # khanrc/swad 252190e, `LossValley`; it converges at `start`, and may take some before it too
    assert swad(run["losses"], 3, 6, 0.3) == (run["start"], run["end"])


def test_swad_without_an_end_averages_to_the_last():
    assert swad(VALLEY + [8] * 5, 3, 6, 0.3) == (4, 14)
    assert swad([1.0, 1.0, 1.0], 3, 6, 0.3) == (0, 2)


def test_swad_ends_at_the_first_bad_row():
    # limit 1.1 * mean(1, 1.1, 1.05) = 1.155
    assert swad([2, 1, 1.1, 1.05, 1.2, 1.1, 1.2, 1.3, 1.0], 3, 2, 0.1) == (1, 5)


@pytest.mark.parametrize("losses", [[5, 4, 3, 2, 1], [1.0, 2.0], []])
def test_swad_refuses_losses_that_still_fall(losses):
    with pytest.raises(TrajectoryError, match="--converge"):
        swad(losses, 3, 6, 0.3)
