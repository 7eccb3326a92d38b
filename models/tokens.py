"""A tokenizer of one token per byte, for models too small to deserve a vocabulary.

Ids 0 to 255 stand for the bytes (in the order of the byte-level alphabet), the special tokens follow. Nothing is
trained: the same file comes out everywhere, and every text has tokens.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

BYTES = 256
BOS, EOS = 256, 257
CLS, SEP = 256, 257
PAD = 258
VOCABULARY_SIZE = 260  # one id is left unused: 260 divides by 4, which keeps every matrix friendly to blocks


def write_causal_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` with `<s>`, `</s>` and `<pad>`; like GPT-2's it adds no special token by itself."""
    _byte_tokenizer(["<s>", "</s>", "<pad>"]).save(str(folder / "tokenizer.json"))


def write_encoder_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` with `[CLS]`, `[SEP]` and `[PAD]`; like BERT's it makes a text `[CLS] ... [SEP]`."""
    tokenizer = _byte_tokenizer(["[CLS]", "[SEP]", "[PAD]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def _byte_tokenizer(special_tokens: list[str]) -> Tokenizer:
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special_tokens)
    return tokenizer
