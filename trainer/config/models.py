"""The models a run works with: base, image encoder and the adapter that is trained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .section import Positive, Precision, Section


class BaseModelConfig(Section):
    """The frozen text-to-image model."""

    model: str
    """Folder in diffusers layout, a single .safetensors file, or one of these on the hub: owner/name/folder@revision."""
    config: str | None = None
    """For a single file: folder or hub id in diffusers layout whose configs and tokenizer describe it."""
    vae: str | None = None
    """Another autoencoder (folder or hub id), such as madebyollin/sdxl-vae-fp16-fix."""
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    """What the model predicts; auto reads the scheduler's config."""
    precision: Precision = "bf16"
    """Type of the frozen weights. fp32 doubles the memory and changes little."""
    quantization: Literal["none", "fp8", "nf4", "int8"] = "none"
    """Keep the model's linear layers in 8 (fp8, int8) or 4 bits (nf4): less memory, numbers a little off. nf4 and int8
    need bitsandbytes and a GPU."""
    guidance: Annotated[float, Field(ge=0)] = 3.5
    """What a model with guidance built in (FLUX.1-dev) is told of it in training; diffusers' scripts have this default."""


class EncoderConfig(Section):
    """The image encoder, in transformers layout."""

    model: str
    """Folder or hub id: CLIP, SigLIP, SigLIP 2, DINOv2 or DINOv3 of any size."""
    feature: Literal["auto", "image_embeds", "hidden_states"] = "auto"
    """What the adapter reads; auto: image_embeds for base, hidden_states for plus and full."""
    layer: Annotated[int, Field(le=-1)] = -2
    """Hidden state read, counted from the last (-1)."""
    crop: Literal["center", "pad", "stretch"] = "center"
    """How a reference becomes the encoder's square; recorded in the file."""
    precision: Precision = "bf16"
    """Type of the frozen encoder's weights."""


class AdapterConfig(Section):
    """The network to train."""

    kind: Literal["base", "plus", "full"] = "base"
    """base: linear projection of one embedding; plus: resampler over all features; full: one token per feature."""
    tokens: Positive | None = None
    """Image tokens per reference; 4 for base and 16 for plus if not given, never given for full."""
    resampler_dim: Positive | None = None
    """Width of a plus resampler; 768 for 768-wide text, else 1280, if not given."""
    resampler_depth: Positive = 4
    """Layers of a plus resampler."""
    resampler_head_dim: Positive = 64
    """Size of a plus resampler's heads."""
    init: Literal["text", "random"] = "text"
    """What the image K/V projections start from: the model's own text projections, or noise. With FLUX.1, whose text has
    none of that size, text is values of zero: training begins with the model as it is."""
    blocks: str = "all"
    """Layer preset that is trained, such as style or composition."""
    negative: Literal["auto", "zero_features", "zero_pixels", "noise"] = "auto"
    """What a dropped image is, recorded in the file; auto: zero_features for base (a black picture with FLUX.1),
    zero_pixels for plus and full; noise: an encoded picture of random noise, another one each time (of 20 with a cache)."""
    pretrained: str | None = None
    """Adapter file to start from, here or on the hub (owner/name/file@revision), of the kind and size described here."""
    other_blocks: Literal["zero", "frozen"] = "zero"
    """The layers that blocks leaves out. zero: they take no image; frozen: they act as in pretrained, untrained."""

    @model_validator(mode="after")
    def _tokens_fit_kind(self) -> "AdapterConfig":
        if self.kind == "full" and self.tokens is not None:
            raise ValueError("adapter.tokens has no meaning for kind 'full': it gives one token per image feature")
        return self

    @model_validator(mode="after")
    def _frozen_layers_come_from_a_file(self) -> "AdapterConfig":
        if self.other_blocks == "frozen" and self.pretrained is None:
            raise ValueError('adapter.other_blocks = "frozen" needs adapter.pretrained, the file that has these layers')
        return self
