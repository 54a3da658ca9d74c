"""What is looked at while a run goes on, and what comes of it."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .section import Positive, Precision, Section


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
    guidance: Annotated[float, Field(ge=1)] | None = None
    """Guidance of a sample picture, 1 is off; without it what is usual: 7.5 for UNets, 3.5 for FLUX.1-dev, which has it
    built in, 1 for schnell, 7 for SD3, 6 for Z-Image, 4 for Qwen-Image and Anima."""
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

    @field_validator("timesteps")
    @classmethod
    def _something_is_measured(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("validation.timesteps is empty: to measure nothing, remove validation.every")
        return value

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
