"""What a pickle of weights may hold, as inert records: nothing here is the thing it stands for."""

from __future__ import annotations

from dataclasses import dataclass

from mergewise.checkpoint._dtypes import CODES

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
"""Element types of torch's typed storages, as safetensors codes."""


@dataclass(frozen=True)
class Name:
    """A global that the pickle names; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def storage(self) -> str | None:
        """The element type of a storage class, ``U8`` for an untyped one; None for others."""
        if str(self) in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
            return "U8"
        return STORAGES.get(self.name) if self.module == "torch" else None

    @property
    def dtype(self) -> str | None:
        """The safetensors code of a torch dtype, or None."""
        return CODES.get(self.name) if self.module == "torch" else None


@dataclass(frozen=True, eq=False)
class Opaque:
    """Something that is no weight, of which only the name is known."""

    what: str


@dataclass(frozen=True)
class Storage:
    """A run of elements in the file; `view` if it is said to be a part of another one."""

    dtype: str
    key: str
    count: int
    view: bool = False


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor as pickled: offset and strides count elements of its storage.

    Attributes:
        dtype: a safetensors code, or the name of what cannot be read.
        odd: why it cannot be read, or "".
    """

    storage: Storage | None
    dtype: str
    offset: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    odd: str = ""


DICTS = frozenset(("collections.OrderedDict",))
_PLAIN = frozenset(
    (
        "collections.Counter", "collections.defaultdict", "torch.Size", "torch.device",
        "torch.nn.parameter.Parameter", "torch.nn.Parameter", "torch.Tensor", "torch._C._nn",
        "_codecs.encode", "argparse.Namespace", "datetime.datetime", "datetime.timedelta",
        "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct", "pathlib.PosixPath", "pathlib.WindowsPath",
        "pathlib._local.PosixPath", "pathlib.PurePosixPath",
    )
)  # fmt: skip
_BUILTINS = frozenset(
    ("set", "frozenset", "bytearray", "complex", "int", "float", "bool", "str", "list", "dict",
     "tuple", "bytes", "object")
)  # fmt: skip
_TORCH = frozenset(("complex128", "quint8", "qint8", "qint32", "strided"))
_TRAINERS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "torch.optim.")
REBUILDS = frozenset(
    (
        "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state", "torch._tensor._rebuild_from_type_v2",
    )
)  # fmt: skip
ODD_TENSORS = {
    "torch._utils._rebuild_qtensor": "it is quantised",
    "torch._utils._rebuild_sparse_tensor": "it is sparse",
    "torch._utils._rebuild_nested_tensor": "it is nested",
    "torch._utils._rebuild_meta_tensor_no_storage": "it is on the meta device, without data",
    "torch._utils._rebuild_wrapper_subclass": "it is of a tensor subclass",
    "torch._utils._rebuild_device_tensor_from_numpy": "it was saved on a device that hides it",
    "torch._utils._rebuild_xla_tensor": "it was saved on a device that hides it",
}


def is_harmless(name: Name) -> bool:
    """Whether files of weights name this beside their tensors: what it makes becomes `Opaque`.

    Nothing named is ever imported or called, so this list decides only on what is refused as a
    sign that the file holds something else than weights.
    """
    text = str(name)
    builtin = name.module in ("builtins", "__builtin__") and name.name in _BUILTINS
    of_torch = name.module == "torch" and (name.dtype is not None or name.name in _TORCH)
    return builtin or of_torch or text in _PLAIN or text.startswith(_TRAINERS)
