"""What the demo shows: six scenes, each a workflow file. Everything there is to tune stands here.

`demo/workflows.py` writes the workflows of the demo's pack from this table; `demo/run.py` runs those files.
"""

from dataclasses import dataclass
from pathlib import Path

from demo import models

CHECKPOINT = Path(models.CHECKPOINT).name
ADAPTER = Path(models.PLUS_ADAPTER).name
ENCODER = "auto"
PACKS = Path(__file__).with_name("packs")  # a folder of custom nodes: what --serve shows besides
WORKFLOWS = PACKS / "ipadapter-studio-demo" / "workflows"
SIZE = 64  # pixels; what the demo's world is drawn at
ENLARGED = 4  # times, for the eye

SEED = 20261
STEPS = 16
CFG = 1.5
SAMPLER, SCHEDULER = "euler", "normal"


@dataclass(frozen=True)
class Result:
    """One branch of a workflow, and what is different in it.

    Attributes:
        label: what stands under its picture.
        count: pictures, each from noise of its own.
        mix: factors of the two references, where they are mixed.
    """

    label: str
    prompt: str = ""
    strength: float = 1.0
    preset: str = "all"
    count: int = 1
    mix: tuple[float, float] = (1.0, 0.0)

    @property
    def labels(self) -> list[str]:
        return [self.label] if self.count == 1 else [f"{self.label} {number + 1}" for number in range(self.count)]


@dataclass(frozen=True)
class Scene:
    """One workflow, and one row of the contact sheet.

    Attributes:
        name: of what it saves.
        title: and the name of its file, which is what ComfyUI's gallery shows.
        text: what to look for.
        references: names of demo/references.py; --image takes the first one's place.
        in_halves: the first reference acts on the left half, the second on the right.
    """

    name: str
    title: str
    text: str
    references: tuple[str, ...]
    results: tuple[Result, ...]
    in_halves: bool = False

    @property
    def labels(self) -> list[str]:
        return [label for result in self.results for label in result.labels]

    @property
    def path(self) -> Path:
        return WORKFLOWS / f"{self.title}.json"


PRESETS = ("composition", "style", "style and composition", "strong style", "all")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
STRENGTH = Scene(
    "demo_strength",
    "Strength",
    "The same noise each time, no text. At 0 the model draws what it likes; shape and colours take over as strength rises.",
    ("crown_3d.png",),
    tuple(Result(f"strength {strength:g}", strength=strength) for strength in STRENGTHS),
)
SCENES = (
    Scene(
        "demo_variation",
        "Variations of a picture",
        "One reference, no text, five kinds of noise: what the reference settles comes back each time.",
        ("cat_3d.png",),
        (Result("noise", count=5),),
    ),
    Scene(
        "demo_text",
        "Picture and text",
        "The same reference and noise with other prompts: the text still steers what the picture does not settle.",
        ("cat_flat.png",),
        (
            Result("no text"),
            Result("“flat emoji”", prompt="flat emoji"),
            Result("“3d emoji”", prompt="3d emoji"),
            Result("“food”, strength 0.5", prompt="food", strength=0.5),
            Result("“3d emoji, flag”, 0.5", prompt="3d emoji, flag", strength=0.5),
        ),
    ),
    STRENGTH,
    Scene(
        "demo_two_references",
        "Two references, mixed",
        "The image tokens of both, added with other weights: from the first picture to the second.",
        ("city_flat.png", "cat_3d.png"),
        (
            Result("4 : 1", mix=(0.8, 0.2)),
            Result("3 : 2", mix=(0.6, 0.4)),
            Result("2 : 3", mix=(0.4, 0.6)),
            Result("1 : 4", mix=(0.2, 0.8)),
        ),
    ),
    Scene(
        "demo_regions",
        "A reference for each half",
        "Two masks: the first reference acts on the left, the second on the right. The prompt is “two halves”.",
        ("crown_flat.png", "city_flat.png"),
        (Result("noise", prompt="two halves", count=4),),
        in_halves=True,
    ),
    Scene(
        "demo_style_composition",
        "Style or composition",
        "The same reference through some attention layers only. This small model has four, so the parts are less clean "
        "than in a large one.",
        ("city_3d.png",),
        tuple(Result(preset, preset=preset) for preset in PRESETS),
    ),
)
