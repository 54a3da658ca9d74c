"""A face adapter that the trainer trained and exported, its LoRA with it, does in ComfyUI what it does in the trainer."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ipadapter_trainer.config import AugmentConfig, BaseModelConfig
from ipadapter_trainer.files.adapter_file import open_adapter
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.models.loading import load_base
from support import comfy_host, encoders, tiny_unet
from support.face_files import write_pack
from support.faces import FACE_KINDS, READS_PICTURES, face_config, face_picture, write_people
from support.graphs import PLAIN
from support.tiny_base import write_base

CPU = torch.device("cpu")
PACK, ENCODER = "trained_pack", "faces trained with"
SIZE, TIMESTEP, STRENGTH = 16, 500, 0.8
RELATIVE = 1e-5
SHORT = ("faceid_plus_v2", "portrait")  # picture and identity, and identity alone
EFFECT = 0.05


@pytest.fixture(scope="module")
def encoder_folder(base_directory: Path) -> Iterator[Path]:
    folder = base_directory / "models" / "clip_vision" / ENCODER
    encoders.write_folder("clip", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(
    scope="module",
    params=[kind if kind in SHORT else pytest.param(kind, marks=pytest.mark.long) for kind in FACE_KINDS],
)
def case(
    request: pytest.FixtureRequest,
    base_directory: Path,
    encoder_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path, Any]:
    """Kind, the exported file, and the run's config; file, LoRA and pack lie where ComfyUI looks."""
    kind, folder = request.param, tmp_path_factory.mktemp("faces")
    write_pack(base_directory / "models" / "insightface" / "models" / PACK)
    people = write_people(folder / "people", 2, each=2)
    data = {"reference": "group", "references_together": 2 if kind == "portrait" else 1}
    settings = face_config(
        write_base(folder / "base"),
        encoder_folder,
        people,
        folder / "run",
        kind,
        data=data,
        train={"steps": 2},
        optimizer={"learning_rate": 0.05},
    )
    train(settings)
    report = export_checkpoint(settings.run, None)
    models = base_directory / "models"
    (models / "ipadapter").mkdir(exist_ok=True)
    shutil.copy(report.path, models / "ipadapter" / f"trained-{kind}.safetensors")
    if report.lora is not None:
        (models / "loras").mkdir(exist_ok=True)
        shutil.copy(report.lora, models / "loras" / f"trained-{kind}.safetensors")
    return kind, report.path, settings


def inputs() -> tuple[Tensor, Tensor]:
    """Latents and text of an uncond and a cond row."""
    generator = torch.Generator().manual_seed(11)
    text = torch.randn(2, 7, tiny_unet.CONTEXT_DIM, generator=generator)
    return torch.randn(2, 4, SIZE, SIZE, generator=generator), text


def in_comfyui(model: Any) -> Tensor:
    latents, text = inputs()
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [1, 0], "sigmas": torch.ones(1)}
    model.patch_model(CPU)
    try:
        with torch.inference_mode():
            return model.model.diffusion_model(
                latents, torch.full((2,), float(TIMESTEP)), context=text, y=None, transformer_options=options
            ).clone()
    finally:
        model.unpatch_model(CPU)


def in_trainer(file: Path, settings: Any) -> Tensor:
    base = load_base(BaseModelConfig(model=settings.base.model, precision="fp32"), CPU)
    pack = settings.encoder.face_model
    opened = open_adapter(file, base, settings.encoder.model or None, "fp32", face_model=pack)
    prepared = opened.reader.preparation.prepare(face_picture(1), AugmentConfig(), torch.Generator())
    latents, text = inputs()
    with torch.no_grad():
        features = opened.reader.read({name: tensor[None] for name, tensor in prepared.items()})
        image = opened.network({name: torch.cat((opened.no_image[name], each)) for name, each in features.items()})
        told = {"image_kv": [(k, v * STRENGTH) for k, v in image.kv]}
        told |= {} if image.lora is None else {"image_lora": image.lora}
        return base.model(latents, TIMESTEP, text, cross_attention_kwargs=told).sample


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_nodes_equal_the_trainer(case: tuple[str, Path, Any], model: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)
    kind, file, settings = case
    name, plain = f"trained-{kind}.safetensors", model("sd15")
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="auto")
    pack = comfy_host.run("IPALoadFaceModel", face_pack=PACK, device="CPU")
    picture = torch.from_numpy(np.asarray(face_picture(1), dtype=np.float32) / 255)[None]
    widgets = {"face": "largest", "version": "auto", "structure": 1.0}
    tokens = comfy_host.run("IPAEncodeFace", adapter=adapter, face_model=pack, image=picture, **widgets)
    changed = [plain]
    if kind != "portrait":
        changed = [comfy_host.run("IPAApplyFaceLora", model=plain, adapter=adapter, strength=1.0)]
        changed.append(comfy_host.node("LoraLoaderModelOnly")().load_lora_model_only(plain, name, 1.0)[0])
    expected, alone = in_trainer(file, settings), in_comfyui(plain)
    assert (kind in READS_PICTURES) == (adapter.encoder is not None)
    for changed_model in changed:
        settings_of_node = PLAIN | {"strength": STRENGTH}
        patched = comfy_host.run("IPAApply", model=changed_model, adapter=adapter, tokens=tokens, **settings_of_node)
        assert difference(in_comfyui(patched), expected) < RELATIVE
        if kind != "portrait":
            assert difference(in_comfyui(changed_model), alone) > EFFECT, "the LoRA shows"
        assert difference(in_comfyui(patched), in_comfyui(changed_model)) > EFFECT, "and so does the face"
