"""Activations and normalisations by name: values, small feature maps, half precision, gradients, refusals."""

import pytest
import torch

from diffusers_sde.models import DDPMModel
from diffusers_sde.models.activations import activation
from diffusers_sde.models.normalization import NORM_TYPES, normalization


@pytest.mark.parametrize(
    "name, below, above",
    [("elu", -0.6321206, 2.0), ("relu", 0.0, 2.0), ("lrelu", -0.2, 2.0), ("silu", -0.2689414, 1.7615942)],
)
def test_activations(name, below, above):
    values = activation(name)(torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(values, torch.tensor([below, above]))


def test_names_of_diffusers_work_and_others_are_refused():
    assert float(activation("gelu")(torch.tensor(1.0))) == pytest.approx(0.8413447)
    for name in ("sine", "", None):
        with pytest.raises(ValueError, match=r"`act_fn` is .*; allowed are 'elu', 'relu', 'silu', 'lrelu'"):
            activation(name)
    with pytest.raises(ValueError, match="`norm_type` is 'batch'; allowed are 'group', 'instance'"):
        normalization("batch", 8, 4)


@pytest.mark.parametrize("name", NORM_TYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_has_the_statistics_of_float32(name, dtype):
    """Squares of 300 do not fit in float16."""
    norm = normalization(name, 8, 4)
    x = (300 * torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = norm(x.float())
    found = norm.to(dtype)(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", NORM_TYPES)
def test_feature_maps_of_one_pixel(name):
    """As in the official code, and unlike in `nn.InstanceNorm2d`."""
    norm = normalization(name, 8, 4).train()
    x = torch.ones(2, 8, 1, 1)
    assert norm(x, torch.zeros(2, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("act_fn", ["elu", "lrelu"])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_ddpm_with_all_of_them_trains_and_saves(tmp_path, norm_type, act_fn):
    config = {"sample_size": 8, "block_out_channels": (8, 8), "attn_resolutions": (8,), "layers_per_block": 1}
    model = DDPMModel(**config, norm_num_groups=4, norm_type=norm_type, act_fn=act_fn)
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 500])
    model.train()(x, t).sample.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    again = DDPMModel.from_pretrained(tmp_path)
    assert again.config.norm_type == norm_type and again.config.act_fn == act_fn
    assert torch.equal(again(x, t).sample, model(x, t).sample)
    assert type(again.time_embedding.act) is type(again.act)
