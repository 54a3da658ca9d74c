"""Converting a file: read, rename, repair, prove, write."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ipadapter_core.errors import UnknownCheckpointError, UnreadableFileError, UnsupportedFamilyError
from ipadapter_core.file.container import publish, read_tensors, write_safetensors
from ipadapter_core.file.detect import detect
from ipadapter_core.file.header import HASH_KEY
from ipadapter_core.file.json_text import parse_json
from ipadapter_core.file.seal import SEAL
from ipadapter_core.file.spec import USUAL_BACKBONE, AdapterSpec, EncoderHint, Feature, Negative, Projection
from ipadapter_core.network.adapter import build_adapter

from ..config import Precision
from ..files.export import ExportReport, check_target, export_adapter
from ..files.facts import TRAINING_KEY, ExportFacts, public_name, read_preprocess, without_folders
from ..files.families import check_family
from ..files.workplace import workplace
from ..storage import storage
from .errors import ConvertError
from .names import Parts, take_apart, unwrapped
from .numbers import repair_numbers
from .reading import STATE_FILES, find_state, read_state
from .xlabs import is_xlabs, published_xlabs


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What no tensor tells, where the user knows it; None leaves what is usual for the kind.

    Attributes:
        encoder: name of the image encoder's file or folder.
        layer: hidden state the adapter reads, counted from the last (-1).
        negative: what a dropped image was in training.
    """

    encoder: str | None = None
    layer: int | None = None
    negative: Negative | None = None


@dataclass(frozen=True)
class Conversion:
    """What became of a file.

    Attributes:
        source: what it was, in words.
        notes: what was repaired.
        report: None for a kind that the trainer does not build; then `unsupported` says which.
    """

    path: Path
    source: str
    notes: tuple[str, ...]
    report: ExportReport | None
    unsupported: str | None = None

    def to_json(self) -> dict[str, object]:
        about: dict[str, object] = {"file": str(self.path), "source": self.source, "repaired": list(self.notes)}
        if self.report is None:
            return {**about, "runs_here": False, "reason": self.unsupported, "read_back": "equal"}
        return {**about, "runs_here": True, **self.report.to_json()}


def convert_file(
    source: Path,
    output: Path,
    *,
    state: Path | None = None,
    hints: Hints = Hints(),
    precision: Precision | None = None,
) -> Conversion:
    """Write any known layout as a published safetensors file, proven as `export_adapter` proves it.

    Args:
        source: weight file, or folder of a training state.
        state: training state that completes a conversion without K/V projections.
        precision: None keeps every tensor as it is.

    Raises:
        ConvertError: no adapter, or not all of one.
        UnreadableFileError, UnknownCheckpointError: the file cannot be read, or is something else.
        ExportError: as `export_adapter`.
    """
    check_target(output)
    file = read_state(source)
    tensors = unwrapped(file.tensors)
    spec = _spec(tensors, file.metadata)
    if is_xlabs(tensors) and (spec is None or spec.projection is Projection.LINEAR):
        source_kind = "an XLabs adapter or its training state"
        return _copy(published_xlabs(tensors), file.metadata, output, source_kind, precision)
    if spec is not None and spec.backbone != USUAL_BACKBONE:
        return _copy(tensors, file.metadata, output, "an adapter as the nodes read it", precision)
    parts = take_apart(tensors)
    notes: list[str] = []
    if parts.projection and not parts.sites:
        parts = _completed(parts, source, state)
        notes.append(f"K/V projections were missing and come from {state}")
    elif state is not None:
        raise ConvertError(
            f"{source.name} already has K/V projections, and --state was given",
            expected="--state only for a file without any ip_adapter.* tensors",
            action="leave --state out",
        )
    elif not parts.projection:
        _explain(tensors, source)
    if _why_only_renamed(parts.tensors(), file.metadata) is not None:
        return _copy(parts.tensors(), file.metadata, output, parts.source, precision)
    sites, repairs = repair_numbers(parts.sites)
    adapter = build_adapter(replace(parts, sites=sites).tensors(), file.metadata)
    adapter.spec = _with_hints(adapter.spec, hints)
    facts = _facts(find_state(source), file.metadata)
    report = export_adapter(adapter, output, precision=precision, facts=facts)
    return Conversion(output, parts.source, (*notes, *repairs), report)


def _completed(parts: Parts, source: Path, state: Path | None) -> Parts:
    """A projection together with the sites of the training state it was taken from."""
    if state is None:
        raise ConvertError(
            f"{source.name} has image_proj but no ip_adapter tensors: the well-known empty conversion of an accelerate "
            "state, whose safetensors store shared tensors once, under the UNet's names",
            expected="image_proj and ip_adapter together",
            action="convert the training state itself (checkpoint-N/model.safetensors), or name it with --state",
        )
    complete = take_apart(unwrapped(read_state(state).tensors))
    different = [
        name
        for name, tensor in parts.projection.items()
        if name not in complete.projection or not torch.equal(complete.projection[name].to(tensor.dtype), tensor)
    ]
    if different or not complete.sites:
        what = f"another {different[0]}" if different else "no K/V projections either"
        raise ConvertError(
            f"the state {state} has {what}",
            expected=f"the training state that {source.name} was made from",
            action="choose that one; its step number is in the folder's name",
        )
    return replace(complete, source="an empty conversion of an accelerate state")


