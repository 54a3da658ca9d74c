"""Workflows of before March 2024, and of the copy of IPAdapter_plus, as they were saved; each with today's beside it.

Both are made by the same function, so that they differ in nothing but the nodes in question.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from legacy.make_workflows.page import Output, facts_of
from legacy.make_workflows.parts import SDXL, VIT_H, Scene
from legacy.running import SIDE, STAND_INS, STEPS

PLUS, BASE = "ip-adapter-plus_sd15.safetensors", "ip-adapter_sd15.safetensors"
FACE, FACE_PLUS_V2 = "ip-adapter-faceid_sd15.bin", "ip-adapter-faceid-plusv2_sd15.bin"
SEED = 5
SAVED_AS = {"IPAdapterEncoder2023": "IPAdapterEncoder", "IPAdapterApply2023": "IPAdapterApply"}
CONCAT = {"combine_embeds": "concat"}


@dataclass(frozen=True)
class Former:
    """A workflow.

    Attributes:
        former, today: the same picture with nodes of then and of now; today's is None where there is no picture.
        ids: under which a node was saved, beside `SAVED_AS`.
        widgets: how many values a node was saved with; those that came later were not there.
        no_mask: saved before `attn_mask` was there.
    """

    former: Scene
    today: Scene | None
    ids: Mapping[str, str]
    widgets: Mapping[str, int]
    no_mask: bool = False

    @property
    def saved(self) -> dict[str, Any]:
        """The file, with the server's tiny models."""
        workflow = self.former.saved()
        for node in workflow["nodes"]:
            kind = node["type"]
            node["type"] = self.ids.get(kind, SAVED_AS.get(kind, STAND_INS.get(kind, kind)))
            node["properties"]["Node name for S&R"] = node["type"]
            if "widgets_values" in node:
                node["widgets_values"] = node["widgets_values"][: self.widgets.get(kind)]
            node["inputs"] = [
                {**entry, "type": entry["type"].split(",")[0]}
                for entry in node["inputs"]
                if not (self.no_mask and entry["name"] == "attn_mask")
            ]
        return workflow

    @property
    def prompt(self) -> dict[str, Any]:
        """The same as it was posted."""
        prompt = small(self.former.prompt())
        for node in prompt.values():
            kind = node["class_type"]
            if kind in self.widgets:
                late = {item.name for item in facts_of(kind).widgets[self.widgets[kind] :]}
                node["inputs"] = {name: value for name, value in node["inputs"].items() if name not in late}
            node["class_type"] = self.ids.get(kind, SAVED_AS.get(kind, kind))
        return prompt


def small(prompt: dict[str, Any]) -> dict[str, Any]:
    """With tiny models, in place of loaders that know full sizes only."""
    made = copy.deepcopy(prompt)
    for node in made.values():
        node["class_type"] = STAND_INS.get(node["class_type"], node["class_type"])
    return made


def scene(name: str, apply: Callable[[Scene], Output], checkpoint: str | None = None, batch: int = 1) -> Scene:
    """Checkpoint, prompts, what `apply` makes of the model, a sampler and a picture; small."""
    page = Scene(name, checkpoint, batch=batch) if checkpoint else Scene(name, batch=batch)
    page.model = apply(page)
    page.finish()
    for node in page.nodes:
        node.values |= {"width": SIDE, "height": SIDE} if node.kind == "EmptyLatentImage" else {}
        node.values |= {"seed": SEED, "steps": STEPS} if node.kind == "KSampler" else {}
    return page


def pair(
    name: str, former: Callable[[Scene], Output], today: Callable[[Scene], Output], **settings: Any
) -> tuple[Scene, Scene]:
    return scene(name, former, **settings), scene(f"{name}_today", today, **settings)


def apply_plain() -> Former:
    def inputs(page: Scene) -> dict[str, Any]:
        parts = {"ipadapter": page.file(PLUS), "clip_vision": page.vision(), "image": page.pictures(2)}
        return {**parts, "model": page.model, "weight": 0.65, "start_at": 0.1, "end_at": 0.9, "attn_mask": page.half()}

    def former(page: Scene) -> Output:
        return page.add("IPAdapterApply", weight_type="channel penalty", **inputs(page))["MODEL"]

    def today(page: Scene) -> Output:
        scaling = {"embeds_scaling": "K+mean(V) w/ C penalty"}
        return page.add("IPAdapterAdvanced", weight_type="linear", **CONCAT, **scaling, **inputs(page))["MODEL"]

    return Former(*pair("former_apply", former, today), {}, {})


def apply_of_2023() -> Former:
    """Saved when there were two widgets and no mask."""

    def inputs(page: Scene) -> dict[str, Any]:
        parts = {"ipadapter": page.file(BASE), "clip_vision": page.vision(), "image": page.picture()}
        return {**parts, "model": page.model, "weight": 0.7}

    def former(page: Scene) -> Output:
        return page.add("IPAdapterApply", **inputs(page))["MODEL"]

    def today(page: Scene) -> Output:
        return page.add("IPAdapterAdvanced", **inputs(page))["MODEL"]

    return Former(*pair("former_2023", former, today), {}, {"IPAdapterApply": 2}, no_mask=True)


def unfolded() -> Former:
    def inputs(page: Scene) -> dict[str, Any]:
        parts = {"ipadapter": page.file(PLUS), "clip_vision": page.vision(), "image": page.pictures(2)}
        return {**parts, "model": page.model, "weight": 0.8}

    def former(page: Scene) -> Output:
        return page.add("IPAdapterApply", unfold_batch=True, **inputs(page))["MODEL"]

    def today(page: Scene) -> Output:
        return page.add("IPAdapterBatch", **inputs(page))["MODEL"]

    return Former(*pair("former_unfolded", former, today, batch=3), {}, {})


