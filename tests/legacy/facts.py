"""What IPAdapter_plus' 37 nodes take and give, written from a description of them, never from our code."""

from dataclasses import replace

from legacy.fact_records import Facts, Input, combo, decimal, optional, socket, text, whole

WEIGHT_TYPES = (
    "linear",
    "ease in",
    "ease out",
    "ease in-out",
    "reverse in-out",
    "weak input",
    "weak output",
    "weak middle",
    "strong middle",
    "style transfer",
    "composition",
    "strong style transfer",
    "style and composition",
    "style transfer precise",
    "composition precise",
)
COMBINE = ("concat", "add", "subtract", "average", "norm average")
SCALINGS = ("V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty")

MODEL = socket("model", "MODEL")
ADAPTER = socket("ipadapter", "IPADAPTER")
IMAGE = socket("image", "IMAGE")
CLIP_VISION = socket("clip_vision", "CLIP_VISION")
NEGATIVE = socket("image_negative", "IMAGE")
MASK = socket("attn_mask", "MASK")
INSIGHTFACE = socket("insightface", "INSIGHTFACE")
START_END = (decimal("start_at", 0.0, 0, 1, 0.001), decimal("end_at", 1.0, 0, 1, 0.001))
COMBINE_EMBEDS = combo("combine_embeds", *COMBINE)
EMBEDS_SCALING = combo("embeds_scaling", *SCALINGS)
WEIGHT_TYPE = combo("weight_type", *WEIGHT_TYPES)
WEIGHT_3 = decimal("weight", 1.0, -1, 3)
WEIGHT_5 = decimal("weight", 1.0, -1, 5)
FACE_V2 = decimal("weight_faceidv2", 1.0, -1, 5)
BATCH_SIZE = whole("encode_batch_size", 0, 0, 4096)
USUAL = optional(NEGATIVE, MASK, CLIP_VISION)
FACE = (*USUAL, *optional(INSIGHTFACE))
STYLE_WEIGHTS = (decimal("weight_style", 1.0, -1, 5), decimal("weight_composition", 1.0, -1, 5))
STYLE = (
    MODEL,
    ADAPTER,
    socket("image_style", "IMAGE"),
    socket("image_composition", "IMAGE"),
    *STYLE_WEIGHTS,
    Input("expand_style", "BOOLEAN", False),
)
HEAD = (MODEL, ADAPTER, IMAGE)
STYLE_BOOST = decimal("style_boost", 1.0, -5, 5)
COMPOSITION_BOOST = decimal("composition_boost", 0.0, -5, 5)
TILES = whole("enhance_tiles", 2, 1, 16)
SHARPENING = decimal("sharpening", 0.0, 0, 1)

A_MODEL = (("MODEL", "MODEL"),)
FACE_OUT = (("MODEL", "MODEL"), ("IMAGE", "face_image"))
TILED_OUT = (("MODEL", "MODEL"), ("IMAGE", "tiles"), ("MASK", "masks"))
LOADER_OUT = (("MODEL", "model"), ("IPADAPTER", "ipadapter"))
AN_EMBED = (("EMBEDS", "EMBEDS"),)
SCHEDULE_OUT = (
    ("FLOAT", "weights"),
    ("FLOAT", "weights_invert"),
    ("INT", "total_frames"),
    ("IMAGE", "image_1"),
    ("IMAGE", "image_2"),
    ("WEIGHTS_STRATEGY", "weights_strategy"),
)
PARAMS_OUT = (("IPADAPTER_PARAMS", "IPADAPTER_PARAMS"),)

