"""Weights of strangers: those of the network, or refused by name."""

import json
import os
import pickle
import zipfile

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_sde import NCSNppModel, ScoreSdePipeline, ScoreSdeVeScheduler
from tests.tiny import legacy_unet, tiny_network

NAME = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler()).save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit):
    path = folder / "unet" / NAME
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def cast(dtype):
    return lambda tensors: tensors.update({"conv_in.weight": tensors["conv_in.weight"].to(dtype)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("conv_in.weight"), "lacks conv_in.weight of the"),
        (lambda t: t.clear(), r"lacks conv_in.bias, conv_in.weight, .* and \d+ more"),
        (lambda t: t.update(other=torch.zeros(1)), "has other, of which this NCSNppModel knows nothing"),
        (cast(torch.bool), "conv_in.weight is of type bool; allowed are float16"),
        (cast(torch.complex64), "conv_in.weight is of type complex64"),
        (cast(torch.int32), "conv_in.weight is of type int32"),
        (lambda t: t["conv_in.weight"].view(-1)[:2].fill_(torch.nan), "conv_in.weight has 2 NaN or infinite values"),
        (lambda t: t["conv_in.weight"].view(-1)[:1].fill_(torch.inf), "conv_in.weight has 1 NaN or infinite values"),
        (lambda t: t.update({"conv_in.weight": torch.zeros(2, 2)}), r"conv_in.weight has shape \(2, 2\), in the netw"),
    ],
)
@pytest.mark.parametrize("loader", [ScoreSdePipeline, diffusers.DiffusionPipeline])
def test_weights_that_are_not_the_networks_are_refused_by_name(folder, loader, edit, message):
    """A missing key left tensors on meta; bool, complex and integer weights drew pictures; NaN came after drawing."""
    change(folder, edit)
    with pytest.raises(ValueError, match=message) as caught:
        loader.from_pretrained(folder)
    assert str(folder / "unet" / NAME) in str(caught.value)


def test_the_network_of_diffusers_has_the_same_checks(tmp_path):
    ScoreSdePipeline(legacy_unet(), ScoreSdeVeScheduler()).save_pretrained(tmp_path)
    change(tmp_path, lambda tensors: tensors.pop("conv_in.weight"))
    for loader in (ScoreSdePipeline, diffusers.DiffusionPipeline):
        with pytest.raises(ValueError, match=r"lacks conv_in\.weight"):
            loader.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_taken(folder, dtype):
    change(folder, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))
    assert NCSNppModel.from_pretrained(folder / "unet").dtype == torch.float32


def test_shards_are_checked_together(folder):
    network = tiny_network()
    network.save_pretrained(folder / "unet", max_shard_size="40KB")
    (folder / "unet" / NAME).unlink()
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    loaded = ScoreSdePipeline.from_pretrained(folder).unet
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))
    tensors = load_file(shards[1])
    name, tensor = next(iter(tensors.items()))
    save_file(tensors | {name: tensor * torch.nan}, shards[1])
    with pytest.raises(ValueError, match=f"{name} has .* NaN or infinite values"):
        ScoreSdePipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", ["../unet/x.safetensors", "/etc/passwd", "evil.bin", 7])
def test_an_index_of_shards_names_safetensors_beside_it(folder, name):
    index = folder / "unet" / f"{NAME}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}))
    with pytest.raises(ValueError, match=r"index\.json is no index of shards"):
        ScoreSdePipeline.from_pretrained(folder)


def test_our_networks_read_no_pickle(folder):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "canary"),)

    (folder / "unet" / NAME).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    for loader in (ScoreSdePipeline, diffusers.DiffusionPipeline):
        with pytest.raises(OSError, match=NAME):
            loader.from_pretrained(folder)
    assert not (folder / "canary").exists()


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path):
    """Older repositories of diffusers' network have pickled weights, which PyTorch reads from an archive."""
    ScoreSdePipeline(legacy_unet(), ScoreSdeVeScheduler()).save_pretrained(tmp_path)
    (tmp_path / "unet" / NAME).unlink()
    with zipfile.ZipFile(tmp_path / "unet" / "diffusion_pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    with pytest.raises(ValueError, match=r"model\.bin of \d+ bytes unpacks to 10000000"):
        ScoreSdePipeline.from_pretrained(tmp_path)
