"""Transformers of the shape of FLUX.1, SD3.5, Z-Image, Qwen-Image and Anima with random weights, whole pipelines in diffusers
layout, for the trainer's benches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaTextConditioner,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from shaped_models import VisionShape, vision_model
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from support.tiny_base import write_tokenizer
from support.tiny_studio_base import CHAT_TOKENS, chat_tokenizer

_CLIP_WIDTH = 64
_LATENT_CHANNELS = 16


@dataclass(frozen=True, kw_only=True)
class FlowShape(VisionShape):
    """Sizes of what is measured.

    Attributes:
        heads, head_dim: of the transformer, together its width.
        blocks, more_blocks: layers; FLUX.1's single blocks, Z-Image's refiners and those of Anima's
            text conditioner are `more_blocks`.
        text_width, text_layers, text_tokens: of the large text encoder; how long a text it takes (of FLUX.1 alone).
        vae_channels: of the autoencoder's four levels.
        picture: side of the JPEG files.
    """

    heads: int
    head_dim: int
    blocks: int
    more_blocks: int
    text_width: int
    text_layers: int
    text_tokens: int
    vae_channels: tuple[int, int, int, int]
    vae_resnets: int
    resolution: int
    picture: int
    batch_size: int

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


def write_flow_models(
    make: Callable[[Path, FlowShape], Any], folder: Path, shape: FlowShape, dtype: torch.dtype = torch.bfloat16
) -> tuple[Path, Path]:
    """Write base and image encoder; their folders. Stored in `dtype`, to be loaded as any other."""
    torch.manual_seed(0)
    pipeline = make(folder, shape)
    pipeline.to(dtype)
    pipeline.save_pretrained(str(folder / "base"))
    vision_model(shape).to(dtype).save_pretrained(folder / "encoder")
    return folder / "base", folder / "encoder"


def flux(folder: Path, shape: FlowShape) -> FluxPipeline:
    return FluxPipeline(
        transformer=FluxTransformer2DModel(
            num_layers=shape.blocks,
            num_single_layers=shape.more_blocks,
            attention_head_dim=shape.head_dim,
            num_attention_heads=shape.heads,
            joint_attention_dim=shape.text_width,
            pooled_projection_dim=_CLIP_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=_axes(shape.head_dim),
        ).eval(),
        vae=_vae(shape),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15),
        tokenizer=write_tokenizer(folder / "tokenizer"),
        tokenizer_2=_t5_tokenizer(shape.text_tokens),
        text_encoder=CLIPTextModel(_clip_config(folder, _CLIP_WIDTH)).eval(),
        text_encoder_2=_t5(shape),
    )


def sd3(folder: Path, shape: FlowShape) -> StableDiffusion3Pipeline:
    tokenizers = {name: write_tokenizer(folder / name) for name in ("tokenizer", "tokenizer_2")}
    clip = _clip_config(folder, _CLIP_WIDTH, projection_dim=_CLIP_WIDTH)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=shape.resolution // 8,
            in_channels=_LATENT_CHANNELS,
            num_layers=shape.blocks,
            attention_head_dim=shape.head_dim,
            num_attention_heads=shape.heads,
            joint_attention_dim=shape.text_width,
            caption_projection_dim=shape.width,
            pooled_projection_dim=2 * _CLIP_WIDTH,
            qk_norm="rms_norm",
        ).eval(),
        vae=_vae(shape),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=CLIPTextModelWithProjection(clip).eval(),
        text_encoder_2=CLIPTextModelWithProjection(clip).eval(),
        text_encoder_3=_t5(shape),
        tokenizer_3=_t5_tokenizer(shape.text_tokens),
        **tokenizers,
    )


def z_image(_folder: Path, shape: FlowShape) -> ZImagePipeline:
    return ZImagePipeline(
        transformer=ZImageTransformer2DModel(
            dim=shape.width,
            n_layers=shape.blocks,
            n_refiner_layers=shape.more_blocks,
            n_heads=shape.heads,
            n_kv_heads=shape.heads,
            cap_feat_dim=shape.text_width,
            axes_dims=list(_axes(shape.head_dim)),
        ).eval(),
        vae=_vae(shape),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=Qwen3Model(Qwen3Config(**_qwen_text(shape), head_dim=64)).eval(),
        tokenizer=chat_tokenizer(),
    )


def qwen_image(_folder: Path, shape: FlowShape) -> QwenImagePipeline:
    text = _qwen_text(shape)
    half = shape.text_width // text["num_attention_heads"] // 2
    side = half * 3 // 8
    rope = {"rope_type": "default", "mrope_section": [half - 2 * side, side, side], "rope_theta": 1_000_000.0}
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": shape.text_width,
            "fullatt_block_indexes": [0],
        },
        bos_token_id=CHAT_TOKENS,
        eos_token_id=CHAT_TOKENS,
    )
    return QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            num_layers=shape.blocks,
            attention_head_dim=shape.head_dim,
            num_attention_heads=shape.heads,
            joint_attention_dim=shape.text_width,
            axes_dims_rope=_axes(shape.head_dim),
        ).eval(),
        vae=_video_vae(shape),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=chat_tokenizer(),
    )


def anima(_folder: Path, shape: FlowShape) -> Any:
    words = _t5_tokenizer(shape.text_tokens)
    pipeline = AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=chat_tokenizer(),
        t5_tokenizer=words,
        text_encoder=Qwen3Model(Qwen3Config(**_qwen_text(shape), head_dim=64)).eval(),
        text_conditioner=AnimaTextConditioner(
            source_dim=shape.text_width,
            target_dim=shape.text_width,
            model_dim=shape.text_width,
            num_layers=shape.more_blocks,
            num_attention_heads=max(2, shape.text_width // 64),
            target_vocab_size=len(words),
        ).eval(),
        vae=_video_vae(shape),
        transformer=CosmosTransformer3DModel(
            in_channels=_LATENT_CHANNELS,
            out_channels=_LATENT_CHANNELS,
            num_attention_heads=shape.heads,
            attention_head_dim=shape.head_dim,
            num_layers=shape.blocks,
            text_embed_dim=shape.text_width,
            adaln_lora_dim=shape.width // 8,
            rope_scale=(1.0, 4.0, 4.0),
            extra_pos_embed_type=None,
        ).eval(),
    )
    return pipeline


def describe_flow(shape: FlowShape) -> str:
    return (
        f"transformer {shape.width} wide ({shape.heads} heads of {shape.head_dim}) with {shape.blocks} blocks and "
        f"{shape.more_blocks} single, refining or text ones; text encoder {shape.text_width} wide with {shape.text_layers} "
        f"layers; autoencoder {shape.vae_channels} with {shape.vae_resnets} resnets; image encoder "
        f"{shape.vision_width} wide with {shape.vision_layers} layers"
    )


def _axes(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that positions in text, rows and columns take."""
    side = head_dim // 16 * 6
    return head_dim - 2 * side, side, side


