"""What all sections of a config have in common."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Quantization = Literal["none", "fp8", "nf4", "int8"]
Precision = Literal["bf16", "fp16", "fp32"]


class Section(BaseModel):
    """Unknown keys are errors, values never change after reading, and neither a string nor infinity is a number."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
