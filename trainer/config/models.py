"""The models a run works with: base, image encoder and the adapter that is trained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .section import Positive, Precision, Quantization, Section

FACE_KINDS = {"faceid": False, "faceid_plus": True, "faceid_plus_v2": True, "portrait": False}
"""Kinds of adapters that read faces: whether they read the face's picture as well."""
_USUAL_RANK = 128  # of the published FaceID adapters


class BaseModelConfig(Section):
    """The frozen text-to-image model."""

    model: str
    """Folder in diffusers layout, a single .safetensors file, or one of these on the hub: owner/name/folder@revision."""
    config: str | None = None
    """For a single file: folder or hub id in diffusers layout whose configs and tokenizer describe it; for a transformer's
    file text encoders and autoencoder come from there."""
    vae: str | None = None
    """Another autoencoder (folder or hub id), such as madebyollin/sdxl-vae-fp16-fix."""
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    """What the model predicts; auto reads the scheduler's config."""
    precision: Precision = "bf16"
    """Type of the frozen weights. fp32 doubles the memory and changes little."""
    quantization: Quantization = "none"
    """Keep the model's linear layers in 8 (fp8, int8) or 4 bits (nf4): less memory, numbers a little off. nf4 and int8
    need bitsandbytes and a GPU."""
    guidance: Annotated[float, Field(ge=0)] = 3.5
    """What a model with guidance built in (FLUX.1-dev) is told of it in training; diffusers' scripts have this default."""


class EncoderConfig(Section):
    """The image encoder."""

    model: str = ""
    """Folder in transformers layout, here or on the hub: CLIP, SigLIP, SigLIP 2, DINOv2 or DINOv3 of any size; PE-Core (with
    the package timm) as a file or as timm has it on the hub; SigLIP as a single file too. Not needed for faceid and
    portrait, which read no picture."""
    feature: Literal["auto", "image_embeds", "hidden_states", "last_hidden_state"] = "auto"
    """What the adapter reads; auto: image_embeds for base, hidden_states for others. last_hidden_state, behind the
    encoder's last norm where it has one, is for Anima."""
    layer: Annotated[int, Field(le=-1)] = -2
    """Hidden state read, counted from the last (-1)."""
    crop: Literal["center", "pad", "stretch"] = "center"
    """How a reference becomes the encoder's square; recorded in the file."""
    precision: Precision = "bf16"
    """Type of the frozen encoder's weights."""
    face_model: str | None = None
    """Folder of a face pack, ONNX files such as buffalo_l's or antelopev2's, for kinds that read faces; without it their
    embeddings come ready with the data: from data.identity_column, else from NAME.npy beside each picture."""


class AdapterConfig(Section):
    """The network to train."""

    kind: Literal["base", "plus", "full", "faceid", "faceid_plus", "faceid_plus_v2", "portrait"] = "base"
    """base: linear projection of one embedding; plus: resampler over all features, which on SD3.5 reads the time as well;
    full: one token per feature. faceid: a face's embedding; faceid_plus, faceid_plus_v2: that and the face's picture;
    portrait: several pictures of one person (data.references_together)."""
    tokens: Positive | None = None
    """Image tokens per reference; 4 for base, 16 for plus, 64 on SD3.5, 4 and 16 for faces and portrait if not given,
    never given for full."""
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
    """What a dropped image is, recorded in the file; auto: zero_features for base (a black picture with FLUX.1) and on
    SD3.5, zero_pixels for plus and full; noise: an encoded picture of random noise, another one each time (of 20 with a
    cache)."""
    pretrained: str | None = None
    """Adapter file to start from, here or on the hub (owner/name/file@revision), of the kind and size described here."""
    other_blocks: Literal["zero", "frozen"] = "zero"
    """The layers that blocks leaves out. zero: they take no image; frozen: they act as in pretrained, untrained."""
    lora_rank: Annotated[int, Field(ge=0)] | None = None
    """Rank of a LoRA trained beside a face adapter, on query, key, value and output of every attention layer; 0: none.
    128 for faceid, faceid_plus and faceid_plus_v2 and 0 for portrait if not given, as in the published ones."""
    gate: Literal["none", "block", "time"] = "none"
    """How much of the image a block of Anima takes. none: all of it, with keys normed; block: as much as a number says that
    is learnt from 0, keys as they are (the later kind of anima_lora); time: of each channel as much as the noise level says
    (the kind of LuciferTC, whose tokens are features: with full all of them, with plus so many as tokens says)."""

    @property
    def reads_faces(self) -> bool:
        return self.kind in FACE_KINDS

    @property
    def reads_pictures(self) -> bool:
        """Whether it needs an image encoder."""
        return FACE_KINDS.get(self.kind, True)

    @property
    def rank(self) -> int:
        """Of the LoRA; 0: none."""
        if self.lora_rank is not None or not self.reads_faces:
            return self.lora_rank or 0
        return 0 if self.kind == "portrait" else _USUAL_RANK

    @model_validator(mode="after")
    def _faces_have_what_they_read(self) -> "AdapterConfig":
        if not self.reads_faces:
            if self.lora_rank:
                raise ValueError(
                    f"adapter.lora_rank is for {', '.join(FACE_KINDS)}: other kinds leave the model as it is"
                )
            return self
        if self.negative != "auto":
            raise ValueError(
                f'adapter.negative with kind "{self.kind}": no face is an embedding of zeros, leave it out'
            )
        if self.blocks != "all":
            raise ValueError(f'adapter.blocks with kind "{self.kind}": face adapters are trained in all layers')
        if self.resampler_dim is not None:
            raise ValueError(f'adapter.resampler_dim with kind "{self.kind}": it is as wide as the text tokens')
        return self

    @model_validator(mode="after")
    def _tokens_fit_kind(self) -> "AdapterConfig":
        if self.kind == "full" and self.tokens is not None:
            raise ValueError("adapter.tokens has no meaning for kind 'full': it gives one token per image feature")
        return self

    @model_validator(mode="after")
    def _gated_tokens_are_features(self) -> "AdapterConfig":
        if self.gate != "time":
            return self
        if self.resampler_dim is not None:
            raise ValueError('adapter.resampler_dim with gate "time": the resampler is as wide as the features')
        if self.negative not in ("auto", "zero_features"):
            raise ValueError(
                f'adapter.negative = "{self.negative}" with gate "time": no image is tokens of zeros there'
            )
        return self

    @model_validator(mode="after")
    def _frozen_layers_come_from_a_file(self) -> "AdapterConfig":
        if self.other_blocks == "frozen" and self.pretrained is None:
            raise ValueError('adapter.other_blocks = "frozen" needs adapter.pretrained, the file that has these layers')
        return self
