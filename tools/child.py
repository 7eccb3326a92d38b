"""Jobs that are measured from outside: each runs in a process of its own and prints one line of JSON when it is done.

`run(job, arguments)` starts one; `python -m tools.child JOB JSON` is what it starts.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Child:
    """A job that has ended.

    Attributes:
        seconds: Wall time of the process, start of Python and imports included.
        peak_bytes: Its largest resident memory.
        result: What the job printed.
    """

    seconds: float
    peak_bytes: int
    result: dict[str, Any]


class ChildError(RuntimeError):
    """A job failed; carries the end of what it wrote to stderr."""


def run(job: str, arguments: Mapping[str, Any]) -> Child:
    """Run a job in a new process and wait for it.

    Raises:
        ChildError: it failed.
    """
    command = [sys.executable, "-m", "tools.child", job, json.dumps(dict(arguments))]
    begin = time.perf_counter()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise ChildError(f"{job} failed: {' '.join(process.stderr.strip().splitlines()[-3:])}")
    answer = json.loads(process.stdout.strip().splitlines()[-1])
    return Child(seconds, answer["peak_bytes"], answer["result"])


def optimize(model: str, out: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Optimize `model` to `out` and return the report as plain data."""
    import catonnx

    return catonnx.optimize(model, out, catonnx.Recipe(**recipe), force=True).to_json()


def forward(model: str, text: str, samples: int, seq_len: int) -> dict[str, Any]:
    """Take the rows of a text, as calibration would, through a model with ONNX Runtime's default options; time it."""
    import onnxruntime

    from catonnx.runtime.feeds import InputSpec, token_feeds
    from catonnx.runtime.text import TokenStream, pack_text, read_text

    rows = pack_text(read_text(text), TokenStream.load(Path(model)), seq_len=seq_len, samples=samples)
    begin = time.perf_counter()
    session = onnxruntime.InferenceSession(Path(model) / "model.onnx", providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    for feeds in token_feeds(InputSpec.from_session(session), rows):
        session.run(None, feeds)
    done = time.perf_counter()
    return {"load_seconds": loaded - begin, "forward_seconds": done - loaded, "tokens": int(rows.size)}


def peer(model: str, out: str, exclude: list[str], accuracy_level: int, bits: int = 4) -> dict[str, Any]:
    """Round weights with onnxruntime's own quantizer: its default algorithm, symmetric, groups of 32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    Path(out).mkdir(parents=True, exist_ok=True)
    for old in Path(out).iterdir():
        old.unlink()
    quantizer = MatMulNBitsQuantizer(
        str(Path(model) / "model.onnx"),
        bits=bits,
        block_size=32,
        is_symmetric=True,
        accuracy_level=accuracy_level,
        nodes_to_exclude=exclude,
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(Path(out) / "model.onnx"), use_external_data_format=True)
    return {"linears": sum(node.op_type == "MatMulNBits" for node in quantizer.model.model.graph.node)}


def int8(model: str, out: str, exclude: list[str]) -> dict[str, Any]:
    """Round weights to int8 per channel and activations as they come, with onnxruntime's own dynamic quantizer."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    Path(out).mkdir(parents=True, exist_ok=True)
    quantize_dynamic(
        Path(model) / "model.onnx",
        Path(out) / "model.onnx",
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=exclude,
    )
    return {}


def round_with(**arguments: Any) -> dict[str, Any]:
    """Round a model with another package's quantizer; see `bench_peers`."""
    from tools import bench_peers

    return bench_peers.round_with(**arguments)


def occupy(**arguments: Any) -> dict[str, Any]:
    """Open a model and run it; see `footprint`."""
    from tools import footprint

    return footprint.occupy(**arguments)


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "optimize": optimize,
    "forward": forward,
    "peer": peer,
    "int8": int8,
    "round_with": round_with,
    "occupy": occupy,
}


def main() -> None:
    """Run the job that the command line names."""
    from catonnx.measures import peak_memory

    job, arguments = sys.argv[1:3]
    with contextlib.redirect_stdout(sys.stderr):  # some quantizers print as they go on
        result = JOBS[job](**json.loads(arguments))
    print(json.dumps({"result": result, "peak_bytes": peak_memory()}))


if __name__ == "__main__":
    main()
