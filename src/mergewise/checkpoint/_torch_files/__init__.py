"""PyTorch files of weights, read as data: which of a folder, and where their tensors lie."""

from mergewise.checkpoint._torch_files._choose import (
    ENDINGS,
    choose_pickles,
    is_pickle,
    refuse_old_torch,
    refuse_pickles,
)
from mergewise.checkpoint._torch_files._read import read_torch_file

__all__ = [
    "ENDINGS",
    "choose_pickles",
    "is_pickle",
    "read_torch_file",
    "refuse_old_torch",
    "refuse_pickles",
]
