"""`CatQuantizer`, and Optimum's model classes on what it writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import catonnx
from catonnx import CatQuantizer
from catonnx.errors import ModelError, OutputError, UsageError
from tests.hub.optimum_cli import answer

RECIPE: dict[str, Any] = {"samples": 2, "seq_len": 16}

FROM_A_MODEL = """
import json, sys
from catonnx import CatQuantizer
from optimum.onnxruntime import ORTModelForCausalLM

quantizer = CatQuantizer.from_pretrained(ORTModelForCausalLM.from_pretrained(sys.argv[1]))
print(json.dumps([str(quantizer.folder), quantizer.file_name]))
"""

USE_AS_ENCODER = """
import json, sys
import numpy as np, onnxruntime, torch
from optimum.onnxruntime import ORTModelForFeatureExtraction
from transformers import PreTrainedTokenizerFast, pipeline

model = ORTModelForFeatureExtraction.from_pretrained(sys.argv[1])
tokenizer = PreTrainedTokenizerFast(tokenizer_file=sys.argv[1] + "/tokenizer.json")
ids = torch.arange(3, 15).reshape(2, 6)
feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
(plain,) = session.run(["last_hidden_state"], {name: value.numpy() for name, value in feeds.items()})
(vectors,) = pipeline("feature-extraction", model=model, tokenizer=tokenizer)("hello")
assert np.shape(vectors) == (len(tokenizer("hello")["input_ids"]), plain.shape[-1])
print(json.dumps(float(np.abs(model(**feeds).last_hidden_state.numpy() - plain).max())))
"""

USE_ON_IMAGES = """
import json, sys
import numpy as np, onnxruntime, torch
from optimum.onnxruntime import ORTModelForImageClassification

model = ORTModelForImageClassification.from_pretrained(sys.argv[1])
size = model.config.image_size
pixels = np.random.default_rng(0).standard_normal((2, 3, size, size), np.float32)
(plain,) = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx").run(["logits"], {"pixel_values": pixels})
print(json.dumps(float(np.abs(model(pixel_values=torch.from_numpy(pixels)).logits.numpy() - plain).max())))
"""


def test_an_export_becomes_a_folder_that_optimum_loads(tiny_bert: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    quantizer = CatQuantizer.from_pretrained(tiny_bert)
    made = quantizer.quantize(save_dir=tmp_path / "out", recipe=catonnx.Recipe(**RECIPE, calibration=str(text)))
    assert made == tmp_path / "out"
    assert quantizer.report is not None
    assert quantizer.report.sites
    assert {path.name for path in tiny_bert.iterdir()} <= {path.name for path in made.iterdir()}
    assert answer(USE_AS_ENCODER, made, scratch=tmp_path) < 1e-5


def test_a_classifier_of_images(tiny_vit: Path, tmp_path: Path) -> None:
    quantizer = CatQuantizer.from_pretrained(str(tiny_vit))
    made = quantizer.quantize(tmp_path / "out", {"calibration": str(tiny_vit / "feeds.npz")})
    assert answer(USE_ON_IMAGES, made, scratch=tmp_path) < 1e-5


def test_a_loaded_model_will_do(tiny_llama: Path, tmp_path: Path) -> None:
    assert answer(FROM_A_MODEL, tiny_llama, scratch=tmp_path) == [str(tiny_llama), "model.onnx"]


def test_one_of_several_models(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    shutil.copytree(tiny_llama, folder)
    (folder / "model.onnx").rename(folder / "decoder_model.onnx")
    (folder / "decoder_with_past_model.onnx").write_bytes(b"another")
    (folder / "decoder_with_past_model.onnx_data").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"decoder_model\.onnx, decoder_with_past_model\.onnx.*--file-name"):
        CatQuantizer.from_pretrained(folder)
    with pytest.raises(ModelError, match="this is a path"):
        CatQuantizer.from_pretrained(folder, file_name="../decoder_model.onnx")
    with pytest.raises(ModelError, match="there is no such model"):
        CatQuantizer.from_pretrained(folder, file_name="nothing.onnx")
    made = CatQuantizer.from_pretrained(folder, file_name="decoder_model.onnx").quantize(tmp_path / "out", RECIPE)
    names = {path.name for path in made.iterdir()}
    assert {path.name for path in tiny_llama.iterdir()} | {"model.onnx_data", "catonnx.json"} == names


def test_what_is_no_export_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="optimum-cli export catonnx --model gpt2 OUT"):
        CatQuantizer.from_pretrained("gpt2")
    with pytest.raises(ModelError, match=r"\.onnx files: none"):
        CatQuantizer.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="this SimpleNamespace was not loaded from one"):
        CatQuantizer.from_pretrained(SimpleNamespace(encoder=1))
    quantizer = CatQuantizer.from_pretrained(tiny_llama)
    with pytest.raises(UsageError, match="this is no recipe"):
        quantizer.quantize(tmp_path / "out", {"bits": 4})
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError):
        quantizer.quantize(tmp_path / "out", RECIPE)
    assert quantizer.report is None
