"""Transforms that are learned site by site from calibration rows, with PyTorch: the extra ``catonnx[learned]``.

    learn_rotation      a rotation, as SpinQuant learns one
    learn_affine        a scale, a Kronecker product and a clip ratio, as FlatQuant learns them
    refine              a small change of a given transform and clip ratio

Arrays in, arrays out; nothing else in catonnx imports this package before a learned method is asked for.

Raises at import:
    RuntimeUnavailableError: PyTorch is not installed.
"""

from __future__ import annotations

from catonnx.errors import RuntimeUnavailableError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise RuntimeUnavailableError(
        "learned transforms need PyTorch, which is not installed",
        hint='pip install "catonnx[learned]", or take a transform that is not learned',
    ) from error

from catonnx.learned.affine import learn_affine
from catonnx.learned.refinement import refine
from catonnx.learned.rotation import learn_rotation
from catonnx.learned.site import SiteSample
from catonnx.learned.training import Effort, Learned

__all__ = ["Effort", "Learned", "SiteSample", "learn_affine", "learn_rotation", "refine"]
