"""Workflows of loaders, faces, regions, schedules and references."""

from collections.abc import Iterator

from legacy.facts import FACTS

from .parts import KOLORS, SD15, SDXL, VIT_H, VIT_L, Scene, combos
from .scenes_apply import PLUS

FACE, FACE_PLUS = "ip-adapter-faceid_sd15.bin", "ip-adapter-faceid-plusv2_sd15.bin"
KOLORS_FACE = "Kolors-IP-Adapter-FaceID-Plus.bin"
PRESETS = next(item.options for item in FACTS["IPAdapterUnifiedLoader"].inputs if item.name == "preset") or ()
FACE_PRESETS = (
    next(item.options for item in FACTS["IPAdapterUnifiedLoaderFaceID"].inputs if item.name == "preset") or ()
)
PROVIDERS = next(item.options for item in FACTS["IPAdapterUnifiedLoaderFaceID"].inputs if item.name == "provider") or ()
SD15_FACE_PRESETS = FACE_PRESETS[:4]
SDXL_FACE_PRESETS = tuple(preset for preset in FACE_PRESETS if "SD1.5" not in preset)


def unified(name: str, checkpoint: str, presets: tuple[str, ...]) -> Scene:
    """One loader behind the other, each with an apply node, as people chained them."""
    page = Scene(name, checkpoint)
    adapter, image = None, page.picture()
    for preset in presets:
        before = {} if adapter is None else {"ipadapter": adapter}
        loader = page.add("IPAdapterUnifiedLoader", model=page.model, preset=preset, **before)
        adapter = loader["ipadapter"]
        page.model = page.add("IPAdapter", model=loader["model"], ipadapter=adapter, image=image, weight=0.5)["MODEL"]
    return page.finish()


def community(name: str, checkpoint: str, preset: str) -> Scene:
    """Twice, the second time with what the first has loaded."""
    page = Scene(name, checkpoint)
    before = {}
    for weight in (0.4, 0.6):
        loader = page.add("IPAdapterUnifiedLoaderCommunity", model=page.model, preset=preset, **before)
        adapter, image = loader["ipadapter"], page.picture()
        node = page.add("IPAdapterAdvanced", model=loader["model"], ipadapter=adapter, image=image, weight=weight)
        page.model, before = node["MODEL"], {"ipadapter": adapter}
    return page.finish()


def face_loaders(name: str, checkpoint: str, presets: tuple[str, ...]) -> Scene:
    """Every preset, the providers in turn."""
    page = Scene(name, checkpoint)
    adapter, image = None, page.picture()
    for number, preset in enumerate(presets):
        before = {} if adapter is None else {"ipadapter": adapter}
        provider = PROVIDERS[(number + (0 if checkpoint == SD15 else 2)) % len(PROVIDERS)]
        loader = page.add(
            "IPAdapterUnifiedLoaderFaceID",
            model=page.model,
            preset=preset,
            lora_strength=0.5,
            provider=provider,
            **before,
        )
        adapter = loader["ipadapter"]
        node = page.add("IPAdapterFaceID", model=loader["MODEL"], ipadapter=adapter, image=image, weight=0.7)
        page.model = node["MODEL"]
    page.preview(node["face_image"])
    return page.finish()


def faces(kind: str, name: str, file: str, *, checkpoint: str = SD15, vision: str = VIT_H, model: str) -> Scene:
    page = Scene(name, checkpoint, batch=2 if kind.endswith("Batch") else 1)
    face_model = None
    for widgets in combos("IPAdapterInsightFaceLoader", model_name=model):
        face_model = page.add("IPAdapterInsightFaceLoader", **widgets)["INSIGHTFACE"]
    node = page.chain(
        kind,
        ipadapter=page.file(file),
        clip_vision=page.vision(vision),
        insightface=face_model,
        image=page.picture(),
        weight_faceidv2=0.9,
        **page.usual(),
    )
    page.preview(node["face_image"])
    return page.finish()


def mad_scientist_face() -> Scene:
    page = Scene("mad_scientist_face")
    loader = page.add("IPAdapterUnifiedLoaderFaceID", model=page.model, preset="FACEID PLUS V2")
    page.model = page.add(
        "IPAdapterMS",
        model=loader["MODEL"],
        insightface=page.add("IPAdapterInsightFaceLoader")["INSIGHTFACE"],
        ipadapter=loader["ipadapter"],
        image=page.picture(),
        weight_faceidv2=1.5,
        layer_weights="3:1, 7:0.5",
    )["MODEL"]
    return page.finish()


