"""Tiny random models in PyTorch, one per architecture, with outlier channels planted; fixed seeds, no download.

All are 64 wide with 4 heads of 16, and 192 = 12 * 16 in the middle, so that Hadamard matrices of several orders fit.
Other widths and more architectures: `tiny_decoders` and `tiny_encoders`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from models import tokens
from models.outliers import correlate, factors, plant, randomize_vectors

SEED = 20260304
WIDTH, HEADS, MIDDLE = 64, 4, 192
KV_HEADS = 2
IMAGE_SIZE = 32
POSITIONS = 512
TOKENS: dict[str, Any] = {
    "vocab_size": tokens.VOCABULARY_SIZE,
    "bos_token_id": tokens.BOS,
    "eos_token_id": tokens.EOS,
    "pad_token_id": tokens.PAD,
}
"""What the configuration of a causal language model says about `tokens`."""


def llama() -> LlamaForCausalLM:
    """Three layers: RMSNorm, rotary positions, 4 query heads on 2 KV heads, gated MLP, no biases, untied lm_head."""
    config = LlamaConfig(
        **TOKENS,
        hidden_size=WIDTH,
        intermediate_size=MIDDLE,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=POSITIONS,
        initializer_range=spread(WIDTH),
        tie_word_embeddings=False,
    )
    model, generator = random_model(LlamaForCausalLM, config)
    plant_llama_like(model, generator)
    plant(model.model.norm, [model.lm_head], factors(WIDTH, generator))
    return model


def gpt2() -> GPT2LMHeadModel:
    """Two layers: LayerNorm, one fused q/k/v projection, biases, GELU, learned positions, embedding tied to lm_head."""
    config = GPT2Config(
        **TOKENS,
        n_embd=WIDTH,
        n_inner=MIDDLE,
        n_layer=2,
        n_head=HEADS,
        n_positions=POSITIONS,
        initializer_range=spread(WIDTH),
    )
    model, generator = random_model(GPT2LMHeadModel, config)
    correlate(model.transformer.wte, generator)
    for block in model.transformer.h:
        plant(block.ln_1, [block.attn.c_attn], factors(WIDTH, generator))
        plant(block.ln_2, [block.mlp.c_fc], factors(WIDTH, generator))
    return model


def bert() -> BertModel:
    """Two post-norm encoder layers with biases.

    A norm of a post-norm model feeds the residual stream too, so outliers planted there change the function of the
    model and travel on to the next norm, as they do in real BERTs. Random weights do not mind.
    """
    config = BertConfig(
        vocab_size=tokens.VOCABULARY_SIZE,
        hidden_size=WIDTH,
        intermediate_size=MIDDLE,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        initializer_range=spread(WIDTH),
        pad_token_id=tokens.PAD,
    )
    model, generator = random_model(BertModel, config, add_pooling_layer=False)
    correlate(model.embeddings.word_embeddings, generator)
    for layer in model.encoder.layer:
        attention = layer.attention
        plant(attention.self.value, [attention.output.dense], factors(WIDTH, generator))
        plant(attention.output.LayerNorm, [layer.intermediate.dense], factors(WIDTH, generator))
    return model


def vit() -> ViTForImageClassification:
    """Two pre-norm layers on 16 patches of 8 x 8 pixels, with biases, and a classifier of 10 classes."""
    config = ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=MIDDLE,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=8,
        num_labels=10,
        initializer_range=spread(WIDTH),
    )
    model, generator = random_model(ViTForImageClassification, config)
    for layer in model.vit.encoder.layer:
        attention = layer.attention.attention
        plant(layer.layernorm_before, [attention.query, attention.key, attention.value], factors(WIDTH, generator))
        plant(attention.value, [layer.attention.output.dense], factors(WIDTH, generator))
        plant(layer.layernorm_after, [layer.intermediate.dense], factors(WIDTH, generator))
    return model


def random_model(kind: type[nn.Module], config: Any, **options: Any) -> tuple[Any, torch.Generator]:
    """Return a model whose vectors are no longer ones and zeros, and the generator for what is planted on top."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED + 1)
    model = kind(config, **options).eval()
    randomize_vectors(model, generator)
    return model, generator


def spread(width: int) -> float:
    """Return the deviation of weights (width, ...) with which signals keep their size from layer to layer."""
    return float(width**-0.5)


def plant_llama_like(model: nn.Module, generator: torch.Generator) -> None:
    """Correlate the embedding and plant at every site of all layers, whose parts are called as in Llama."""
    correlate(model.model.embed_tokens, generator)
    for layer in model.model.layers:
        plant_attention(layer.input_layernorm, layer.self_attn, generator)
        plant_mlp(layer.post_attention_layernorm, layer.mlp, generator)


def plant_attention(norm: nn.Module, attention: nn.Module, generator: torch.Generator) -> None:
    """Plant between a norm and q, k and v, and between v and the output projection."""
    width, head = attention.q_proj.in_features, attention.head_dim
    kv_heads = attention.v_proj.out_features // head
    plant(norm, [attention.q_proj, attention.k_proj, attention.v_proj], factors(width, generator))
    vector = factors(kv_heads * head, generator).reshape(kv_heads, head)
    plant(attention.v_proj, [attention.o_proj], vector, repeat=attention.o_proj.in_features // (kv_heads * head))


def plant_mlp(norm: nn.Module, mlp: nn.Module, generator: torch.Generator) -> None:
    """Plant between a norm and gate and up, and between up and down."""
    plant(norm, [mlp.gate_proj, mlp.up_proj], factors(mlp.up_proj.in_features, generator))
    plant(mlp.up_proj, [mlp.down_proj], factors(mlp.up_proj.out_features, generator))
