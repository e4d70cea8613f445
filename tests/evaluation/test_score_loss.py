"""The loss of an exact network of Gaussian pixels on any image has a closed form.

For the score s = (alpha m - x) / V with V = alpha^2 s_0^2 + sigma^2, and x_t = alpha x_0 + sigma z, the residual is
sigma s + z = z (1 - sigma^2 / V) - sigma alpha (x_0 - m) / V, so that per dimension

    E |sigma s + z|^2 = (1 - sigma^2 / V)^2 + sigma^2 alpha^2 mean (x_0 - m)^2 / V^2,

which is averaged over the times of a level by quadrature.
"""

import json

import numpy as np
import pytest
import torch

from diffusers_sde import ScoreSdePipeline, ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from diffusers_sde.evaluation.score_loss import ScoreLossEvaluation
from tests.oracles import coefficients
from tests.tiny import GaussianNetwork

SCHEDULERS = {"ve": ScoreSdeVeScheduler, "vp": ScoreSdeVpScheduler, "sub_vp": ScoreSdeSubVpScheduler}
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(60, 256, (400, 1, 8, 8), dtype=np.uint8))
MEAN, STD = -0.6, 0.4  # far from the middle of either data range


def evaluation(folder, sde="vp", images=IMAGES[:12], network=None, **options):
    network = network or GaussianNetwork(sde, MEAN, STD, center_input_sample=sde == "ve")
    pipeline = ScoreSdePipeline(network, SCHEDULERS[sde]())
    folder.mkdir(exist_ok=True)
    settings = {"batch_size": 5, "num_levels": 4, **options}
    result = ScoreLossEvaluation(pipeline, images, folder / "loss.json", **settings)
    result.claim()
    return result


def closed_form(sde, low, high, centered):
    """Mean over the times of a level and over IMAGES."""
    data = IMAGES.double() / 255
    square = ((2 * data - 1 if centered else data) - MEAN).square().mean().item()
    values = []
    for t in low + (high - low) * (np.arange(4000) + 0.5) / 4000:
        alpha, sigma, _, _ = coefficients(sde, t)
        v = alpha**2 * STD**2 + sigma**2
        values.append((1 - sigma**2 / v) ** 2 + (sigma * alpha / v) ** 2 * square)
    return np.mean(values)


@pytest.mark.parametrize("sde", SCHEDULERS)
def test_the_loss_is_the_closed_form_at_every_level(tmp_path, sde):
    run = evaluation(tmp_path, sde, IMAGES, batch_size=100)
    result = run.run()
    expected = []
    for level in result["levels"]:
        expected.append(closed_form(run.scheduler.sde, *level["t"], centered=sde != "ve"))
        assert level["mean"] == pytest.approx(expected[-1], abs=5 * level["standard_error"])
        assert level["standard_error"] < 0.08 * expected[-1]
    assert result["loss"]["mean"] == pytest.approx(np.mean(expected), abs=5 * result["loss"]["standard_error"])
    assert result["levels"][0]["t"][0] == 1e-5 and result["levels"][-1]["t"][1] == 1.0
    assert result["levels"][1]["t"][0] == result["levels"][0]["t"][1] == pytest.approx(0.25, abs=1e-4)


def test_a_score_of_zero_has_the_loss_one(tmp_path):
    network = GaussianNetwork("vp", 0.0, 1e9, center_input_sample=False)
    result = evaluation(tmp_path, images=IMAGES, network=network, batch_size=100).run()
    assert result["loss"]["mean"] == pytest.approx(1, abs=5 * result["loss"]["standard_error"])
    # 4 x 64 squares of a normal number each: the standard error of their mean over 400 images
    assert result["loss"]["standard_error"] == pytest.approx((2 / 256 / 400) ** 0.5, rel=0.2)


def test_images_do_not_depend_on_batch_or_process(tmp_path):
    one = evaluation(tmp_path / "a", batch_size=12).run()
    first, second = (evaluation(tmp_path / "b", process_index=i, num_processes=2) for i in (0, 1))
    assert first.run() is None
    two = second.run()
    for a, b in zip(one["levels"], two["levels"], strict=True):
        assert b["mean"] == pytest.approx(a["mean"], rel=1e-5)
    assert one["loss"]["mean"] != evaluation(tmp_path / "c", seed=1).run()["loss"]["mean"]
    rows = first.rows()
    assert len({tuple(row["loss"]) for row in rows.values()}) == 12


@pytest.mark.parametrize("keep", [0, 3, 5, 7, 10, 11])
def test_a_torn_batch_is_measured_again_to_the_last_bit(tmp_path, keep):
    """Batches of 5: whatever a crash left, the batches are those of the run without one."""
    run = evaluation(tmp_path)
    whole = run.run()
    part = run.folder / "rows-0-of-1.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:keep]) + lines[keep][:9])
    (tmp_path / "loss.json").unlink()
    again, batches = evaluation(tmp_path), []
    again._measure, measure = lambda indices: batches.append(indices) or measure(indices), again._measure
    assert again.run() == whole
    assert batches == [list(range(12))[start : start + 5] for start in range(keep // 5 * 5, 12, 5)]
    assert json.loads((tmp_path / "loss.json").read_text()) == whole


def test_a_network_that_fails_is_counted(tmp_path):
    network = GaussianNetwork("vp", MEAN, STD, center_input_sample=False, nan_from=4)
    result = evaluation(tmp_path, network=network).run()
    assert result["num_not_finite"] == 7 and result["loss"]["mean"] is not None


def test_settings_and_bad_arguments(tmp_path):
    settings = evaluation(tmp_path, provenance={"data": "x"}).run()["settings"]
    assert settings["num_levels"] == 4 and settings["t_min"] == 1e-5 and settings["data"] == "x"
    with pytest.raises(ValueError, match=r"rows of other settings \(num_levels differ\)"):
        evaluation(tmp_path, provenance={"data": "x"}, num_levels=3)
    with pytest.raises(ValueError, match="num_levels is 0"):
        evaluation(tmp_path, num_levels=0)
