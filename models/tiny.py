"""Tiny random models in PyTorch, one per architecture, with outlier channels planted; fixed seeds, no download.

All are 64 wide with 4 heads of 16, and 192 = 12 * 16 in the middle, so that Hadamard matrices of several orders fit.
"""

from __future__ import annotations

import torch
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
HEAD_WIDTH = WIDTH // HEADS
KV_HEADS = 2
IMAGE_SIZE = 32
INITIALIZER_RANGE = 0.125  # 1 / sqrt(64): signals keep their size from layer to layer


def llama() -> LlamaForCausalLM:
    """Three layers: RMSNorm, rotary positions, 4 query heads on 2 KV heads, gated MLP, no biases, untied lm_head."""
    generator = _seeded()
    config = LlamaConfig(
        vocab_size=tokens.VOCABULARY_SIZE,
        hidden_size=WIDTH,
        intermediate_size=MIDDLE,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokens.BOS,
        eos_token_id=tokens.EOS,
        pad_token_id=tokens.PAD,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    randomize_vectors(model, generator)
    correlate(model.model.embed_tokens, generator)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        plant(layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], factors(WIDTH, generator))
        heads = factors(KV_HEADS * HEAD_WIDTH, generator).reshape(KV_HEADS, HEAD_WIDTH)
        plant(attention.v_proj, [attention.o_proj], heads, repeat=HEADS // KV_HEADS)
        plant(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], factors(WIDTH, generator))
        plant(mlp.up_proj, [mlp.down_proj], factors(MIDDLE, generator))
    plant(model.model.norm, [model.lm_head], factors(WIDTH, generator))
    return model


def gpt2() -> GPT2LMHeadModel:
    """Two layers: LayerNorm, one fused q/k/v projection, biases, GELU, learned positions, embedding tied to lm_head."""
    generator = _seeded()
    config = GPT2Config(
        vocab_size=tokens.VOCABULARY_SIZE,
        n_embd=WIDTH,
        n_inner=MIDDLE,
        n_layer=2,
        n_head=HEADS,
        n_positions=512,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=tokens.BOS,
        eos_token_id=tokens.EOS,
        pad_token_id=tokens.PAD,
    )
    model = GPT2LMHeadModel(config).eval()
    randomize_vectors(model, generator)
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
    generator = _seeded()
    config = BertConfig(
        vocab_size=tokens.VOCABULARY_SIZE,
        hidden_size=WIDTH,
        intermediate_size=MIDDLE,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=tokens.PAD,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    randomize_vectors(model, generator)
    correlate(model.embeddings.word_embeddings, generator)
    for layer in model.encoder.layer:
        attention = layer.attention
        plant(attention.self.value, [attention.output.dense], factors(WIDTH, generator))
        plant(attention.output.LayerNorm, [layer.intermediate.dense], factors(WIDTH, generator))
    return model


def vit() -> ViTForImageClassification:
    """Two pre-norm layers on 16 patches of 8 x 8 pixels, with biases, and a classifier of 10 classes."""
    generator = _seeded()
    config = ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=MIDDLE,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=8,
        num_labels=10,
        initializer_range=INITIALIZER_RANGE,
    )
    model = ViTForImageClassification(config).eval()
    randomize_vectors(model, generator)
    for layer in model.vit.encoder.layer:
        attention = layer.attention.attention
        plant(layer.layernorm_before, [attention.query, attention.key, attention.value], factors(WIDTH, generator))
        plant(attention.value, [layer.attention.output.dense], factors(WIDTH, generator))
        plant(layer.layernorm_after, [layer.intermediate.dense], factors(WIDTH, generator))
    return model


def _seeded() -> torch.Generator:
    """Seed PyTorch's own initialization and return the generator for what is planted on top."""
    torch.manual_seed(SEED)
    return torch.Generator().manual_seed(SEED + 1)
