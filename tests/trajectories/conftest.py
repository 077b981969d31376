import json

import pytest
import torch
from small_models import llama_config, llama_shapes, near, random_state, save

STEPS = (100, 200, 300, 1000)
LOSSES = (4.0, 2.0, 1.0, 0.5)


def state(step):
    """What a trainer has logged up to a step."""
    known = [(s, loss) for s, loss in zip(STEPS, LOSSES, strict=True) if s <= step]
    history = [{"step": s, "loss": loss} for s, loss in known]
    history += [{"step": s, "eval_loss": 1 + loss} for s, loss in known]
    return {"global_step": step, "log_history": history}


@pytest.fixture
def run(tmp_path):
    """A trainer's folder with four checkpoints in float32, and something else."""
    shapes = llama_shapes(layers=1)
    base = random_state(shapes, 0, torch.float32)
    for i, step in enumerate(STEPS):
        folder = save(tmp_path / f"run/checkpoint-{step}", near(base, i), llama_config(shapes))
        (folder / "trainer_state.json").write_text(json.dumps(state(step)))
    (tmp_path / "run/runs").mkdir()
    (tmp_path / "run/training_args.bin").write_bytes(b"x")
    return tmp_path / "run"
