"""Workflows of the nodes that apply an adapter, each with every value of every combo."""

from collections.abc import Iterator

from .parts import BIG_G, SDXL, VIT_H, Scene

PLUS, BASE = "ip-adapter-plus_sd15.safetensors", "ip-adapter_sd15.safetensors"
PLUS_SDXL, BASE_SDXL = "ip-adapter-plus_sdxl_vit-h.safetensors", "ip-adapter_sdxl.safetensors"


def simple() -> Scene:
    page = Scene("simple")
    loader = page.add("IPAdapterUnifiedLoader", model=page.model, preset="PLUS (high strength)")
    page.model = loader["model"]
    page.chain("IPAdapter", ipadapter=loader["ipadapter"], image=page.picture(), attn_mask=page.half())
    return page.finish()


def advanced() -> Scene:
    page = Scene("advanced")
    page.chain(
        "IPAdapterAdvanced",
        ipadapter=page.file(PLUS),
        clip_vision=page.vision(),
        image=page.pictures(2),
        **page.usual(),
        start_at=0.05,
        end_at=0.9,
    )
    return page.finish()


def advanced_sdxl() -> Scene:
    page = Scene("advanced_sdxl", SDXL)
    adapter, vision = page.file(BASE_SDXL), page.vision(BIG_G)
    page.chain("IPAdapterAdvanced", ipadapter=adapter, clip_vision=vision, image=page.picture(), attn_mask=page.half())
    return page.finish()


def per_frame(kind: str, name: str, checkpoint_file: str = PLUS) -> Scene:
    page = Scene(name, batch=3)
    adapter, vision, images = page.file(checkpoint_file), page.vision(), page.pictures(2)
    page.chain(kind, ipadapter=adapter, clip_vision=vision, image=images, **page.usual())
    return page.finish()


def tiled(kind: str, name: str) -> Scene:
    page = Scene(name, batch=2 if kind.endswith("Batch") else 1)
    adapter, vision, image = page.file(PLUS), page.vision(), page.picture()
    node = page.chain(kind, ipadapter=adapter, clip_vision=vision, image=image, sharpening=0.15, **page.usual())
    page.preview(node["tiles"])
    page.preview(page.add("MaskToImage", mask=node["masks"])["IMAGE"])
    return page.finish()


def embeds() -> Scene:
    """Encoded, combined in every way, saved, and applied with every weight type."""
    page = Scene("embeds")
    adapter, vision = page.file(PLUS), page.vision()
    first, second = (
        page.add(
            "IPAdapterEncoder", ipadapter=adapter, clip_vision=vision, image=page.picture(), weight=weight, mask=mask
        )
        for weight, mask in ((1.0, page.half()), (0.7, page.add("SolidMask")["MASK"]))
    )
    combined = first["pos_embed"]
    for method in ("concat", "add", "subtract", "average", "norm average", "max", "min"):
        node = page.add("IPAdapterCombineEmbeds", embed1=combined, embed2=second["pos_embed"], method=method)
        combined = node["EMBEDS"]
    others = {f"embed{number}": second["pos_embed"] for number in range(2, 6)}
    combined = page.add("IPAdapterCombineEmbeds", embed1=combined, **others, method="average")["EMBEDS"]
    page.add("IPAdapterSaveEmbeds", embeds=combined, filename_prefix="IP_embeds")
    sides = {"pos_embed": combined, "neg_embed": first["neg_embed"]}
    page.chain("IPAdapterEmbeds", ipadapter=adapter, **sides, attn_mask=page.half())
    page.model = page.add(
        "IPAdapterEmbeds", model=page.model, ipadapter=adapter, pos_embed=combined, clip_vision=vision, weight=0.3
    )["MODEL"]
    return page.finish()


def loaded_embeds() -> Scene:
    page = Scene("loaded_embeds", batch=2)
    loaded = page.add("IPAdapterLoadEmbeds", embeds="face.ipadpt")["EMBEDS"]
    adapter, vision = page.file(BASE), page.vision()
    negative = page.add("IPAdapterEncoder", ipadapter=adapter, clip_vision=vision, image=page.picture())["neg_embed"]
    page.chain("IPAdapterEmbedsBatch", ipadapter=adapter, pos_embed=loaded, clip_vision=vision)
    page.model = page.add(
        "IPAdapterEmbedsBatch",
        model=page.model,
        ipadapter=adapter,
        pos_embed=loaded,
        neg_embed=negative,
        attn_mask=page.half(),
    )["MODEL"]
    return page.finish()


def style_composition(kind: str, name: str) -> Scene:
    page = Scene(name, SDXL, batch=2 if kind.endswith("Batch") else 1)
    adapter, vision = page.file(PLUS_SDXL), page.vision(VIT_H)
    style, composition = page.picture(), page.prepared(crop_position="center")
    for expand in (False, True):
        page.chain(
            kind,
            ipadapter=adapter,
            clip_vision=vision,
            image_style=style,
            image_composition=composition,
            weight_style=0.8,
            weight_composition=1.2,
            expand_style=expand,
            **page.usual(),
        )
    return page.finish()


def mad_scientist() -> Scene:
    page = Scene("mad_scientist")
    adapter, vision, image = page.file(PLUS), page.vision(), page.picture()
    page.chain("IPAdapterMS", ipadapter=adapter, clip_vision=vision, image=image, **page.usual())
    page.chain("IPAdapterMS", ipadapter=adapter, clip_vision=vision, image=image, layer_weights="1:0.8, 4:1.2,\n8:0.5")
    return page.finish()


def precise(kind: str, name: str, boost: str) -> Scene:
    page = Scene(name, batch=2 if kind.endswith("Batch") else 1)
    adapter, vision, images = page.file(PLUS), page.vision(), page.pictures(2)
    page.chain(kind, ipadapter=adapter, clip_vision=vision, image=images, **{boost: 0.5}, **page.usual())
    return page.finish()


def scenes() -> Iterator[Scene]:
    yield simple()
    yield advanced()
    yield advanced_sdxl()
    yield per_frame("IPAdapterBatch", "batch")
    yield per_frame("IPAdapterBatch", "batch_base", BASE)
    yield tiled("IPAdapterTiled", "tiled")
    yield tiled("IPAdapterTiledBatch", "tiled_batch")
    yield embeds()
    yield loaded_embeds()
    yield style_composition("IPAdapterStyleComposition", "style_composition")
    yield style_composition("IPAdapterStyleCompositionBatch", "style_composition_batch")
    yield mad_scientist()
    yield per_frame("IPAdapterClipVisionEnhancer", "enhancer")
    yield per_frame("IPAdapterClipVisionEnhancerBatch", "enhancer_batch")
    for kind, name, boost in (
        ("IPAdapterPreciseStyleTransfer", "precise_style", "style_boost"),
        ("IPAdapterPreciseStyleTransferBatch", "precise_style_batch", "style_boost"),
        ("IPAdapterPreciseComposition", "precise_composition", "composition_boost"),
        ("IPAdapterPreciseCompositionBatch", "precise_composition_batch", "composition_boost"),
    ):
        yield precise(kind, name, boost)
