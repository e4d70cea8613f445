"""Names of tensors under wrappers, forms of the moving average, and refusals that name what is wrong."""

import argparse
import collections
import pathlib
import re

import numpy as np
import pytest
import torch

from diffusers_sde.conversion import convert
from tests.checkpoints import checkpoint_content, description

NAME = "ve_ncsnpp_continuous"
CONFIG = description(NAME)["config"]


def plain_content():
    content = checkpoint_content(NAME)
    content["model"] = {key.removeprefix("module."): value for key, value in content["model"].items()}
    return content


def weights(tmp_path, content, use_ema=True, **options):
    torch.save(content, tmp_path / "file", **options)
    return convert(tmp_path / "file", CONFIG, use_ema).pipeline.unet.state_dict()


def trained(content):
    return [name for name in content["model"] if name not in ("sigmas", "all_modules.0.W")]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    return {use_ema: weights(folder, plain_content(), use_ema) for use_ema in (True, False)}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("use_ema", [True, False])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "module.module.",
        "_orig_mod.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "module._orig_mod.module._orig_mod.module.",
    ],
)
def test_wrappers_in_any_order_and_number(tmp_path, expected, prefix, use_ema):
    content = plain_content()
    content["model"] = {prefix + key: value for key, value in content["model"].items()}
    assert_same(weights(tmp_path, content, use_ema), expected[use_ema])


def test_a_wrapper_around_a_part(tmp_path, expected):
    content = plain_content()
    content["model"] = {re.sub(r"(\.\d+)\.", r"\1._orig_mod.", key): value for key, value in content["model"].items()}
    assert_same(weights(tmp_path, content), expected[True])


@pytest.mark.parametrize(
    "form", ["list", "tuple", "names", "wrapped names", "list alone", "tuple alone", "names alone", "with decay"]
)
def test_forms_of_the_moving_average(tmp_path, expected, form):
    content = plain_content()
    values = content["ema"]["shadow_params"]
    named = dict(zip(trained(content), values, strict=True))
    averages = {
        "list": values,
        "tuple": tuple(values),
        "names": named | {"sigmas": content["model"]["sigmas"]},
        "wrapped names": collections.OrderedDict((f"module.{name}", value) for name, value in reversed(named.items())),
    }
    alone = {"list alone": values, "tuple alone": tuple(values), "names alone": named}
    alone["with decay"] = {"decay": 0.9} | named
    content["ema"] = alone[form] if form in alone else {"decay": 0.999, "shadow_params": averages[form]}
    assert_same(weights(tmp_path, content), expected[True])


def changed(content, **parts):
    return content | parts


PREFIXED = plain_content()
PREFIXED["model"] = {f"score_model.{key}": value for key, value in PREFIXED["model"].items()}
TWICE = plain_content()
TWICE["model"] |= {f"module.{key}": value for key, value in TWICE["model"].items()}
NUMBERS = plain_content()
NUMBERS["model"] = dict(enumerate(NUMBERS["model"].values()))
ESCAPES = plain_content()
ESCAPES["model"]["\x1b[31mred\n"] = torch.ones(1)
SHORT = plain_content()
SHORT["ema"]["shadow_params"] = SHORT["ema"]["shadow_params"][:-1]
SWAPPED = plain_content()
SWAPPED["ema"]["shadow_params"] = SWAPPED["ema"]["shadow_params"][::-1]
LACKING = plain_content()
LACKING["ema"] = dict(zip(trained(LACKING), LACKING["ema"]["shadow_params"], strict=True))
LACKING["ema"]["all_modules.99.bias"] = LACKING["ema"].pop("all_modules.1.bias")
COUNT = len(trained(SHORT))


