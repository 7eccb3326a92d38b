"""Open ONNX Runtime sessions, and say in plain words why one cannot be opened.

ONNX Runtime itself is imported inside functions only: `import catonnx` works without it.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from catonnx.cores import usable_cores
from catonnx.errors import CatonnxError, ModelError, OutputError, RuntimeUnavailableError, UsageError, root_cause
from catonnx.graph.load import naming
from catonnx.graph.twin import needs_twin, write_twin
from catonnx.runtime.spool import temporary_folder

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Provider = Literal["cpu", "cuda"]
Optimization = Literal["all", "extended", "basic", "as written"]

PROVIDER_NAMES: Mapping[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_OPTIMIZATION_NAMES: Mapping[str, str] = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "as written": "ORT_ENABLE_BASIC",
}
_FUSIONS = ("LayerNormFusionL1", "GeluFusionL1")
"""What of the basic level makes one node of several, from opsets 17 and 20 on."""

_SEVERITY_ERROR, _SEVERITY_FATAL = 3, 4  # ONNX Runtime's scale: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal

# What ONNX Runtime writes (1.24 to 1.31), what that means, and what to do. Tried in order; {0} is the first group.
_EXPLANATIONS: tuple[tuple[str, str, str], ...] = (
    (
        r'External data path does not exist: "?([^"\n]+)"?',
        "the external data file {0} is missing",
        "the .onnx file and its data file belong side by side, under the names they were saved with",
    ),
    (
        r"External initializer: (\S+) .*out of bounds or can not be read",
        "the external data file is too short to hold {0}",
        "the data file is truncated or belongs to another model: copy or export it again",
    ),
    (
        r"External data path.*escapes",
        "the external data lies outside the folder of the model",
        "save the model again with its data file beside the .onnx file",
    ),
    (
        r"INVALID_PROTOBUF|No graph was found in the protobuf",
        "this is not an ONNX model, or the file is truncated",
        "check the size of the file against its source, and download or export it again",
    ),
    (
        r"(\S+:\S+)\(-1\) is not a registered function/op",
        "ONNX Runtime does not know the operator {0}",
        "a custom operator needs its library, or a model-local function of the same name in the file",
    ),
    (
        r"No Op registered for (\S+) with domain_version of (\d+)",
        "ONNX Runtime does not know the operator {0} in opset {1}",
        "misspelled operator, or one of another opset: convert the model's opset",
    ),
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        "the model has IR version {0}, and this ONNX Runtime reads up to {1}",
        "upgrade onnxruntime, or export the model with an older IR version",
    ),
    (
        r"Opset (\d+) is under development.* is till opset (\d+)",
        "the model has opset {0}, and this ONNX Runtime supports up to {1}",
        "upgrade onnxruntime, or export the model with an older opset",
    ),
    (
        r"Could not find an implementation for (\S+?)\(\d+\)",
        "the execution provider has no kernel for {0} in the data types of this model",
        "choose another provider, or export the model in float32",
    ),
)


class RunError(ModelError):
    """A model that loaded failed while it ran.

    Attributes:
        tokens: Length of the texts that it ran on, with what its cache held of them; 0 if it ran on something else.
    """

    tokens: int = 0

    def moved(self, old: object, new: object) -> Self:
        """Return the same error about another place, see `CatonnxError`."""
        return self._like(super().moved(old, new))

    def within(self, place: object) -> Self:
        """Return the same error with a wider place before its own."""
        return self._like(super().within(place))

    def _like(self, other: Self) -> Self:
        other.tokens = self.tokens
        return other


def import_onnxruntime() -> Any:
    """Return the `onnxruntime` module.

    Raises:
        RuntimeUnavailableError: it is not installed.
    """
    hint = 'pip install "catonnx[cpu]", or "catonnx[gpu]" for CUDA (not both: they exclude each other)'
    try:
        import onnxruntime
    except Exception as error:  # what is broken fails in many ways
        if isinstance(root_cause(error), KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise RuntimeUnavailableError(f"ONNX Runtime cannot be imported: {error}", hint=hint) from error
    if not hasattr(onnxruntime, "InferenceSession"):  # a folder that an uninstallation left is a module too
        raise RuntimeUnavailableError(
            "what is installed as onnxruntime is no ONNX Runtime", hint=f"uninstall it, delete what is left, and {hint}"
        )
    return onnxruntime


def available_providers() -> tuple[str, ...]:
    """Return the names among `PROVIDER_NAMES` that the installed ONNX Runtime was built with.

    Built with is not the same as usable: whether CUDA really starts is only known once a session is open.

    Raises:
        RuntimeUnavailableError: ONNX Runtime is not installed.
    """
    built_in = import_onnxruntime().get_available_providers()
    return tuple(short for short, name in PROVIDER_NAMES.items() if name in built_in)


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions by which ONNX Runtime reports failure (they share no base class)."""
    import_onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*own, RuntimeError, ValueError)