FACTS: dict[str, Facts] = {
    "IPAdapter": Facts(
        "IPAdapter",
        "ipadapter",
        (
            *HEAD,
            WEIGHT_3,
            *START_END,
            combo("weight_type", "standard", "prompt is more important", "style transfer"),
            *optional(MASK),
        ),
        A_MODEL,
    ),
    "IPAdapterAdvanced": Facts(
        "IPAdapter Advanced",
        "ipadapter",
        (*HEAD, WEIGHT_5, WEIGHT_TYPE, COMBINE_EMBEDS, *START_END, EMBEDS_SCALING, *USUAL),
        A_MODEL,
    ),
    "IPAdapterBatch": Facts(
        "IPAdapter Batch (Adv.)",
        "ipadapter",
        (*HEAD, WEIGHT_5, WEIGHT_TYPE, *START_END, EMBEDS_SCALING, BATCH_SIZE, *USUAL),
        A_MODEL,
    ),
    "IPAdapterFaceID": Facts(
        "IPAdapter FaceID",
        "ipadapter/faceid",
        (*HEAD, WEIGHT_3, FACE_V2, WEIGHT_TYPE, COMBINE_EMBEDS, *START_END, EMBEDS_SCALING, *FACE),
        FACE_OUT,
    ),
    "IPAdapterFaceIDKolors": Facts(
        "IPAdapter FaceID Kolors",
        "ipadapter/faceid",
        (
            *HEAD,
            WEIGHT_3,
            FACE_V2,
            decimal("weight_kolors", 1.0, -1, 5),
            WEIGHT_TYPE,
            COMBINE_EMBEDS,
            *START_END,
            EMBEDS_SCALING,
            *FACE,
        ),
        FACE_OUT,
    ),
    "IPAAdapterFaceIDBatch": Facts(
        "IPAdapter FaceID Batch",
        "ipadapter/faceid",
        (*HEAD, WEIGHT_3, FACE_V2, WEIGHT_TYPE, COMBINE_EMBEDS, *START_END, EMBEDS_SCALING, *FACE),
        FACE_OUT,
    ),
    "IPAdapterTiled": Facts(
        "IPAdapter Tiled",
        "ipadapter/tiled",
        (*HEAD, WEIGHT_3, WEIGHT_TYPE, COMBINE_EMBEDS, *START_END, SHARPENING, EMBEDS_SCALING, *USUAL),
        TILED_OUT,
    ),
    "IPAdapterTiledBatch": Facts(
        "IPAdapter Tiled Batch",
        "ipadapter/tiled",
        (*HEAD, WEIGHT_3, WEIGHT_TYPE, *START_END, SHARPENING, EMBEDS_SCALING, BATCH_SIZE, *USUAL),
        TILED_OUT,
    ),
    "IPAdapterEmbeds": Facts(
        "IPAdapter Embeds",
        "ipadapter/embeds",
        (
            MODEL,
            ADAPTER,
            socket("pos_embed", "EMBEDS"),
            WEIGHT_3,
            WEIGHT_TYPE,
            *START_END,
            EMBEDS_SCALING,
            *optional(socket("neg_embed", "EMBEDS"), MASK, CLIP_VISION),
        ),
        A_MODEL,
    ),
    "IPAdapterEmbedsBatch": Facts(
        "IPAdapter Embeds Batch",
        "ipadapter/embeds",
        (
            MODEL,
            ADAPTER,
            socket("pos_embed", "EMBEDS"),
            WEIGHT_3,
            WEIGHT_TYPE,
            *START_END,
            EMBEDS_SCALING,
            *optional(socket("neg_embed", "EMBEDS"), MASK, CLIP_VISION),
        ),
        A_MODEL,
    ),
    "IPAdapterStyleComposition": Facts(
        "IPAdapter Style & Composition SDXL",
        "ipadapter/style_composition",
        (*STYLE, combo("combine_embeds", *COMBINE, default="average"), *START_END, EMBEDS_SCALING, *USUAL),
        A_MODEL,
    ),
    "IPAdapterStyleCompositionBatch": Facts(
        "IPAdapter Style & Composition Batch SDXL",
        "ipadapter/style_composition",
        (*STYLE, *START_END, EMBEDS_SCALING, *USUAL),
        A_MODEL,
    ),
    "IPAdapterMS": Facts(
        "IPAdapter Mad Scientist",
        "ipadapter/dev",
        (
            *HEAD,
            WEIGHT_5,
            FACE_V2,
            WEIGHT_TYPE,
            COMBINE_EMBEDS,
            *START_END,
            EMBEDS_SCALING,
            text("layer_weights", multiline=True),
            *FACE,
        ),
        A_MODEL,
    ),
    "IPAdapterClipVisionEnhancer": Facts(
        "IPAdapter ClipVision Enhancer",
        "ipadapter/dev",
        (
            *HEAD,
            WEIGHT_5,
            WEIGHT_TYPE,
            COMBINE_EMBEDS,
            *START_END,
            EMBEDS_SCALING,
            TILES,
            decimal("enhance_ratio", 1.0, 0, 1),
            *USUAL,
        ),
        A_MODEL,
    ),
    "IPAdapterClipVisionEnhancerBatch": Facts(
        "IPAdapter ClipVision Enhancer Batch",
        "ipadapter/dev",
        (
            *HEAD,
            WEIGHT_5,
            WEIGHT_TYPE,
            *START_END,
            EMBEDS_SCALING,
            TILES,
            decimal("enhance_ratio", 0.5, 0, 1),
            BATCH_SIZE,
            *USUAL,
        ),
        A_MODEL,
    ),
    "IPAdapterFromParams": Facts(
        "IPAdapter from Params",
        "ipadapter/params",
        (
            MODEL,
            ADAPTER,
            socket("ipadapter_params", "IPADAPTER_PARAMS"),
            COMBINE_EMBEDS,
            EMBEDS_SCALING,
            *optional(NEGATIVE, CLIP_VISION),
        ),
        A_MODEL,
    ),
    "IPAdapterPreciseStyleTransfer": Facts(
        "IPAdapter Precise Style Transfer",
        "ipadapter",
        (*HEAD, WEIGHT_5, STYLE_BOOST, COMBINE_EMBEDS, *START_END, EMBEDS_SCALING, *USUAL),
        A_MODEL,
    ),
    "IPAdapterPreciseStyleTransferBatch": Facts(
        "IPAdapter Precise Style Transfer Batch",
        "ipadapter",
        (*HEAD, WEIGHT_5, STYLE_BOOST, COMBINE_EMBEDS, *START_END, EMBEDS_SCALING, *USUAL),
        A_MODEL,
    ),
    "IPAdapterPreciseComposition": Facts(
        "IPAdapter Precise Composition",
        "ipadapter",
        (*HEAD, WEIGHT_5, COMPOSITION_BOOST, COMBINE_EMBEDS, *START_END, EMBEDS_SCALING, *USUAL),
        A_MODEL,
    ),
    "IPAdapterPreciseCompositionBatch": Facts(
        "IPAdapter Precise Composition Batch",
        "ipadapter",
        (*HEAD, WEIGHT_5, COMPOSITION_BOOST, COMBINE_EMBEDS, *START_END, EMBEDS_SCALING, *USUAL),
        A_MODEL,
    ),
    "IPAdapterUnifiedLoader": Facts(
        "IPAdapter Unified Loader",
        "ipadapter",
        (
            MODEL,
            combo(
                "preset",
                "LIGHT - SD1.5 only (low strength)",
                "STANDARD (medium strength)",
                "VIT-G (medium strength)",
                "PLUS (high strength)",
                "PLUS FACE (portraits)",
                "FULL FACE - SD1.5 only (portraits stronger)",
            ),
            *optional(ADAPTER),
        ),
        LOADER_OUT,
    ),
    "IPAdapterUnifiedLoaderFaceID": Facts(
        "IPAdapter Unified Loader FaceID",
        "ipadapter/faceid",
        (
            MODEL,
            combo(
                "preset",
                "FACEID",
                "FACEID PLUS - SD1.5 only",
                "FACEID PLUS V2",
                "FACEID PORTRAIT (style transfer)",
                "FACEID PORTRAIT UNNORM - SDXL only (strong)",
            ),
            decimal("lora_strength", 0.6, 0, 1, 0.01),
            combo("provider", "CPU", "CUDA", "ROCM", "DirectML", "OpenVINO", "CoreML"),
            *optional(ADAPTER),
        ),
        (("MODEL", "MODEL"), ("IPADAPTER", "ipadapter")),
    ),
    "IPAdapterModelLoader": Facts(
        "IPAdapter Model Loader",
        "ipadapter/loaders",
        (Input("ipadapter_file", "COMBO"),),
        (("IPADAPTER", "IPADAPTER"),),
    ),
    "IPAdapterInsightFaceLoader": Facts(
        "IPAdapter InsightFace Loader",
        "ipadapter/loaders",
        (combo("provider", "CPU", "CUDA", "ROCM"), combo("model_name", "buffalo_l", "antelopev2")),
        (("INSIGHTFACE", "INSIGHTFACE"),),
    ),
    "IPAdapterUnifiedLoaderCommunity": Facts(
        "IPAdapter Unified Loader Community",
        "ipadapter/loaders",
        (MODEL, combo("preset", "Composition", "Kolors"), *optional(ADAPTER)),
        LOADER_OUT,
    ),
    "IPAdapterEncoder": Facts(
        "IPAdapter Encoder",
        "ipadapter/embeds",
        (ADAPTER, IMAGE, decimal("weight", 1.0, -1, 3, 0.01), *optional(socket("mask", "MASK"), CLIP_VISION)),
        (("EMBEDS", "pos_embed"), ("EMBEDS", "neg_embed")),
    ),
    "IPAdapterCombineEmbeds": Facts(
        "IPAdapter Combine Embeds",
        "ipadapter/embeds",
        (
            socket("embed1", "EMBEDS"),
            combo("method", *COMBINE, "max", "min"),
            *optional(*(socket(f"embed{number}", "EMBEDS") for number in range(2, 6))),
        ),
        AN_EMBED,
    ),
    "IPAdapterNoise": Facts(
        "IPAdapter Noise",
        "ipadapter/utils",
        (
            combo("type", "fade", "dissolve", "gaussian", "shuffle"),
            decimal("strength", 1.0, 0, 1),
            replace(whole("blur", 0, 0, 32), step=1),
            *optional(socket("image_optional", "IMAGE")),
        ),
        (("IMAGE", "IMAGE"),),
    ),
    "PrepImageForClipVision": Facts(
        "Prep Image For ClipVision",
        "ipadapter/utils",
        (
            IMAGE,
            combo("interpolation", "LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST"),
            combo("crop_position", "top", "bottom", "left", "right", "center", "pad"),
            SHARPENING,
        ),
        (("IMAGE", "IMAGE"),),
    ),
    "IPAdapterSaveEmbeds": Facts(
        "IPAdapter Save Embeds",
        "ipadapter/embeds",
        (socket("embeds", "EMBEDS"), text("filename_prefix", "IP_embeds")),
        (),
        is_output=True,
    ),
    "IPAdapterLoadEmbeds": Facts("IPAdapter Load Embeds", "ipadapter/embeds", (Input("embeds", "COMBO"),), AN_EMBED),
    "IPAdapterWeights": Facts(
        "IPAdapter Weights",
        "ipadapter/weights",
        (
            text("weights", "1.0, 0.0", multiline=True),
            combo("timing", "custom", "linear", "ease_in_out", "ease_in", "ease_out", "random", default="linear"),
            *(
                replace(whole(name, default, 0, 9999), step=1)
                for name, default in (
                    ("frames", 0),
                    ("start_frame", 0),
                    ("end_frame", 9999),
                    ("add_starting_frames", 0),
                    ("add_ending_frames", 0),
                )
            ),
            combo("method", "full batch", "shift batches", "alternate batches"),
            *optional(IMAGE),
        ),
        SCHEDULE_OUT,
    ),
    "IPAdapterCombineWeights": Facts(
        "IPAdapter Combine Weights",
        "ipadapter/utils",
        (decimal("weights_1", 0.0, 0, 1), decimal("weights_2", 0.0, 0, 1)),
        (("FLOAT", "weights"), ("INT", "count")),
    ),
    "IPAdapterWeightsFromStrategy": Facts(
        "IPAdapter Weights From Strategy",
        "ipadapter/weights",
        (socket("weights_strategy", "WEIGHTS_STRATEGY"), *optional(IMAGE)),
        SCHEDULE_OUT,
    ),
    "IPAdapterPromptScheduleFromWeightsStrategy": Facts(
        "Prompt Schedule From Weights Strategy",
        "ipadapter/weights",
        (socket("weights_strategy", "WEIGHTS_STRATEGY"), text("prompt", multiline=True)),
        (("STRING", "prompt_schedule"),),
    ),
    "IPAdapterRegionalConditioning": Facts(
        "IPAdapter Regional Conditioning",
        "ipadapter/params",
        (
            IMAGE,
            decimal("image_weight", 1.0, -1, 3),
            decimal("prompt_weight", 1.0, 0, 10),
            WEIGHT_TYPE,
            *START_END,
            *optional(socket("mask", "MASK"), socket("positive", "CONDITIONING"), socket("negative", "CONDITIONING")),
        ),
        (("IPADAPTER_PARAMS", "IPADAPTER_PARAMS"), ("CONDITIONING", "POSITIVE"), ("CONDITIONING", "NEGATIVE")),
    ),
    "IPAdapterCombineParams": Facts(
        "IPAdapter Combine Params",
        "ipadapter/params",
        (
            *(socket(f"params_{number}", "IPADAPTER_PARAMS") for number in (1, 2)),
            *optional(*(socket(f"params_{number}", "IPADAPTER_PARAMS") for number in (3, 4, 5))),
        ),
        PARAMS_OUT,
    ),
}
