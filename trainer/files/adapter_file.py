"""An adapter file in use: with the base it is for and the encoder it reads, ready to draw."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ipadapter_core.encoder.choice import encoder_need, fits
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.container import TensorFile, read_tensors
from ipadapter_core.file.spec import AdapterSpec
from ipadapter_core.network.adapter import build_adapter
from ipadapter_core.network.fit import check_sites

from ..backbones.backbone import Backbone
from ..config import EncoderConfig, Precision
from ..models.encoder_files import find_encoder
from ..models.face_network import FaceLora
from ..models.image_encoder import ImageEncoder, load_image_encoder
from ..models.network import TrainableAdapter
from ..readers.faces import open_face_reader
from ..readers.pictures import PictureReader
from ..readers.reader import ReferenceReader
from .facts import read_preprocess
from .families import check_family, check_model_lora


@dataclass(frozen=True, eq=False)
class AdapterInUse:
    """An adapter, what reads references for it, and the features that stand for no image, by name."""

    network: TrainableAdapter
    reader: ReferenceReader
    no_image: Mapping[str, Tensor]


def usual_precision(device: torch.device) -> Precision:
    """Of frozen models; bfloat16 is slow on most CPUs."""
    return "fp32" if device.type == "cpu" else "bf16"


def open_adapter(
    file: Path, base: Backbone, encoder: str | None, precision: Precision, *, face_model: str | None = None
) -> AdapterInUse:
    """Load an adapter and its encoder, and prepare the base for it.

    Layer, feature, crop and negative are those the file states, or its author's where it states none.

    Args:
        encoder: folder, file or hub id; None is what the adapter's file names.
        precision: of the encoder.
        face_model: folder of a face pack, for adapters that read faces; without one their embeddings are given.

    Raises:
        UnreadableFileError, UnknownCheckpointError, UnsupportedFamilyError: as `ipadapter_core.network.adapter.build_adapter`.
        MismatchError: base, adapter and encoder do not belong together, or no encoder is named.
        ModelNotFoundError: no such encoder.
    """
    content = read_tensors(file)
    adapter = build_adapter(content.tensors, content.metadata)
    check_family(adapter.spec)
    check_model_lora(file.name, adapter)
    check_sites(adapter.spec, base.sites)
    reader: ReferenceReader
    if adapter.spec.face is not None:
        own = _open_encoder(content, adapter.spec, encoder, precision, base) if adapter.spec.reads_pictures else None
        reader = open_face_reader(face_model, adapter.spec.face, own, base.device)
    else:
        reader = PictureReader(_open_encoder(content, adapter.spec, encoder, precision, base))
    every = frozenset(range(adapter.spec.num_sites))
    network = TrainableAdapter(adapter, every, lora=FaceLora.of(adapter, base.lora_layers)).to(base.device).eval()
    base.install()
    return AdapterInUse(network.requires_grad_(False), reader, reader.no_image(adapter.spec.negative))


def _open_encoder(
    content: TensorFile, spec: AdapterSpec, encoder: str | None, precision: Precision, base: Backbone
) -> ImageEncoder:
    model = encoder or _stated_folder(spec)
    given = find_encoder(model, "--encoder").spec
    if not fits(given, spec):
        raise MismatchError(
            f"{model} ({given.name}), whose {spec.feature.value.replace('_', ' ')} are "
            f"{given.dim(spec.feature) or 'not there'} wide",
            expected=f"for {spec.family}: {encoder_need(spec)}",
            action="name that encoder with --encoder",
        )
    preprocess = read_preprocess(content.metadata)
    config = EncoderConfig.model_validate(
        {
            "model": model,
            "feature": spec.feature.value,
            "layer": spec.layer,
            "crop": preprocess.crop if preprocess else spec.encoder.crop or "center",
            "precision": precision,
        }
    )
    # the kind decides nothing where the feature is said
    return load_image_encoder(config, "base", base.device, spec.encoder.padding)


def _stated_folder(spec: AdapterSpec) -> str:
    name = spec.encoder.name
    if name is None or not os.path.exists(name):
        raise MismatchError(
            "no image encoder given, and the adapter names no folder or file here that is it",
            expected=f"for {spec.family}: {encoder_need(spec)}",
            action="name its folder or hub id with --encoder",
        )
    return name
