"""Tiny random decoders with mixtures of experts, outlier channels planted as in `tiny`; 64 wide, 4 experts of 48.

The shared outliers of a layer lie between its second norm and whatever reads that: the router and every expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from models.outliers import correlate, factors, plant
from models.tiny import plant_attention, random_model, spread
from models.tiny_decoders import LLAMA_LIKE

WIDTH, EXPERTS, INSIDE = 64, 4, 48


def qwen3_moe() -> Qwen3MoeForCausalLM:
    """Four experts of which every token takes two, behind a router."""
    config = Qwen3MoeConfig(
        **LLAMA_LIKE,
        hidden_size=WIDTH,
        intermediate_size=160,
        moe_intermediate_size=INSIDE,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=spread(WIDTH),
    )
    model, generator = random_model(Qwen3MoeForCausalLM, config)
    correlate(model.model.embed_tokens, generator)
    for layer in model.model.layers:
        plant_attention(layer.input_layernorm, layer.self_attn, generator)
        sides = [(expert.gate_proj, expert.up_proj, expert.down_proj) for expert in layer.mlp.experts]
        _plant_experts(layer.post_attention_layernorm, [layer.mlp.gate], sides, generator)
    return model


def qwen2_moe() -> Qwen2MoeForCausalLM:
    """The same with one more expert that every token takes, as much of it as a gate of one channel says."""
    config = Qwen2MoeConfig(
        **LLAMA_LIKE,
        hidden_size=WIDTH,
        intermediate_size=160,
        moe_intermediate_size=INSIDE,
        shared_expert_intermediate_size=96,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=spread(WIDTH),
    )
    model, generator = random_model(Qwen2MoeForCausalLM, config)
    correlate(model.model.embed_tokens, generator)
    for layer in model.model.layers:
        mlp = layer.mlp
        plant_attention(layer.input_layernorm, layer.self_attn, generator)
        experts = [*mlp.experts, mlp.shared_expert]
        sides = [(expert.gate_proj, expert.up_proj, expert.down_proj) for expert in experts]
        _plant_experts(layer.post_attention_layernorm, [mlp.gate, mlp.shared_expert_gate], sides, generator)
    return model


def mixtral() -> MixtralForCausalLM:
    """Mistral's layers with four experts in place of the MLP, of which every token takes two."""
    config = MixtralConfig(
        **LLAMA_LIKE,
        hidden_size=WIDTH,
        intermediate_size=INSIDE,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=None,
        initializer_range=spread(WIDTH),
    )
    model, generator = random_model(MixtralForCausalLM, config)
    correlate(model.model.embed_tokens, generator)
    for layer in model.model.layers:
        mixture = layer.block_sparse_moe
        plant_attention(layer.input_layernorm, layer.self_attn, generator)
        sides = [(expert.w1, expert.w3, expert.w2) for expert in mixture.experts]
        _plant_experts(layer.post_attention_layernorm, [mixture.gate], sides, generator)
    return model


def gpt_oss() -> GptOssForCausalLM:
    """Every row through every expert, their weights stacked in one tensor; attention with sinks."""
    config = GptOssConfig(
        **LLAMA_LIKE,
        hidden_size=WIDTH,
        intermediate_size=INSIDE,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        initializer_range=spread(WIDTH),
    )
    model, generator = random_model(GptOssForCausalLM, config)
    correlate(model.model.embed_tokens, generator)
    for layer in model.model.layers:
        plant_attention(layer.input_layernorm, layer.self_attn, generator)
        vector = factors(WIDTH, generator)
        plant(layer.post_attention_layernorm, [layer.mlp.router], vector)
        with torch.no_grad():
            layer.mlp.experts.gate_up_proj.div_(vector[:, None])  # [experts, width, 2 * inside]
    return model


def _plant_experts(
    norm: nn.Module,
    gates: Sequence[nn.Linear],
    experts: Sequence[tuple[nn.Linear, nn.Linear, nn.Linear]],
    generator: torch.Generator,
) -> None:
    """Plant between a norm and all its readers, and between up and down of every (gate, up, down)."""
    readers = [*gates, *(linear for gate, up, _ in experts for linear in (gate, up))]
    plant(norm, readers, factors(WIDTH, generator))
    for _, up, down in experts:
        plant(up, [down], factors(up.out_features, generator))
