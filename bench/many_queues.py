"""Resident memory over 1,000 queues with 500 references, and whether their pictures are those of fresh runs.

Every queue changes strength, mask, preset, range or reference, draws with ComfyUI's sampler, and frees what it made, as
between two queues of a page. The cache is made small enough to be full after some hundred of them. Every 25th queue runs
again in another process, which has nothing cached: pictures must be equal bit for bit. Unlike the other benches it also
takes arguments: --queues, --references, --cache (MiB).
"""

import argparse
import gc
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import apply, main, write_adapter
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from support import comfy_host, memory, published, tiny_unet
from support.graphs import PLAIN

WIDTH, SIDE = 384, 224
COMPARED, SAID = 25, 50  # every so many queues
PRESETS = ("all", "style", "composition")
OPTIONS = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
OPTIONS.add_argument("--queues", type=int, default=1000)
OPTIONS.add_argument("--references", type=int, default=500)
OPTIONS.add_argument("--cache", type=float, default=128, help="MiB that the nodes may keep")
OPTIONS.add_argument("--fresh", type=Path, help="write the compared pictures of fresh runs there, and nothing else")


def measure(folder: Path) -> dict[str, Any]:
    options = OPTIONS.parse_args()
    cache = comfy_host.pack("nodes.cache").CACHE
    cache.max_bytes = int(options.cache * 2**20)
    model, name = make_models(folder)
    adapter = load(name)
    if options.fresh is not None:
        for number in range(0, options.queues, COMPARED):
            cache.clear()
            fresh = tiny_unet.comfy_model("sdxl", tiny_unet.diffusers_unet("sdxl"))
            torch.save(draw(fresh, load(name), number, options.references), options.fresh / f"{number}.pt")
        return {}
    pictures, held, full, start = {}, [], None, time.perf_counter()
    for number in range(options.queues):
        picture = draw(model, adapter, number, options.references)
        if number % COMPARED == 0:
            pictures[number] = picture
        if full is None and cache.num_bytes > 0.98 * cache.max_bytes:
            full = number
        if (number + 1) % SAID == 0:
            gc.collect()
            memory.free_memory()
            held.append(memory.resident() / 2**20)
    seconds = time.perf_counter() - start
    fresh_folder = folder / "fresh"
    fresh_folder.mkdir()
    again = [sys.executable, __file__, "--fresh", str(fresh_folder), *sys.argv[1:]]
    subprocess.run(again, check=True, stdout=subprocess.DEVNULL)
    different = [
        number
        for number, picture in pictures.items()
        if not torch.equal(picture, torch.load(fresh_folder / f"{number}.pt"))
    ]
    after = [each for index, each in enumerate(held) if full is not None and (index + 1) * SAID > full]
    return {
        "queues": options.queues,
        "references": options.references,
        "compared_pictures": len(pictures),
        "distinct_among_them": len({picture.numpy().tobytes() for picture in pictures.values()}),
        "different_from_fresh": different,
        "seconds": round(seconds, 1),
        "cache_mib": options.cache,
        "full_after_queues": full,
        "resident_mib": [round(each, 1) for each in held],
        "resident_mib_when_full": [round(edge(after), 1) for edge in (min, max)] if after else None,
    }


def make_models(folder: Path) -> tuple[Any, str]:
    """The same in every process."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=6, num_attention_heads=6, patch_size=14
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "models" / "clip_vision" / "clip")
    unet = tiny_unet.diffusers_unet("sdxl")
    shapes = published.tiny_adapter(
        "plus", site_dims=tiny_unet.site_dims(unet), image_dim=WIDTH, num_tokens=16, depth=2, head_dim=64
    )
    return tiny_unet.comfy_model("sdxl", unet), write_adapter(folder, shapes)


def load(name: str) -> Any:
    return comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="auto")


def draw(model: Any, adapter: Any, number: int, references: int) -> Tensor:
    """The latent of a queue; its settings follow from its number."""
    chance = random.Random(number)
    reference = torch.Generator().manual_seed(chance.randrange(references))
    image = torch.rand(1, SIDE, SIDE + 32, 3, generator=reference)
    widgets: dict[str, Any] = {
        "strength": chance.choice((0.3, 0.7, 1.0, 1.4)),
        "layer_preset": chance.choice(PRESETS),
        "end_percent": chance.choice((1.0, 0.6)),
    }
    if chance.random() < 0.4:
        widgets["mask"] = torch.ones(1, 64, 64).tril(chance.randrange(-20, 20))
    if chance.random() < 0.5:
        patched = comfy_host.run("IPAApplyImage", model=model, adapter=adapter, image=image, **{**PLAIN, **widgets})
    else:
        tokens = comfy_host.run("IPAEncodeImage", adapter=adapter, image=image, crop="center")
        patched = apply(model, adapter, tokens, **widgets)
    return sample(patched)


def sample(model: Any) -> Tensor:
    import comfy.sample

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 7, tiny_unet.CONTEXT_DIM, generator=generator)
    cond = [[text, {"pooled_output": torch.randn(1, tiny_unet.POOLED_DIM, generator=generator)}]]
    with torch.inference_mode():
        drawn: Tensor = comfy.sample.sample(
            model, noise, 2, 4.0, "euler", "normal", cond, cond, torch.zeros_like(noise), disable_pbar=True
        )
    return drawn


if __name__ == "__main__":
    main(measure)
