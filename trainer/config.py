"""What a training run is: one frozen record per section of the TOML file. `config_file.py` reads them.

A field's description is its documentation; `docs/training.md` lists them. Contradictions between fields are checked
here, paths and models where they are opened.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Precision = Literal["bf16", "fp16", "fp32"]


class Section(BaseModel):
    """Unknown keys are errors, values never change after reading, and a string is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


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
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Keep the UNet's linear layers in 4 (nf4) or 8 bits: less memory, numbers a little off. Needs bitsandbytes, a GPU."""


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
    """What the image K/V projections start from: the model's own text projections, or noise."""
    blocks: str = "all"
    """Layer preset that is trained, such as style or composition."""
    negative: Literal["auto", "zero_features", "zero_pixels", "noise"] = "auto"
    """What a dropped image is, recorded in the file; auto: zero_features for base, zero_pixels for plus and full; noise:
    an encoded picture of random noise, another one each time (of 20 with a cache)."""
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


class AugmentConfig(Section):
    """Changes made to a reference, so that the adapter does not learn to copy it pixel by pixel. 0 and false: none."""

    crop_scale: Share = 0.0
    """Largest share of the reference's area that a random crop takes away."""
    flip: Share = 0.0
    """Probability of a left-right flip."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation in degrees."""
    color: Share = 0.0
    """Strength of random brightness, contrast and saturation."""
    gray: Share = 0.0
    """Probability of turning the reference gray."""
    blur: Share = 0.0
    """Probability of a Gaussian blur."""

    @property
    def is_neutral(self) -> bool:
        return not any(self.model_dump().values())


class DataSetConfig(Section):
    """A further data set, read as `data.path` is; `[data]` says the sizes and changes of all."""

    path: str
    """Folder, .json, .jsonl or .csv file, Hugging Face dataset (folder, or name on the hub with or without /folder and
    @revision), or WebDataset shards (a{0..9}.tar)."""
    format: Literal["auto", "folder", "json", "jsonl", "csv", "hf", "webdataset"] = "auto"
    """How to read path; auto decides by what is there."""
    allow_pipe: bool = False
    """Run the command of a path that begins with pipe: to get a shard; only what stands in path itself is one."""
    image_root: str | None = None
    """Folder that relative picture paths start from; that of the list file if not given."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    image_column: str | None = None
    """Column of the picture; image_file, image, file_name, jpg … are found by themselves."""
    caption_column: str | None = None
    """Column of the caption; text, caption, txt … are found by themselves."""
    caption: str | None = None
    """Caption of pictures that have none; without it such a picture is an error of the data."""
    mask_column: str | None = None
    """Column of a gray picture, white where the loss counts."""
    reference: Literal["self", "column", "folder", "group"] = "self"
    """The image prompt of a picture: itself, another column, the same name in another folder, or one of its group."""
    reference_column: str | None = None
    """Column of the reference picture, for reference = "column"."""
    reference_folder: str | None = None
    """Folder with a reference under the same name, for reference = "folder"."""
    group_column: str | None = None
    """Column that names the group, for reference = "group"; for a folder, the sub-folder is the group."""
    repeats: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """How often each of its pictures comes in an epoch, among several data sets; 0.5: every second time."""
    weight: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    """Its share of the samples, as a proportion of all data sets' weights; in place of repeats."""

    @model_validator(mode="after")
    def _reference_is_said(self) -> "DataSetConfig":
        for kind, key in (("column", "reference_column"), ("folder", "reference_folder")):
            if (self.reference == kind) != (getattr(self, key) is not None):
                raise ValueError(f'data.{key} and data.reference = "{kind}" belong together: set both or neither')
        if self.weight is not None and self.repeats != 1:
            raise ValueError("a data set has a weight or repeats, not both")
        return self


class DataConfig(DataSetConfig):
    """Pictures, captions and references."""

    resolution: Annotated[int, Field(ge=8, multiple_of=8)] = 512
    """Side in pixels; with buckets, the side of a square of the same area."""
    more_resolutions: tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...] = ()
    """Further ones: each picture is trained at each of them as well; validation and samples are at resolution."""
    buckets: bool = False
    """Keep aspect ratios: sizes of about resolution² pixels, a batch has one size."""
    bucket_step: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """Step between bucket sides in pixels."""
    crop: Literal["center", "random"] = "center"
    """Which part of a picture that does not fit is kept."""
    flip: Share = 0.0
    """Probability of a left-right flip of the target (captions may say left and right)."""
    augment: AugmentConfig = AugmentConfig()
    """Changes of the reference."""
    workers: Annotated[int, Field(ge=0)] = 4
    """Processes that read and prepare pictures."""
    shuffle_buffer: Positive = 1000
    """Samples held for shuffling when shards are streamed."""
    max_skipped: Share = 0.05
    """Share of pictures that may be unreadable before the run stops."""
    more: tuple[DataSetConfig, ...] = ()
    """Further data sets, each a table [[data.more]]."""

    @property
    def sets(self) -> tuple[DataSetConfig, ...]:
        """All of them, this the first."""
        return self, *self.more

    @property
    def resolutions(self) -> tuple[int, ...]:
        """All of them."""
        return self.resolution, *self.more_resolutions

    @model_validator(mode="after")
    def _resolutions_differ(self) -> "DataConfig":
        if len(set(self.resolutions)) < len(self.resolutions):
            raise ValueError("data.resolution and data.more_resolutions: one is named twice")
        return self

    @model_validator(mode="after")
    def _weights_compare(self) -> "DataConfig":
        if len({one.weight is None for one in self.sets}) == 2:
            raise ValueError("data.weight: give one to every data set or to none")
        return self


