"""Embeds, the image features before the projection: made, combined, saved and loaded."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.legacy.embeds import (
    EMBEDS_COMBINATIONS,
    FILE_RANKS,
    SUFFIXES,
    check_embeds,
    combine_embeds,
    concat_embeds,
    holds_embeds,
    read_embeds,
    save_embeds,
)
from ..paths import files_below, fingerprint, input_path, is_within, output_place, writing
from .arrivals import checked
from .features import negative_features, positive_features
from .payload import read_payload
from .schema import EmbedsSocket, clip_vision, image, ipadapter, legacy_schema

_MOST_EMBEDS = 5
_KIND = "embeds"
_NO_NATIVE = "Encode Image for IP-Adapter, which keeps what it encoded in memory"


class IPAdapterEncoder(io.ComfyNode):
    """Encode references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterEncoder",
            "IPAdapter Encoder",
            "ipadapter/embeds",
            "Encodes reference images to embeds for IPAdapter Embeds.",
            native="Encode Image for IP-Adapter",
            inputs=[
                ipadapter(),
                image(),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=-1.0,
                    max=3.0,
                    step=0.01,
                    tooltip="Multiplies the positive embeds; no unit. Neutral: 1.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="What of the reference counts, 0..1; elsewhere the encoder sees its mean colour. Neutral: 1 "
                    "everywhere, or unconnected.",
                ),
                clip_vision(),
            ],
            outputs=[
                EmbedsSocket.Output(display_name="pos_embed", tooltip="The references."),
                EmbedsSocket.Output(display_name="neg_embed", tooltip="What stands for no image."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        ipadapter: object,
        image: Tensor,
        weight: float,
        mask: Tensor | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        payload = read_payload(ipadapter, clip_vision)
        positive = positive_features(payload, image, mask)
        return io.NodeOutput(positive * weight, negative_features(payload, positive))


class IPAdapterCombineEmbeds(io.ComfyNode):
    """Combine the embeds of several references."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterCombineEmbeds",
            "IPAdapter Combine Embeds",
            "ipadapter/embeds",
            "Combines the embeds of several references.",
            native="Combine IP-Adapter Tokens",
            inputs=[
                EmbedsSocket.Input("embed1", tooltip="Embeds of one or more references."),
                io.Combo.Input(
                    "method",
                    options=list(EMBEDS_COMBINATIONS),
                    default="concat",
                    tooltip="'concat' keeps every reference whole; 'subtract' takes the mean of the others from the "
                    "first; the other methods work per number.",
                ),
                *(
                    EmbedsSocket.Input(
                        f"embed{number}", optional=True, tooltip="Embeds of more references. Neutral: unconnected."
                    )
                    for number in range(2, _MOST_EMBEDS + 1)
                ),
            ],
            outputs=[EmbedsSocket.Output(tooltip="The combined embeds.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        embed1: Tensor,
        method: str,
        embed2: Tensor | None = None,
        embed3: Tensor | None = None,
        embed4: Tensor | None = None,
        embed5: Tensor | None = None,
    ) -> io.NodeOutput:
        connected = [embed for embed in (embed2, embed3, embed4, embed5) if embed is not None]
        parts = [check_embeds(embed) for embed in (embed1, *connected)]
        return io.NodeOutput(combine_embeds(concat_embeds(parts), method))


class IPAdapterSaveEmbeds(io.ComfyNode):
    """Write embeds to the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterSaveEmbeds",
            "IPAdapter Save Embeds",
            "ipadapter/embeds",
            "Saves embeds to ComfyUI's output folder, as safetensors.",
            native=_NO_NATIVE,
            inputs=[
                EmbedsSocket.Input("embeds", tooltip="Embeds of an IPAdapter Encoder."),
                io.String.Input(
                    "filename_prefix",
                    default="IP_embeds",
                    tooltip="How the file's name begins; a number follows. Folders below output are made. Neutral: as is.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, embeds: Tensor, filename_prefix: str) -> io.NodeOutput:
        checked = check_embeds(embeds, FILE_RANKS)
        folder, name, subfolder = output_place(filename_prefix)
        file = f"{name}.safetensors"
        with writing(folder / file, "embeds", "filename_prefix"):
            save_embeds(folder / file, checked)
        return io.NodeOutput(ui={"embeds": [{"filename": file, "subfolder": subfolder, "type": "output"}]})


class IPAdapterLoadEmbeds(io.ComfyNode):
    """Read embeds from the input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterLoadEmbeds",
            "IPAdapter Load Embeds",
            "ipadapter/embeds",
            "Loads embeds from ComfyUI's input folder.",
            native=_NO_NATIVE,
            inputs=[
                io.Combo.Input(
                    "embeds",
                    options=embeds_files(),
                    tooltip="A .ipadpt file, or a safetensors file of IPAdapter Save Embeds, below ComfyUI's input folder.",
                )
            ],
            outputs=[EmbedsSocket.Output(tooltip="The embeds, for IPAdapter Embeds.")],
        )

    @classmethod
    def fingerprint_inputs(cls, embeds: str | None) -> str:
        # ComfyUI gives None for a linked input: any of the files may be meant
        return fingerprint(input_path(name, _KIND) for name in (embeds_files() if embeds is None else [embeds]))

    @classmethod
    @checked
    def execute(cls, embeds: str) -> io.NodeOutput:
        return io.NodeOutput(read_embeds(input_path(embeds, _KIND)))


def embeds_files() -> list[str]:
    """Files of embeds below ComfyUI's input folder, relative to it, without those a link leads out to."""
    base = Path(folder_paths.get_input_directory())
    paths = (folder / name for folder, names in files_below(base) for name in names if name.endswith(SUFFIXES))
    return sorted(
        str(path.relative_to(base)) for path in paths if is_within(str(base), str(path)) and holds_embeds(path)
    )


NODES: tuple[type[io.ComfyNode], ...] = (
    IPAdapterEncoder,
    IPAdapterCombineEmbeds,
    IPAdapterSaveEmbeds,
    IPAdapterLoadEmbeds,
)
