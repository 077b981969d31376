"""Models that run: opened or offloaded, their weights found and replaced, walked layer by layer.

Everything is imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mergewise._exports import exports

if TYPE_CHECKING:
    from mergewise.evidence.models._call import Fed as Fed
    from mergewise.evidence.models._call import call as call
    from mergewise.evidence.models._differentiable import (
        check_differentiable as check_differentiable,
    )
    from mergewise.evidence.models._differentiable import differentiable as differentiable
    from mergewise.evidence.models._live import DTYPES as DTYPES
    from mergewise.evidence.models._live import LiveModel as LiveModel
    from mergewise.evidence.models._live import Role as Role
    from mergewise.evidence.models._live import fingerprint_of as fingerprint_of
    from mergewise.evidence.models._live import open_model as open_model
    from mergewise.evidence.models._live import refuse_on_disk as refuse_on_disk
    from mergewise.evidence.models._live import usual_dtype as usual_dtype
    from mergewise.evidence.models._masked import StoredTensors as StoredTensors
    from mergewise.evidence.models._names import Names as Names
    from mergewise.evidence.models._sites import Site as Site
    from mergewise.evidence.models._sites import Sites as Sites
    from mergewise.evidence.models._sites import Tokens as Tokens
    from mergewise.evidence.models._sites import sites_of as sites_of
    from mergewise.evidence.models._walk import Layer as Layer
    from mergewise.evidence.models._walk import Walk as Walk

__getattr__, __dir__ = exports(
    __name__,
    {
        "_call": "Fed call",
        "_differentiable": "check_differentiable differentiable",
        "_live": "DTYPES LiveModel Role fingerprint_of open_model refuse_on_disk usual_dtype",
        "_masked": "StoredTensors",
        "_names": "Names",
        "_sites": "Site Sites Tokens sites_of",
        "_walk": "Layer Walk",
    },
)
