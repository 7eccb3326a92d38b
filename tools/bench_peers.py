"""Quantizers of other packages, as their documentation says to use them. Each is run in a process of its own.

The linears that catonnx leaves in float (the output head) stay there too, wherever the package allows that.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CALIBRATION_TOKENS = 64
"""Of the one row that the GPTQ of onnxruntime gets, which reads the wrong triangle of the inverse Hessian anyway."""


def round_with(peer: str, model: str, out: str, exclude: list[str], text: str) -> dict[str, Any]:
    """Round a model and return how long that took, by which version; or only what is `missing`.

    Args:
        peer: Key of `PEERS`.
        model: Folder of the model.
        out: A new file in an existing folder.
        exclude: Nodes to leave in float.
        text: A text to calibrate on.
    """
    package = peer.split()[0]
    if importlib.util.find_spec(package) is None:
        return {"missing": package}
    begin = time.perf_counter()
    PEERS[peer](Path(model), Path(out), exclude, Path(text))
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "version": f"{package} {importlib.metadata.version(package)}"}


def _onnxruntime_default(model: Path, out: Path, exclude: list[str], _: Path) -> None:
    _matmul_nbits(model, out, exclude, block_size=32, is_symmetric=True)


def _onnxruntime_k_quant(model: Path, out: Path, exclude: list[str], _: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import KQuantWeightOnlyQuantConfig

    _matmul_nbits(model, out, exclude, block_size=32, is_symmetric=False, algo_config=KQuantWeightOnlyQuantConfig())


def _onnxruntime_hqq(model: Path, out: Path, exclude: list[str], _: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig

    _matmul_nbits(model, out, exclude, block_size=64, algo_config=HQQWeightOnlyQuantConfig(block_size=64))


def _onnxruntime_gptq(model: Path, out: Path, exclude: list[str], text: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import GPTQWeightOnlyQuantConfig

    from catonnx.graph.load import read
    from catonnx.runtime.feeds import InputSpec, graph_inputs, token_feeds
    from catonnx.runtime.text import TokenStream, pack_text, read_text

    rows = pack_text(read_text(text), TokenStream.load(model), seq_len=CALIBRATION_TOKENS, samples=1)
    feeds = token_feeds(InputSpec.of(graph_inputs(read(model / "model.onnx"))), rows)
    algorithm = GPTQWeightOnlyQuantConfig(calibration_data_reader=list(feeds))
    _matmul_nbits(model, out, exclude, block_size=32, is_symmetric=True, algo_config=algorithm)


def _matmul_nbits(model: Path, out: Path, exclude: list[str], **settings: Any) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    class Excluding(MatMulNBitsQuantizer):  # type: ignore[misc]
        """Its GPTQ takes `nodes_to_exclude` and rounds them all the same."""

        def _generate_q4_node_config(self) -> dict[str, Any]:
            config: dict[str, Any] = super()._generate_q4_node_config()
            return config | dict.fromkeys(self.nodes_to_exclude, "fp32")

    quantizer = Excluding(str(model / "model.onnx"), nodes_to_exclude=exclude, accuracy_level=0, **settings)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), use_external_data_format=True)


def _onnxsim_int4(model: Path, out: Path, _: list[str], __: Path) -> None:
    import onnxsim  # type: ignore[import-not-found, unused-ignore]

    _save(onnxsim.quantize_weight_only_int4(_opset_21(model, out)), out)


def _onnxsim_quarot(model: Path, out: Path, _: list[str], __: Path) -> None:
    import onnxsim  # type: ignore[import-not-found, unused-ignore]

    _save(onnxsim.apply_quarot(_opset_21(model, out)), out)


def _opset_21(model: Path, out: Path) -> Any:
    """Return a model in opset 21 with types and shapes: else onnxsim gives it back unchanged, and says nothing."""
    import onnx

    from catonnx.graph.load import load
    from catonnx.graph.save import write_model

    copy = out.with_name("opset21.onnx")
    write_model(load(model / "model.onnx"), copy)
    return onnx.shape_inference.infer_shapes(onnx.load(copy))


def _save(proto: Any, out: Path) -> None:
    import onnx

    if not any(tensor.data_type == onnx.TensorProto.INT4 for tensor in proto.graph.initializer):
        raise ValueError("the model came back without an int4 weight")
    onnx.save_model(proto, out, save_as_external_data=True, location=f"{out.name}_data")


PEERS: Mapping[str, Callable[[Path, Path, list[str], Path], None]] = {
    "onnxruntime default": _onnxruntime_default,
    "onnxruntime k_quant": _onnxruntime_k_quant,
    "onnxruntime HQQ 64": _onnxruntime_hqq,
    "onnxruntime GPTQ": _onnxruntime_gptq,
    "onnxsim int4": _onnxsim_int4,
    "onnxsim quarot": _onnxsim_quarot,
}
"""Name, which begins with the package -> what rounds a folder's model to a file, without some nodes."""
