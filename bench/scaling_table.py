"""The numbers of docs/scaling.md: what training on ten million pairs for a million steps costs.

Operations are counted by torch's FlopCounter (two for each multiplication with addition) in the trainer's own forward
and backward, on full-size models on the meta device, which have shapes and no data. Bytes of the cache are the
trainer's own estimate from the same models. `--write` puts the tables into the document, between its comments
`<!-- table NAME -->` and `<!-- end -->`; without it one JSON object is printed.
"""

import argparse
import contextlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "scaling.md"
sys.path += [str(ROOT / "tests"), str(ROOT)]

import torch  # noqa: E402
from diffusers import DDPMScheduler  # noqa: E402
from full_models import ENCODER_SIZE, META, open_flux, open_pipeline, vision_h, without_autocast  # noqa: E402
from full_studio import open_anima, open_qwen_image, open_z_image  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from ipadapter_core.encoder.folder import VisionFolder  # noqa: E402
from ipadapter_core.encoder.known import EncoderSpec  # noqa: E402
from ipadapter_core.encoder.pixels import PixelFormat  # noqa: E402
from ipadapter_core.file.spec import Feature  # noqa: E402
from ipadapter_trainer.backbones.backbone import Backbone  # noqa: E402
from ipadapter_trainer.backbones.flux import FluxBackbone  # noqa: E402
from ipadapter_trainer.backbones.unet import UNetBackbone  # noqa: E402
from ipadapter_trainer.cache.estimate import estimate_bytes  # noqa: E402
from ipadapter_trainer.config import Config, ObjectiveConfig  # noqa: E402
from ipadapter_trainer.config_file import parse_config  # noqa: E402
from ipadapter_trainer.models.float8 import repeated_blocks  # noqa: E402
from ipadapter_trainer.models.image_encoder import ImageEncoder, ReferenceFormat  # noqa: E402
from ipadapter_trainer.models.network import TrainableAdapter, new_adapter  # noqa: E402
from ipadapter_trainer.objective import Condition, Objective  # noqa: E402
from ipadapter_trainer.readers.pictures import PictureReader  # noqa: E402

PAIRS, STEPS, BATCH = 10_000_000, 1_000_000, 64
GPUS = (8, 64)
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12}  # dense bf16, by NVIDIA's data sheets (SXM)
ASSUMED = {
    "utilisation": 0.35,  # share of that peak
    "picture_bytes": 250_000,  # a JPEG
    "network_bytes_per_second": 12.5e9,  # each GPU's share of the link between machines: 100 Gbit/s
}
PAPER = {"days": 9, "steps": 1_000_000, "batch": 64, "gpus": 8, "peak_flops": 125e12}  # V100; tencent-ailab #37
_PIXELS = PixelFormat.of(ENCODER_SIZE, (0.5,) * 3, (0.5,) * 3)
_DAY, _TERA = 86_400, 1e12
SHORT_STEPS = 100_000  # of a transformer's run
PRICES = {"A100": 1.5, "H100": 2.5}  # US$ for an hour of one, assumed
_NF4_BYTES = 0.5 + 4 / 64  # a weight's, with a float32 scale for each 64


@dataclass(frozen=True)
class Setup:
    """One of the runs described."""

    name: str
    base: str
    kind: str
    resolution: int


SETUPS = (
    Setup("SD1.5 base, 512", "sd15", "base", 512),
    Setup("SD1.5 plus, 512", "sd15", "plus", 512),
    Setup("SDXL base, 1024", "sdxl", "base", 1024),
    Setup("SDXL plus, 1024", "sdxl", "plus", 1024),
)
TRANSFORMERS = (
    Setup("FLUX.1 base, 1024", "flux", "base", 1024),
    Setup("FLUX.1 plus, 1024", "flux", "plus", 1024),
    Setup("Z-Image plus, 1024", "z_image", "plus", 1024),
    Setup("Qwen-Image plus, 1024", "qwen_image", "plus", 1024),
    Setup("Anima plus, 1024", "anima", "plus", 1024),
)


