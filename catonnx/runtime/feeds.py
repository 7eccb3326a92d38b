"""Turn token ids, or a user's .npz file, into the inputs of a model."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from catonnx.errors import CalibrationError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Feeds = dict[str, np.ndarray]

_NPZ_HINT = "give ready-made inputs in an .npz file with one array '<sample>/<input name>' per sample and input"
PAST_PREFIX = "past_key_values."
"""How the names of inputs begin that hold a cache."""
_BROKEN = (EOFError, MemoryError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise where an archive, its compression or an array's header is not sound."""
_TOKEN_INPUTS = frozenset({"input_ids", "attention_mask", "position_ids", "token_type_ids", "use_cache_branch"})
_DTYPES: Mapping[str, str] = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}


@dataclass(frozen=True)
class ModelInput:
    """One input of a model: its dtype, and its shape with None for every dimension that is free."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]


def model_inputs(session: InferenceSession) -> tuple[ModelInput, ...]:
    """Return the inputs that `session` wants to be fed, in the model's order.

    Raises:
        CalibrationError: an input is no tensor, or of a dtype that numpy cannot hold.
    """
    return tuple(_model_input(node.name, node.type, node.shape) for node in session.get_inputs())


def graph_inputs(model: ir.Model) -> tuple[ModelInput, ...]:
    """Return the same as `model_inputs`, read from a graph; what is bfloat16 is fed in float32, to its twin.

    Raises:
        CalibrationError: an input is no tensor of a known rank, or of a dtype that numpy cannot hold.
    """
    inputs = []
    for value in model.graph.inputs:
        if value.dtype is None or value.shape is None:
            raise CalibrationError("the type or shape of an input is not declared", where=f"input {value.name}")
        dims = tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape)
        dtype = ir.DataType.FLOAT if value.dtype == ir.DataType.BFLOAT16 else value.dtype
        inputs.append(ModelInput(str(value.name), np.dtype(dtype.numpy()), dims))
    return tuple(inputs)


def _model_input(name: str, ort_type: str, shape: Sequence[int | str | None]) -> ModelInput:
    element = ort_type.removeprefix("tensor(").removesuffix(")")
    if element not in _DTYPES:
        raise CalibrationError(f"an input of type {ort_type} cannot be fed from numpy", where=f"input {name}")
    # Negative dimensions are how some exporters write "free".
    dims = tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in shape)
    return ModelInput(name, np.dtype(_DTYPES[element]), dims)


@dataclass(frozen=True)
class InputSpec:
    """How token ids become the inputs of one language model or text encoder.

    Known inputs: input_ids, attention_mask, position_ids, token_type_ids, past_key_values.*, use_cache_branch.
    Build it with `InputSpec.from_session`.
    """

    inputs: tuple[ModelInput, ...]

    @classmethod
    def from_session(cls, session: InferenceSession) -> InputSpec:
        """Read the inputs of `session`; see `of`."""
        return cls.of(model_inputs(session))

    @classmethod
    def of(cls, inputs: tuple[ModelInput, ...]) -> InputSpec:
        """Recognize the inputs of a language model or text encoder.

        Raises:
            CalibrationError: no input_ids, or an input that token ids do not determine.
        """
        names = [item.name for item in inputs]
        if "input_ids" not in names:
            raise CalibrationError(
                f"the model has no input_ids, so text cannot be fed to it (inputs: {', '.join(names)})", hint=_NPZ_HINT
            )
        for item in inputs:
            if item.name not in _TOKEN_INPUTS and not item.name.startswith(PAST_PREFIX):
                raise CalibrationError(
                    "text does not determine the value of an input", where=f"input {item.name}", hint=_NPZ_HINT
                )
            if item.name.startswith(PAST_PREFIX):
                _check_past(item)
        return cls(inputs)

    @cached_property
    def past_names(self) -> tuple[str, ...]:
        """The key and value inputs of the cache, in the model's order; empty if it has none."""
        return tuple(item.name for item in self.inputs if item.name.startswith(PAST_PREFIX))

    @property
    def has_cache(self) -> bool:
        """Whether the model takes past keys and values."""
        return bool(self.past_names)

    def zero_past(self, batch: int, length: int = 0) -> Feeds:
        """Return a cache of zeros for `batch` sequences: arrays [batch, heads, length, head width]."""
        by_name = {item.name: item for item in self.inputs}
        return {name: _zeros(by_name[name], (batch, None, length, None)) for name in self.past_names}

    def feeds(self, tokens: np.ndarray, past_length: int = 0) -> Feeds:
        """Return every input but the cache for `tokens` int64 [batch, sequence] that follow `past_length` others.

        Raises:
            CalibrationError: the model fixes a batch size or sequence length that `tokens` does not have.
        """
        batch, length = tokens.shape
        total = past_length + length
        arrays = {
            "input_ids": tokens,
            "attention_mask": np.ones((batch, total)),
            "position_ids": np.broadcast_to(np.arange(past_length, total), (batch, length)),
            "token_type_ids": np.zeros((batch, length)),
            "use_cache_branch": np.array([past_length > 0]),
        }
        chosen = [item for item in self.inputs if item.name in arrays]
        feeds = {item.name: np.ascontiguousarray(arrays[item.name], dtype=item.dtype) for item in chosen}
        check_feeds(feeds, chosen, where="token ids")
        return feeds

    def first_feeds(self, tokens: np.ndarray) -> Feeds:
        """Return all inputs for `tokens` int64 [batch, sequence] at the start of a text: `feeds` and an empty cache."""
        return self.feeds(tokens) | self.zero_past(len(tokens))


