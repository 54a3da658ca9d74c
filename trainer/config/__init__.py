"""What a training run is: one frozen record per section of the TOML file. `config_file.py` reads them.

A field's description is its documentation; `docs/training.md` lists them. Contradictions between fields are checked
here, paths and models where they are opened.
"""

from pathlib import Path

from pydantic import model_validator

from .data import AugmentConfig, CacheConfig, DataConfig, DataSetConfig
from .models import AdapterConfig, BaseModelConfig, EncoderConfig
from .outcome import ExportConfig, ValidationConfig
from .section import Positive, Precision, Quantization, Section, Share
from .training import CheckpointConfig, ObjectiveConfig, OptimizerConfig, TrainConfig

__all__ = [
    "AdapterConfig",
    "AugmentConfig",
    "BaseModelConfig",
    "CacheConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DataSetConfig",
    "EncoderConfig",
    "ExportConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "Positive",
    "Precision",
    "Quantization",
    "Section",
    "Share",
    "TrainConfig",
    "ValidationConfig",
]


class Config(Section):
    """A whole training run."""

    base: BaseModelConfig
    encoder: EncoderConfig = EncoderConfig()
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
    def _base_reads_one_embedding(self) -> "Config":
        if self.adapter.kind == "base" and self.encoder.feature == "hidden_states":
            raise ValueError('adapter.kind = "base" reads one embedding, not encoder.feature = "hidden_states"')
        return self

    @model_validator(mode="after")
    def _references_can_be_read(self) -> "Config":
        kind, encoder = self.adapter.kind, self.encoder
        has_identities = any(one.identity_column is not None for one in self.data.sets)
        if self.adapter.reads_pictures != bool(encoder.model):
            raise ValueError(
                f'encoder.model is missing, the image encoder of adapter.kind = "{kind}"'
                if self.adapter.reads_pictures
                else f'encoder.model with adapter.kind = "{kind}", which reads no picture: remove it'
            )
        if not self.adapter.reads_faces:
            for name, is_said in (
                ("encoder.face_model", encoder.face_model is not None),
                ("data.identity_column", has_identities),
                ("data.references_together", self.data.references_together > 1),
                ("objective.drop_identity", self.objective.drop_identity > 0),
            ):
                if is_said:
                    raise ValueError(f'{name} is for kinds that read faces, not for adapter.kind = "{kind}"')
            return self
        if encoder.feature == "image_embeds":
            raise ValueError(f'adapter.kind = "{kind}" reads hidden states, not encoder.feature = "image_embeds"')
        if not self.adapter.reads_pictures and not self.data.augment.is_neutral:
            raise ValueError(
                f'data.augment with adapter.kind = "{kind}", which reads a face\'s embedding and no picture'
            )
        if encoder.face_model is not None and has_identities:
            raise ValueError("encoder.face_model and data.identity_column are both set: faces are found, or come ready")
        if encoder.face_model is None and self.cache.path is not None and "features" in self.cache.parts:
            raise ValueError(
                'a cache of features with embeddings that come ready: set cache.parts = ["latents", "text"]'
            )
        if self.data.references_together > 1 and any(one.reference != "group" for one in self.data.sets):
            raise ValueError('data.references_together needs data.reference = "group", the pictures of a person')
        return self

    @model_validator(mode="after")
    def _masks_are_read(self) -> "Config":
        if any(self.objective.masked != (one.mask_column is not None) for one in self.data.sets):
            raise ValueError("objective.masked and data.mask_column belong together: set both, or neither, in all sets")
        return self
