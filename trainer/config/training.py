"""How the weights are trained."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .section import Decay, Positive, Section, Share


class ObjectiveConfig(Section):
    """The loss (arXiv 2308.06721, section 3; defaults are the paper's)."""

    drop_text: Share = 0.05
    """Share of samples that lose the text only."""
    drop_image: Share = 0.05
    """Share of samples that lose the image only."""
    drop_both: Share = 0.05
    """Share of samples that lose both."""
    drop_identity: Share = 0.0
    """Share of faces that lose their embedding alone, each by itself: of several pictures some then say nothing, and
    faceid_plus has to read the picture."""
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
    betas: tuple[Decay, Decay] = (0.9, 0.999)
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
    seed: Annotated[int, Field(ge=0, le=10**18)] = 0
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
