"""Whether image prompts mean what they should: pictures that our nodes draw in a real ComfyUI, seen by an encoder that
trained nothing here.

The demo's models, held-out references that neither image encoder nor adapters have seen (the base model has: it knows
the world, the adapter must carry what it has not seen), four noises each, no text unless said.

top1, top5             share of pictures whose reference is the nearest, or among the five nearest, of all held-out
                       pictures in both styles (plus adapter; `adapters` has the base adapter too)
chance, base_top1      a guess, and the base without adapter: its pictures do not depend on the reference, so they are
                       drawn once
ceiling_top1           the reference itself, through the autoencoder and back
similarity_by_strength cosine to the reference; `similarity_of_others` is that of two different emoji
text                   shares by strength in which the caption's side shows, the reference's, and both
leakage                change outside a half masked for the adapter over change inside it, prompt "two halves"; the
                       latent cells along the edge left out (`mask` has the empty prompt too)
regions                two references, left and right: halves nearest to their own reference
psnr_db                the same pictures from diffusers with `load_ip_adapter`
curve                  top1 by training step and second

Examples:
  scripts/env.sh python bench/fidelity.py
  scripts/env.sh python bench/fidelity.py --quick
  scripts/env.sh python bench/fidelity.py --curve out/world/runs/demo_plus
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fidelity_curve import measure_curves, shipped_curves
from fidelity_diffusers import DiffusersStudio
from fidelity_gallery import Gallery
from fidelity_protocol import Counts, Protocol, retrieval
from harness import main

from demo import scenes
from demo.judge import Judge
from demo.models import BASE_ADAPTER, ENCODER, PLUS_ADAPTER, cache_folder, demo_models
from demo.world.lessons import HALVES
from demo.world.pictures import write_pictures
from support.meaning import psnr
from support.studio import NOISES, Studio, model_folders

ADAPTERS = {"plus": PLUS_ADAPTER, "base": BASE_ADAPTER}
HEADLINE = "plus"
LEAST = 4  # references
QUICK = Counts(retrieval=6, strength=2, text=2, mask=2, regions=2, diffusers=1)
NOTE = "The base model has seen the held-out emoji; image encoder and adapters have not."


class Clock:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[part] = round(time.monotonic() - start, 1)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    clock, models, cache = Clock(), demo_models(), cache_folder() / "demo-world"
    pictures = args.pictures or cache / "pictures"
    write_pictures(pictures, cache / "packages")
    with model_folders(models):
        studio, gallery = Studio(), Gallery.open(pictures, Judge())
        protocols = {name: Protocol(studio, gallery, counts) for name, counts in chosen_counts(args).items()}
        with clock("floor and ceiling"):
            limits = measure_limits(protocols[HEADLINE])
        adapters, drawn = {}, {}
        for name, protocol in protocols.items():
            with clock(f"{name} adapter"):
                adapter = studio.load_adapter(Path(ADAPTERS[name]).name)
                drawn[name] = protocol.draw(adapter, protocol.references, f"{name}: retrieval")
                adapters[name] = protocol.measure(name, adapter, drawn[name])
        with clock("second opinion"):
            second = Gallery.open(pictures, Judge("lite0"))
            opinion = {
                name: retrieval(second, second.see(each, f"second opinion, {name}"), protocols[name].references)
                for name, each in drawn.items()
            }
        with clock("diffusers"):
            decibels = {name: compare_with_diffusers(each, models, ADAPTERS[name]) for name, each in protocols.items()}
        curve = shipped_curves()
        if args.curve:
            with clock("curve"):
                curve = measure_curves(args.curve, protocols["base"], models / ENCODER, folder)
    headline = adapters[HEADLINE]
    return {
        **{key: headline[key] for key in ("top1", "top5", "top1_any_style")},
        "base_top1": limits["base"]["top1"],
        "ceiling_top1": limits["ceiling"]["top1"],
        "chance": limits["chance"],
        "similarity_by_strength": headline["similarity_by_strength"],
        "similarity_of_others": limits["similarity_of_others"],
        "leakage": headline["mask"][HALVES],
        "psnr_db": min(decibels.values()),
        "adapters": adapters,
        "without_adapter": limits["base"],
        "ceiling": limits["ceiling"],
        "second_opinion": opinion,
        "psnr_db_of": decibels,
        "curve": curve,
        "seconds": clock.seconds,
        "settings": settings(protocols),
        "note": NOTE,
    }


def measure_limits(protocol: Protocol) -> dict[str, Any]:
    """What the base without adapter and a perfect picture reach, and what two different emoji have in common."""
    gallery, references = protocol.gallery, protocol.references
    plain = gallery.see(protocol.base_pictures(""), "without adapter").repeat(len(references), 1)
    back = protocol.studio.reconstruct([gallery.images[index] for index in references])
    count = len(gallery.features)
    all_pairs = float((gallery.features @ gallery.features.T).sum())
    return {
        "base": retrieval(gallery, plain, references),
        "ceiling": retrieval(gallery, gallery.see(back, "autoencoder"), references),
        "chance": round(1 / count, 4),
        "similarity_of_others": round((all_pairs - count) / (count * (count - 1)), 4),
    }


def compare_with_diffusers(protocol: Protocol, models: Path, file: str) -> float:
    """PSNR between our pictures and diffusers', the lowest of all references."""
    studio = protocol.studio
    other = DiffusersStudio(models, models / file, studio)
    adapter = studio.load_adapter(Path(file).name)
    lowest = float("inf")
    for index in protocol.gallery.choose(protocol.counts.diffusers):
        reference = protocol.gallery.images[index]
        ours = studio.decode(studio.sample(studio.apply(adapter, reference)))
        lowest = min(lowest, psnr(ours, other.draw(reference)))
    return round(lowest, 1)


def chosen_counts(args: argparse.Namespace) -> dict[str, Counts]:
    """The base adapter is there to be compared: half the references, and no more."""
    if args.quick:
        return dict.fromkeys(ADAPTERS, QUICK)
    base = Counts(retrieval=args.references // 2, strength=10, text=0, mask=0, regions=0)
    return {"plus": Counts(retrieval=args.references), "base": base}


def settings(protocols: Mapping[str, Protocol]) -> dict[str, Any]:
    return {
        "references": {name: asdict(protocol.counts) for name, protocol in protocols.items()},
        "gallery": len(protocols[HEADLINE].gallery.pictures),
        "noises": NOISES,
        "size": scenes.SIZE,
        "steps": scenes.STEPS,
        "cfg": scenes.CFG,
        "sampler": scenes.SAMPLER,
        "scheduler": scenes.SCHEDULER,
        "seed": scenes.SEED,
        "judge": "EfficientNet-lite1; second opinion EfficientNet-lite0",
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=Counts().retrieval, help="for retrieval (default: 200)")
    parser.add_argument("--quick", action="store_true", help="a few references each, to see that it works")
    parser.add_argument("--pictures", type=Path, help="folder with emoji.jsonl (default: made in the cache)")
    parser.add_argument(
        "--curve", type=Path, nargs="+", metavar="RUN", help="runs of `ipadapter train`; written to demo/assets"
    )
    args = parser.parse_args()
    if args.references < LEAST:
        parser.error(f"--references {args.references}: at least {LEAST}")
    return args


if __name__ == "__main__":
    main(partial(measure, arguments()))
