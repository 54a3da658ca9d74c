"""What an adapter adds to one sampling step: device kernels, aten operations, and copies from device to host.

A whole step of ComfyUI's own sampler is counted, from one callback to the next, on a tiny UNet of SDXL layout with
PyTorch attention and cond and uncond in one batch. It is the second step, so what happens at first use is not in it. The
same step without the adapter is subtracted. A count with a single adapted layer tells what comes per layer from what
comes per step. Here the device is the CPU, where a copy to the host can be invisible: so every patch is also called on
the meta device, which refuses to give anything to the host.

`--backbone NAME` counts the same for another kind of base model, per block and for every kind of adapter for it, with a
whole forward on the meta device. `--record` counts with a heat map recorded, which costs nothing where there is none.
"""

import argparse
import copy
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import applied, apply, installed_patches, main, random_tokens, write_adapter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from support import comfy_host, families, published, tiny_unet

HALF = torch.ones(1, 64, 64).tril()
# What other nodes give to the apply node, by input: their id and their widgets.
NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "schedule": (
        "IPASchedule",
        {"over": "steps", "curve": "ease out", "low": 0.0, "high": 1.0}
        | {"points": "", "frames": 1, "fade_references": False},
    ),
    "guard": ("IPAGuard", {"orthogonal": 0.5, "rescale": 0.5, "noise": 0.3}),
}
Cases = dict[str, dict[str, Any]]
Count = Callable[[Any, int], Counter[str]]  # of a model and a number of latents
CASES: Cases = {
    "1": {},
    "3": {"adapters": 3},
    "1_mask": {"mask": HALF},
    "1_range": {"end_percent": 0.9},
    "1_mask_range": {"mask": HALF, "end_percent": 0.9},
    "1_schedule": {"nodes": ("schedule",)},
    "1_guard": {"nodes": ("guard",)},
    "1_batch2": {"batch": 2},
    "3_batch2_mask_range": {"adapters": 3, "batch": 2, "mask": HALF, "end_percent": 0.9},
}
# With Record IP-Adapter Heat Map behind the adapters.
RECORDED: Cases = {
    "1": {},
    "1_2references": {"references": 2},
    "1_4references": {"references": 4},
    "1_mask_range": {"mask": HALF, "end_percent": 0.9},
    "3": {"adapters": 3},
}
# Kinds of adapters by kind of base model; `tests/support/families.py` has both.
BACKBONES = {
    "FLUX": ("xlabs_v1", "xlabs_v2", "instantx_flux"),
    "Chroma": ("xlabs_chroma", "instantx_chroma"),
    "SD3": ("instantx_sd35",),
    "Anima": ("anima_lucifer", "anima_pe", "anima_pe_gated"),
    "Z-Image": ("z_image",),
    "Qwen-Image": ("qwen_image",),
}
# Bring a number to the host, or need one there to go on.
HOST_OPERATIONS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}
# The same as methods that reach no operation when the tensor already lies in host memory, as all of them do here.
HOST_METHODS = {torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}
# No kernel although the schema does not call them views.
NO_KERNEL = {"aten::_unsafe_view", "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}


class Counts(TorchDispatchMode):
    """Counts by kind, and every operation by name. A kernel is an operation whose result is no view of its input."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_kind: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # what is made of other operations counts as those
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            result = func(*args, **kwargs)
            name = func._schema.name
            is_view = any(out.alias_info is not None and not out.alias_info.is_write for out in func._schema.returns)
            kernel = not is_view and name not in NO_KERNEL
            self.by_kind.update({name: 1, "aten": 1, "kernels": kernel, "copies": name in HOST_OPERATIONS})
        return result


class HostMethods(TorchFunctionMode):
    """Adds the calls of `HOST_METHODS` to the copies."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts.by_kind["copies"] += func in HOST_METHODS
        return func(*args, **(kwargs or {}))


def measure_family(name: str, folder: Path, cases: Cases, *, is_recorded: bool) -> dict[str, Any]:
    """As `measure` for an adapter of another kind of base model; a layer is a block."""
    torch.set_num_threads(1)
    adapter = families.adapter_of(name, folder)

    def count(model: Any, batch: int) -> Counter[str]:
        return steps_of(lambda **given: families.sample(name, model, batch=batch, **given))

    def patched(onto: Any, references: int = 1, **given: Any) -> Any:
        return apply(onto, adapter, families.tokens_of(name, adapter, references), **given)

    measured = {
        case: compared(
            families.model_of(name),
            patched,
            len(families.FAMILIES[name].sites),
            recorded(count) if is_recorded else count,
            lambda model, batch: refusal_on_meta(name, model, batch),
            **settings,
        )
        for case, settings in cases.items()
    }
    return with_first(measured)


def refusal_on_meta(name: str, model: Any, batch: int) -> int:
    """Whether a forward on the meta device reads something of a tensor, which has no data there."""
    import comfy.patcher_extension

    family, rows = families.FAMILIES[name], 2 * batch
    base = copy.copy(model.model)
    base._modules = dict(base._modules)
    base.diffusion_model = copy.deepcopy(model.model.diffusion_model).to("meta")
    sigma = torch.full((rows,), 0.7, device="meta")
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [1, 0], "sigmas": sigma}
    options["wrappers"] = comfy.patcher_extension.merge_nested_dicts({}, model.wrappers)  # as the sampler does
    try:
        with torch.inference_mode():
            base.apply_model(
                torch.empty(rows, family.channels, *family.depth, 8, 8, device="meta"),
                sigma,
                c_crossattn=torch.empty(rows, 7, family.text_dim, device="meta"),
                y=torch.empty(rows, family.pooled_dim, device="meta"),
                guidance=torch.empty(rows, device="meta"),
                transformer_options=options,
                **family.inputs,
            )
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        return 1
    return 0


