"""Tiny random decoders of more architectures than `tiny`, outlier channels planted as there.

Widths differ from model to model, and few are powers of two: 72, 80 and 96 next to 64, heads of 16 to 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NemotronConfig,
    NemotronForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from models.outliers import correlate, factors, plant
from models.tiny import POSITIONS, TOKENS, plant_attention, plant_llama_like, plant_mlp, random_model, spread

FIXED_LENGTH = 32
"""Tokens that the state space model is unrolled for: its scan has no dynamic length in a traced graph."""

LLAMA_LIKE: dict[str, Any] = {
    **TOKENS,
    "num_hidden_layers": 2,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}


def mistral() -> MistralForCausalLM:
    """Llama's layers with a sliding window shorter than the text: 80 wide, 5 query heads on 1 KV head."""
    config = MistralConfig(
        **LLAMA_LIKE,
        hidden_size=80,
        intermediate_size=208,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=24,
        initializer_range=spread(80),
    )
    model, generator = random_model(MistralForCausalLM, config)
    plant_llama_like(model, generator)
    return model


def qwen2() -> Qwen2ForCausalLM:
    """Biases on q, k and v, tied embeddings: 96 wide, 6 query heads of 16 on 2 KV heads."""
    config = Qwen2Config(
        **LLAMA_LIKE | {"tie_word_embeddings": True},
        hidden_size=96,
        intermediate_size=224,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=spread(96),
    )
    model, generator = random_model(Qwen2ForCausalLM, config)
    plant_llama_like(model, generator)
    return model


def qwen3() -> Qwen3ForCausalLM:
    """A norm on every head of q and k; 6 heads of 16 make 96 channels of a stream of 64."""
    config = Qwen3Config(
        **LLAMA_LIKE,
        hidden_size=64,
        intermediate_size=160,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=spread(64),
    )
    model, generator = random_model(Qwen3ForCausalLM, config)
    plant_llama_like(model, generator)
    return model


