"""What is trained on, and what of it is kept ready."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .section import Positive, Precision, Section, Share


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
    allow_outside: bool = False
    """Read pictures that a list or a table names outside its own folder or image_root, by absolute paths or "..".
    Links are followed in any case."""
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
    identity_column: str | None = None
    """Column of the ready embedding of the reference's face, for kinds that read faces: numbers, or the name of a .npy."""
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
    references_together: Positive = 1
    """Pictures of a group that are read together, for faces; 5 for a portrait adapter as published. Those of a group that
    has fewer come again."""
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
        if self.buckets and self.bucket_step > min(self.resolutions):  # no side is shorter than a step
            key = "resolution" if self.bucket_step > self.resolution else "more_resolutions"
            raise ValueError(f"data.bucket_step is above data.{key}: with buckets no side can be as short")
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