def open_session(
    path: str | Path,
    *,
    provider: str = "cpu",
    config: Mapping[str, str] | None = None,
    optimization: Optimization = "all",
    threads: int | None = None,
    optimized_path: str | Path | None = None,
    scratch: str | Path | None = None,
    arena: bool = True,
    verbose: bool = False,
    prepare: Callable[[Any], None] | None = None,
) -> InferenceSession:
    """Open one inference session. Where bfloat16 does not run a model's float32 twin does, see `graph.twin`.

    Args:
        path: The .onnx file; its external data is found beside it.
        provider: "cpu" or "cuda". With "cuda" a node without a CUDA kernel still runs on the CPU.
        config: Session configuration entries of ONNX Runtime, such as ``session.qdq_matmulnbits_accuracy_level``.
        optimization: How far ONNX Runtime may rewrite the graph; weight fusion needs "extended" or "all".
        threads: Threads of one operator; all cores that this process may use unless given.
        optimized_path: Where ONNX Runtime shall write the graph that it really runs.
        scratch: Folder for a float32 twin, which stays there as long as the session; the system's temporary folder
            unless given.
        arena: Let ONNX Runtime hold on to memory between runs; it doubles what it takes each time.
        verbose: Let ONNX Runtime log its warnings.
        prepare: Is given the `onnxruntime.SessionOptions` before the session is opened.

    Raises:
        ModelError: the model cannot be loaded: the message says why.
        OutputError: its float32 twin cannot be written.
        RuntimeUnavailableError: ONNX Runtime or the provider is not there.
        UsageError: an unknown provider.
    """
    if provider not in PROVIDER_NAMES:
        raise UsageError(f"unknown execution provider {provider!r}", hint=f"choose one of {', '.join(PROVIDER_NAMES)}")
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise ModelError(f"expected an ONNX file and found {found}", where=path, hint="give the path of the .onnx file")
    runtime = import_onnxruntime()
    wanted = _wanted_providers(runtime, provider)

    options = runtime.SessionOptions()
    options.log_severity_level = 2 if verbose else _SEVERITY_ERROR
    options.intra_op_num_threads = threads or usable_cores()
    options.enable_cpu_mem_arena = arena
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, _OPTIMIZATION_NAMES[optimization])
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    if prepare is not None:
        prepare(options)

    session = _open(path, options, wanted, _FUSIONS if optimization == "as written" else (), scratch)
    if wanted[0] not in session.get_providers():
        raise _provider_missing(provider, "is installed but did not start")
    return session


def _open(
    path: Path, options: Any, providers: Sequence[str], without: Sequence[str], scratch: str | Path | None
) -> InferenceSession:
    """Open a model; its float32 twin, if it holds bfloat16 that does not run or cannot be fed."""
    try:
        session = _opened(path, options, providers, without)
    except runtime_errors() as error:
        if "bfloat16" in str(error) or (path.suffix == ".onnx" and needs_twin(path)):
            return _open_twin(path, options, providers, without, scratch)
        raise explain(error, path) from error
    if providers[0] not in session.get_providers():
        return session  # whoever asked will say so
    if any("bfloat16" in node.type for node in (*session.get_inputs(), *session.get_outputs())):
        return _open_twin(path, options, providers, without, scratch)
    return session


