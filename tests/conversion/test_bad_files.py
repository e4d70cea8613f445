"""Files that are no checkpoints, or damaged ones: a clear error, nothing executed, no crash, no hang, no memory."""

import io
import pickle
import random
import re
import resource
import struct
import time
import zipfile

import msgpack
import pytest
import torch

from diffusers_sde.configs import official_config
from diffusers_sde.conversion import convert, convert_classifier
from diffusers_sde.conversion.architectures import build_architecture
from diffusers_sde.conversion.convert import load_checkpoint
from tests.checkpoints import checkpoint_bytes, description

TORCH, JAX = "ve_ncsnpp_discrete", "jax_y_residual_out_fir"
CONFIG = description(TORCH)["config"]


def write(tmp_path, content: bytes):
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>", "is a web page"),
        (b"\xef\xbb\xbf\n  <html>", "is a web page"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "neither a PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "neither a PyTorch checkpoint"),
        (b"PK\x03\x04" + bytes(100), "cannot be read as a PyTorch checkpoint"),
        (b"\x80\x02}q\x00.", "cannot be read as a PyTorch checkpoint"),
        (b"\x1f\x8b" + bytes(100), "is damaged or no JAX checkpoint"),
        (b"\x87\xa4step", "ends in the middle of a value"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "ends in the middle of a value"),
        (b"\x81\xa1a\xc6\x7f\xff\xff\xff", "ends in the middle of a value"),
        (b"\x81\xa1a\xc1", "has no meaning there"),
        (b"\x81\x01\x02", "a name of type int"),
        (b"\x81\xa1a\x02", "holds \\['a'\\]"),
    ],
)
def test_no_checkpoint(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        convert(write(tmp_path, content), CONFIG)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="there is no file"):
            convert(path, CONFIG)


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("extra", [Malicious(), struct.Struct("i"), io.BytesIO()], ids=lambda e: type(e).__name__)
def test_pickles_that_want_more_than_tensors(tmp_path, monkeypatch, new_format, extra):
    monkeypatch.chdir(tmp_path)
    try:
        content = saved({"model": {}, "ema": extra}, _use_new_zipfile_serialization=new_format)
    except TypeError:  # cannot be pickled
        content = saved({"model": {}, "ema": torch.nn.Linear(1, 1)}, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match="cannot be read as a PyTorch checkpoint"):
        convert(write(tmp_path, content), CONFIG)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ValueError, match="cannot be read as a PyTorch checkpoint"):
        convert(write(tmp_path, pickle.dumps(extra) if isinstance(extra, Malicious) else b"\x80\x02N."), CONFIG)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "holds a list"),
        ({"state_dict": {}}, r"holds a dictionary of \['state_dict'\]"),
        ({"model": {"a": 3}}, "entries that are no dense tensors"),
        ({"model": {"a": torch.ones(2).to_sparse()}}, "holds sparse tensors"),
        ({"model": {"a": torch.ones(2)}}, "has no moving average"),
        ({"model": {"a": torch.ones(2)}, "ema": {"shadow_params": []}}, "has 0 tensors for 1 trained parameters"),
        (
            {"model": {"a": torch.ones(2)}, "ema": {"shadow_params": [torch.ones(3)]}},
            r"has shape \(3,\) for a, which has \(2,\)",
        ),
        ({"model": {"a": torch.ones(1)}, "ema": {"shadow_params": [torch.tensor([torch.inf])]}}, "NaN or infinite"),
        ({"model": {}, "ema": {"shadow_params": []}, "step": "many"}, "is no number of steps"),
    ],
)
def test_other_dictionaries(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        convert(write(tmp_path, saved(content)), CONFIG)


def test_tensors_larger_than_the_file(tmp_path):
    """A view of one number as many is not paid for by the file."""
    content = {"model": {"a": torch.ones(1).expand(10**9)}, "ema": {"shadow_params": [torch.ones(1)]}}
    with pytest.raises(ValueError):
        convert(write(tmp_path, saved(content)), CONFIG)


def test_compressed_archives_are_refused(tmp_path):
    path = tmp_path / "bomb"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(ValueError, match="not compressed"):
        convert(path, CONFIG)


# ---------------------------------------------------------------------------------------------------------------------
# The wrong configuration
# ---------------------------------------------------------------------------------------------------------------------


def test_wrong_configuration_lists_everything(checkpoint):
    config = description(TORCH)["config"]
    config["model"]["num_res_blocks"] += 1
    with pytest.raises(ValueError) as error:
        convert(checkpoint(TORCH), config)
    text = str(error.value)
    assert re.search(r"\d+ missing:\n  all_modules\.\d+\.", text)
    assert re.search(r"\d+ of another shape:\n  all_modules\.[^ ]+ \(\d+,.* for \w+_blocks\.", text)
    assert re.search(r"\.\.\. and \d+ more", text)
    assert "No official one has them." in text


def test_names_in_the_error_are_those_of_the_file(checkpoint):
    config = description(JAX)
    config["model"]["attn_resolutions"] = []
    official = load_checkpoint(checkpoint(JAX)).state_dict
    with pytest.raises(ValueError, match=r"\d+ left over:\n  AttnBlockpp_1/GroupNorm_0/bias"):
        build_architecture(config, "jax").convert(official)


def test_wrong_configuration_names_those_that_fit(tmp_path):
    """A full-size checkpoint of the smallest official network, all zeros."""
    architecture = build_architecture(official_config("ve/ncsnv2/cifar10"), "jax")
    tree: dict = {}
    sources = architecture.parameter_map
    shapes = {key: tensor.shape for key, tensor in architecture.network.state_dict().items()}
    for ours, source in sources.items():
        shape = list(shapes[ours])
        if len(shape) == 4:
            shape = [shape[2], shape[3], shape[1], shape[0]]
        *path, leaf = source.names[0].split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        size = 4 * int(torch.tensor(shape).prod())
        node[leaf] = msgpack.ExtType(1, msgpack.packb([shape, "float32", bytes(size)]))
    path = write(tmp_path, msgpack.packb({"step": 1, "optimizer": {}, "params_ema": tree}))
    assert convert(path, "ve/ncsnv2/celeba").num_parameters == sum(shape.numel() for shape in shapes.values())
    with pytest.raises(ValueError, match=r"have such a network: ve/ncsnv2/celeba, ve/ncsnv2/cifar10\."):
        convert(path, "ve/cifar10_ncsnpp")


def test_classifier_and_training_state_are_not_mixed_up(checkpoint):
    with pytest.raises(ValueError, match="convert_classifier"):
        convert(checkpoint("jax_classifier"), CONFIG)
    with pytest.raises(ValueError, match="is a training state"):
        convert_classifier(checkpoint(JAX))


# ---------------------------------------------------------------------------------------------------------------------
# Mutated files
# ---------------------------------------------------------------------------------------------------------------------


def mutate(content: bytes, draw: random.Random, head: int) -> bytes:
    """One to three random changes, half of them among the first `head` bytes."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(min(head, len(data)) if draw.random() < 0.5 else len(data))
        kind = draw.choice(["flip", "byte", "ones", "cut", "repeat", "truncate", "insert"])
        if kind == "flip":
            data[place] ^= 1 << draw.randrange(8)
        elif kind == "byte":
            data[place] = draw.randrange(256)
        elif kind == "ones":
            data[place : place + 4] = b"\xff" * 4
        elif kind == "cut":
            del data[place : place + draw.randint(1, 100)]
        elif kind == "repeat":
            data[place:place] = data[place : place + draw.randint(1, 100)]
        elif kind == "insert":
            data[place:place] = draw.randbytes(draw.randint(1, 8))
        elif draw.random() < 0.3 and place:
            del data[place:]
    return bytes(data)


def outcomes(path, contents, load):
    """How many contents load and how many are refused with a `ValueError`; everything else comes up."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    counts = {"loaded": 0, "refused": 0}
    for content in contents:
        path.write_bytes(content)
        try:
            load(path)
            counts["loaded"] += 1
        except ValueError as error:
            assert str(error)
            counts["refused"] += 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert time.monotonic() - start < 120
    return counts


def test_mutated_jax_files(tmp_path):
    draw, content = random.Random(0), checkpoint_bytes(JAX)
    # Changes that hit the weights cannot be seen.
    mutants = (mutate(content, draw, 2000) for _ in range(150))
    counts = outcomes(tmp_path / "file", mutants, load_checkpoint)
    assert counts["refused"] > 50
    ends = (content[: draw.randrange(len(content) * 3 // 4)] for _ in range(40))
    assert outcomes(tmp_path / "file", ends, load_checkpoint)["loaded"] == 0


def test_mutated_pytorch_files(tmp_path):
    """Every byte of the archive is under a check sum."""
    draw, content = random.Random(1), checkpoint_bytes(TORCH)
    mutants = [mutate(content, draw, 2000) for _ in range(60)]
    mutants += [content[: draw.randrange(len(content))] for _ in range(20)]
    counts = outcomes(tmp_path / "file", mutants, load_checkpoint)
    assert counts["refused"] > 60


def test_mutated_pickles(tmp_path):
    """The description of the tensors changed, under a right check sum."""
    draw = random.Random(2)
    content = saved({"model": {"a": torch.ones(40), "b": torch.ones(3, 3)}, "ema": {"shadow_params": []}, "step": 1})
    archive = zipfile.ZipFile(io.BytesIO(content))
    mutants = []
    for _ in range(150):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as new:
            for member in archive.infolist():
                data = archive.read(member)
                new.writestr(member.filename, mutate(data, draw, 600) if member.filename.endswith(".pkl") else data)
        mutants.append(buffer.getvalue())
    outcomes(tmp_path / "file", mutants, lambda path: load_checkpoint(path, use_ema=False))


def test_mutated_files_of_the_old_format(tmp_path):
    draw = random.Random(3)
    content = saved(
        {"model": {"a": torch.ones(40), "b": torch.ones(3, 3)}, "ema": {"shadow_params": []}, "step": 1},
        _use_new_zipfile_serialization=False,
    )
    mutants = (mutate(content, draw, len(content)) for _ in range(150))
    outcomes(tmp_path / "file", mutants, lambda path: load_checkpoint(path, use_ema=False))


def test_mutated_classifiers(tmp_path):
    draw = random.Random(4)
    tree = {
        "GaussianFourierProjection_0": {"W": [[4], "float32", bytes(16)]},
        "init_conv": {"kernel": [[3, 3, 3, 16], "float32", bytes(1728)]},
        "Dense_2": {"kernel": [[64, 10], "float32", bytes(2560)]},
    }
    pack = {k: {n: msgpack.ExtType(1, msgpack.packb(leaf)) for n, leaf in v.items()} for k, v in tree.items()}
    content = msgpack.packb(pack)
    mutants = (mutate(content, draw, len(content)) for _ in range(100))
    assert outcomes(tmp_path / "file", mutants, convert_classifier)["loaded"] == 0