def token_feeds(spec: InputSpec, rows: np.ndarray) -> list[Feeds]:
    """Return one set of inputs for each row of `rows` int64 [samples, sequence]."""
    return [spec.first_feeds(row[np.newaxis]) for row in rows]


def load_npz_feeds(path: str | Path, inputs: Sequence[ModelInput]) -> list[Feeds]:
    """Read ready-made inputs, one set per sample.

    The file holds arrays named ``<sample>/<input name>``, such as ``0/pixel_values``; samples are ordered by number,
    then by name. Pickled objects are refused.

    Raises:
        CalibrationError: the file is missing, no .npz, empty, or its arrays do not fit `inputs`.
    """
    path = Path(path)
    try:
        # Opened here because np.load leaves its own handle open when the archive is broken.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CalibrationError("this is a single array, not an .npz file", where=path, hint=_NPZ_HINT)
            with archive:
                arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError as error:
        raise CalibrationError("the file does not exist", where=path) from error
    except _BROKEN as error:
        if isinstance(error, OSError) and error.strerror:
            raise CalibrationError(f"the file cannot be read: {error.strerror}", where=path) from error
        raise CalibrationError(f"this is not an .npz file of plain arrays: {error}", where=path) from error

    samples: dict[str, Feeds] = {}
    for key, array in arrays.items():
        sample, slash, name = key.partition("/")
        if not (sample and slash and name):
            raise CalibrationError(f"the array {key!r} does not say its sample and input", where=path, hint=_NPZ_HINT)
        samples.setdefault(sample, {})[name] = array
    if not samples:
        raise CalibrationError("the file holds no arrays", where=path, hint=_NPZ_HINT)
    ordered = sorted(samples, key=lambda sample: (not sample.isdigit(), int(sample) if sample.isdigit() else 0, sample))
    for sample in ordered:
        check_feeds(samples[sample], inputs, where=f"{path}, sample {sample}")
    return [samples[sample] for sample in ordered]


def as_taken(feeds: Feeds, inputs: Iterable[ModelInput]) -> Feeds:
    """Return inputs with their floats in the types that a model takes: two models may differ in those of a cache."""
    dtypes = {item.name: item.dtype for item in inputs if item.dtype.kind == "f"}
    return {
        name: array.astype(dtypes[name], copy=False) if name in dtypes and array.dtype.kind == "f" else array
        for name, array in feeds.items()
    }


def check_feeds(feeds: Mapping[str, np.ndarray], inputs: Iterable[ModelInput], where: object) -> None:
    """Check that `feeds` has exactly the names of `inputs`, with their dtypes, ranks and fixed dimensions.

    Raises:
        CalibrationError: it has not, or a float array holds NaN or Inf; the message names the input.
    """
    wanted = {item.name: item for item in inputs}
    missing, unknown = wanted.keys() - feeds.keys(), feeds.keys() - wanted.keys()
    if missing or unknown:
        parts = [
            f"{word} {', '.join(sorted(names))}" for word, names in (("lacks", missing), ("adds", unknown)) if names
        ]
        hint = f"the model's inputs are {', '.join(wanted)}"
        raise CalibrationError(f"the sample {' and '.join(parts)}", where=where, hint=hint)
    for name, item in wanted.items():
        _check_array(feeds[name], item, f"{where}, input {name}")


def _check_array(array: np.ndarray, item: ModelInput, where: str) -> None:
    if array.dtype != item.dtype:
        raise CalibrationError(f"the array is {array.dtype} where the model takes {item.dtype}", where=where)
    fits = array.ndim == len(item.shape) and all(
        want is None or want == have for want, have in zip(item.shape, array.shape, strict=True)
    )
    if not fits:
        shown = ", ".join("?" if dim is None else str(dim) for dim in item.shape)
        raise CalibrationError(f"the array has shape {list(array.shape)} where the model takes [{shown}]", where=where)
    if array.shape[:1] == (0,) != item.shape[:1]:
        # Some kernels divide by the batch size: ONNX Runtime, and we with it, would be gone without a word.
        raise CalibrationError("the array is empty: there is not one sequence in it", where=where)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CalibrationError("the array holds NaN or Inf", where=where)


def _check_past(item: ModelInput) -> None:
    if len(item.shape) != 4 or item.shape[1] is None or item.shape[3] is None:
        raise CalibrationError(
            f"a cache of shape {list(item.shape)} is not [batch, heads, length, head width] with fixed heads and width",
            where=f"input {item.name}",
            hint=_NPZ_HINT,
        )


def _zeros(item: ModelInput, shape: tuple[int | None, ...]) -> np.ndarray:
    dims = [given if fixed is None else fixed for fixed, given in zip(item.shape, shape, strict=True)]
    return np.zeros([dim or 0 for dim in dims], item.dtype)
