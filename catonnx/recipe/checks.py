"""What a recipe must not ask for: numbers out of range, and wishes that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from catonnx.errors import UsageError

if TYPE_CHECKING:
    from catonnx.recipe import Recipe

GROUP_SIZES = (16, 32, 64, 128, 256)

_MOST_TOKENS = 1 << 40


def check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot be done.

    Raises:
        UsageError: what is wrong with it, and what to do instead.
    """
    for broken, what, hint in (*_out_of_range(recipe), *_contradictions(recipe)):
        if broken:
            raise UsageError(what, hint=hint)


def _out_of_range(recipe: Recipe) -> Iterator[tuple[bool, str, str]]:
    for name, whole in (("group_size", "channel"), ("activation_group_size", "token")):
        value = getattr(recipe, name)
        yield (
            value is not None and value not in GROUP_SIZES,
            f"{name} is {value}",
            f"choose one of {GROUP_SIZES} or {whole}",
        )
    yield (
        recipe.block_size is not None and recipe.block_size < 1,
        f"block_size is {recipe.block_size}",
        "1 is a scaling, larger widths mix channels",
    )
    yield (
        recipe.hadamard_size is not None and recipe.hadamard_size < 1,
        f"hadamard_size is {recipe.hadamard_size}",
        "1 leaves it out",
    )
    yield (
        recipe.samples < 1 or recipe.seq_len < 2,
        f"{recipe.samples} samples of {recipe.seq_len} tokens calibrate nothing",
        "take 1 x 2 at least",
    )
    yield (
        recipe.samples * recipe.seq_len > _MOST_TOKENS,
        f"{recipe.samples} samples of {recipe.seq_len} tokens are more than any machine calibrates on",
        "32 x 512 are usual",
    )
    yield not 0 <= recipe.seed < 1 << 63, f"seed is {recipe.seed}", "choose a whole number from 0 on"
    yield any("\0" in text for text in recipe.texts), "calibration names no file", "leave the NUL out of its name"
    yield (
        recipe.accuracy_level not in range(5),
        f"accuracy_level is {recipe.accuracy_level}",
        "ONNX Runtime knows 0 to 4",
    )
    yield (
        recipe.clip is not None and not 0.05 <= recipe.clip <= 1,
        f"clip is {recipe.clip}",
        "it is the part of a range that is kept: from 0.05 to 1; leave it out to have it searched",
    )
    yield (
        recipe.max_overhead is not None and not 0 <= recipe.max_overhead <= 10,
        f"max_overhead is {recipe.max_overhead}",
        "0.05 allows 5 % more multiply-adds, 10 ten times as many",
    )
    yield (
        not 0 <= recipe.damping <= 1,
        f"damping is {recipe.damping}",
        "choose 0 to 1: 0.3 is usual, more trusts the text less",
    )
    yield (
        recipe.tied_embeddings not in (None, 4, 8),
        f"tied_embeddings is {recipe.tied_embeddings}",
        "choose 4 or 8 bits",
    )
    yield recipe.keep_8bit < 0, f"keep_8bit is {recipe.keep_8bit}", "it is a number of sites"
    yield (
        recipe.target_bits is not None and not 4 <= recipe.target_bits <= 8,
        f"target_bits is {recipe.target_bits}",
        "choose a mean from 4 to 8 bits",
    )