def regions() -> Scene:
    """A region for every weight type, combined five at a time, and applied with every way to combine and scale."""
    page = Scene("regions")
    adapter, vision, image, mask = page.file(PLUS), page.vision(), page.picture(), page.half()
    params = []
    for widgets in combos("IPAdapterRegionalConditioning"):
        region = page.add(
            "IPAdapterRegionalConditioning",
            image=image,
            image_weight=0.6,
            prompt_weight=1.1,
            mask=mask,
            positive=page.text("a red scarf"),
            negative=page.negative,
            **widgets,
        )
        params.append(region["IPADAPTER_PARAMS"])
    page.positive, page.negative = (
        page.add("ConditioningCombine", conditioning_1=ours, conditioning_2=region[side])["CONDITIONING"]
        for ours, side in ((page.positive, "POSITIVE"), (page.negative, "NEGATIVE"))
    )
    groups = [
        page.add("IPAdapterCombineParams", **{f"params_{slot}": entry for slot, entry in enumerate(five, start=1)})
        for five in (params[:5], params[5:10], params[10:])
    ]
    both = page.add(
        "IPAdapterCombineParams", params_1=groups[0]["IPADAPTER_PARAMS"], params_2=groups[1]["IPADAPTER_PARAMS"]
    )
    page.chain(
        "IPAdapterFromParams", ipadapter=adapter, clip_vision=vision, ipadapter_params=groups[2]["IPADAPTER_PARAMS"]
    )
    page.model = page.add(
        "IPAdapterFromParams",
        model=page.model,
        ipadapter=adapter,
        clip_vision=vision,
        image_negative=image,
        ipadapter_params=both["IPADAPTER_PARAMS"],
    )["MODEL"]
    return page.finish()


def schedule() -> Scene:
    """A cross-fade in every timing and method; the last one steers the frames of a batch."""
    page = Scene("schedule", batch=6)
    adapter, vision, images = page.file(PLUS), page.vision(), page.pictures(3)
    lists = []
    for widgets in combos("IPAdapterWeights"):
        node = page.add(
            "IPAdapterWeights",
            weights="1.0, 0.6,\n0.2",
            frames=3,
            start_frame=0,
            end_frame=9999,
            add_starting_frames=1,
            add_ending_frames=1,
            image=images,
            **widgets,
        )
        lists.append(node["weights"])
    joined = page.add("IPAdapterCombineWeights", weights_1=lists[0], weights_2=lists[1])
    page.add("PreviewAny", source=joined["count"])
    strategy = node["weights_strategy"]
    prompts = "a fox\nan owl\na cat"
    lines = page.add("IPAdapterPromptScheduleFromWeightsStrategy", weights_strategy=strategy, prompt=prompts)
    page.add("PreviewAny", source=lines["prompt_schedule"])
    again = page.add("IPAdapterWeightsFromStrategy", weights_strategy=strategy, image=page.pictures(3))
    for weights, image in (("weights", "image_1"), ("weights_invert", "image_2")):
        page.model = page.add(
            "IPAdapterBatch",
            model=page.model,
            ipadapter=adapter,
            clip_vision=vision,
            image=again[image],
            weight=again[weights],
        )["MODEL"]
    page.model = page.add(
        "IPAdapterBatch",
        model=page.model,
        ipadapter=adapter,
        clip_vision=vision,
        image=images,
        weight=joined["weights"],
        encode_batch_size=2,
    )["MODEL"]
    return page.finish()


def references() -> Scene:
    """Prepared references and noise in every kind."""
    page = Scene("references")
    adapter, vision, picture = page.file(PLUS), page.vision(), page.picture()
    noises = [
        page.add("IPAdapterNoise", image_optional=picture, strength=0.7, blur=number, **widgets)["IMAGE"]
        for number, widgets in enumerate(combos("IPAdapterNoise"))
    ]
    for number, widgets in enumerate(combos("PrepImageForClipVision", sharpening=0.2)):
        prepared = page.add("PrepImageForClipVision", image=picture, **widgets)["IMAGE"]
        page.model = page.add(
            "IPAdapterAdvanced",
            model=page.model,
            ipadapter=adapter,
            clip_vision=vision,
            image=prepared,
            image_negative=noises[number % len(noises)],
            weight=0.4,
        )["MODEL"]
    return page.finish()


def scenes() -> Iterator[Scene]:
    yield unified("unified_loaders", SD15, PRESETS)
    yield unified("unified_loaders_sdxl", SDXL, tuple(preset for preset in PRESETS if "SD1.5" not in preset))
    yield community("composition", SD15, "Composition")
    yield community("composition_sdxl", SDXL, "Composition")
    yield community("kolors", KOLORS, "Kolors")
    yield face_loaders("face_loaders", SD15, SD15_FACE_PRESETS)
    yield face_loaders("face_loaders_sdxl", SDXL, SDXL_FACE_PRESETS)
    yield faces("IPAdapterFaceID", "faceid", FACE_PLUS, model="buffalo_l")
    yield faces("IPAAdapterFaceIDBatch", "faceid_batch", FACE, model="buffalo_l")
    yield faces(
        "IPAdapterFaceIDKolors", "faceid_kolors", KOLORS_FACE, checkpoint=KOLORS, vision=VIT_L, model="antelopev2"
    )
    yield mad_scientist_face()
    yield regions()
    yield schedule()
    yield references()
