"""Tiny random encoders and encoder-decoders of more architectures than `tiny`, outlier channels planted as there.

Widths of 48, 64 and 80, heads of 12 and 16.
"""

from __future__ import annotations

from transformers import (
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from models import tokens
from models.outliers import correlate, factors, plant
from models.tiny import IMAGE_SIZE, POSITIONS, TOKENS, random_model, spread

MEL_BANDS, MEL_FRAMES = 16, 100


def roberta() -> RobertaModel:
    """BERT with positions counted from the padding id on."""
    config = RobertaConfig(
        **TOKENS,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS + tokens.PAD + 1,
        initializer_range=spread(64),
    )
    model, generator = random_model(RobertaModel, config, add_pooling_layer=False)
    correlate(model.embeddings.word_embeddings, generator)
    for layer in model.encoder.layer:
        plant(layer.attention.self.value, [layer.attention.output.dense], factors(64, generator))
    return model


def distilbert() -> DistilBertModel:
    """Post-norm layers without token types: 48 wide, 4 heads of 12."""
    config = DistilBertConfig(
        vocab_size=tokens.VOCABULARY_SIZE,
        pad_token_id=tokens.PAD,
        dim=48,
        hidden_dim=144,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=POSITIONS,
        initializer_range=spread(48),
    )
    model, generator = random_model(DistilBertModel, config)
    correlate(model.embeddings.word_embeddings, generator)
    for layer in model.transformer.layer:
        plant(layer.attention.v_lin, [layer.attention.out_lin], factors(48, generator))
    return model


def clip() -> CLIPModel:
    """Two towers, text 48 and images 80 wide, QuickGELU, each projected to 40 channels."""
    config = CLIPConfig(
        text_config={
            **TOKENS,
            "hidden_size": 48,
            "intermediate_size": 112,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        vision_config={
            "hidden_size": 80,
            "intermediate_size": 176,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
        },
        projection_dim=40,
    )
    model, generator = random_model(CLIPModel, config)
    for tower, width in ((model.text_model, 48), (model.vision_model, 80)):
        for layer in tower.encoder.layers:
            attention = layer.self_attn
            readers = [attention.q_proj, attention.k_proj, attention.v_proj]
            plant(layer.layer_norm1, readers, factors(width, generator))
            plant(attention.v_proj, [attention.out_proj], factors(width, generator))
            plant(layer.layer_norm2, [layer.mlp.fc1], factors(width, generator))
    return model


def whisper() -> WhisperForConditionalGeneration:
    """An encoder of one second of mel frames behind two convolutions, a decoder that attends to it: 64 wide."""
    config = WhisperConfig(
        **TOKENS,
        num_mel_bins=MEL_BANDS,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=144,
        decoder_ffn_dim=144,
        max_source_positions=MEL_FRAMES // 2,
        max_target_positions=128,
        decoder_start_token_id=tokens.BOS,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        init_std=spread(64),
    )
    model, generator = random_model(WhisperForConditionalGeneration, config)
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers):
        attention = layer.self_attn
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        plant(layer.self_attn_layer_norm, readers, factors(64, generator))
        plant(attention.v_proj, [attention.out_proj], factors(64, generator))
        plant(layer.final_layer_norm, [layer.fc1], factors(64, generator))
    for layer in model.model.decoder.layers:
        attention = layer.encoder_attn
        plant(layer.encoder_attn_layer_norm, [attention.q_proj], factors(64, generator))
        plant(attention.v_proj, [attention.out_proj], factors(64, generator))
    return model


def t5(feed_forward: str = "relu") -> T5ForConditionalGeneration:
    """Relative positions, scores that nothing divides, no biases: 64 wide, 4 heads of 12, so 48 channels inside.

    Args:
        feed_forward: `relu` as in the first T5, `gated-gelu` as in T5 1.1 and Flan-T5.
    """
    config = T5Config(
        **TOKENS,
        d_model=64,
        d_kv=12,
        d_ff=144,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj=feed_forward,
        decoder_start_token_id=tokens.PAD,
    )
    model, generator = random_model(T5ForConditionalGeneration, config)
    correlate(model.shared, generator)
    for block in (*model.encoder.block, *model.decoder.block):
        attention, last = block.layer[0], block.layer[-1]
        inner = attention.SelfAttention
        plant(attention.layer_norm, [inner.q, inner.k, inner.v], factors(64, generator))
        plant(inner.v, [inner.o], factors(48, generator))
        dense = last.DenseReluDense
        first = [dense.wi] if feed_forward == "relu" else [dense.wi_0, dense.wi_1]
        plant(last.layer_norm, first, factors(64, generator))
        plant(first[-1], [dense.wo], factors(144, generator))
    return model