def _contradictions(recipe: Recipe) -> Iterator[tuple[bool, str, str]]:
    integer, nbits = recipe.form == "integer", recipe.form == "nbits"
    yield from _contradictions_of_op(recipe)
    yield (
        bool(recipe.accuracy_level) and not (nbits or (recipe.form == "op" and recipe.scheme == "w4a16")),
        "accuracy_level belongs to form nbits, and to form op with scheme w4a16",
        "for form qdq set the session option session.qdq_matmulnbits_accuracy_level at run time",
    )
    yield (
        integer and recipe.scheme == "w4a16",
        "form integer multiplies integers, and scheme w4a16 leaves activations in float",
        "choose scheme w4a8 or w4a4, or form qdq",
    )
    yield (
        integer and recipe.group_size is not None,
        f"form integer cannot scale groups of {recipe.group_size} rows within one integer product",
        "choose group_size channel, or form qdq",
    )
    yield (
        integer and recipe.activation_group_size is not None,
        f"form integer cannot scale groups of {recipe.activation_group_size} channels within one integer product",
        "leave activation_group_size out, or choose form qdq",
    )
    yield (
        nbits and recipe.scheme == "w4a4",
        "MatMulNBits cannot round activations to 4 bits",
        "choose form qdq or integer",
    )
    yield (
        nbits and recipe.scheme == "w4a8" and recipe.provider != "cpu",
        "MatMulNBits rounds activations to 8 bits on the CPU only",
        "choose form op, qdq or integer for CUDA",
    )
    yield (
        nbits and recipe.scheme == "w4a8" and recipe.accuracy_level not in (0, 4),
        f"accuracy_level {recipe.accuracy_level} does not round activations to 8 bits",
        "leave it out, or choose scheme w4a16",
    )
    ranged = {
        "activations static": recipe.activations == "static",
        "clip": recipe.clip is not None,
        "activation_group_size": recipe.activation_group_size is not None,
        "activation_range symmetric": recipe.activation_range == "symmetric",
    }
    why = "MatMulNBits rounds its own way" if recipe.rounds_activations else f"scheme {recipe.scheme} rounds none"
    for name, given in ranged.items():
        yield (
            given and recipe.activation_bits is None,
            f"{name} says how activations are rounded, and {why}",
            "leave it out, or choose scheme w4a8 or w4a4 in form qdq or integer",
        )
    yield (
        not recipe.rounds and (recipe.form != "qdq" or bool(recipe.keep_8bit or recipe.w8 or recipe.target_bits)),
        "scheme float rounds nothing, so it has no form and keeps no bits",
        "choose scheme w4a16, w4a8 or w4a4",
    )
    yield (
        recipe.tied_embeddings is not None and recipe.rotate,
        "rotate gives embedding and output head tables of their own, and tied_embeddings lets them share one",
        "leave one of the two out",
    )
    yield (
        recipe.tied_embeddings is not None and not recipe.rounds,
        "scheme float rounds nothing, and tied_embeddings says how a table is rounded",
        "choose scheme w4a16, w4a8 or w4a4",
    )
    yield (
        recipe.correct_bias and not recipe.rounds,
        "scheme float rounds nothing, so there is no error for correct_bias",
        "choose scheme w4a16, w4a8 or w4a4",
    )
    yield (
        recipe.correct_bias and recipe.rounding == "sequential",
        "rounding sequential makes up for errors where the next linears read them, and knows of no correct_bias",
        "choose one of the two",
    )
    yield (
        recipe.max_overhead is not None and recipe.transform in ("spinquant", "flatquant"),
        f"what {recipe.transform} learns runs online as it is",
        "leave max_overhead out, or choose transform cat",
    )
    yield (
        recipe.activations == "static" and recipe.activation_group_size is not None,
        "a static range is one for all channels",
        "leave activation_group_size out, or choose dynamic activations",
    )
    yield (
        recipe.target_bits is not None and bool(recipe.keep_8bit),
        "keep_8bit and target_bits both say how many sites keep 8 bits",
        "give one of them",
    )


def _contradictions_of_op(recipe: Recipe) -> Iterator[tuple[bool, str, str]]:
    if recipe.form != "op":
        return
    ranged = recipe.activation_range != "symmetric" or recipe.activations != "dynamic"
    yield (
        recipe.rounds_activations and (ranged or recipe.activation_group_size is not None),
        "form op rounds activations with one symmetric range per token",
        "choose activation_range symmetric, dynamic activations and no groups of them, or form qdq",
    )
    kept = bool(recipe.keep_8bit or recipe.w8 or recipe.target_bits) or recipe.tied_embeddings == 8
    yield (
        recipe.rounds_activations and kept and recipe.group_size is not None,
        "form op multiplies rounded activations by 4-bit weights, and by 8-bit ones only with a scale per channel",
        "choose group_size channel, or form qdq",
    )
