"""NCSN: neither official code base builds it; the PyTorch one does with its slips mended, which was recorded."""

import pytest
import torch

from diffusers_sde.conversion import convert
from diffusers_sde.models import NCSNModel
from tests.checkpoints import arrays, description, relative_error, write_checkpoint

SMALL = {
    "sample_size": 8,
    "block_out_channels": (4, 8, 8, 8),
    "refine_out_channels": (4, 4, 8, 8),
    "num_train_timesteps": 5,
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(**options):
    model = NCSNModel(**{**SMALL, **options}).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(draw(*p.shape, seed=i) / (p[0].numel() ** 0.5 if p.ndim == 4 else 1))
    return model


@torch.no_grad()
@pytest.mark.parametrize("use_ema", [True, False])
def test_output_of_the_mended_official_network(tmp_path, use_ema):
    recorded = arrays("ncsn_repaired")
    pipeline = convert(write_checkpoint(tmp_path, "ncsn_repaired"), description("ncsn_repaired"), use_ema).pipeline
    assert type(pipeline.unet) is NCSNModel
    output = pipeline.unet(recorded["x"], recorded["labels"]).sample
    assert relative_error(output, recorded["output"]) < 2e-5


@pytest.mark.parametrize("channels", [1, 3])
def test_runs_and_trains(channels):
    """Every parameter has a part in the result, of the tables the rows of the labels that were seen."""
    model = network(in_channels=channels, out_channels=channels)
    x, labels = draw(2, channels, 6, 10), torch.tensor([1, 4])
    output = model(x, labels).sample
    (output * draw(*x.shape, seed=1)).sum().backward()
    for name, p in model.named_parameters():
        if "embedding" in name:
            seen = p.grad.abs().amax(dim=1) > 0
            assert seen.tolist() == [label in (1, 4) for label in range(5)], name
        else:
            assert p.grad.abs().max() > 0, name


@torch.no_grad()
def test_every_label_has_its_own_normalisation():
    model = network()
    x = draw(1, 3, 8, 8).expand(5, -1, -1, -1)
    outputs = model(x, torch.arange(5)).sample
    for label in range(5):
        torch.testing.assert_close(model(x[:1], label).sample, outputs[label : label + 1], rtol=1e-4, atol=1e-5)
        assert all((outputs[label] - outputs[other]).abs().max() > 0.01 for other in range(label))


def test_normalisations_stand_before_every_convolution_but_the_first():
    """As in the paper; in the fusion and in the pooling too."""
    model = network()
    tables = sum("embedding" in name for name, _ in model.named_parameters())
    convolutions = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d) and "shortcut" not in n]
    assert tables == len(convolutions) - 1
    assert model.down_blocks[1].resnets[0].norm1.embedding.weight.shape == (5, 3 * 4)


@torch.no_grad()
def test_new_tables():
    """gamma and alpha near 1, beta 0."""
    table = NCSNModel(**{**SMALL, "num_train_timesteps": 500}).norm_out.embedding.weight
    gamma, alpha, beta = table.chunk(3, dim=1)
    for part in (gamma, alpha):
        assert abs(part.mean() - 1) < 0.01 and 0.015 < part.std() < 0.025
    assert not beta.any()


@torch.no_grad()
def test_output_is_divided_by_sigma_if_asked():
    x, labels = draw(2, 3, 8, 8), torch.tensor([0, 4])
    plain, scaled = network(), network(scale_by_sigma=True, sigma_max=4.0, sigma_min=0.25)
    expected = plain(x, labels).sample / torch.tensor([4.0, 0.25])[:, None, None, None]
    torch.testing.assert_close(scaled(x, labels).sample, expected)


def test_gradient_checkpointing_changes_nothing():
    model = network()
    x = draw(2, 3, 8, 8)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(x, 3).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_save_and_load(tmp_path):
    model = network()
    model.save_pretrained(tmp_path)
    x = draw(2, 3, 8, 8)
    assert torch.equal(NCSNModel.from_pretrained(tmp_path)(x, 2).sample, model(x, 2).sample)