class CacheConfig(Section):
    """Ready-made latents, image features and text embeddings."""

    path: str | None = None
    """Folder of the cache; without it everything is encoded each step."""
    variants: Positive = 1
    """Random crops, flips and reference changes kept per picture."""
    precision: Precision = "fp16"
    """Type of what is stored."""
    shard_size: Positive = 512
    """Entries per file."""
    parts: tuple[Literal["latents", "text", "features"], ...] = ("latents", "text", "features")
    """What is kept; what is not is encoded each step: without features a reference is changed anew each time."""

    @field_validator("parts")
    @classmethod
    def _something_is_kept(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("cache.parts is empty: to keep nothing, remove cache.path")
        return value


class ObjectiveConfig(Section):
    """The loss (arXiv 2308.06721, section 3; defaults are the paper's)."""

    drop_text: Share = 0.05
    """Share of samples that lose the text only."""
    drop_image: Share = 0.05
    """Share of samples that lose the image only."""
    drop_both: Share = 0.05
    """Share of samples that lose both."""
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """Weight by min(SNR, gamma) (arXiv 2303.09556); 5 is usual."""
    debiased: bool = False
    """Weight by 1 / sqrt(SNR) (arXiv 2310.08442); in place of min_snr_gamma."""
    huber_c: Annotated[float, Field(gt=0)] | None = None
    """Pseudo-Huber loss 2c (sqrt(e² + c²) - c) of the error e, not e²: errors beyond c pull less. 0.1 is usual."""
    huber_schedule: Literal["constant", "exponential"] = "constant"
    """exponential: c falls from 1 at timestep 0 to huber_c at the last, as huber_c^(t / T) (arXiv 2403.16728)."""
    noise_offset: Annotated[float, Field(ge=0)] = 0.0
    """Strength of a constant added to each channel's noise; 0.05 is usual."""
    pyramid_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Add coarser and coarser noise, each level this much weaker (J. Whitaker, Multi-Resolution Noise); 0.9 is usual."""
    input_perturbation: Annotated[float, Field(ge=0)] = 0.0
    """Strength of further noise that the model sees, but is not asked for (arXiv 2301.11706); 0.1 is usual."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last timestep is pure noise (arXiv 2305.08891); v_prediction only."""
    timestep_min: Annotated[int, Field(ge=0, le=999)] = 0
    """Smallest timestep trained on."""
    timestep_max: Annotated[int, Field(ge=0, le=999)] = 999
    """Largest timestep trained on."""
    timestep_sampling: Literal["uniform", "sigmoid", "earlier", "later"] = "uniform"
    """Where in that range, with u in 0..1: sigmoid of a normal number (logit-normal, arXiv 2403.03206) prefers the
    middle; earlier, u³, little noise; later, 1 - u³, much noise (arXiv 2302.08453, section 3.4)."""
    timestep_logit_mean: float = 0.0
    """Mean of the normal number of sigmoid; above 0: more noise."""
    timestep_logit_std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the normal number of sigmoid."""
    masked: bool = False
    """Count the loss where data.mask_column is white only."""

    @model_validator(mode="after")
    def _ranges(self) -> "ObjectiveConfig":
        if self.drop_text + self.drop_image + self.drop_both > 1:
            raise ValueError("objective.drop_text + drop_image + drop_both is above 1")
        if self.timestep_min > self.timestep_max:
            raise ValueError("objective.timestep_min is above objective.timestep_max")
        return self

    @model_validator(mode="after")
    def _one_of_each(self) -> "ObjectiveConfig":
        if self.debiased and self.min_snr_gamma is not None:
            raise ValueError("objective.debiased and objective.min_snr_gamma both weight the timesteps: set one")
        if self.pyramid_noise and self.noise_offset:
            raise ValueError("objective.pyramid_noise and objective.noise_offset both color the noise: set one")
        if self.huber_schedule != "constant" and self.huber_c is None:
            raise ValueError("objective.huber_schedule needs objective.huber_c")
        if self.timestep_sampling != "sigmoid" and (self.timestep_logit_mean, self.timestep_logit_std) != (0, 1):
            raise ValueError('objective.timestep_logit_mean and _std need objective.timestep_sampling = "sigmoid"')
        return self


class OptimizerConfig(Section):
    """How the weights move."""

    name: Literal["adamw", "adamw8bit", "prodigy", "adafactor"] = "adamw"
    """adamw (fused), adamw8bit (bitsandbytes), prodigy (learning_rate 1.0 is usual), adafactor (fixed rate)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW and Prodigy."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the rate rises from 0."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; "none": gradients are not clipped."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of all trained weights, which then is what is validated and exported."""

    @field_validator("schedule", mode="before")
    @classmethod
    def _no_second_name_of_linear(cls, value: object) -> object:
        if value == "polynomial":
            raise ValueError('optimizer.schedule = "polynomial", which was the line that "linear" is; write that')
        return value


class TrainConfig(Section):
    """The run."""

    output: str
    """Run folder: checkpoints, metrics, samples, report and the exported adapter."""
    steps: Positive
    """Optimiser steps."""
    batch_size: Positive = 8
    """Samples per process and forward."""
    accumulate: Positive = 1
    """Forwards per optimiser step."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it and the sample's number."""
    gradient_checkpointing: bool = False
    """Half the activations for about a third more time."""
    compile: bool = False
    """torch.compile the frozen model: slow to start, faster after."""
    log_every: Positive = 10
    """Steps between log lines; only then a number leaves the device."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Where curves go besides metrics.jsonl."""


class CheckpointConfig(Section):
    """Resume state."""

    every: Positive = 1000
    """Steps between checkpoints."""
    keep: Positive = 3
    """How many are kept; older ones are deleted."""


class ValidationConfig(Section):
    """Losses on a fixed grid, and sample pictures."""

    every: Positive | None = None
    """Steps between validations; none without it."""
    path: str | None = None
    """Data set for it, read like data.path; without it, `images` pictures are kept out of data.path."""
    images: Positive = 16
    """Pictures of the grid."""
    timesteps: tuple[Annotated[int, Field(ge=0, le=999)], ...] = (100, 300, 500, 700, 900)
    """Timesteps of the grid."""
    sample_every: Positive | None = None
    """Steps between sample pictures; none without it."""
    samples: Positive = 4
    """Held-out pictures whose references are drawn."""
    references: str | None = None
    """Folder or list of your own pictures, all of which are drawn in place of held-out ones; of a folder by name."""
    strengths: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Strengths each is drawn at."""
    prompt: str | None = ""
    """Text of the sample pictures; "none": the reference's own caption."""
    prompts: tuple[str, ...] = ()
    """Several texts in place of prompt: each reference is drawn with each of them."""
    sampler_steps: Positive = 30
    """Denoising steps of a sample picture."""
    guidance: Annotated[float, Field(ge=1)] = 7.5
    """Classifier-free guidance of a sample picture."""
    clip_model: str | None = None
    """CLIP (folder or hub id) for CLIP-I and CLIP-T; should not be the training encoder."""
    dino_model: str | None = None
    """DINOv2 or DINOv3 for DINO similarity; should not be the training encoder."""
    best: Literal["loss", "gap", "clip_i", "dino"] = "loss"
    """What the best checkpoint is best at: lowest validation loss, or highest of the others."""

    @property
    def texts(self) -> tuple[str | None, ...]:
        """That each reference is drawn with; None is its own caption."""
        return self.prompts or (self.prompt,)

    @model_validator(mode="after")
    def _texts_differ(self) -> "ValidationConfig":
        if self.prompts and self.prompt != "":
            raise ValueError("validation.prompt and validation.prompts are both set: put all texts into prompts")
        if twice := [text for text in self.prompts if self.prompts.count(text) > 1]:
            raise ValueError(f"validation.prompts names {twice[0]!r} twice")
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> "ValidationConfig":
        for metric, key in (("clip_i", "clip_model"), ("dino", "dino_model")):
            if self.best == metric and (getattr(self, key) is None or self.sample_every is None):
                raise ValueError(f'validation.best = "{metric}" needs validation.{key} and validation.sample_every')
        return self


class ExportConfig(Section):
    """The deliverable."""

    precision: Precision = "fp16"
    """Type of the exported weights."""
    title: str | None = None
    """Name in the metadata and the model card; the run folder's if not given."""
    author: str | None = None
    """Author in the metadata."""
    license: str | None = None
    """Licence in the metadata."""


class Config(Section):
    """A whole training run."""

    base: BaseModelConfig
    encoder: EncoderConfig
    data: DataConfig
    train: TrainConfig
    adapter: AdapterConfig = AdapterConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    cache: CacheConfig = CacheConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    export: ExportConfig = ExportConfig()

    @property
    def run(self) -> Path:
        return Path(self.train.output)

    @model_validator(mode="after")
    def _masks_are_read(self) -> "Config":
        if any(self.objective.masked != (one.mask_column is not None) for one in self.data.sets):
            raise ValueError("objective.masked and data.mask_column belong together: set both, or neither, in all sets")
        return self
