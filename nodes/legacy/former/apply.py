"""The apply nodes of before March 2024: other widgets over what the later ones do."""

from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ....ipadapter_core.errors import BadInputError, one_of
from ....ipadapter_core.file.spec import Feature
from ....ipadapter_core.legacy.embeds import describe_embeds
from ....ipadapter_core.legacy.noise import former_noise
from ...patching.application import fitting_sites
from .. import schema
from ..application import LegacyUse, Weight, apply_image, apply_tokens, tokens_of
from ..arrivals import checked
from ..face_features import first_faces
from ..payload import PLUS_V2, Payload, read_payload
from . import schema as former
from .embeds import SIDES

_CATEGORY = "ipadapter"
# Dimensions of embeds with both sides behind each other; a FaceID adapter reads none.
_STACKED_RANKS = {Feature.IMAGE_EMBEDS: 3, Feature.HIDDEN_STATES: 4, Feature.LAST_HIDDEN_STATE: 4}


class IPAdapterApply(io.ComfyNode):
    """Steer a model with references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterApply",
            "Apply IPAdapter",
            _CATEGORY,
            "Steers a model with reference images.",
            native="Apply IP-Adapter from Image",
            inputs=[
                schema.ipadapter(),
                former.encoder(),
                schema.image(),
                schema.model(),
                schema.weight(high=3.0),
                former.noise(),
                former.weight_type(),
                *former.start_end(),
                former.unfold_batch(),
                schema.attn_mask(),
            ],
            outputs=[schema.model_output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        ipadapter: object,
        clip_vision: object,
        image: Tensor,
        model: ModelPatcher,
        weight: Weight,
        noise: float = 0.0,
        weight_type: str = "original",
        start_at: float = 0.0,
        end_at: float = 1.0,
        unfold_batch: bool = False,
        attn_mask: Tensor | None = None,
    ) -> io.NodeOutput:
        use = _use(weight, weight_type, start_at, end_at, unfold_batch, attn_mask)
        is_face_model = hasattr(clip_vision, "det_model")
        encoders = (None, clip_vision) if is_face_model else (clip_vision, None)
        payload = read_payload(ipadapter, *encoders)
        return _apply(model, payload, image, use, noise)


class IPAdapterApplyFaceID(io.ComfyNode):
    """Steer a model with a face."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterApplyFaceID",
            "Apply IPAdapter FaceID",
            _CATEGORY,
            "Steers a model with the identity of a face.",
            native="Encode Face for IP-Adapter and Apply IP-Adapter",
            inputs=[
                schema.ipadapter(),
                io.ClipVision.Input(
                    "clip_vision", tooltip="The image encoder, from Load CLIP Vision; FaceID-Plus adapters read it."
                ),
                schema.InsightFaceSocket.Input(
                    "insightface", tooltip="The face model, from IPAdapter InsightFace Loader."
                ),
                schema.image(tooltip="Picture with a face; the first one found counts. A batch is several references."),
                schema.model(),
                schema.weight(high=3.0),
                former.noise(),
                former.weight_type(),
                *former.start_end(),
                io.Boolean.Input(
                    "faceid_v2",
                    default=False,
                    optional=True,
                    tooltip="On for a FaceID-Plus v2 adapter. Neutral on other adapters: off.",
                ),
                io.Float.Input(
                    "weight_v2",
                    default=1.0,
                    min=-1.0,
                    max=3.0,
                    step=0.05,
                    optional=True,
                    tooltip="FaceID-Plus v2: how much the face's picture counts beside its identity; no unit. Neutral: 1.",
                ),
                former.unfold_batch(),
                schema.attn_mask(),
            ],
            outputs=[schema.model_output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        ipadapter: object,
        clip_vision: object,
        insightface: object,
        image: Tensor,
        model: ModelPatcher,
        weight: Weight,
        noise: float = 0.0,
        weight_type: str = "original",
        start_at: float = 0.0,
        end_at: float = 1.0,
        faceid_v2: bool = False,
        weight_v2: float = 1.0,
        unfold_batch: bool = False,
        attn_mask: Tensor | None = None,
    ) -> io.NodeOutput:
        use = _use(weight, weight_type, start_at, end_at, unfold_batch, attn_mask).but(weight_faceidv2=weight_v2)
        payload = read_payload(ipadapter, clip_vision, insightface)
        payload = replace(payload, raw={**payload.raw, PLUS_V2: faceid_v2})  # the widget said it, not the file's name
        return _apply(model, payload, image, use, noise)


class IPAdapterApplyEncoded(io.ComfyNode):
    """Steer a model with embeds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterApplyEncoded",
            "Apply IPAdapter from Encoded",
            _CATEGORY,
            "Steers a model with embeds.",
            native="Apply IP-Adapter, which takes tokens",
            inputs=[
                schema.ipadapter(),
                schema.EmbedsSocket.Input(
                    "embeds", tooltip="Embeds of Encode IPAdapter Image, or of a file saved then."
                ),
                schema.model(),
                schema.weight(high=3.0),
                former.weight_type(),
                *former.start_end(),
                former.unfold_batch(),
                schema.attn_mask(),
            ],
            outputs=[schema.model_output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        ipadapter: object,
        embeds: Tensor,
        model: ModelPatcher,
        weight: Weight,
        weight_type: str = "original",
        start_at: float = 0.0,
        end_at: float = 1.0,
        unfold_batch: bool = False,
        attn_mask: Tensor | None = None,
    ) -> io.NodeOutput:
        use = _use(weight, weight_type, start_at, end_at, unfold_batch, attn_mask)
        adapter = read_payload(ipadapter).adapter
        fitting_sites(model, adapter)
        rank = _STACKED_RANKS.get(adapter.spec.feature)
        if rank is not None and not (isinstance(embeds, Tensor) and embeds.ndim == rank and len(embeds) == SIDES):
            raise BadInputError(
                f"{describe_embeds(embeds)} for {adapter.spec.family}",
                expected=f"[{SIDES}, references, {'positions, ' if rank == 4 else ''}{adapter.spec.image_dim}], both sides "
                "behind each other",
                action="connect Encode IPAdapter Image, with ipadapter_plus "
                f"{'on' if rank == 4 else 'off'} for this adapter; for embeds of IPAdapter Encoder use IPAdapter Embeds",
            )
        tokens = tokens_of(adapter, embeds[0], embeds[1], use)
        return io.NodeOutput(apply_tokens(model, adapter, tokens, use))


def _use(
    weight: Weight, weight_type: str, start_at: float, end_at: float, unfold_batch: bool, attn_mask: Tensor | None
) -> LegacyUse:
    return LegacyUse(
        weight=weight,
        embeds_scaling=one_of(weight_type, former.FORMER_SCALINGS, "weight type"),
        start_at=start_at,
        end_at=end_at,
        per_frame=unfold_batch,
        attn_mask=attn_mask,
    )


def _apply(model: ModelPatcher, payload: Payload, image: Tensor, use: LegacyUse, noise: float) -> io.NodeOutput:
    patched, _ = apply_image(model, payload, image, use, _negative(payload, image, noise))
    return io.NodeOutput(patched)


def _negative(payload: Payload, image: Tensor, noise: float) -> Tensor | None:
    """The negative image of the noise widget; of a face it is the cut-out face that is noised."""
    spec = payload.adapter.spec
    if noise <= 0 or not spec.reads_pictures:
        return None
    if spec.face is not None:
        image = first_faces(payload, spec.face, image).pictures
    return former_noise([image], noise)


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterApply, IPAdapterApplyFaceID, IPAdapterApplyEncoded)
