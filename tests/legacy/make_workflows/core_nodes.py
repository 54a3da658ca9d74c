"""ComfyUI's own nodes that shared workflows put around IPAdapter_plus', in the order they are saved in."""

from legacy.fact_records import Facts, Input, combo, decimal, socket, text, whole

FILE = "COMBO"
MOST = 16384  # pixels


def _file(name: str) -> Input:
    return Input(name, FILE)


CORE: dict[str, Facts] = {
    "CheckpointLoaderSimple": Facts(
        "Load Checkpoint", "loaders", (_file("ckpt_name"),), (("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE"))
    ),
    "CLIPVisionLoader": Facts("Load CLIP Vision", "loaders", (_file("clip_name"),), (("CLIP_VISION", "CLIP_VISION"),)),
    "CLIPTextEncode": Facts(
        "CLIP Text Encode (Prompt)",
        "conditioning",
        (text("text", multiline=True), socket("clip", "CLIP")),
        (("CONDITIONING", "CONDITIONING"),),
    ),
    "ConditioningCombine": Facts(
        "Conditioning (Combine)",
        "conditioning",
        (socket("conditioning_1", "CONDITIONING"), socket("conditioning_2", "CONDITIONING")),
        (("CONDITIONING", "CONDITIONING"),),
    ),
    "EmptyLatentImage": Facts(
        "Empty Latent Image",
        "latent",
        (whole("width", 512, 16, MOST), whole("height", 512, 16, MOST), whole("batch_size", 1, 1, 4096)),
        (("LATENT", "LATENT"),),
    ),
    "KSampler": Facts(
        "KSampler",
        "sampling",
        (
            socket("model", "MODEL"),
            whole("seed", 0, 0, 2**53),
            whole("steps", 20, 1, 10000),
            decimal("cfg", 7.0, 0, 100, 0.1),
            combo("sampler_name", "euler"),
            combo("scheduler", "normal"),
            socket("positive", "CONDITIONING"),
            socket("negative", "CONDITIONING"),
            socket("latent_image", "LATENT"),
            decimal("denoise", 1.0, 0, 1, 0.01),
        ),
        (("LATENT", "LATENT"),),
    ),
    "VAEDecode": Facts(
        "VAE Decode", "latent", (socket("samples", "LATENT"), socket("vae", "VAE")), (("IMAGE", "IMAGE"),)
    ),
    "SaveImage": Facts(
        "Save Image",
        "image",
        (socket("images", "IMAGE"), text("filename_prefix", "ComfyUI")),
        (),
        is_output=True,
    ),
    "PreviewImage": Facts("Preview Image", "image", (socket("images", "IMAGE"),), (), is_output=True),
    "LoadImage": Facts("Load Image", "image", (_file("image"),), (("IMAGE", "IMAGE"), ("MASK", "MASK"))),
    "ImageBatch": Facts(
        "Batch Images", "image", (socket("image1", "IMAGE"), socket("image2", "IMAGE")), (("IMAGE", "IMAGE"),)
    ),
    "MaskToImage": Facts("Convert Mask to Image", "mask", (socket("mask", "MASK"),), (("IMAGE", "IMAGE"),)),
    "SolidMask": Facts(
        "SolidMask",
        "mask",
        (decimal("value", 1.0, 0, 1, 0.01), whole("width", 512, 1, MOST), whole("height", 512, 1, MOST)),
        (("MASK", "MASK"),),
    ),
    "MaskComposite": Facts(
        "MaskComposite",
        "mask",
        (
            socket("destination", "MASK"),
            socket("source", "MASK"),
            whole("x", 0, 0, MOST),
            whole("y", 0, 0, MOST),
            combo("operation", "multiply", "add", "subtract", "and", "or", "xor"),
        ),
        (("MASK", "MASK"),),
    ),
    "PreviewAny": Facts("Preview as Text", "utils", (socket("source", "*"),), (("STRING", "STRING"),), is_output=True),
}
# Values the page saves behind a widget's own.
EXTRA_VALUES: dict[tuple[str, str], tuple[str, ...]] = {
    ("KSampler", "seed"): ("fixed",),
    ("LoadImage", "image"): ("image",),
}