def phi3() -> Phi3ForCausalLM:
    """One projection for q, k and v and one for gate and up, split afterwards: 96 wide, 4 heads of 24 on 2 KV heads."""
    width, middle, heads, kv_heads = 96, 208, 4, 2
    config = Phi3Config(
        **LLAMA_LIKE,
        hidden_size=width,
        intermediate_size=middle,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        initializer_range=spread(width),
    )
    model, generator = random_model(Phi3ForCausalLM, config)
    correlate(model.model.embed_tokens, generator)
    head = width // heads
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        plant(layer.input_layernorm, [attention.qkv_proj], factors(width, generator))
        values = _rows(attention.qkv_proj, width + kv_heads * head, width + 2 * kv_heads * head)
        vector = factors(kv_heads * head, generator).reshape(kv_heads, head)
        plant(values, [attention.o_proj], vector, repeat=heads // kv_heads)
        plant(layer.post_attention_layernorm, [mlp.gate_up_proj], factors(width, generator))
        plant(_rows(mlp.gate_up_proj, middle, 2 * middle), [mlp.down_proj], factors(middle, generator))
    plant(model.model.norm, [model.lm_head], factors(width, generator))
    return model


def gemma2() -> Gemma2ForCausalLM:
    """Norms that scale by 1 + weight, before and after attention and MLP, and tanh caps on scores and logits."""
    config = Gemma2Config(
        **LLAMA_LIKE | {"tie_word_embeddings": True},
        hidden_size=72,
        intermediate_size=144,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=24,
        initializer_range=spread(72),
        attn_implementation="eager",
    )
    model, generator = random_model(Gemma2ForCausalLM, config)
    _plant_gemma(model, generator)
    return model


def gemma3() -> Gemma3ForCausalLM:
    """As Gemma 2, with norms on the heads of q and k in place of the caps: 64 wide, 4 heads of 32."""
    config = Gemma3TextConfig(
        **LLAMA_LIKE | {"tie_word_embeddings": True},
        hidden_size=64,
        intermediate_size=176,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=spread(64),
    )
    model, generator = random_model(Gemma3ForCausalLM, config)
    _plant_gemma(model, generator)
    return model


def opt() -> OPTForCausalLM:
    """Relu between the linears of the MLP, biases everywhere: 80 wide, 5 heads of 16."""
    config = OPTConfig(
        **TOKENS,
        hidden_size=80,
        word_embed_proj_dim=80,
        ffn_dim=208,
        num_hidden_layers=2,
        num_attention_heads=5,
        max_position_embeddings=POSITIONS,
        init_std=spread(80),
    )
    model, generator = random_model(OPTForCausalLM, config)
    correlate(model.model.decoder.embed_tokens, generator)
    for layer in model.model.decoder.layers:
        attention = layer.self_attn
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        plant(layer.self_attn_layer_norm, readers, factors(80, generator))
        plant(attention.v_proj, [attention.out_proj], factors(80, generator))
        plant(layer.final_layer_norm, [layer.fc1], factors(80, generator))
        plant(layer.fc1, [layer.fc2], factors(208, generator))
    return model


def nemotron() -> NemotronForCausalLM:
    """The square of Relu between the linears of the MLP, LayerNorms that scale by 1 + weight: 64 wide, 176 inside."""
    config = NemotronConfig(
        **LLAMA_LIKE,
        hidden_size=64,
        intermediate_size=176,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=spread(64),
    )
    model, generator = random_model(NemotronForCausalLM, config)
    correlate(model.model.embed_tokens, generator)
    for layer in model.model.layers:
        norms, mlp = [layer.input_layernorm, layer.post_attention_layernorm], layer.mlp
        _shift(norms, 1.0)
        plant_attention(norms[0], layer.self_attn, generator)
        plant(norms[1], [mlp.up_proj], factors(64, generator))
        _shift(norms, -1.0)
        loud = factors(176, generator)
        plant(mlp.up_proj, [], loud.sqrt())  # its square is loud
        with torch.no_grad():
            mlp.down_proj.weight.div_(loud)
    return model


def gpt_neox() -> GPTNeoXForCausalLM:
    """Attention and MLP side by side on one stream, q, k and v of a head next to each other, rotary on a quarter."""
    config = GPTNeoXConfig(
        **TOKENS,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        initializer_range=spread(96),
    )
    model, generator = random_model(GPTNeoXForCausalLM, config)
    correlate(model.gpt_neox.embed_in, generator)
    for layer in model.gpt_neox.layers:
        plant(layer.input_layernorm, [layer.attention.query_key_value], factors(96, generator))
        plant(layer.post_attention_layernorm, [layer.mlp.dense_h_to_4h], factors(96, generator))
    return model


def mamba() -> MambaForCausalLM:
    """A selective state space in place of attention, its scan unrolled: 64 wide, 128 inside."""
    config = MambaConfig(
        **TOKENS,
        hidden_size=64,
        state_size=8,
        num_hidden_layers=2,
        conv_kernel=4,
        expand=2,
        time_step_rank=8,
        initializer_range=spread(64),
        use_cache=False,
        tie_word_embeddings=False,
    )
    model, generator = random_model(MambaForCausalLM, config)
    correlate(model.backbone.embeddings, generator)
    for layer in model.backbone.layers:
        plant(layer.norm, [layer.mixer.in_proj], factors(64, generator))
    return model


def _rows(linear: nn.Linear, start: int, stop: int) -> Any:
    """Return the outputs `start` to `stop` of a linear without bias as a linear of their own, in the same memory."""
    return SimpleNamespace(weight=linear.weight[start:stop], bias=None)


def _plant_gemma(model: nn.Module, generator: torch.Generator) -> None:
    correlate(model.model.embed_tokens, generator)
    for layer in model.model.layers:
        norms = [layer.input_layernorm, layer.pre_feedforward_layernorm]
        _shift(norms, 1.0)
        plant_attention(norms[0], layer.self_attn, generator)
        plant_mlp(norms[1], layer.mlp, generator)
        _shift(norms, -1.0)


def _shift(norms: Sequence[nn.Module], step: float) -> None:
    """Move the weights of norms by one number: Gemma's scale is 1 + weight."""
    with torch.no_grad():
        for norm in norms:
            norm.weight.add_(step)
