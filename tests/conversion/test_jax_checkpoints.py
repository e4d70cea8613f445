"""Checkpoints of the official JAX code: outputs, every way in which flax writes a leaf, and what is left unread."""

import gzip

import msgpack
import numpy as np
import pytest
import torch

from diffusers_sde.conversion import convert
from diffusers_sde.conversion.jax import load_jax_checkpoint
from tests.checkpoints import arrays, checkpoint_bytes, description, relative_error

FIXTURES = [
    "ve_ncsnpp_residual",
    "vp_ddpmpp",
    "vp_ddpm_2level",
    "ve_ncsnpp_deep_sort",
    "y_residual_out_fir",
    "y_ncsnv2",
]
RAW = [name for name in FIXTURES if name not in ("vp_ddpm_2level", "ve_ncsnpp_deep_sort")]  # not recorded for these
CASES = [(name, True) for name in FIXTURES] + [(name, False) for name in RAW]


@pytest.mark.parametrize("name, use_ema", CASES)
@torch.no_grad()
def test_outputs(checkpoint, name, use_ema):
    """Relative error under 2e-5; any wrong transform shows as 0.015 and more."""
    recorded, config = arrays(f"jax_{name}"), description(f"jax_{name}")
    conversion = convert(checkpoint(f"jax_{name}"), config, use_ema)
    output = conversion.pipeline.unet(recorded["x"], recorded["labels"]).sample
    assert relative_error(output, recorded["out_ema" if use_ema else "out_raw"]) < 2e-5
    trained = name in ("ve_ncsnpp_residual", "vp_ddpmpp")
    assert (conversion.format, conversion.step) == ("jax", 2 if trained else 0)
    assert conversion.ema_decay == pytest.approx(config["model"]["ema_rate"])


@pytest.mark.parametrize("name", FIXTURES)
@torch.no_grad()
def test_score(checkpoint, name):
    recorded = arrays(f"jax_{name}")
    pipeline = convert(checkpoint(f"jax_{name}"), description(f"jax_{name}")).pipeline
    labels = pipeline.scheduler.model_timestep(recorded["t"])
    score = pipeline.scheduler.step_score(pipeline.unet(recorded["x"], labels).sample, recorded["x"], recorded["t"])
    assert relative_error(score, recorded["score_ema"]) < 2e-5


# ---------------------------------------------------------------------------------------------------------------------
# Ways to write the same thing
# ---------------------------------------------------------------------------------------------------------------------

NAME = "jax_y_residual_out_fir"


def array(a: np.ndarray, code=1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb([a.shape, a.dtype.name, a.tobytes()]))


def unpack(leaf: msgpack.ExtType) -> np.ndarray:
    shape, dtype, content = msgpack.unpackb(leaf.data)
    return np.frombuffer(content, dtype).reshape(shape)


def map_leaves(function, tree, path=""):
    if isinstance(tree, dict):
        return {key: map_leaves(function, value, f"{path}/{key}") for key, value in tree.items()}
    return function(path, tree)


def chunked(path, leaf):
    a = unpack(leaf)
    pieces = np.array_split(a.flatten(), 3)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(a.shape)},
        "chunks": {str(i): array(piece) for i, piece in enumerate(pieces)},
    }


def flat_norms(path, leaf):
    """(C,), as flax writes it from 0.3.6 on."""
    return array(unpack(leaf).reshape(-1)) if "/GroupNorm" in path else leaf


def reversed_order(tree):
    return {key: reversed_order(tree[key]) for key in reversed(tree)} if isinstance(tree, dict) else tree


def rewritten(tmp_path, change_state=None, change_leaf=None, compress=False):
    state = msgpack.unpackb(checkpoint_bytes(NAME))
    if change_leaf is not None:
        state["params_ema"] = map_leaves(change_leaf, state["params_ema"])
    if change_state is not None:
        state = change_state(state)
    content = msgpack.packb(state)
    path = tmp_path / "checkpoint_8"
    path.write_bytes(gzip.compress(content, 1) if compress else content)
    return path


def numpy_scalars(state):
    return state | {
        "step": array(np.array(400_005, np.int32)),
        "ema_rate": array(np.array(0.999, np.float32), code=3),
        "lr": array(np.array(2e-4, np.float32)),
    }


@pytest.mark.parametrize(
    "options",
    [
        {"change_leaf": chunked},
        {"change_leaf": flat_norms},
        {"change_leaf": lambda path, leaf: array(unpack(leaf).astype(np.float64))},
        {"change_state": reversed_order},
        {"change_state": numpy_scalars},
        {"change_state": lambda state: state | {"new": {"deep": [1, {"er": b"x" * 70000}]}}},
        {"compress": True},
    ],
    ids=["chunks", "flat norms", "float64", "other order", "numpy scalars", "unknown entries", "gzip"],
)
def test_same_weights_written_otherwise(checkpoint, tmp_path, options):
    path = rewritten(tmp_path, **options)
    config = description(NAME)
    expected = convert(checkpoint(NAME), config)
    found = convert(path, config)
    for key, tensor in expected.pipeline.unet.state_dict().items():
        assert torch.equal(found.pipeline.unet.state_dict()[key], tensor), key
    assert found.step == (400_005 if options.get("change_state") is numpy_scalars else 0)
    assert found.ema_decay == pytest.approx(0.999)


def test_bfloat16(tmp_path):
    """numpy has no such type; flax writes its name all the same."""

    def round_to_bfloat16(path, leaf):
        a = unpack(leaf)
        content = torch.from_numpy(a.copy()).bfloat16().view(torch.int16).numpy().tobytes()
        return msgpack.ExtType(1, msgpack.packb([a.shape, "bfloat16", content]))

    rounded = load_jax_checkpoint(rewritten(tmp_path, change_leaf=round_to_bfloat16)).state_dict
    exact = msgpack.unpackb(checkpoint_bytes(NAME))["params_ema"]
    for name, tensor in rounded.items():
        assert tensor.dtype == torch.bfloat16
        leaf = exact
        for part in name.split("/"):
            leaf = leaf[part]
        assert torch.equal(tensor, torch.from_numpy(unpack(leaf).copy()).bfloat16())
    network = convert(tmp_path / "checkpoint_8", description(NAME)).pipeline.unet
    assert network.dtype == torch.float32


@pytest.mark.parametrize("use_ema", [True, False])
def test_copies_that_are_not_needed_are_not_built(tmp_path, use_ema):
    """Of four copies of the parameters, one: what is no tensor at all in the others makes no difference."""
    broken = {"Conv_0": [1, 2, {"kernel": msgpack.ExtType(1, b"nothing")}]}

    def without_others(state):
        others = {"optimizer": broken, "lr": broken} if use_ema else {"params_ema": broken, "lr": broken}
        return state | others

    found = load_jax_checkpoint(rewritten(tmp_path, without_others), use_ema).state_dict
    exact = load_jax_checkpoint(rewritten(tmp_path), use_ema).state_dict
    assert found.keys() == exact.keys()
    assert all(torch.equal(found[name], exact[name]) for name in exact)


def test_training_state_that_lacks_the_weights(tmp_path):
    path = rewritten(tmp_path, lambda state: {k: v for k, v in state.items() if k != "params_ema"})
    with pytest.raises(ValueError, match="'step', 'optimizer', 'params_ema'"):
        convert(path, description(NAME))
    path = rewritten(tmp_path, lambda state: state | {"optimizer": {"state": {}}})
    with pytest.raises(ValueError, match=r"has no optimizer\.target"):
        convert(path, description(NAME), use_ema=False)