def encoded() -> Former:
    """Two slots of the first encoder, with a weight each."""

    def former(page: Scene) -> Output:
        pictures = {"image_1": page.picture(), "image_3": page.prepared(crop_position="left")}
        encoder = page.add(
            "IPAdapterEncoder2023",
            clip_vision=page.vision(),
            ipadapter_plus=True,
            weight_1=0.9,
            weight_3=0.8,
            **pictures,
        )
        inputs = {"ipadapter": page.file(PLUS), "embeds": encoder["EMBEDS"], "model": page.model}
        return page.add("IPAdapterApplyEncoded", weight=0.75, weight_type="linear", end_at=0.9, **inputs)["MODEL"]

    def today(page: Scene) -> Output:
        adapter, vision = page.file(PLUS), page.vision()
        parts = [
            page.add("IPAdapterEncoder", ipadapter=adapter, image=image, weight=weight, clip_vision=vision)
            for image, weight in ((page.picture(), 0.9), (page.prepared(crop_position="left"), 0.8))
        ]
        both = page.add("IPAdapterCombineEmbeds", embed1=parts[0]["pos_embed"], embed2=parts[1]["pos_embed"])
        embeds = {"pos_embed": both["EMBEDS"], "neg_embed": parts[0]["neg_embed"]}
        widgets = {"weight": 0.75, "end_at": 0.9, "embeds_scaling": "K+V"}
        return page.add("IPAdapterEmbeds", model=page.model, ipadapter=adapter, **embeds, **widgets)["MODEL"]

    return Former(*pair("former_encoded", former, today), {}, {})


def face() -> Former:
    """The face model's former loader, and the picture prepared for it."""

    def prepared(page: Scene) -> Output:
        return page.add("PrepImageForInsightFace", image=page.picture(), pad_around=False)["IMAGE"]

    def inputs(page: Scene, loader: str) -> dict[str, Any]:
        face_model = page.add(loader)["INSIGHTFACE"]
        parts = {"ipadapter": page.file(FACE_PLUS_V2), "clip_vision": page.vision(), "insightface": face_model}
        return {**parts, "image": prepared(page), "model": page.model, "weight": 0.8}

    def former(page: Scene) -> Output:
        return page.add("IPAdapterApplyFaceID", faceid_v2=True, weight_v2=1.2, **inputs(page, "InsightFaceLoader"))[
            "MODEL"
        ]

    def today(page: Scene) -> Output:
        return page.add("IPAdapterFaceID", weight_faceidv2=1.2, **inputs(page, "IPAdapterInsightFaceLoader"))["MODEL"]

    return Former(*pair("former_face", former, today), {}, {})


def first_face() -> Former:
    """Of December 2023, when the face model went where the image encoder goes."""

    def former(page: Scene) -> Output:
        loader = page.add("InsightFaceLoader")["INSIGHTFACE"]
        inputs = {"ipadapter": page.file(FACE), "clip_vision": loader, "image": page.picture(), "model": page.model}
        return page.add("IPAdapterApply", weight=0.9, **inputs)["MODEL"]

    def today(page: Scene) -> Output:
        loader = page.add("IPAdapterInsightFaceLoader")["INSIGHTFACE"]
        inputs = {"ipadapter": page.file(FACE), "insightface": loader, "image": page.picture(), "model": page.model}
        return page.add("IPAdapterFaceID", weight=0.9, **inputs)["MODEL"]

    return Former(*pair("former_first_face", former, today), {}, {})


def copied() -> Former:
    """The copy's ids, saved before `embeds_scaling` was there, and its sliders."""

    def both(page: Scene, layer_weights: Any) -> Output:
        loader = page.add("IPAdapterUnifiedLoader", model=page.model, preset="PLUS (high strength)")
        shared = {"ipadapter": loader["ipadapter"], "image": page.prepared(crop_position="center")}
        advanced = page.add("IPAdapterAdvanced", model=loader["model"], weight=0.4, weight_type="ease in", **shared)
        return page.add("IPAdapterMS", model=advanced["MODEL"], weight=0.9, layer_weights=layer_weights, **shared)[
            "MODEL"
        ]

    def former(page: Scene) -> Output:
        return both(page, page.add("IPAdapterLayerWeightsSlider", layer3=1.0, layer6=0.5)["layer_weights"])

    kinds = ("IPAdapterUnifiedLoader", "IPAdapterAdvanced", "IPAdapterMS", "PrepImageForClipVision")
    scenes = pair("former_copy", former, lambda page: both(page, "3: 1, 6: 0.5"), checkpoint=SDXL)
    return Former(*scenes, {kind: f"{kind}V2" for kind in kinds}, {"IPAdapterAdvanced": 5})


def gone_tiles() -> Former:
    def former(page: Scene) -> Output:
        inputs = {"ipadapter": page.file(PLUS), "clip_vision": page.vision(), "image": page.picture()}
        return page.add("IPAdapterTilesMasked", model=page.model, weight=0.65, **inputs)["MODEL"]

    return Former(scene("gone_tiles", former), None, {}, {})


def gone_first() -> Former:
    def former(page: Scene) -> Output:
        output = page.add("IPAdapterCLIPVisionEncode", clip_vision=page.vision(VIT_H), image=page.picture())
        inputs = {"ipadapter": page.file(PLUS), "clip_vision_output": output["CLIP_VISION_OUTPUT"]}
        return page.add("IPAdapterApply2023", model=page.model, weight=0.8, **inputs)["MODEL"]

    return Former(scene("gone_first", former), None, {}, {})


RUNNING = (apply_plain, apply_of_2023, unfolded, encoded, face, first_face, copied)
SAYING = (gone_tiles, gone_first)
