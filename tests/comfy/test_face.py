"""Faces through the native nodes in a real ComfyUI, with ONNX files of SCRFD's and ArcFace's signature."""

import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from insightface.utils import face_align
from torch import Tensor

from support import comfy_host, encoders, face_files, tiny_unet
from support.face_files import GREEN, RED, picture
from support.hostile_onnx import doubling, looping
from support.published import random_tensors, tiny_face_adapter, write_safetensors

PACK = "tiny_pack"
ONE = picture((RED, 162, 122, 32))
TWO = picture((RED, 40, 40, 30), (GREEN, 160, 160, 100))
CHOICE = {"face": "largest", "version": "auto", "structure": 1.0}


@pytest.fixture(scope="module")
def pack(base_directory: Path) -> Path:
    return face_files.write_pack(base_directory / "models" / "insightface" / "models" / PACK)


@pytest.fixture(scope="module")
def face_model(pack: Path) -> Any:
    return comfy_host.run("IPALoadFaceModel", face_pack=PACK, device="CPU")


@pytest.fixture
def without_insightface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)


@pytest.fixture(scope="module")
def encoder_folder(base_directory: Path) -> Iterator[str]:
    folder = base_directory / "models" / "clip_vision" / "face_clip"
    encoders.write_folder("clip", folder)
    yield f"{folder.name}/"
    shutil.rmtree(folder)  # else `auto` finds it in other files' tests


@pytest.fixture(scope="module")
def load(base_directory: Path, unet: Callable[[str], Any], encoder_folder: str) -> Callable[..., Any]:
    """Write a tiny FaceID adapter for SD1.5 and load it through the node."""

    def make(kind: str, **options: Any) -> Any:
        sizes = {"site_dims": tiny_unet.site_dims(unet("sd15")), "cross_attention_dim": tiny_unet.CONTEXT_DIM}
        tensors = random_tensors(tiny_face_adapter(kind, identity=face_files.EMBEDDING, **sizes), scale=0.1)
        stated = {"resampler": {"head_dim": 8}} | options
        if kind == "unnorm":
            stated |= {"projection": "resampler", "feature": "identity"}
        name = f"{kind.replace(' ', '-')}-{len(options)}.safetensors"
        metadata = {"ipadapter.spec": json.dumps(stated)}
        write_safetensors(base_directory / "models" / "ipadapter" / name, tensors, metadata)
        has_face = kind in ("faceid plus", "kolors")
        return comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder=encoder_folder if has_face else "auto")

    return make


def encode(adapter: Any, face_model: Any, image: Tensor = ONE, **widgets: Any) -> tuple[Any, Tensor]:
    with torch.inference_mode():
        node = comfy_host.node("IPAEncodeFace")
        result = node.EXECUTE_NORMALIZED(adapter=adapter, face_model=face_model, image=image, **CHOICE | widgets)
    return result.result


def find(face_model: Any, image: Tensor) -> Any:
    return face_model.find((image[0] * 255).round().to(torch.uint8))


def assert_close(given: Tensor, expected: np.ndarray, least: float = 0.999) -> None:
    cosine = torch.nn.functional.cosine_similarity(given, torch.from_numpy(expected), dim=0)
    assert cosine > least


def test_a_face_is_found_where_it_is_and_recognised(pack: Path, face_model: Any) -> None:
    (face,) = find(face_model, ONE)
    left, top, right, bottom = face.box.tolist()
    assert abs((left + right) / 2 - 178) < 8
    assert abs((top + bottom) / 2 - 138) < 8
    assert right - left == pytest.approx(2 * face_files.HALF_SIDES[8] * 8 / 2)  # the detector saw it twice as large
    centre = ((left + right) / 2, (top + bottom) / 2)
    torch.testing.assert_close(
        face.landmarks.double(), torch.from_numpy(face_files.landmarks(8) * 4 + centre), rtol=0, atol=1e-3
    )


def test_insightface_and_our_own_code_agree(pack: Path, face_model: Any, without_insightface: None) -> None:
    ours = comfy_host.run("IPALoadFaceModel", face_pack=PACK, device="CPU")
    assert type(ours.analysis).__name__ == "OnnxFaceAnalysis"
    assert type(face_model.analysis).__name__ == "FaceAnalysis"
    theirs_found, ours_found = find(face_model, TWO), find(ours, TWO)
    assert len(ours_found) == len(theirs_found) == 2
    for mine, other in zip(ours_found, theirs_found, strict=True):
        torch.testing.assert_close(mine.box, other.box, rtol=0, atol=1e-2)
        torch.testing.assert_close(mine.landmarks, other.landmarks, rtol=0, atol=1e-2)
        assert mine.score == pytest.approx(other.score, abs=5e-3)
        assert_close(mine.embedding, other.embedding.numpy())


