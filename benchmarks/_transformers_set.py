"""Small networks of Hugging Face's transformers: one of each architecture that people deploy, by its own configuration.

How many layers there are and how wide they are matters little to what can be cut; how the code is written does.
"""

from __future__ import annotations

from typing import Any

from _deployed_set import Deployed
from torch import nn

SIDE = 64
IMAGE = ((3, SIDE, SIDE),)
SOUND = ((4000,),)
MELS = ((80, 200),)
TOKENS = ((16,),)
TOKENS_TWICE = ((16,), (8,))
VOCABULARY = 100
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
OF_IMAGES: dict[str, Any] = {**SMALL, "image_size": SIDE, "patch_size": 16}
OF_TEXT: dict[str, Any] = {**SMALL, "vocab_size": VOCABULARY}
OF_SOUND: dict[str, Any] = {
    **SMALL,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
STAGES: dict[str, Any] = {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1]}
RESNET: dict[str, Any] = {"embedding_size": 16, **STAGES}
BOTH_SIDES: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


class _Named(nn.Module):
    """Passes its inputs by name, without a cache of what was said before."""

    def __init__(self, network: nn.Module, *names: str) -> None:
        super().__init__()
        self.network, self._names = network, names

    def forward(self, *tensors: Any) -> Any:
        return self.network(**dict(zip(self._names, tensors, strict=True)), use_cache=False)


class _Part(nn.Module):
    """Returns one of what a network returns."""

    def __init__(self, network: nn.Module, part: str) -> None:
        super().__init__()
        self.network, self._part = network, part

    def forward(self, *tensors: Any) -> Any:
        return getattr(self.network(*tensors), self._part)


def _of(
    kind: str,
    shapes: tuple[tuple[int, ...], ...],
    *,
    names: tuple[str, ...] = (),
    part: str = "",
    backbone: tuple[str, dict[str, Any]] | None = None,
    **settings: Any,
) -> Deployed:
    """A class of the library's with some settings; ``part`` names what to take of what it returns."""

    def build() -> nn.Module:
        import transformers

        given = dict(settings)
        if backbone is not None:
            given["backbone_config"] = getattr(transformers, backbone[0])(**backbone[1])
        of_kind = getattr(transformers, kind)
        network = of_kind(of_kind.config_class(**given))
        if names:
            return _Named(network, *names)
        return _Part(network, part) if part else network

    is_text = shapes in (TOKENS, TOKENS_TWICE)
    return Deployed(build, shapes, "transformers", (VOCABULARY if is_text else 0,) * len(shapes))