def _vae(shape: FlowShape) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=shape.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=shape.vae_resnets,
        norm_num_groups=min(32, shape.vae_channels[0]),
        latent_channels=_LATENT_CHANNELS,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def _video_vae(shape: FlowShape) -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=shape.vae_channels[0],
        dim_mult=[channels // shape.vae_channels[0] for channels in shape.vae_channels],
        num_res_blocks=shape.vae_resnets,
    ).eval()


def _clip_config(folder: Path, width: int, **more: int) -> CLIPTextConfig:
    words = len(write_tokenizer(folder / "words"))
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
        **more,
    )


def _t5(shape: FlowShape) -> T5EncoderModel:
    heads = max(1, shape.text_width // 64)
    config = T5Config(
        d_model=shape.text_width,
        d_ff=shape.text_width * 5 // 2,
        d_kv=shape.text_width // heads,
        num_layers=shape.text_layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        vocab_size=len(_t5_tokenizer(1)),
    )
    return T5EncoderModel(config).eval()


def _t5_tokenizer(longest: int) -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789,."]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=longest)


def _qwen_text(shape: FlowShape) -> dict[str, Any]:
    heads = max(2, shape.text_width // 128)
    return {
        "vocab_size": CHAT_TOKENS,
        "hidden_size": shape.text_width,
        "intermediate_size": 3 * shape.text_width,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 2048,
    }