def measure(folder: Path, cases: Cases, *, is_recorded: bool) -> dict[str, Any]:
    torch.set_num_threads(1)  # the model is too small to share out; threads waiting for a busy core cost minutes
    unet = tiny_unet.diffusers_unet("sdxl")
    model = tiny_unet.comfy_model("sdxl", unet)
    sites = tiny_unet.site_dims(unet)
    name = write_adapter(folder, published.tiny_adapter("base", site_dims=sites))
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="none")
    measured = {
        name: case(model, adapter, recorded(count_step) if is_recorded else count_step, len(sites), **settings)
        for name, settings in cases.items()
    }
    return with_first(measured)


def with_first(measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All cases, and the numbers of the plain one in front."""
    return {**{key: value for key, value in measured["1"].items() if key != "operations"}, **measured}


def recorded(count: Count) -> Count:
    """Counts of a model of which a heat map is recorded."""
    return lambda model, batch: count(comfy_host.run("IPARecord", model=model), batch)


def case(model: Any, adapter: Any, count: Count, sites: int, **settings: Any) -> dict[str, Any]:
    """One case on the tiny UNet."""

    def patched(onto: Any, references: int = 1, **given: Any) -> Any:
        return apply(onto, adapter, random_tokens(adapter, 4, tiny_unet.CONTEXT_DIM, references), **given)

    return compared(model, patched, sites, count, refusals_on_meta, **settings)


def compared(
    model: Any,
    patched: Callable[..., Any],
    sites: int,
    count: Count,
    refusals: Callable[[Any, int], int],
    adapters: int = 1,
    batch: int = 1,
    nodes: Sequence[str] = (),
    **widgets: Any,
) -> dict[str, Any]:
    """What is added per layer and adapter, and what per step.

    Args:
        patched: the model with one adapter more.
        count: operations of a step.
        refusals: what the meta device refuses.
        nodes: connected to the apply node; keys of `NODES`.
    """
    widgets |= {name: comfy_host.run(NODES[name][0], **NODES[name][1]) for name in nodes}
    layer_weights = comfy_host.pack("ipadapter_core.strength.layer_weights")
    only_first = layer_weights.LayerWeights(factors=layer_weights.parse_site_factors(f"1-{sites - 1}: 0"))
    all_layers = first_layer = model
    for _ in range(adapters):
        all_layers = patched(all_layers, **widgets)
        first_layer = patched(first_layer, **widgets, layer_weights=only_first)
    unpatched, one, every = (count(each, batch) for each in (model, first_layer, all_layers))
    per_layer = {kind: (every[kind] - one[kind]) / (sites - 1) for kind in every | one}
    added = Counter({kind: number / adapters for kind, number in per_layer.items() if number})
    constant = {kind: one[kind] - unpatched[kind] - per_layer.get(kind, 0) for kind in ("kernels", "aten")}
    return {
        "kernels_per_layer": tidy(added.pop("kernels", 0)),
        "aten_per_layer": tidy(added.pop("aten", 0)),
        "copies_per_step": every["copies"] - unpatched["copies"] + refusals(all_layers, batch),
        "kernels_per_step_constant": tidy(constant["kernels"]),
        "aten_per_step_constant": tidy(constant["aten"]),
        "operations": {name: tidy(number) for name, number in added.items()},
    }


def count_step(model: Any, batch: int) -> Counter[str]:
    """Operations of the second of two steps."""
    import comfy.sample

    cond, uncond = ([[x, {"pooled_output": torch.zeros(1, 1280)}]] for x in torch.randn(2, 1, 7, tiny_unet.CONTEXT_DIM))
    noise = torch.randn(batch, 4, 8, 8)
    return steps_of(
        lambda steps, callback: comfy.sample.sample(
            model, noise, steps, 5.0, "euler", "normal", cond, uncond, noise * 0, callback=callback, disable_pbar=True
        )
    )


def steps_of(sample: Callable[..., Any]) -> Counter[str]:
    """Operations of the second of two steps of a sampling that takes `steps` and `callback`."""
    seen: list[Counter[str]] = []

    def note(*_: object) -> None:  # called after the model in every step
        seen.append(counts.by_kind.copy())

    counts = Counts()
    with torch.inference_mode(), HostMethods(counts), counts:
        sample(steps=2, callback=note)
    return Counter({kind: seen[1][kind] - seen[0][kind] for kind in seen[1]})


def refusals_on_meta(model: Any, batch: int) -> int:
    """Patches that read something of a tensor on the meta device, which has no data to read."""
    refused = 0
    sites = {site.address: site for site in applied(model).sites.sites}
    with torch.inference_mode():
        for _, patch in installed_patches(model):
            site = sites[patch.address]
            q, k = (torch.empty(2 * batch, length, site.dim, device="meta") for length in (64, 7))
            options = model.model_options["transformer_options"] | {
                "n_heads": site.heads,
                "cond_or_uncond": [1, 0],
                "activations_shape": [2 * batch, site.dim, 8, 8],
            }
            try:
                patch(q, k, k, {**options, "sigmas": torch.empty(2, device="meta")})
            except (NotImplementedError, RuntimeError):
                refused += 1
    return refused


def tidy(number: float) -> float:
    return int(number) if float(number).is_integer() else round(number, 4)


def measure_backbone(folder: Path, name: str, cases: Cases, *, is_recorded: bool) -> dict[str, Any]:
    """Every kind of adapter for a kind of base model."""
    measured = {family: measure_family(family, folder, cases, is_recorded=is_recorded) for family in BACKBONES[name]}
    return {"backbone": name, **measured}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", choices=["UNet", *BACKBONES], default="UNet", help="kind of base model")
    parser.add_argument("--record", action="store_true", help="with a heat map recorded")
    args = parser.parse_args()
    given: dict[str, Any] = {"cases": RECORDED if args.record else CASES, "is_recorded": args.record}
    if args.backbone == "UNet":
        main(partial(measure, **given))
    else:
        main(partial(measure_backbone, name=args.backbone, **given))
