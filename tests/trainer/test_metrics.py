"""CLIP-I, CLIP-T and DINO similarity: cosines taken by hand, by an encoder that is not the trained one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn.functional import cosine_similarity

from ipadapter_core.errors import MismatchError
from ipadapter_trainer.config import EncoderConfig, ValidationConfig
from ipadapter_trainer.hub import ModelNotFoundError
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.readers.pictures import PictureReader
from ipadapter_trainer.watch.metrics import load_judge
from ipadapter_trainer.watch.sampling import Reference, SampleGrid
from support.encoders import write_folder
from support.tiny_base import VOCABULARY, write_tokenizer

CPU = torch.device("cpu")
SIZE = 28
STRENGTHS = (0.0, 0.5, 1.0)


def _write_clip(folder, seed):
    torch.manual_seed(seed)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**part, "vocab_size": len(VOCABULARY) + 2, "eos_token_id": len(VOCABULARY) + 1}
    text |= {"bos_token_id": len(VOCABULARY), "pad_token_id": len(VOCABULARY) + 1}
    vision = {**part, "image_size": SIZE, "patch_size": 14, "projection_dim": 12}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE)
    transformers.CLIPProcessor(images, write_tokenizer(folder / "tokenizer")).save_pretrained(folder)
    return model.eval()


def _write_dino(folder, kind="dinov2"):
    model = write_folder(kind, folder, seed=2)
    processor = transformers.BitImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    models = {"clip": _write_clip(folder / "clip", 1), "dino": _write_dino(folder / "dino")}
    write_folder("clip", folder / "training")
    return folder, models


@pytest.fixture(scope="module")
def training(folders):
    encoder = load_image_encoder(EncoderConfig(model=str(folders[0] / "training")), "base", CPU)
    return PictureReader(encoder)


@pytest.fixture(scope="module")
def judge(folders, training):
    folder, _ = folders
    config = ValidationConfig(clip_model=str(folder / "clip"), dino_model=str(folder / "dino"))
    return load_judge(config, training, CPU)


def _picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 34, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def grid():
    text = {"text": torch.zeros(1, 2, 3)}
    texts = (("", "a red cat"), ("", ""), ("a dog", "ignored"))
    references = tuple(
        Reference(str(i), _picture(i), caption, prompt, torch.zeros(1, 4), text)
        for i, (prompt, caption) in enumerate(texts)
    )
    rows = tuple(tuple(_picture(100 + 10 * row + column) for column in range(3)) for row in range(3))
    return SampleGrid(references, STRENGTHS, rows)


def _pixels(folder, pictures):
    return transformers.AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt").pixel_values


def _clip_image(folders, pictures):
    folder, models = folders
    clip = models["clip"]
    with torch.no_grad():
        return clip.visual_projection(clip.vision_model(_pixels(folder / "clip", pictures)).pooler_output)


def _clip_text(folders, texts):
    folder, models = folders
    tokens = transformers.AutoTokenizer.from_pretrained(folder / "clip")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return models["clip"].text_projection(models["clip"].text_model(**tokens).pooler_output)


@pytest.mark.parametrize("column", range(3))
def test_are_mean_cosines(folders, judge, grid, column):
    rated = judge.rate(grid)["strengths"][f"{STRENGTHS[column]:g}"]
    references = [reference.picture for reference in grid.references]
    drawn = [row[column] for row in grid.rows]
    image = cosine_similarity(_clip_image(folders, drawn), _clip_image(folders, references)).mean().item()
    text = (
        cosine_similarity(_clip_image(folders, drawn[::2]), _clip_text(folders, ["a red cat", "a dog"])).mean().item()
    )
    with torch.no_grad():
        tokens = [
            folders[1]["dino"](_pixels(folders[0] / "dino", each)).last_hidden_state[:, 0]
            for each in (drawn, references)
        ]
    assert rated["clip_i"] == pytest.approx(image, abs=1e-5)
    assert rated["clip_t"] == pytest.approx(text, abs=1e-5)
    assert rated["clip_t_scaled"] == pytest.approx(2.5 * max(0, text), abs=1e-5)
    assert rated["dino"] == pytest.approx(cosine_similarity(*tokens).mean().item(), abs=1e-5)


def test_each_text_is_rated_by_itself_where_references_have_several(judge, grid):
    first, second, _ = grid.references
    again = replace(first, prompt="a dog")
    texts = replace(grid, references=(replace(first, prompt=""), again, second), rows=grid.rows)
    rated = judge.rate(texts)
    assert list(rated["prompts"]) == ["no text", "a dog"]
    alone = judge.rate(replace(texts, references=(again,), rows=texts.rows[1:2]))
    assert "prompts" not in alone
    for strength, values in alone["strengths"].items():
        assert rated["prompts"]["a dog"][strength] == pytest.approx(values, abs=1e-5)
    rest = replace(texts, references=(texts.references[0], second), rows=(texts.rows[0], texts.rows[2]))
    assert rated["prompts"]["no text"]["1"] == pytest.approx(judge.rate(rest)["strengths"]["1"], abs=1e-5)
    assert "prompts" not in judge.rate(grid), "a text each is no comparison of texts"


def test_the_reference_itself_is_perfectly_alike(judge, grid):
    copies = replace(grid, rows=tuple((reference.picture,) * 3 for reference in grid.references))
    rated = judge.rate(copies)["strengths"]["1"]
    assert rated["clip_i"] == pytest.approx(1, abs=1e-5)
    assert rated["dino"] == pytest.approx(1, abs=1e-5)


def test_uplift_is_what_a_strength_adds_to_none(judge, grid):
    rated = judge.rate(grid)["strengths"]
    assert rated["1"]["clip_i_uplift"] == pytest.approx(rated["1"]["clip_i"] - rated["0"]["clip_i"])
    assert rated["0.5"]["dino_uplift"] == pytest.approx(rated["0.5"]["dino"] - rated["0"]["dino"])
    assert "clip_i_uplift" not in rated["0"]
    without = replace(grid, strengths=(1.0,), rows=tuple(row[2:] for row in grid.rows))
    assert "clip_i_uplift" not in judge.rate(without)["strengths"]["1"]


def test_without_any_text_there_is_no_clip_t(judge, grid):
    silent = replace(grid, references=tuple(replace(each, prompt="", caption="") for each in grid.references))
    assert set(judge.rate(silent)["strengths"]["0"]) == {"clip_i", "dino"}


def test_only_what_has_an_encoder_is_measured(folders, training, grid):
    assert load_judge(ValidationConfig(), training, CPU) is None
    judge = load_judge(ValidationConfig(dino_model=str(folders[0] / "dino")), training, CPU)
    assert set(judge.rate(grid)["strengths"]["0"]) == {"dino"}


@pytest.mark.parametrize("kind", ["dinov3", "whole_siglip"])
def test_other_evaluators_load(tmp_path, training, grid, kind):
    if kind == "dinov3":
        _write_dino(tmp_path, kind)
        config = ValidationConfig(dino_model=str(tmp_path))
    else:
        write_folder(kind, tmp_path)
        transformers.SiglipImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
        config = ValidationConfig(clip_model=str(tmp_path))
        _spm_free_tokenizer(tmp_path)
    judge = load_judge(config, training, CPU)
    silent = replace(grid, references=tuple(replace(each, prompt="", caption="") for each in grid.references))
    assert all(-1 <= value <= 1 for value in judge.rate(silent)["strengths"]["0"].values())


def _spm_free_tokenizer(folder):
    tokenizer = write_tokenizer(folder / "tokenizer")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<|endoftext|>"
    ).save_pretrained(folder)


def test_the_encoder_the_adapter_reads_may_not_judge_it(tmp_path, folders):
    folder, _ = folders
    copy = tmp_path / "copy under another name"
    vision = transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "clip")
    vision.half().save_pretrained(copy)
    training = PictureReader(load_image_encoder(EncoderConfig(model=str(copy)), "base", CPU))
    with pytest.raises(MismatchError, match=r"validation\.clip_model = .* is the encoder the adapter reads"):
        load_judge(ValidationConfig(clip_model=str(folder / "clip")), training, CPU)


def test_a_model_of_the_wrong_kind_is_named(folders, training):
    folder, _ = folders
    with pytest.raises(MismatchError, match="which is a Dinov2Model"):
        load_judge(ValidationConfig(clip_model=str(folder / "dino")), training, CPU)
    with pytest.raises(MismatchError, match="which is a CLIPModel"):
        load_judge(ValidationConfig(dino_model=str(folder / "clip")), training, CPU)


def test_a_folder_without_preprocessing_is_named(tmp_path, training):
    write_folder("dinov2", tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"validation\.dino_model: transformers cannot load"):
        load_judge(ValidationConfig(dino_model=str(tmp_path)), training, CPU)
