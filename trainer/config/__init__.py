"""What a training run is: one frozen record per section of the TOML file. `config_file.py` reads them.

A field's description is its documentation; `docs/training.md` lists them. Contradictions between fields are checked
here, paths and models where they are opened.
"""

from pathlib import Path

from pydantic import model_validator

from .data import AugmentConfig, CacheConfig, DataConfig, DataSetConfig
from .models import AdapterConfig, BaseModelConfig, EncoderConfig
from .outcome import ExportConfig, ValidationConfig
from .section import Positive, Precision, Section, Share
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
    "Section",
    "Share",
    "TrainConfig",
    "ValidationConfig",
]


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
    def _base_reads_one_embedding(self) -> "Config":
        if self.adapter.kind == "base" and self.encoder.feature == "hidden_states":
            raise ValueError('adapter.kind = "base" reads one embedding, not encoder.feature = "hidden_states"')
        return self

    @model_validator(mode="after")
    def _masks_are_read(self) -> "Config":
        if any(self.objective.masked != (one.mask_column is not None) for one in self.data.sets):
            raise ValueError("objective.masked and data.mask_column belong together: set both, or neither, in all sets")
        return self