def measure() -> dict[str, Any]:
    counts = {setup.name: count(setup) for setup in SETUPS}
    reached = BATCH * PAPER["steps"] / (PAPER["days"] * _DAY * PAPER["gpus"])
    paper = reached * (counts[SETUPS[0].name]["uncached"]) / PAPER["peak_flops"]
    return {
        "assumed": {**ASSUMED, **{f"{gpu}_peak_flops": peak for gpu, peak in PEAK_FLOPS.items()}},
        "run": {
            "pairs": PAIRS,
            "steps": STEPS,
            "batch": BATCH,
            "images": STEPS * BATCH,
            "epochs": STEPS * BATCH / PAIRS,
        },
        "paper_utilisation": paper,
        "counts": counts,
        "transformers": {setup.name: {**count(setup), **room(setup)} for setup in TRANSFORMERS},
        "days": {name: days(one) for name, one in counts.items()},
        "network": {name: network(one) for name, one in counts.items()},
    }


def count(setup: Setup) -> dict[str, Any]:
    """Operations per image, parameters, and bytes of the cache."""
    base, encoder, config = models(setup)
    with META:
        network = new_adapter(config.adapter, base, encoder)
    forward, backward = count_training(base, encoder, network, setup.resolution // base.latent_factor)
    pixels = torch.empty(1, 3, setup.resolution, setup.resolution, device=META)
    parts = {
        "vae": _flops(lambda: base.encode_pixels(pixels)),
        "image_encoder": _flops(lambda: encoder.features(torch.empty(1, 3, ENCODER_SIZE, ENCODER_SIZE))),
        "text_encoders": _flops(lambda: base.encode_text([""])),
    }
    return {
        "unet_forward": forward,
        "unet_backward": backward,
        **parts,
        "cached": forward + backward,
        "uncached": forward + backward + sum(parts.values()),
        "encoding": sum(parts.values()),
        "sites": network.spec.num_sites,
        "parameters": sum(parameter.numel() for parameter in network.trained_parameters()),
        "frozen_parameters": sum(parameter.numel() for parameter in base.model.parameters()),
        "cache_bytes": estimate_bytes(
            config, base, PictureReader(encoder), pictures=PAIRS, references=PAIRS, captions=PAIRS
        ),
    }


def room(setup: Setup) -> dict[str, int]:
    """Bytes of the frozen model by how it is kept, and of an adapter with its gradients and AdamW's two averages."""
    base, encoder, config = models(setup)
    with META:
        network = new_adapter(config.adapter, base, encoder)
    linear = sum(
        each.weight.numel()
        for block in repeated_blocks(base.model)
        for each in block.modules()
        if isinstance(each, torch.nn.Linear)
    )
    others = sum(parameter.numel() for parameter in base.model.parameters()) - linear
    return {
        "bf16": 2 * (linear + others),
        "fp8": linear + 2 * others,
        "nf4": round(_NF4_BYTES * linear) + 2 * others,
        "trained": 4 * 4 * sum(parameter.numel() for parameter in network.trained_parameters()),
    }


def count_training(base: Backbone, encoder: ImageEncoder, network: TrainableAdapter, side: int) -> tuple[int, int]:
    """Operations of forward and backward on one cached image."""
    text = base.encode_text([""])
    features = encoder.features(torch.empty(1, 3, ENCODER_SIZE, ENCODER_SIZE))
    latents = torch.empty(1, base.latent_channels, side, side, device=META)
    condition = Condition(latents, text, torch.empty(1, 6, device=META), {"features": features})
    objective = Objective(ObjectiveConfig(), base, {"features": features})
    times = torch.zeros(1, device=META)
    with FlopCounterMode(display=False) as forward, without_autocast():
        loss = objective.losses(network, condition, latents, times).mean()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


_STUDIO = {"z_image": open_z_image, "qwen_image": open_qwen_image, "anima": open_anima}


def open_base(name: str) -> Backbone:
    if name in _STUDIO:
        return _STUDIO[name]()
    if name == "flux":
        return FluxBackbone(name, open_flux(), META, torch.float32, 3.5)
    return UNetBackbone(name, open_pipeline(name), META, torch.float32, DDPMScheduler())


def models(setup: Setup) -> tuple[Backbone, ImageEncoder, Config]:
    base, vision = open_base(setup.base), vision_h()
    shape = vision.config
    spec = EncoderSpec(
        kind="CLIP", width=shape.hidden_size, num_layers=shape.num_hidden_layers, embed_dim=shape.projection_dim
    )
    feature = Feature.IMAGE_EMBEDS if setup.kind == "base" else Feature.HIDDEN_STATES
    folder_of = VisionFolder(vision, spec, _PIXELS)
    encoder = ImageEncoder("ViT-H", "ViT-H", folder_of, feature, -2, ReferenceFormat(_PIXELS, "center"), META)
    config = parse_config(
        {
            "base": {"model": "base"},
            "encoder": {"model": "encoder"},
            "data": {"path": "data", "resolution": setup.resolution},
            "train": {"output": "run", "steps": STEPS},
            "adapter": {"kind": setup.kind},
        },
        "scaling",
    )
    return base, encoder, config


def days(counts: dict[str, Any]) -> dict[str, Any]:
    """Days of the run by GPU, number of them and whether it is cached; `fill` is the days that filling takes."""
    result: dict[str, Any] = {}
    for gpu, peak in PEAK_FLOPS.items():
        for number in GPUS:
            speed = peak * ASSUMED["utilisation"] * number * _DAY
            images = {"uncached": STEPS * BATCH, "cached": STEPS * BATCH, "encoding": PAIRS}
            result[f"{number} {gpu}"] = {name: counts[name] * total / speed for name, total in images.items()}
    return result


def network(counts: dict[str, Any]) -> dict[str, Any]:
    """Bytes each GPU sends (and receives) to add up gradients in a ring, and what has to be read."""
    gradients = 4 * counts["parameters"]
    result: dict[str, Any] = {"gradient_bytes": gradients}
    for number in GPUS:
        sent = 2 * (number - 1) / number * gradients
        step = BATCH * counts["cached"] / (number * PEAK_FLOPS["H100"] * ASSUMED["utilisation"])
        sending = sent / ASSUMED["network_bytes_per_second"]
        result[str(number)] = {
            "days_with_sending": (step + sending) * STEPS / _DAY,
            "sent_bytes_per_step": sent,
            "sending_seconds": sending,
            "computing_seconds": step,
            "images_per_second": BATCH / step,
            "cache_bytes_read_per_second": counts["cache_bytes"]["total"] / PAIRS * BATCH / step,
            "pictures_bytes_read_per_second": ASSUMED["picture_bytes"]
            * BATCH
            / step
            * counts["cached"]
            / counts["uncached"],
        }
    return result


def _flops(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    total: int = counter.get_total_flops()
    return total


Rows = list[list[str]]


def tables(result: dict[str, Any]) -> dict[str, str]:
    """The tables of the document by name."""
    counts, run = result["counts"], result["run"]
    return {
        "assumptions": _table(["assumption", "value"], _assumptions(result)),
        "operations": _table(
            ["TFLOP per image", *counts],
            [
                [label, *(f"{one[key] / _TERA:.3f}" for one in counts.values())]
                for label, key in (
                    ("UNet and adapter forward", "unet_forward"),
                    ("UNet and adapter backward", "unet_backward"),
                    ("autoencoder", "vae"),
                    ("image encoder (ViT-H)", "image_encoder"),
                    ("text encoders", "text_encoders"),
                    ("**cached step**", "cached"),
                    ("**uncached step**", "uncached"),
                )
            ]
            + [
                ["uncached / cached", *(f"{one['uncached'] / one['cached']:.2f}" for one in counts.values())],
                ["trained parameters, millions", *(f"{one['parameters'] / 1e6:.1f}" for one in counts.values())],
                ["frozen UNet, millions", *(f"{one['frozen_parameters'] / 1e6:.0f}" for one in counts.values())],
                ["adapted layers", *(str(one["sites"]) for one in counts.values())],
            ],
        ),
        "days": _table(
            ["days", *counts],
            [
                [f"{place}, {label}", *(f"{result['days'][name][place][key]:.2f}" for name in counts)]
                for place in next(iter(result["days"].values()))
                for label, key in (("uncached", "uncached"), ("cached", "cached"), ("filling the cache", "encoding"))
            ]
            + [
                [f"whole run, EFLOP, {key}", *(f"{one[key] * run['images'] / 1e18:.0f}" for one in counts.values())]
                for key in ("uncached", "cached")
            ],
        ),
        "storage": _table(
            ["TB for ten million pairs", *counts],
            [["pictures", *[f"{PAIRS * ASSUMED['picture_bytes'] / _TERA:.2f}"] * len(counts)]]
            + [
                [label, *(f"{one['cache_bytes'][key] / _TERA:.2f}" for one in counts.values())]
                for label, key in (
                    ("cache: latents (mean and deviation)", "latents"),
                    ("cache: image features", "features"),
                    ("cache: text, no caption twice", "text"),
                    ("**cache**", "total"),
                )
            ],
        ),
        "network": _table(["cached, H100", *counts], _network_rows(result["network"])),
        "transformers": _table(["one run", *result["transformers"]], _transformer_rows(result["transformers"])),
    }


def _assumptions(result: dict[str, Any]) -> Rows:
    assumed, run = result["assumed"], result["run"]
    return [
        ["pairs, each with a caption of its own", f"{run['pairs']:,}"],
        ["optimiser steps", f"{run['steps']:,}"],
        ["samples per step, all GPUs together, as in the paper", str(run["batch"])],
        ["so: images, epochs", f"{run['images']:,}, {run['epochs']}"],
        *([f"{gpu}, dense bf16, data sheet", f"{peak / _TERA:.0f} TFLOP/s"] for gpu, peak in PEAK_FLOPS.items()),
        ["share of that reached", f"{assumed['utilisation']:.0%}"],
        ["for comparison: the paper's run on V100 (9 days, uncached)", f"{result['paper_utilisation']:.0%}"],
        ["a picture on disk", f"{assumed['picture_bytes'] / 1000:.0f} kB"],
        ["network between machines, for each GPU", f"{assumed['network_bytes_per_second'] / 1e9:.1f} GB/s"],
    ]


def _transformer_rows(counts: dict[str, Any]) -> Rows:
    ones = list(counts.values())
    rows = [
        [f"TFLOP per image: {label}", *(f"{one[key] / _TERA:.1f}" for one in ones)]
        for label, key in (
            ("transformer and adapter forward", "unet_forward"),
            ("transformer and adapter backward", "unet_backward"),
            ("autoencoder", "vae"),
            ("text encoders", "text_encoders"),
            ("**cached step**", "cached"),
        )
    ]
    rows += [
        ["trained parameters, millions", *(f"{one['parameters'] / 1e6:.0f}" for one in ones)],
        ["frozen transformer, millions", *(f"{one['frozen_parameters'] / 1e6:.0f}" for one in ones)],
    ]
    rows += [
        [f"GB: {label}", *(f"{one[key] / 1e9:.1f}" for one in ones)]
        for label, key in (
            ("frozen transformer in bf16", "bf16"),
            ("… in fp8", "fp8"),
            ("… in nf4", "nf4"),
            ("adapter, gradients and AdamW", "trained"),
        )
    ]
    rows += [["MB of cached text for a caption", *(f"{one['cache_bytes']['text'] / PAIRS / 1e6:.1f}" for one in ones)]]
    images = SHORT_STEPS * BATCH
    for gpu, peak in PEAK_FLOPS.items():
        hours = [one["cached"] * images / (peak * ASSUMED["utilisation"]) / 3600 for one in ones]
        rows += [
            [f"days on 8 {gpu}", *(f"{each / 8 / 24:.1f}" for each in hours)],
            [f"… for, US$, at {PRICES[gpu]:.2f} an hour", *(f"{each * PRICES[gpu]:,.0f}" for each in hours)],
        ]
    return rows


def _network_rows(networks: dict[str, Any]) -> Rows:
    rows = [["gradients, MB", *(f"{one['gradient_bytes'] / 1e6:.0f}" for one in networks.values())]]
    for number in map(str, GPUS):
        rows += [
            [f"{number} GPUs: {label}", *(f"{one[number][key] * scale:.{places}f}" for one in networks.values())]
            for label, key, scale, places in (
                ("MB each GPU sends in a step", "sent_bytes_per_step", 1e-6, 0),
                ("ms for that", "sending_seconds", 1e3, 0),
                ("ms computing in a step", "computing_seconds", 1e3, 0),
                ("days, both one after the other", "days_with_sending", 1, 2),
                ("images per second at most", "images_per_second", 1, 0),
                ("GB/s read from the cache", "cache_bytes_read_per_second", 1e-9, 2),
                ("GB/s of pictures if uncached", "pictures_bytes_read_per_second", 1e-9, 3),
            )
        ]
    return rows


def _table(head: list[str], rows: Rows) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill_in(text: str, made: dict[str, str]) -> str:
    """A document with its tables replaced by these."""
    return re.sub(
        r"(<!-- table (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{made[found[2]]}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    writes = parser.parse_args().write
    with contextlib.redirect_stdout(sys.stderr):
        result = measure()
    if writes:
        DOCUMENT.write_text(fill_in(DOCUMENT.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