@pytest.mark.parametrize(
    "content, message",
    [
        (PREFIXED, r"every name in the 'model' .* begins with 'score_model\.', such as 'score_model\.sigmas'"),
        (TWICE, "'sigmas' twice, with and without module, _orig_mod"),
        (NUMBERS, "a name of type int for a tensor"),
        (ESCAPES, r"the name '\\x1b\[31mred\\n' for a tensor"),
        (SHORT, f"has {COUNT - 1} tensors for {COUNT} trained parameters, of {COUNT + 2} tensors in 'model'"),
        (SWAPPED, r"tensor 0 of the moving average .* has shape .* for all_modules\.1\.weight"),
        (LACKING, r"lacks 1 trained parameters \(all_modules\.1\.bias\) and has 1 names .* \(all_modules\.99\.bias\)"),
        (changed(plain_content(), ema=None), "has no moving average of the weights"),
        (changed(plain_content(), ema={"decay": 0.9}), "has no moving average of the weights"),
        (changed(plain_content(), ema={"a": 0.9}), "the 'ema' .* has entries that are no dense tensors but a float"),
        (changed(plain_content(), step=float("inf")), "'step' .* is no number of steps, .* but inf"),
        (changed(plain_content(), step=float("nan")), "is no number of steps, .* but nan"),
        (changed(plain_content(), step=10**400), "is no number of steps, .* but an integer of more than 64 bits"),
        (changed(plain_content(), step=-1), "is no number of steps, .* but -1"),
        (changed(plain_content(), step=2.5), "is no number of steps, .* but 2.5"),
        (changed(plain_content(), step=torch.ones(3)), "is no number of steps, .* but a Tensor"),
        (changed(plain_content(), step=[[]]), "is no number of steps, .* but a list"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        weights(tmp_path, content)
    assert str(tmp_path / "file") in str(error.value)


@pytest.mark.parametrize("decay", [float("inf"), float("nan"), 1e300, -0.1, 10**400, "0.999", torch.ones(2)], ids=str)
def test_a_decay_that_is_none(tmp_path, decay):
    content = plain_content()
    content["ema"]["decay"] = decay
    with pytest.raises(ValueError, match=r"the decay of the moving average in .* no number from 0 to 1"):
        weights(tmp_path, content)


@pytest.mark.parametrize("step", [7, np.int64(7), torch.tensor(7), torch.tensor([7.0])], ids=str)
def test_numbers_in_other_boxes(tmp_path, step):
    content = changed(plain_content(), step=step)
    content["ema"]["decay"] = torch.tensor(0.5)
    torch.save(content, tmp_path / "file")
    conversion = convert(tmp_path / "file", CONFIG)
    assert (conversion.step, conversion.ema_decay) == (7, 0.5)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    "extra, name",
    [
        (argparse.Namespace(lr=1e-3), "argparse.Namespace"),
        (pathlib.PurePosixPath("a/b"), "pathlib.PurePosixPath"),
        (np.arange(3), "numpy.*_reconstruct"),
        (np.random.default_rng(0), "numpy.random"),
        ({"deep": [argparse.Namespace(path=pathlib.PurePosixPath("a"))]}, "argparse.Namespace, pathlib.PurePosixPath"),
    ],
    ids=["Namespace", "Path", "array", "generator", "both"],
)
def test_refused_objects_are_named(tmp_path, extra, name, new_format):
    """Neither PyTorch's advice to trust the file nor a look whether it is complete helps here."""
    content = changed(plain_content(), args=extra)
    with pytest.raises(ValueError, match=f"it holds .*{name}") as error:
        weights(tmp_path, content, _use_new_zipfile_serialization=new_format)
    text = str(error.value)
    assert "save its 'model', 'ema' and 'step' alone" in text
    assert "complete" not in text and "\x1b" not in text and "weights_only" not in text


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    "make, kind",
    [
        (lambda: torch.ones(3, device="meta"), "tensors on the meta device"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "tensors of float8"),
        (lambda: torch.ones(3).to(torch.uint16), "another new type"),
        (lambda: torch.ones(3, 3).to_sparse(), "sparse tensors"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized tensors"),
    ],
    ids=["meta", "float8", "uint16", "sparse", "quantized"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_kinds_of_tensors_that_are_no_weights(tmp_path, make, kind, new_format):
    content = changed(plain_content(), other=make())
    with pytest.raises(ValueError, match=f"{kind}.* Save the checkpoint again with dense tensors of float32"):
        weights(tmp_path, content, _use_new_zipfile_serialization=new_format)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int32, torch.int8], ids=str)
def test_types_of_numbers_that_are_no_weights(tmp_path, dtype):
    content = plain_content()
    content["ema"]["shadow_params"][3] = content["ema"]["shadow_params"][3].to(dtype)
    with pytest.raises(ValueError, match=rf"all_modules\.\d+\.\w+ of .* is of type {str(dtype)[6:]}; weights must be"):
        weights(tmp_path, content)
