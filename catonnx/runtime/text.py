"""Read text and cut it into rows of token ids, each beginning the way its model has learned texts to begin."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from catonnx.errors import CalibrationError
from catonnx.graph.save import is_companion

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOKENIZER_HINT = (
    "put tokenizer.json and config.json beside the model, name their folder, or calibrate from .npz inputs"
)


_LONGEST = 2048
"""Tokens that a model is taken to see where its configuration does not say."""


@dataclass(frozen=True)
class TokenStream:
    """A tokenizer with the special ids around each row: BOS before a decoder's, [CLS] and [SEP] around an encoder's."""

    tokenizer: Tokenizer
    prefix: tuple[int, ...]
    suffix: tuple[int, ...] = ()

    @classmethod
    def load(cls, folder: str | Path, *, bos: int | None = None) -> TokenStream:
        """Read tokenizer.json, and the BOS id from config.json (or its like, see `configured_bos`), in `folder`.

        Args:
            folder: Where the files lie; usually the folder of the model.
            bos: Begin rows with this id, whatever the files say.

        Raises:
            CalibrationError: a file is missing or broken, or nothing tells how a row begins.
        """
        folder = Path(folder)
        tokenizer = _load_tokenizer(folder / "tokenizer.json")
        if bos is None:
            bos = configured_bos(folder)
        first, last = _template(tokenizer)
        if last and bos in (None, *first):
            return cls(tokenizer, first, last)  # an encoder: BERT names no BOS, RoBERTa names its <s>
        if bos is None and not first:
            raise CalibrationError(
                "neither config.json nor the tokenizer says with which token a text begins",
                where=folder,
                hint="set bos_token_id in config.json, or calibrate from .npz inputs",
            )
        prefix = first if bos is None else (bos,)
        if not 0 <= prefix[0] < tokenizer.get_vocab_size():
            size = tokenizer.get_vocab_size()
            raise CalibrationError(f"the BOS id {prefix[0]} is outside the tokenizer's {size} tokens", where=folder)
        return cls(tokenizer, prefix)

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of `text`, int64 [tokens], without any special token added."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        CalibrationError: it is missing, is not UTF-8, or holds only white space.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"the text is not UTF-8 at byte {error.start}", where=path, hint="convert it") from error
    except OSError as error:
        raise CalibrationError(f"the text cannot be read: {error.strerror}", where=path) from error
    if not text.strip():
        raise CalibrationError("the text is empty", where=path, hint="give some pages of plain text")
    return text


def pack_text(text: str, stream: TokenStream, *, seq_len: int, samples: int, where: object = None) -> np.ndarray:
    """Cut `text` into at most `samples` rows of `seq_len` tokens, without overlap and evenly spread over all of it.

    Row i is chunk floor(i * chunks / samples) of the text; the same text gives the same rows. Documents are not kept
    apart: a row may run from the end of one into the next.

    Args:
        text: Plain text.
        stream: Its tokenizer.
        seq_len: Tokens in a row, special tokens included.
        samples: Rows wanted.
        where: What the text is, for errors.

    Returns:
        int64 [rows, seq_len]; fewer rows than `samples` if the text is too short for all of them.

    Raises:
        CalibrationError: the text is empty or does not fill one row.
    """
    body = seq_len - len(stream.prefix) - len(stream.suffix)
    if body < 1 or samples < 1:
        raise CalibrationError(
            f"{samples} rows of {seq_len} tokens leave no room for text", hint="ask for more of both"
        )
    if not text.strip():
        raise CalibrationError("the text is empty", where=where, hint="give some pages of plain text")
    ids = stream.encode(text)
    chunks = len(ids) // body
    if chunks == 0:
        raise CalibrationError(
            f"the text has {len(ids)} tokens and one row needs {body}",
            where=where,
            hint="give more text or a shorter sequence length",
        )
    rows = min(samples, chunks)
    chosen = np.arange(rows) * chunks // rows
    bodies = ids[: chunks * body].reshape(chunks, body)[chosen]
    prefix, suffix = (np.tile(np.array(ids, np.int64), (rows, 1)) for ids in (stream.prefix, stream.suffix))
    return np.concatenate([prefix, bodies, suffix], axis=1)


def passages(text: str, stream: TokenStream, *, seq_len: int, samples: int) -> list[str]:
    """Return what the rows of `pack_text` hold, as text: from the end of the token before to that of the last one.

    Args:
        text: Plain text that fills a row.
        stream: Its tokenizer.
        seq_len: As for `pack_text`.
        samples: As for `pack_text`.
    """
    body = seq_len - len(stream.prefix) - len(stream.suffix)
    ends = [0, *(end for _, end in stream.tokenizer.encode(text, add_special_tokens=False).offsets)]
    chunks = (len(ends) - 1) // body
    starts = [row * chunks // min(samples, chunks) * body for row in range(min(samples, chunks))]
    return [text[ends[start] : ends[start + body]] for start in starts]


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise CalibrationError("text needs the tokenizers package", hint="pip install tokenizers") from error
    if not path.is_file():
        raise CalibrationError("text was given but there is no tokenizer", where=path, hint=_TOKENIZER_HINT)
    _check_beside(path)
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises bare Exception and nothing narrower
        raise CalibrationError(f"the tokenizer cannot be read: {error}", where=path) from error
    # Some exports carry the settings of their training; rows here are cut by pack_text alone.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def configured_bos(folder: Path) -> int | None:
    """Return the BOS id that config.json, generation_config.json or genai_config.json names, None if none does."""
    for content in _configurations(folder):
        bos = content.get("bos_token_id")
        if isinstance(bos, int) and not isinstance(bos, bool):
            if not 0 <= bos < 1 << 31:
                raise CalibrationError("the BOS id in the configuration is no token id", where=folder)
            return bos
    return None


def configured_ends(folder: Path) -> frozenset[int]:
    """Return the ids of the tokens that end a text, as config.json and its like name them."""
    found: set[int] = set()
    for content in _configurations(folder):
        named = content.get("eos_token_id")
        found |= {ident for ident in (named if isinstance(named, list) else [named]) if type(ident) is int}
    return frozenset(found)


def named_length(folder: Path) -> int | None:
    """Return the most tokens that a model can see, as config.json and its like name it; None if none does."""
    for content in _configurations(folder):
        for name in ("max_position_embeddings", "n_positions", "context_length"):
            length = content.get(name)
            if type(length) is int and length > 1:
                return length
    return None


def configured_length(folder: Path) -> int:
    """Return the same, and 2048 where nothing is named."""
    return named_length(folder) or _LONGEST


def _configurations(folder: Path) -> list[Mapping[str, object]]:
    """Return what config.json, generation_config.json and the model of genai_config.json say; nothing if missing."""
    files = [_read_json(folder / name) for name in ("config.json", "generation_config.json")]
    with contextlib.suppress(CalibrationError):  # another program's; whoever needs it says what is wrong with it
        files.append(_read_json(folder / "genai_config.json"))
    nested = files[2].get("model") if len(files) > 2 else None
    return [*files[:2], nested if isinstance(nested, dict) else {}]


def _check_beside(path: Path) -> None:
    """Refuse a file that is a link out of the model's folder."""
    if not is_companion(path):
        raise CalibrationError("this is a link out of the model's folder", where=path, hint="copy the file there")


def _read_json(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    _check_beside(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"the file is not JSON: {error}", where=path) from error
    if not isinstance(content, dict):
        raise CalibrationError("the file is not a JSON object", where=path)
    return content


def _template(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special ids that the tokenizer itself puts before and after a text."""
    around = tokenizer.encode("", add_special_tokens=True).ids
    if not around:
        pair = (tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]"))
        around = [] if None in pair else list(pair)
    probe = tokenizer.encode("a", add_special_tokens=True).ids
    if len(around) == 1 and probe[:1] != around and probe[-1:] == around:
        return (), tuple(around)  # T5 ends a text and does not begin it
    return tuple(around[:1]), tuple(around[1:2])