def _explain(tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise the core's error about what this is instead of an adapter."""
    detect({name: tuple(tensor.shape) for name, tensor in tensors.items()}, {})
    raise ConvertError(
        f"{source.name} has K/V projections but no image projection",
        expected="image_proj_model.* or image_proj.* beside them",
        action="convert the complete training state",
    )


def _spec(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> AdapterSpec | None:
    """Of an adapter under its published names; None for any other file."""
    try:
        return detect({name: tuple(tensor.shape) for name, tensor in tensors.items()}, metadata)
    except (UnreadableFileError, UnknownCheckpointError, UnsupportedFamilyError):
        return None


def _why_only_renamed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> UnsupportedFamilyError | None:
    """As `_family_error`, and None as well of what numbers or metadata are at odds with."""
    try:
        return _family_error(tensors, metadata)
    except UnreadableFileError:  # numbers may still be repaired; if not, building says the same again
        return None


def _family_error(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> UnsupportedFamilyError | None:
    """What is said of a kind of adapter that is not exported anew; None of one that is.

    Raises:
        UnreadableFileError: tensors or metadata are at odds with each other.
    """
    try:
        spec = detect({name: tuple(tensor.shape) for name, tensor in tensors.items()}, metadata)
        check_family(spec)
        if spec.face is not None:  # whose LoRA has numbers between those of the sites
            raise UnsupportedFamilyError(
                f"this is {spec.family}, which reads faces: its tensors are renamed and nothing else",
                expected="an adapter that reads pictures",
                action="use it in ComfyUI with Load IP-Adapter and Encode Face for IP-Adapter",
            )
        if spec.backbone != USUAL_BACKBONE:  # whose files have their numbers right
            raise UnsupportedFamilyError(
                f"this is {spec.family}, an adapter for {spec.base}: its tensors are renamed and nothing else",
                expected="an adapter for SD1.5, SD2.x, SDXL or Kolors",
                action="use it in ComfyUI with Load IP-Adapter",
            )
    except UnsupportedFamilyError as error:
        return error
    return None


def _copy(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    output: Path,
    source: str,
    precision: Precision | None,
) -> Conversion:
    """Write what the trainer does not build, and check only that it reads back equal."""
    why = _family_error(tensors, metadata)
    assert why is not None, "it should have been exported"
    if precision is not None:
        raise ConvertError(
            f"--precision {precision} for an adapter that convert only renames: {why.found}",
            expected="no change of values that cannot be checked",
            action="leave --precision out",
        )
    with storage("the adapter", output), workplace(output) as folder:
        partial = folder / "adapter.safetensors"
        kept = {name: text for name, text in metadata.items() if name not in (HASH_KEY, SEAL)}  # made anew
        write_safetensors(partial, tensors, {"format": "pt", **kept})
        read = read_tensors(partial).tensors
        if not all(
            torch.allclose(read[name], tensor, rtol=0, atol=0, equal_nan=True) for name, tensor in tensors.items()
        ):
            raise ConvertError(
                "a written file that reads back differently",
                expected="equal tensors",
                action="check the disk, try again",
            )
        publish(partial, output)
    return Conversion(output, source, (), None, str(why))


def _with_hints(spec: AdapterSpec, hints: Hints) -> AdapterSpec:
    if hints.layer is not None and (hints.layer >= 0 or spec.feature is Feature.IMAGE_EMBEDS):
        raise ConvertError(
            f"--layer {hints.layer} for {spec.family}",
            expected="a number from -1 (last) down, and only for an adapter that reads hidden states",
            action="correct it, or leave it out",
        )
    encoder = spec.encoder if hints.encoder is None else EncoderHint(name=public_name(hints.encoder))
    return replace(spec, layer=hints.layer or spec.layer, negative=hints.negative or spec.negative, encoder=encoder)


def _facts(path: Path, metadata: Mapping[str, str]) -> ExportFacts:
    """What the old file said about itself, if it said anything."""
    about = {name.removeprefix("modelspec."): value for name, value in metadata.items()}
    try:
        training = parse_json(metadata.get(TRAINING_KEY, "{}"))
        if not isinstance(training, dict):
            raise ValueError(f"a {type(training).__name__}")
    except ValueError as error:
        raise ConvertError(
            f"metadata {TRAINING_KEY} of {path.name} that is no JSON object ({error})",
            expected="what `ipadapter export` writes",
            action="export the adapter again",
        ) from error
    return ExportFacts(
        title=about.get("title", path.parent.name if path.name in STATE_FILES else path.stem),
        preprocess=read_preprocess(metadata),
        training={**without_folders(training), "converted_from": path.name},
        date=about.get("date"),
        author=about.get("author"),
        license=about.get("license"),
        description=about.get("description"),
    )
