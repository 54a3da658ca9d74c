"""An exported file has everything to say, reads back equal, and says what diffusers does with it."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ipadapter_core.file.container import read_tensors, tensor_hash
from ipadapter_core.file.header import HASH_KEY
from ipadapter_core.file.seal import SEAL
from ipadapter_core.file.spec import EncoderHint, Negative
from ipadapter_core.network.adapter import IPAdapter, load_adapter, save_adapter
from ipadapter_trainer.files import export as export_module
from ipadapter_trainer.files.checkpoint_export import Weights, export_checkpoint
from ipadapter_trainer.files.export import ExportError, export_adapter
from ipadapter_trainer.files.facts import ExportFacts, Preprocess, RunCounts, header, read_preprocess, run_facts
from ipadapter_trainer.files.portability import EVERYWHERE, NATIVE_ONLY
from ipadapter_trainer.state import BEST_STEP
from support.encoders import write_folder
from support.published import PUBLISHED, tiny_adapter
from support.training_states import IMAGE_DIM, run_config, tiny_ipadapter, write_checkpoint

CLIP = Preprocess(encoder_kind="CLIP", crop="center", size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
WRITTEN = datetime(2026, 3, 1, 12, 30, 15, 7, tzinfo=timezone.utc)
FACTS = ExportFacts(title="Tiny", preprocess=CLIP, training={"converted_from": "nothing"})


def facts_of_a_run(folder: Path) -> ExportFacts:
    export = {"title": "Red cats", "author": "Ada", "license": "CC0-1.0"}
    config = run_config(folder / "run", folder / "encoder", export=export, adapter={"blocks": "style"})
    counts = RunCounts(step=20, samples=160, uses_ema=True, pairs=12, skipped=1)
    return run_facts(config, CLIP, counts, prediction_type="v_prediction", written=WRITTEN)


def described(adapter: IPAdapter) -> IPAdapter:
    adapter.spec = replace(adapter.spec, encoder=EncoderHint(name="tiny-clip", image_size=32), layer=-2)
    return adapter


def test_metadata_says_everything_about_a_run(tmp_path: Path) -> None:
    path = tmp_path / "cats.safetensors"
    export_adapter(described(tiny_ipadapter()), path, precision="fp16", facts=facts_of_a_run(tmp_path))
    metadata = read_tensors(path).metadata
    model_spec = {name.removeprefix("modelspec."): value for name, value in metadata.items() if "modelspec" in name}
    assert model_spec.pop("date") == "2026-03-01T12:30:15+00:00"
    assert model_spec.pop("hash_sha256") == f"0x{tensor_hash(path)}"
    assert model_spec.pop("implementation").startswith("https://")
    assert model_spec.pop("architecture") == "unknown/ip-adapter"
    assert model_spec.pop("description")
    assert model_spec == {
        "sai_model_spec": "1.0.0",
        "title": "Red cats",
        "author": "Ada",
        "license": "CC0-1.0",
        "resolution": "64x64",
        "prediction_type": "v",
    }
    training = json.loads(metadata["ipadapter.training"])
    assert training.pop("recipe")["train"]["steps"] == 30
    assert set(training.pop("versions")) >= {"torch", "diffusers", "ipadapter-studio"}
    assert training.pop("encoder").endswith("encoder")
    assert training == {
        "step": 20,
        "samples": 160,
        "pairs": 12,
        "skipped": 1,
        "uses_ema": True,
        "seed": 7,
        "base_model": "tiny-base",
        "prediction_type": "v_prediction",
        "trained_blocks": "style",
        "other_blocks": "zero",
    }
    assert read_preprocess(metadata) == CLIP
    assert json.loads(metadata["ipadapter.portability"])["label"] == EVERYWHERE
    assert load_adapter(path).spec.encoder == EncoderHint(name="tiny-clip", image_size=32)


@pytest.mark.parametrize(
    ("width", "num_sites", "prediction_type", "architecture"),
    [
        (768, 16, None, "stable-diffusion-v1"),
        (1024, 16, "epsilon", "stable-diffusion-v2-512"),
        (1024, 16, "v_prediction", "stable-diffusion-v2-768-v"),
        (2048, 70, None, "stable-diffusion-xl-v1-base"),
        (2048, 34, None, "ssd-1b"),
    ],
)
def test_architectures_have_the_names_of_the_standard(
    width: int, num_sites: int, prediction_type: str | None, architecture: str
) -> None:
    spec = replace(tiny_ipadapter().spec, cross_attention_dim=width, site_dims=(8,) * num_sites)
    stated = header(spec, replace(FACTS, prediction_type=prediction_type), "00", {})
    assert stated["modelspec.architecture"] == f"{architecture}/ip-adapter"


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), (None, torch.float32)]
)
def test_the_file_holds_the_weights_under_published_names(
    tmp_path: Path, kind: str, precision: Any, dtype: torch.dtype
) -> None:
    adapter, path = tiny_ipadapter(kind), tmp_path / "a.safetensors"
    report = export_adapter(adapter, path, precision=precision, facts=FACTS)
    tensors = read_tensors(path).tensors
    assert set(tensors) == set(tiny_adapter(kind, site_dims=(32, 64, 64), image_dim=IMAGE_DIM, depth=4, head_dim=64))
    for name, tensor in adapter.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor.to(dtype), rtol=0, atol=0)
    assert load_adapter(path).spec == adapter.spec
    assert report.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert (report.rounding == 0) == (precision is None)
    assert report.rounding < 0.02


def test_tensors_lie_in_the_order_of_published_files(tmp_path: Path) -> None:
    """h94's files were written by safetensors' own writer: projection first, then sites, sorted by name."""
    path = tmp_path / "a.safetensors"
    export_adapter(tiny_ipadapter(), path, precision="fp16", facts=FACTS)
    with safe_open(path, framework="pt") as file:
        names = file.offset_keys()
    assert names == sorted(names)
    assert names[0].startswith("image_proj.")
    assert names[-1].startswith("ip_adapter.")
    assert set(PUBLISHED["sd15_base"]()) >= {name for name in names if name.startswith("image_proj.")}


def test_anybody_may_read_the_file_who_may_read_other_new_files(tmp_path: Path) -> None:
    """ComfyUI often runs as another user than the trainer."""
    path, other = tmp_path / "a.safetensors", tmp_path / "other"
    export_adapter(tiny_ipadapter(), path, precision="fp16", facts=FACTS)
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_overflow_of_float16_is_refused_with_the_way_out(tmp_path: Path) -> None:
    adapter, path = tiny_ipadapter(), tmp_path / "a.safetensors"
    adapter.site(1).to_v_ip.weight.data[0, 0] = 70_000.0
    with pytest.raises(ExportError, match=r"ip_adapter\.3\.to_v_ip\.weight has values up to 70000.*bf16 or fp32"):
        export_adapter(adapter, path, precision="fp16", facts=FACTS)
    assert list(tmp_path.iterdir()) == []
    export_adapter(adapter, path, precision="bf16", facts=FACTS)


def test_nan_is_refused(tmp_path: Path) -> None:
    adapter = tiny_ipadapter()
    adapter.site(0).to_k_ip.weight.data[0, 0] = float("nan")
    with pytest.raises(ExportError, match="NaN"):
        export_adapter(adapter, tmp_path / "a.safetensors", precision="fp32", facts=FACTS)


@pytest.mark.parametrize(("name", "message"), [("a.bin", "ends in .bin"), ("missing/a.safetensors", "no folder")])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_adapter(tiny_ipadapter(), tmp_path / name, precision="fp16", facts=FACTS)


def test_a_file_that_reads_back_differently_never_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"an older export")
    write = export_module.write_safetensors

    def write_wrong(target: Path, tensors: Any, metadata: Any) -> None:
        worse = {name: tensor + (name == "ip_adapter.3.to_k_ip.weight") for name, tensor in tensors.items()}
        write(target, worse, {name: value for name, value in metadata.items() if name not in (HASH_KEY, SEAL)})

    monkeypatch.setattr(export_module, "write_safetensors", write_wrong)
    with pytest.raises(ExportError, match=r"reads back with other values in ip_adapter\.3\.to_k_ip\.weight"):
        export_adapter(tiny_ipadapter(), path, precision="fp32", facts=FACTS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == b"an older export"


@pytest.mark.parametrize("weights", ["trained", pytest.param("best", marks=pytest.mark.long)])
def test_an_export_is_the_same_bytes_whenever_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    write_folder("clip", tmp_path / "encoder")
    config = run_config(tmp_path / "run", tmp_path / "encoder")
    checkpoint = write_checkpoint(config, tiny_ipadapter())
    save_adapter(tiny_ipadapter(), config.run / "best.safetensors", {BEST_STEP: "2"})
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        export_checkpoint(checkpoint, tmp_path / name / "mine.safetensors", weights=weights)
        files.append([(tmp_path / name / f"mine{suffix}").read_bytes() for suffix in (".safetensors", ".md")])
        time.sleep(1.1)  # dates are of whole seconds
    assert files[0] == files[1]
    file = config.run / "best.safetensors" if weights == "best" else checkpoint / "adapter.safetensors"
    date = read_tensors(tmp_path / "first" / "mine.safetensors").metadata["modelspec.date"]
    assert abs(datetime.fromisoformat(date).timestamp() - file.stat().st_mtime) <= 1


def test_the_card_shows_how_to_use_it_in_diffusers_only_where_that_is_right(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    export_adapter(tiny_ipadapter(), good, precision="fp16", facts=facts_of_a_run(tmp_path))
    export_adapter(tiny_ipadapter(num_tokens=8), bad, precision="fp16", facts=FACTS)
    card = good.with_suffix(".md").read_text()
    assert 'pipe.load_ip_adapter("FOLDER_OF_THIS_FILE", subfolder="", weight_name="good.safetensors"' in card
    assert "20 steps, 160 samples of 12 pairs (1 pictures could not be read), seed 7; moving average" in card
    for text in (
        "Red cats",
        "CC0-1.0",
        "Ada",
        tensor_hash(good),
        "crop center",
        "zero features",
        "trained blocks: style",
    ):
        assert text in card
    card = bad.with_suffix(".md").read_text()
    assert "load_ip_adapter" not in card
    assert NATIVE_ONLY in card
    assert "cannot load it" in card


def test_other_conventions_than_diffusers_keep_it_native(tmp_path: Path) -> None:
    adapter, path = tiny_ipadapter(), tmp_path / "a.safetensors"
    adapter.spec = replace(adapter.spec, negative=Negative.ZERO_PIXELS)
    facts = replace(FACTS, preprocess=replace(CLIP, encoder_kind="SigLIP", crop="pad"))
    portability = export_adapter(adapter, path, precision="fp16", facts=facts).portability
    assert portability.label == NATIVE_ONLY
    assert portability.weights_load
    assert len(portability.reasons) == 3
    assert "ip_adapter_image_embeds=" in path.with_suffix(".md").read_text()
    assert load_adapter(path).spec.negative is Negative.ZERO_PIXELS


def test_a_run_is_exported_from_its_last_checkpoint_with_its_average(
    tmp_path: Path, encoder_folder: Callable[..., Path]
) -> None:
    from ipadapter_trainer.files.checkpoint_export import export_checkpoint
    from ipadapter_trainer.state import CheckpointError

    config = run_config(tmp_path / "run", encoder_folder("clip"), export={"precision": "fp32"})
    trained, average = tiny_ipadapter(), tiny_ipadapter()
    average.site(0).to_k_ip.weight.data += 1
    write_checkpoint(config, trained, step=10)
    write_checkpoint(config, trained, step=20, ema=average)
    lines = [json.dumps({"key": key, "path": f"{key}.png", "reason": "cut off"}) for key in "ab"]
    torn = lines[0][:20]  # as a kill leaves it
    (config.run / "skipped.jsonl").write_text("\n".join([lines[0], torn, lines[1], torn]))
    report = export_checkpoint(config.run, None)
    assert report.path == config.run / "adapter.safetensors"
    file = read_tensors(report.path)
    name = "ip_adapter.1.to_k_ip.weight"
    assert torch.equal(file.tensors[name], average.state_dict()[name])
    stated = json.loads(file.metadata["ipadapter.training"])
    assert (stated["step"], stated["samples"], stated["skipped"], stated["uses_ema"]) == (20, 160, 2, True)

    raw = export_checkpoint(config.run, tmp_path / "raw.safetensors", weights="trained", overrides=["export.title=Raw"])
    file = read_tensors(raw.path)
    assert torch.equal(file.tensors[name], trained.state_dict()[name])
    assert file.metadata["modelspec.title"] == "Raw"

    early = config.run / "checkpoints" / "step-00000010"
    with pytest.raises(CheckpointError, match=r"has no ema\.safetensors.*optimizer\.ema_decay"):
        export_checkpoint(early, tmp_path / "early.safetensors", weights="average")
    with pytest.raises(CheckpointError, match=r"has no best\.safetensors.*validation\.every"):
        export_checkpoint(config.run, tmp_path / "best.safetensors", weights="best")
    save_adapter(average, config.run / "best.safetensors")
    for step, loss in ((10, 0.5), (15, 0.25), (20, 0.75)):
        with (config.run / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "kind": "validation", "true": loss}) + "\n")
    best = export_checkpoint(config.run, tmp_path / "best.safetensors", weights="best")
    file = read_tensors(best.path)
    assert torch.equal(file.tensors[name], average.state_dict()[name])
    stated = json.loads(file.metadata["ipadapter.training"])
    assert (stated["step"], stated["samples"], stated["uses_ema"]) == (15, 120, False)
    save_adapter(average, config.run / "best.safetensors", {"ipadapter.step": "10"})
    by_another_rule = ["validation.best=gap"]
    again = export_checkpoint(config.run, tmp_path / "again.safetensors", weights="best", overrides=by_another_rule)
    assert json.loads(read_tensors(again.path).metadata["ipadapter.training"])["step"] == 10, "as the file says"
    with pytest.raises(CheckpointError, match="is no checkpoint and has none"):
        export_checkpoint(tmp_path, None)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "dinov2", "dinov3"])
def test_preprocessing_read_without_weights_is_that_of_the_loaded_encoder(
    kind: str, encoder_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from ipadapter_trainer.files.checkpoint_export import read_preprocess_of
    from ipadapter_trainer.models.image_encoder import load_image_encoder

    config = run_config(tmp_path, encoder_folder(kind), encoder={"crop": "pad"})
    encoder = load_image_encoder(config.encoder, "plus", torch.device("cpu"))
    assert read_preprocess_of(config) == Preprocess.of(encoder.spec, encoder.format.pixel_format, "pad")
