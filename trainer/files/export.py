"""The deliverable: an adapter file with everything it has to say in its header, proven before it gets its name.

The same adapter and facts give the same bytes, whenever and however often they are exported. Tensors come by type, then
by name, as in the published files; every reader goes by name, so nothing is to be gained by another order.
"""

# E encoder dim, N image tokens, C cross-attention dim

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.face.lora_file import split_lora
from ipadapter_core.file.container import SAFETENSORS_SUFFIXES, publish, tensor_hash, write_safetensors
from ipadapter_core.file.names import published_name
from ipadapter_core.file.seal import sealed
from ipadapter_core.file.spec import AdapterSpec
from ipadapter_core.network.adapter import IPAdapter, build_adapter, load_adapter

from ..config import Precision
from ..models.base import DTYPES
from ..models.face_network import LORA_LAYERS, lora_file
from ..storage import storage
from .card import write_card
from .comparing import image_tokens, random_features, relative_difference
from .facts import ExportFacts, header
from .portability import Portability, check_portability
from .workplace import workplace


class ExportError(IPAdapterError):
    """An adapter that cannot be written as asked, or that does not read back as it was."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what the proof found.

    Attributes:
        precision: of the tensors; names of all if they differ.
        rounding: largest change of the image tokens by the precision, in parts of the largest value.
        sha256: of the tensor data, as in the metadata.
        lora: the adapter's LoRA as a file of its own, for programs that load it by itself; None if there is none.
    """

    path: Path
    card: Path
    size_bytes: int
    parameters: int
    precision: str
    rounding: float
    sha256: str
    spec: AdapterSpec
    portability: Portability
    lora: Path | None = None

    def to_json(self) -> dict[str, object]:
        return {
            "file": str(self.path),
            "card": str(self.card),
            **({} if self.lora is None else {"lora": str(self.lora)}),
            "family": self.spec.family,
            "bytes": self.size_bytes,
            "parameters": self.parameters,
            "precision": self.precision,
            "rounding": self.rounding,
            "sha256": self.sha256,
            "read_back": "equal",
            "portability": self.portability.to_json(),
        }


def export_adapter(
    adapter: IPAdapter,
    path: Path,
    *,
    precision: Precision | None,
    facts: ExportFacts,
    lora_layers: tuple[str, ...] = (),
) -> ExportReport:
    """Write an adapter and its model card `NAME.md` beside it.

    The file is written aside, read back by the core (names, tensors, spec, hash) and by diffusers (outputs), and only
    then gets its name; what diffusers does with it is part of its metadata.

    Args:
        adapter: on any device; its spec goes into the metadata, so encoder name and image size should be set.
        path: ends in .safetensors or .sft; an existing file is replaced.
        precision: None keeps every tensor as it is.
        facts: the rest of the metadata.
        lora_layers: names of the layers its LoRA is for, which is then written as NAME_lora.safetensors as well.

    Raises:
        ExportError: values that are not finite or leave the range of the precision, a wrong suffix, or no folder.
        StorageError: the disk is full, or the folder cannot be written.
    """
    check_target(path)
    tensors = _cast({**adapter.state_dict(), **adapter.lora}, precision)
    with storage("the adapter", path):
        return _write(adapter, tensors, path, facts, lora_layers)


def _write(
    adapter: IPAdapter, tensors: Mapping[str, Tensor], path: Path, facts: ExportFacts, lora_layers: tuple[str, ...]
) -> ExportReport:
    with workplace(path) as folder:
        draft, final = (folder / f"{name}.safetensors" for name in ("draft", "final"))
        named = {published_name(name, adapter.spec.layout): tensor for name, tensor in tensors.items()}
        write_safetensors(draft, named, adapter.spec.to_metadata())  # what diffusers says of it goes into its header
        portability = check_portability(draft, load_adapter(draft), facts.preprocess)
        sha256 = tensor_hash(draft)
        stated = header(adapter.spec, facts, sha256, portability.to_json())
        stated |= {LORA_LAYERS: json.dumps(lora_layers)} if lora_layers else {}
        # the name of a file need not be UTF-8
        metadata = {name: text.encode(errors="backslashreplace").decode() for name, text in stated.items()}
        write_safetensors(final, named, sealed(named, metadata))
        rounding = _prove(final, adapter, tensors)
        lora = _write_lora(tensors, lora_layers, folder, path)
        publish(final, path)
    report = ExportReport(
        path=path,
        card=path.with_suffix(".md"),
        size_bytes=path.stat().st_size,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        precision=describe_precision(tensors),
        rounding=rounding,
        sha256=sha256,
        spec=adapter.spec,
        portability=portability,
        lora=lora,
    )
    write_card(report.card, path.name, adapter.spec, facts, report.to_json())
    return report