@pytest.mark.parametrize("size", [(320, 320), (200, 512), (700, 400)])
def test_embedding_follows_alignment_and_network(pack: Path, without_insightface: None, size: tuple[int, int]) -> None:
    model = comfy_host.run("IPALoadFaceModel", face_pack=PACK, device="CPU")
    image = picture((RED, 96, 64, 40), size=size)
    (face,) = find(model, image)
    left, top, right, bottom = face.box.tolist()
    stride = (right - left) / 2 / face_files.HALF_SIDES[8]
    marks = face_files.landmarks(8) * stride + ((left + right) / 2, (top + bottom) / 2)
    crop = face_align.norm_crop((image[0].numpy() * 255).round().astype(np.uint8), marks.astype(np.float32), 112)
    session = onnxruntime.InferenceSession(str(pack / "w_tiny.onnx"))
    pixels = ((crop.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)[None]
    assert_close(face.embedding, session.run(None, {"input": pixels})[0][0])


def test_largest_first_and_all(face_model: Any, load: Callable) -> None:
    adapter = load("faceid")
    small, large = find(face_model, TWO)
    assert small.score > large.score
    assert large.area > small.area
    shown = {choice: encode(adapter, face_model, TWO, face=choice) for choice in ("largest", "first", "all")}
    assert shown["all"][1].shape == (2, 224, 224, 3)
    assert torch.equal(shown["all"][1][:1], shown["first"][1])
    assert torch.equal(shown["all"][1][1:], shown["largest"][1])
    network = adapter.network
    for choice, faces in (("largest", [large]), ("first", [small]), ("all", [small, large])):
        expected = network.project_faces(torch.stack([face.embedding / face.embedding.norm() for face in faces]))
        torch.testing.assert_close(shown[choice][0].cond, expected)
    torch.testing.assert_close(shown["all"][0].uncond, network.project_faces(torch.zeros(1, face_files.EMBEDDING)))


def test_every_picture_of_a_batch_is_a_reference(face_model: Any, load: Callable) -> None:
    adapter = load("portrait")
    other = picture((RED, 66, 202, 40))
    both, crops = encode(adapter, face_model, torch.cat((ONE, other)))
    assert len(crops) == 2
    for index, image in enumerate((ONE, other)):
        torch.testing.assert_close(both.cond[index : index + 1], encode(adapter, face_model, image)[0].cond)


def test_unnorm_reads_the_embedding_as_it_is(face_model: Any, load: Callable) -> None:
    adapter = load("unnorm")
    (face,) = find(face_model, ONE)
    assert abs(face.embedding.norm() - 1) > 0.1
    expected = adapter.network.project_faces(face.embedding[None])
    torch.testing.assert_close(encode(adapter, face_model)[0].cond, expected)


def test_plus_reads_the_cut_out_face_too(face_model: Any, load: Callable, caplog: pytest.LogCaptureFixture) -> None:
    adapter = load("faceid plus")
    (face,) = find(face_model, ONE)
    with caplog.at_level(logging.WARNING):
        auto, crop = encode(adapter, face_model)
    assert "taken for v1" in caplog.text
    size = adapter.encoder.pixel_format.size
    pixels = comfy_host.pack("ipadapter_core.encoder.pixels").encoder_pixels(
        crop, adapter.encoder.pixel_format, "center"
    )
    features = adapter.encoder.encode(pixels, adapter.spec)
    nothing = adapter.encoder.encode(torch.zeros(1, 3, size, size), adapter.spec)
    identity, nobody = face.normed_embedding[None], torch.zeros(1, face_files.EMBEDDING)
    expected = {
        version: [adapter.network.project_faces(*pair, scale) for pair in ((identity, features), (nobody, nothing))]
        for version, scale in (("v1", None), ("v2", 0.7))
    }
    for version, (cond, uncond) in expected.items():
        tokens, _ = encode(adapter, face_model, version=version, structure=0.7)
        torch.testing.assert_close(tokens.cond, cond, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tokens.uncond, uncond, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(auto.cond, expected["v1"][0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected["v1"][0], expected["v2"][0], atol=0.1)


def test_metadata_tells_the_version_without_a_warning(
    face_model: Any, load: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = load("faceid plus", face={"has_shortcut": True})
    with caplog.at_level(logging.WARNING):
        auto, _ = encode(adapter, face_model)
    assert "taken for v1" not in caplog.text
    torch.testing.assert_close(auto.cond, encode(adapter, face_model, version="v2")[0].cond)


def test_negative_image_is_what_plus_moves_away_from(face_model: Any, load: Callable) -> None:
    adapter = load("faceid plus")
    plain, _ = encode(adapter, face_model)
    away, _ = encode(adapter, face_model, negative_image=TWO)
    assert torch.equal(plain.cond, away.cond)
    assert not torch.allclose(plain.uncond, away.uncond, atol=1e-3)


class Picky:
    """Speaks FaceAnalysis, sees faces at some detection sizes only, and only with black around the picture."""

    def __init__(self, largest: int, *, wants_frame: bool) -> None:
        self.det_model = self
        self.session = onnxruntime.InferenceSession(onnx_detector())
        self.input_size, self.tried = (7, 7), []
        self.largest, self.wants_frame = largest, wants_frame

    def get(self, image: np.ndarray) -> list[dict[str, Any]]:
        self.tried.append(self.input_size[0])
        if self.input_size[0] > self.largest or (self.wants_frame and image[0].any()):
            return []
        rows, columns = np.nonzero(image.sum(-1))
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float32)
        marks = face_files.landmarks(8).astype(np.float32) + (box[:2] + box[2:]) / 2
        return [{"bbox": box, "kps": marks, "det_score": 0.8, "embedding": np.ones(face_files.EMBEDDING, np.float32)}]


def onnx_detector() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        face_files.write_detector(Path(folder) / "detector.onnx")
        return (Path(folder) / "detector.onnx").read_bytes()


def picky(largest: int, *, wants_frame: bool) -> Any:
    return comfy_host.pack("nodes.encoding.face_model").FaceModel("picky", Picky(largest, wants_frame=wants_frame))


def test_a_face_that_fills_its_picture_is_found_in_a_frame(load: Callable) -> None:
    model = picky(640, wants_frame=True)
    _, crop = encode(load("faceid"), model)
    (face,) = model.find_close_up((ONE[0] * 255).round().to(torch.uint8))
    assert face.box.tolist() == [0, 0, 320, 320]
    marks = torch.from_numpy(face_files.landmarks(8)) + 160
    torch.testing.assert_close(face.landmarks.double(), marks, rtol=0, atol=1e-4)
    expected = face_align.norm_crop((ONE[0].numpy() * 255).round().astype(np.uint8), marks.numpy(), 224)
    assert (crop[0] * 255 - torch.from_numpy(expected)).abs().max() <= 4


def test_detection_sizes_are_tried_from_large_to_small() -> None:
    model = picky(448, wants_frame=False)
    assert len(find(model, ONE)) == 1
    assert model.analysis.tried == [640, 576, 512, 448]
    assert model.analysis.input_size == (7, 7)  # as it was
    model = picky(0, wants_frame=False)
    assert find(model, ONE) == ()
    assert model.analysis.tried == [640, 576, 512, 448, 384, 320]


def test_a_picture_without_a_face_is_named(load: Callable, face_model: Any) -> None:
    with pytest.raises(ValueError, match="no face in image 2 of 2"):
        encode(load("faceid"), face_model, torch.cat((ONE, torch.full_like(ONE, 0.4))))


def test_an_adapter_for_pictures_is_refused(face_model: Any, make_adapter: Callable) -> None:
    with pytest.raises(ValueError, match="reads no face embedding"):
        encode(make_adapter("base", "sd15").loaded, face_model)


@pytest.mark.parametrize("node_id", ["IPAEncodeImage", "IPAApplyImage"])
def test_picture_nodes_send_a_face_adapter_to_the_face_node(
    node_id: str, load: Callable, model: Callable[[str], Any]
) -> None:
    plain = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "layer_preset": "all", "model": model("sd15")}
    widgets = plain if node_id == "IPAApplyImage" else {"crop": "center"}
    with pytest.raises(ValueError, match="Encode Face for IP-Adapter"):
        comfy_host.run(node_id, adapter=load("faceid"), image=ONE, **widgets)


def test_embeddings_of_another_width_are_refused(base_directory: Path, load: Callable) -> None:
    face_files.write_pack(base_directory / "models" / "insightface" / "models" / "narrow", embedding=128)
    narrow = comfy_host.run("IPALoadFaceModel", face_pack="narrow", device="CPU")
    with pytest.raises(ValueError, match="128 wide"):
        encode(load("faceid"), narrow)


def test_a_pack_that_is_not_there_says_where_it_belongs(base_directory: Path) -> None:
    with pytest.raises(ValueError, match=r"insightface/models/antelopev2.*non-commercial"):
        comfy_host.run("IPALoadFaceModel", face_pack="antelopev2", device="CPU")


def test_the_loader_runs_again_when_a_file_of_the_pack_changes(base_directory: Path) -> None:
    folder = face_files.write_pack(base_directory / "models" / "insightface" / "models" / "changing")
    node = comfy_host.node("IPALoadFaceModel")
    before = node.fingerprint_inputs(face_pack="changing", device="CPU")
    assert before == node.fingerprint_inputs(face_pack="changing", device="CPU")
    face_files.write_recogniser(folder / "w_tiny.onnx", 64)
    assert before != node.fingerprint_inputs(face_pack="changing", device="CPU")


def test_without_onnxruntime_the_node_says_how_to_install_it(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install onnxruntime.*non-commercial"):
        comfy_host.run("IPALoadFaceModel", face_pack=PACK, device="CPU")


@pytest.mark.parametrize("program", ["insightface", None])
@pytest.mark.parametrize("fault", ["no detector", "damaged"])
def test_a_broken_pack_is_an_error_and_no_traceback(
    base_directory: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, fault: str
) -> None:
    if program is None:
        monkeypatch.setitem(sys.modules, "insightface", None)
    folder = face_files.write_pack(base_directory / "models" / "insightface" / "models" / f"broken {fault}")
    (folder / "det_tiny.onnx").unlink()
    if fault == "damaged":
        (folder / "det_tiny.onnx").write_bytes(b"no network at all")
    with pytest.raises(ValueError, match=r"Found: .*(cannot load|no ONNX network|without a detector)"):
        comfy_host.run("IPALoadFaceModel", face_pack=folder.name, device="CPU")


@pytest.mark.parametrize("program", ["insightface", None])
@pytest.mark.parametrize("kind", ["loop", "functions"])
def test_a_network_that_never_ends_is_refused_before_it_is_opened(
    base_directory: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, kind: str
) -> None:
    if program is None:
        monkeypatch.setitem(sys.modules, "insightface", None)
    folder = face_files.write_pack(base_directory / "models" / "insightface" / "models" / f"endless {kind}")
    file = folder / "w_tiny.onnx"
    make, few, many = {"loop": (looping, 3, 2**62), "functions": (doubling, 3, 40)}[kind]
    picture = np.random.default_rng(0).random((1, 3, 112, 112), dtype=np.float32)
    networks = [onnx.load(file), make(onnx.load(file), few)]
    before, after = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, {"input": np.maximum(picture, 0)})[0]
        for one in networks
    )
    np.testing.assert_array_equal(before, after, "another network than one that takes long")
    onnx.save(make(onnx.load(file), many), file)
    with pytest.raises(ValueError, match=r"Found: w_tiny\.onnx, a network with .*, which may never end"):
        comfy_host.run("IPALoadFaceModel", face_pack=folder.name, device="CPU")


def test_a_device_that_is_not_there_becomes_the_cpu_with_a_warning(
    pack: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        comfy_host.run("IPALoadFaceModel", face_pack=PACK, device="CUDA")
    assert "CUDAExecutionProvider" in caplog.text


def test_a_detector_of_one_size_is_used_at_that_size(base_directory: Path, without_insightface: None) -> None:
    folder = face_files.write_pack(base_directory / "models" / "insightface" / "models" / "fixed")
    face_files.write_detector(folder / "det_tiny.onnx", 320)
    model = comfy_host.run("IPALoadFaceModel", face_pack="fixed", device="CPU")
    assert len(find(model, ONE)) == 1


@pytest.mark.parametrize("kind", ["faceid", "faceid plus", "portrait", "unnorm"])
def test_tokens_steer_a_model(kind: str, face_model: Any, load: Callable, model: Callable, sample: Callable) -> None:
    adapter = load(kind)
    tokens, _ = encode(adapter, face_model)
    plain = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "layer_preset": "all"}
    patched = comfy_host.run("IPAApply", model=model("sd15"), adapter=adapter, tokens=tokens, **plain)
    assert not torch.allclose(sample(patched), sample(model("sd15")), atol=1e-3)
