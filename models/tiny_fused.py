"""Tiny random decoders that project queries, keys and values in one, head by head: Bloom and Falcon.

Both are 64 wide with 4 heads of 16; outlier channels are planted as in `tiny`.
"""

from __future__ import annotations

from transformers import BloomConfig, BloomForCausalLM, FalconConfig, FalconForCausalLM

from models.outliers import correlate, factors, plant
from models.tiny import HEADS, POSITIONS, TOKENS, WIDTH, random_model, spread


def bloom() -> BloomForCausalLM:
    """Biases on the scores that grow with the distance, batch and heads merged into one axis, a norm on embeddings."""
    config = BloomConfig(
        **TOKENS,
        hidden_size=WIDTH,
        n_layer=2,
        n_head=HEADS,
        initializer_range=spread(WIDTH),
    )
    model, generator = random_model(BloomForCausalLM, config)
    correlate(model.transformer.word_embeddings, generator)
    for layer in model.transformer.h:
        plant(layer.input_layernorm, [layer.self_attention.query_key_value], factors(WIDTH, generator))
        plant(layer.post_attention_layernorm, [layer.mlp.dense_h_to_4h], factors(WIDTH, generator))
    return model


def falcon() -> FalconForCausalLM:
    """One head of keys and values for all queries, attention and MLP side by side behind one norm."""
    config = FalconConfig(
        **TOKENS,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        multi_query=True,
        parallel_attn=True,
        bias=False,
        alibi=False,
        initializer_range=spread(WIDTH),
    )
    model, generator = random_model(FalconForCausalLM, config)
    correlate(model.transformer.word_embeddings, generator)
    for layer in model.transformer.h:
        readers = [layer.self_attention.query_key_value, layer.mlp.dense_h_to_4h]
        plant(layer.input_layernorm, readers, factors(WIDTH, generator))
    return model