NETWORKS: dict[str, Deployed] = {
    "vit": _of("ViTForImageClassification", IMAGE, **OF_IMAGES),
    "deit": _of("DeiTForImageClassification", IMAGE, **OF_IMAGES),
    "dinov2": _of("Dinov2ForImageClassification", IMAGE, **OF_IMAGES),
    "beit": _of("BeitForImageClassification", IMAGE, **OF_IMAGES, out_indices=[2]),
    "swin": _of(
        "SwinForImageClassification", IMAGE, image_size=SIDE, patch_size=4, embed_dim=16, depths=[2, 2],
        num_heads=[2, 4], window_size=4,
    ),
    "hiera": _of(
        "HieraForImageClassification", IMAGE, image_size=[SIDE, SIDE], embed_dim=16, depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
    ),
    "levit": _of(
        "LevitForImageClassification", ((3, 224, 224),), hidden_sizes=[16, 32, 48], num_attention_heads=[2, 2, 2],
        key_dim=[8, 8, 8], depths=[1, 1, 1],
    ),
    "pvt_v2": _of("PvtV2ForImageClassification", IMAGE, image_size=SIDE, **STAGES),
    "mobilevit": _of(
        "MobileViTForImageClassification", IMAGE, image_size=SIDE, hidden_sizes=[24, 32, 40],
        neck_hidden_sizes=[8, 16, 24, 32, 40, 48, 64],
    ),
    "mobilevitv2": _of("MobileViTV2ForImageClassification", IMAGE, image_size=SIDE, width_multiplier=0.5),
    "poolformer": _of("PoolFormerForImageClassification", IMAGE, **STAGES),
    "focalnet": _of("FocalNetForImageClassification", IMAGE, image_size=SIDE, embed_dim=16, depths=[1, 1, 1, 1]),
    "convnextv2": _of("ConvNextV2ForImageClassification", IMAGE, image_size=SIDE, **STAGES),
    "resnet": _of("ResNetForImageClassification", IMAGE, **RESNET),
    "regnet": _of("RegNetForImageClassification", IMAGE, **RESNET, groups_width=8),
    "mobilenet_v2": _of("MobileNetV2ForImageClassification", IMAGE, image_size=SIDE, depth_multiplier=0.5),
    "segformer": _of("SegformerForSemanticSegmentation", IMAGE, hidden_sizes=[16, 32, 40, 64], decoder_hidden_size=32),
    "upernet": _of(
        "UperNetForSemanticSegmentation", IMAGE, hidden_size=32, use_auxiliary_head=False,
        backbone=("ConvNextConfig", {**STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]}),
    ),
    "depth_anything": _of(
        "DepthAnythingForDepthEstimation", ((3, 56, 56),), patch_size=14, reassemble_hidden_size=32,
        neck_hidden_sizes=[16, 24, 32, 40], fusion_hidden_size=16,
        backbone=(
            "Dinov2Config",
            {
                **SMALL, "num_hidden_layers": 4, "image_size": 56, "patch_size": 14, "reshape_hidden_states": False,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
        ),
    ),
    "sam image encoder": _of(
        "SamVisionModel", IMAGE, part="last_hidden_state", hidden_size=32, output_channels=16, num_hidden_layers=2,
        num_attention_heads=4, image_size=SIDE, patch_size=8, window_size=4, global_attn_indexes=[1], num_pos_feats=8,
        mlp_dim=64,
    ),
    "clip image encoder": _of("CLIPVisionModelWithProjection", IMAGE, part="image_embeds", **OF_IMAGES),
    "siglip image encoder": _of("SiglipVisionModel", IMAGE, part="pooler_output", **OF_IMAGES),
    "yolos": _of(
        "YolosForObjectDetection", IMAGE, **{**OF_IMAGES, "image_size": [SIDE, SIDE]}, num_detection_tokens=10
    ),
    "detr": _of(
        "DetrForObjectDetection", IMAGE, **BOTH_SIDES, num_queries=10, use_timm_backbone=False,
        use_pretrained_backbone=False, backbone=("ResNetConfig", {**RESNET, "out_features": ["stage4"]}),
    ),
    "bert": _of("BertForSequenceClassification", TOKENS, **OF_TEXT),
    "roberta": _of("RobertaForSequenceClassification", TOKENS, **OF_TEXT),
    "distilbert": _of(
        "DistilBertForSequenceClassification", TOKENS, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
        vocab_size=VOCABULARY,
    ),
    "albert": _of("AlbertForSequenceClassification", TOKENS, **OF_TEXT, embedding_size=16),
    "electra": _of("ElectraForSequenceClassification", TOKENS, **OF_TEXT, embedding_size=16),
    "mobilebert": _of("MobileBertForSequenceClassification", TOKENS, num_hidden_layers=2, vocab_size=VOCABULARY),
    "squeezebert": _of("SqueezeBertForSequenceClassification", TOKENS, **OF_TEXT, embedding_size=32),
    "modernbert": _of(
        "ModernBertForSequenceClassification", TOKENS, **OF_TEXT, pad_token_id=0, cls_token_id=1, sep_token_id=2,
        bos_token_id=1, eos_token_id=2,
    ),
    "deberta_v2": _of(
        "DebertaV2ForSequenceClassification", TOKENS, **OF_TEXT, relative_attention=True, position_buckets=16,
        norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], max_position_embeddings=64,
        position_biased_input=False,
    ),
    "gpt2": _of(
        "GPT2LMHeadModel", TOKENS, names=("input_ids",), n_embd=32, n_layer=2, n_head=4, vocab_size=VOCABULARY
    ),
    "llama": _of("LlamaForCausalLM", TOKENS, names=("input_ids",), **OF_TEXT, num_key_value_heads=4),
    "qwen2": _of("Qwen2ForCausalLM", TOKENS, names=("input_ids",), **OF_TEXT, num_key_value_heads=2),
    "t5 encoder": _of(
        "T5EncoderModel", TOKENS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=VOCABULARY
    ),
    "bart": _of(
        "BartForConditionalGeneration", TOKENS_TWICE, names=("input_ids", "decoder_input_ids"), **BOTH_SIDES, **SPECIAL,
        vocab_size=VOCABULARY, max_position_embeddings=64,
    ),
    "wav2vec2": _of("Wav2Vec2ForCTC", SOUND, **OF_SOUND, vocab_size=30),
    "wav2vec2 conformer": _of(
        "Wav2Vec2ConformerForCTC", SOUND, **OF_SOUND, vocab_size=30, conv_depthwise_kernel_size=7,
        position_embeddings_type="rotary",
    ),
    "hubert": _of("HubertModel", SOUND, **OF_SOUND),
    "audio spectrogram transformer": _of("ASTForAudioClassification", ((128, 128),), **SMALL, max_length=128),
    "whisper": _of(
        "WhisperForAudioClassification", MELS, **BOTH_SIDES, **SPECIAL,
        max_source_positions=100, vocab_size=VOCABULARY, num_mel_bins=80,
    ),
}  # fmt: skip