def _write_lora(tensors: Mapping[str, Tensor], lora_layers: tuple[str, ...], folder: Path, path: Path) -> Path | None:
    """Beside the adapter, for programs that do not look for a LoRA in its file."""
    _, lora = split_lora(tensors)
    if not lora or not lora_layers:
        return None
    draft, final = folder / "lora.safetensors", path.with_name(f"{path.stem}_lora.safetensors")
    apart = lora_file(lora, lora_layers)
    write_safetensors(draft, apart, sealed(apart, {"format": "pt"}))
    publish(draft, final)
    return final


def check_target(path: Path) -> None:
    """Raises ExportError unless a safetensors file can be written there."""
    if path.suffix not in SAFETENSORS_SUFFIXES:
        raise ExportError(
            f"the output {path.name} ends in {path.suffix or 'nothing'}",
            expected=" or ".join(SAFETENSORS_SUFFIXES),
            action="name it adapter.safetensors, for instance",
        )
    if not path.parent.is_dir():
        raise ExportError(
            f"no folder {path.parent}", expected="an existing folder", action="make it, or choose another"
        )


def describe_precision(tensors: Mapping[str, Tensor]) -> str:
    """`fp16`, or `fp16, fp32` of a file with both."""
    short = {dtype: name for name, dtype in DTYPES.items()}
    return ", ".join(sorted({short.get(tensor.dtype, str(tensor.dtype)) for tensor in tensors.values()}))


def _cast(state_dict: Mapping[str, Tensor], precision: Precision | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise ExportError(
                f"{name} holds NaN or infinite values",
                expected="finite weights",
                action="export an earlier checkpoint; train with a lower learning rate or in bf16",
            )
        cast = tensor.detach().cpu() if precision is None else tensor.detach().cpu().to(DTYPES[precision])
        if not cast.isfinite().all():
            raise ExportError(
                f"{name} has values up to {tensor.abs().max():.0f}, which {precision} cannot hold",
                expected=f"values up to {torch.finfo(cast.dtype).max:.0f}",
                action="export with --precision bf16 or fp32",
            )
        tensors[name] = cast
    return tensors


@torch.no_grad()
def _prove(path: Path, adapter: IPAdapter, tensors: Mapping[str, Tensor]) -> float:
    """Read the file back through the core and return how far its precision moved the image tokens."""
    read = load_adapter(path)  # which checks names, shapes and the hash
    state_dict = {**read.state_dict(), **read.lora}
    different = [name for name, tensor in tensors.items() if not torch.equal(state_dict[name], tensor)]
    # the name of the family and of the base are words for the same numbers
    if different or _nameless(read.spec) != _nameless(adapter.spec):
        what = f"other values in {', '.join(different[:3])}" if different else f"as {read.spec}"
        raise ExportError(
            f"the written file reads back with {what}",
            expected=f"what was written: {adapter.spec}",
            action="check the disk and try again; if it stays so, report it",
        )
    features = random_features(adapter.spec)
    written, exact = (
        image_tokens(each, features) for each in (build_adapter(tensors, adapter.spec.to_metadata()), adapter)
    )
    if not torch.equal(image_tokens(read, features), written):
        raise ExportError(
            "the written file gives other image tokens than what was written",
            expected="equal ones",
            action="check the disk and try again; if it stays so, report it",
        )
    return relative_difference(written, exact)


def _nameless(spec: AdapterSpec) -> dict[str, object]:
    return asdict(replace(spec, family="", base=""))
