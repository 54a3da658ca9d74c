"""The model card beside an adapter file: what it is, what it was trained on, and how to use it."""

from collections.abc import Mapping
from pathlib import Path

import jinja2

from ipadapter_core.encoder.choice import encoder_need
from ipadapter_core.file.container import write_aside
from ipadapter_core.file.spec import AdapterSpec, Projection

from ..words import visible
from .facts import ExportFacts
from .invokeai import invokeai_reasons

_TEMPLATES = Path(__file__).parent / "templates"
_PIPELINES = {"SDXL": "StableDiffusionXLPipeline"}  # by base
_TRANSFORMERS = {"SD3": "StableDiffusion3Pipeline", "FLUX": "FluxPipeline"}  # by kind of base
_DTYPES = {"FLUX": "bfloat16"}  # which leaves float16's range

_SIGNS = str.maketrans({"<": "&lt;", "[": "\\[", "|": "\\|", "\n": " "})


class _Markdown(str):
    """What its author may write Markdown in."""

    __slots__ = ()


def _shown(value: object) -> object:
    """Names are shown: they are no tags, links, or cells of the table."""
    return visible(value).translate(_SIGNS) if isinstance(value, str) and not isinstance(value, _Markdown) else value


def write_card(path: Path, file_name: str, spec: AdapterSpec, facts: ExportFacts, report: Mapping[str, object]) -> None:
    """Write the Markdown page, aside and renamed.

    Args:
        path: of the page.
        file_name: of the adapter file.
        report: `ExportReport.to_json()`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        finalize=_shown,
    )
    text = environment.get_template("card.md").render(
        file_name=file_name,
        spec=spec,
        facts=facts,
        report=report,
        training=facts.training,
        invokeai=invokeai_reasons(spec, facts.preprocess),
        lora_name=Path(str(report.get("lora", ""))).name,
        encoder=encoder_need(spec),
        reads_embeds=spec.projection is Projection.LINEAR,
        description=_Markdown(facts.description or ""),
        pipeline=_TRANSFORMERS.get(spec.backbone) or _PIPELINES.get(spec.base, "StableDiffusionPipeline"),
        dtype=_DTYPES.get(spec.backbone, "float16"),
        encoder_class="SiglipVisionModel" if spec.is_timed else "CLIPVisionModelWithProjection",
        processor_class="SiglipImageProcessor" if spec.is_timed else "CLIPImageProcessor",
    )
    write_aside(path, lambda part: part.write_text(text, encoding="utf-8"))