def _opened(path: Path, options: Any, providers: Sequence[str], without: Sequence[str]) -> InferenceSession:
    return import_onnxruntime().InferenceSession(
        str(path),
        options,
        providers=providers,
        disabled_optimizers=without,
        enable_fallback=0,  # or a provider that fails to start is replaced by the CPU, with a line on stdout
    )


def _open_twin(
    path: Path, options: Any, providers: Sequence[str], without: Sequence[str], scratch: str | Path | None
) -> InferenceSession:
    folder = temporary_folder(scratch)
    twin = Path(folder.name) / "twin.onnx"
    try:
        with naming(twin, path):
            write_twin(path, twin)
            try:
                session = _opened(twin, options, providers, without)
            except runtime_errors() as error:
                raise explain(error, twin) from error
    except BaseException:  # a Ctrl-C as well
        folder.cleanup()
        raise
    weakref.finalize(session, folder.cleanup)  # until then ONNX Runtime may read from it
    return session


def run(session: InferenceSession, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run `session` once and return the values of `outputs`, in that order.

    Raises:
        RunError: ONNX Runtime failed on the way: usually a shape that the model cannot take.
    """
    try:
        values: list[np.ndarray] = session.run(list(outputs), dict(feeds), quiet_run())
    except runtime_errors() as error:
        raise run_failure(error, {name: value.shape for name, value in feeds.items()}) from error
    return values


def quiet_run() -> Any:
    """Return options that keep ONNX Runtime from logging a failure that it raises too."""
    options = import_onnxruntime().RunOptions()
    options.log_severity_level = _SEVERITY_FATAL
    return options


def run_failure(error: Exception, shapes: Mapping[str, tuple[int, ...]]) -> RunError:
    """Return the error to raise when a model that loaded fails while it runs on inputs of these shapes."""
    shown = [f"{name} {list(shape)}" for name, shape in shapes.items()]
    inputs = ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "")
    failure = RunError(
        f"ONNX Runtime failed while it ran the model: {_plain(error)}",
        where=f"inputs {inputs}",
        hint="check that the inputs have shapes and token ids that this model accepts",
    )
    failure.tokens = max((shapes[name][-1] for name in ("input_ids", "attention_mask") if shapes.get(name)), default=0)
    return failure


def explain(error: Exception, path: Path) -> CatonnxError:
    """Turn ONNX Runtime's reason for not loading `path` into an error that says what to do."""
    text = str(error)
    if "Failed to write external initializers" in text:
        return OutputError("ONNX Runtime cannot write the graph that it would run", where=path, hint="free some space")
    for pattern, what, hint in _EXPLANATIONS:
        match = re.search(pattern, text, flags=re.DOTALL)
        if match:
            return ModelError(what.format(*match.groups()), where=path, hint=hint)
    return ModelError(f"ONNX Runtime cannot load the model: {_plain(error)}", where=path)


def _plain(error: Exception) -> str:
    """Return the message without ONNX Runtime's status prefix and line breaks."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed: ?)?", "", str(error))
    return " ".join(text.split()).rstrip(".")


def _wanted_providers(runtime: Any, provider: str) -> list[str]:
    name = PROVIDER_NAMES[provider]
    if name not in runtime.get_available_providers():
        raise _provider_missing(provider, "is not part of the installed ONNX Runtime")
    if provider == "cpu":
        return [name]
    # CUDA libraries that came as pip packages are found only after this call.
    runtime.preload_dlls()
    return [name, PROVIDER_NAMES["cpu"]]


def _provider_missing(provider: str, state: str) -> RuntimeUnavailableError:
    hint = "use the cpu provider"
    if provider == "cuda":
        hint = 'pip install "catonnx[gpu]", check nvidia-smi and the CUDA libraries, or use the cpu provider'
    return RuntimeUnavailableError(f"the execution provider {PROVIDER_NAMES[provider]} {state}", hint=hint)
