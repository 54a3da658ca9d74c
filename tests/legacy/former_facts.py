"""What the nodes that IPAdapter_plus dropped took and gave, read off workflows saved with it before March 2024.

Sources: the example workflows of its repository from August 2023 to February 2024 (order of sockets and widget values,
defaults), prompts in public repositories (names, titles), its README of January 2024 (what the widgets do), and for the
layer sliders the examples and the public node pages of chflame163's copy.
"""

from legacy.fact_records import Facts, Input, combo, decimal, optional, socket
from legacy.facts import A_MODEL, ADAPTER, AN_EMBED, CLIP_VISION, IMAGE, INSIGHTFACE, MASK, MODEL, START_END, WEIGHT_3

SCALINGS = {"original": "V only", "linear": "K+V", "channel penalty": "K+mean(V) w/ C penalty"}
CLIP_OR_FACE = socket("clip_vision", "CLIP_VISION,INSIGHTFACE")  # InsightFace came as CLIP_VISION in December 2023
NOISE = decimal("noise", 0.0, 0, 1, 0.01)
TYPE = combo("weight_type", *SCALINGS)
UNFOLD = Input("unfold_batch", "BOOLEAN", False)
EMBEDS = socket("embeds", "EMBEDS")

FORMER: dict[str, Facts] = {
    "IPAdapterApply": Facts(
        "Apply IPAdapter",
        "ipadapter",
        (ADAPTER, CLIP_OR_FACE, IMAGE, MODEL, WEIGHT_3, *optional(NOISE, TYPE, *START_END, UNFOLD, MASK)),
        A_MODEL,
    ),
    "IPAdapterApplyFaceID": Facts(
        "Apply IPAdapter FaceID",
        "ipadapter",
        (
            *(ADAPTER, CLIP_VISION, INSIGHTFACE, IMAGE, MODEL, WEIGHT_3),
            *optional(NOISE, TYPE, *START_END),
            *optional(Input("faceid_v2", "BOOLEAN", False), decimal("weight_v2", 1.0, -1, 3), UNFOLD, MASK),
        ),
        A_MODEL,
    ),
    "IPAdapterApplyEncoded": Facts(
        "Apply IPAdapter from Encoded",
        "ipadapter",
        (ADAPTER, EMBEDS, MODEL, WEIGHT_3, *optional(TYPE, *START_END, UNFOLD, MASK)),
        A_MODEL,
    ),
    "IPAdapterEncoder2023": Facts(  # saved as the id of today's encoder
        "Encode IPAdapter Image",
        "ipadapter/embeds",
        (
            CLIP_VISION,
            socket("image_1", "IMAGE"),
            *(Input("ipadapter_plus", "BOOLEAN", False), NOISE),
            *(decimal(f"weight_{number}", 1.0, -1, 3, 0.01) for number in range(1, 5)),
            *optional(*(socket(f"image_{number}", "IMAGE") for number in range(2, 5))),
        ),
        AN_EMBED,
    ),
    "IPAdapterBatchEmbeds": Facts(
        "IPAdapter Batch Embeds",
        "ipadapter/embeds",
        (socket("embed1", "EMBEDS"), socket("embed2", "EMBEDS")),
        AN_EMBED,
    ),
    "InsightFaceLoader": Facts(
        "Load InsightFace",
        "ipadapter",
        (combo("provider", "CPU", "CUDA", "ROCM"),),
        (("INSIGHTFACE", "INSIGHTFACE"),),
    ),
    "PrepImageForInsightFace": Facts(
        "Prepare Image For InsightFace",
        "ipadapter",
        (
            IMAGE,
            combo("crop_position", "center", "top", "bottom", "left", "right"),
            decimal("sharpening", 0.0, 0, 1),
            Input("pad_around", "BOOLEAN", True),
        ),
        (("IMAGE", "IMAGE"),),
    ),
    "IPAdapterLayerWeightsSlider": Facts(
        "IPAdapter Layer Weights Slider",
        "ipadapter/utils",
        tuple(decimal(f"layer{number}", 0.0, -1, 1, 0.01) for number in range(12)),
        (("STRING", "layer_weights"),),
    ),
    "IPAdapterApply2023": Facts(  # saved as IPAdapterApply, in September 2023
        "Apply IPAdapter (September 2023)",
        "ipadapter",
        optional(MODEL, ADAPTER, socket("clip_vision_output", "CLIP_VISION_OUTPUT"), socket("mask", "MASK"), WEIGHT_3),
        A_MODEL,
    ),
    "IPAdapterCLIPVisionEncode": Facts(
        "CLIP Vision Encode (IPAdapter)",
        "ipadapter",
        optional(CLIP_VISION, IMAGE),
        (("CLIP_VISION_OUTPUT", "CLIP_VISION_OUTPUT"),),
    ),
    "IPAdapterTilesMasked": Facts(
        "IPAdapter Masked Tiles",
        "ipadapter",
        optional(ADAPTER, CLIP_VISION, IMAGE, MODEL, WEIGHT_3, NOISE, TYPE, *START_END),
        A_MODEL,
    ),
}
GONE = ("IPAdapterApply2023", "IPAdapterCLIPVisionEncode", "IPAdapterTilesMasked")
"""These say what to use instead."""
