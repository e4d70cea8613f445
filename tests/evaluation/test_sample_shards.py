"""Sets of samples: each image a function of (seed, index), whoever draws it, however often the run is killed."""

import json
import signal
import subprocess
import sys

import pytest
import torch

from diffusers_sde import ScoreSdeOdePipeline, ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde.evaluation.sample_shards import (
    OdeSampler,
    PredictorCorrectorSampler,
    SampleShards,
    ShardImages,
    eight_bit,
    open_shards,
)
from diffusers_sde.evaluation.shards import ShardFolder
from diffusers_sde.seeding import image_generators
from tests.tiny import GaussianNetwork, tiny_network


def pipeline(pipeline_class=ScoreSdePipeline, **options):
    return pipeline_class(tiny_network(in_channels=1, out_channels=1), ScoreSdeVeScheduler(sigma_max=2.0, **options))


def samples(folder, sampler=None, **options):
    sampler = sampler or PredictorCorrectorSampler(pipeline(), steps=3)
    result = SampleShards(sampler, folder, **{"num_samples": 10, "batch_size": 2, "shard_size": 4, **options})
    result.shards.claim()
    return result


def images(drawn):
    return drawn.shards.load("images")["images"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The set that was drawn without an interruption."""
    drawn = samples(tmp_path_factory.mktemp("whole"))
    drawn.draw()
    return drawn


def test_images_are_those_of_the_pipeline_one_by_one(whole):
    result = images(whole)
    assert result.shape == (10, 1, 8, 8) and result.dtype == torch.uint8
    pipe = pipeline()
    for i in (0, 3, 9):
        (alone,) = pipe(num_inference_steps=3, generator=image_generators(0, [i]), output_type="pt").images
        assert (255 * alone - result[i].float()).abs().max() < 0.51  # half a level, and rounding of another batch
    assert len({tuple(image.flatten().tolist()) for image in result}) == 10
    assert torch.equal(
        eight_bit(torch.tensor([0.0, 0.5 / 255 + 1e-4, 0.5, 1.0])), torch.tensor([0, 1, 128, 255]).byte()
    )


def test_the_batch_changes_nothing_beyond_rounding(whole, tmp_path):
    other = samples(tmp_path, batch_size=3)
    other.draw()
    assert (images(other).int() - images(whole).int()).abs().max() <= 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_draw_the_same_bits(whole, tmp_path, order):
    for place, index in enumerate(order):
        part = samples(tmp_path)
        part.draw(index, 3)
        assert (part.shards.load("images") is None) == (place < 2)
    assert torch.equal(images(part), images(whole))
    manifests = [json.loads((d.shards.folder / "manifest.json").read_text()) for d in (part, whole)]
    assert manifests[0] == manifests[1]
    assert [entry["items"] for entry in manifests[0]["shards"]] == [4, 4, 2]


class Interrupted(PredictorCorrectorSampler):
    """Fails at a call; counts them."""

    def __init__(self, fail_at):
        super().__init__(pipeline(), steps=3)
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, generators):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        return super().__call__(generators)


def test_a_run_goes_on_after_a_failure_in_the_middle_of_a_shard(whole, tmp_path):
    broken = samples(tmp_path, Interrupted(4))  # a shard has two batches: shard 1 is half drawn
    with pytest.raises(KeyboardInterrupt):
        broken.draw()
    assert [broken.shards.read(k) is not None for k in range(3)] == [True, False, False]
    resumed = samples(tmp_path, Interrupted(None))
    resumed.draw()
    assert resumed.sampler.calls == 3
    assert torch.equal(images(resumed), images(whole))
    progress = []
    resumed.draw(on_progress=progress.append)
    assert resumed.sampler.calls == 3 and sum(progress) == 10


def test_a_run_goes_on_after_a_kill(whole, tmp_path):
    model, folder = str(tmp_path / "model"), str(tmp_path / "samples")
    pipeline().save_pretrained(model)
    script = f"""
import os, signal
from diffusers_sde import ScoreSdePipeline
from diffusers_sde.evaluation.sample_shards import PredictorCorrectorSampler, SampleShards
class Killed(PredictorCorrectorSampler):
    calls = 0
    def __call__(self, generators):
        self.calls += 1
        if self.calls == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(generators)
sampler = Killed(ScoreSdePipeline.from_pretrained({model!r}), steps=3)
drawn = SampleShards(sampler, {folder!r}, num_samples=10, batch_size=2, shard_size=4)
drawn.shards.claim()
drawn.draw()
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = samples(folder)
    assert [resumed.shards.read(k) is not None for k in range(3)] == [True, False, False]
    resumed.draw()
    assert torch.equal(images(resumed), images(whole))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: path.write_bytes(path.read_bytes()[:-50]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["bit", "cut", "empty", "gone"],
)
def test_a_damaged_shard_is_drawn_again(whole, tmp_path, damage):
    samples(tmp_path).draw()
    again = samples(tmp_path, Interrupted(None))
    damage(again.shards.path(1))
    assert again.shards.load("images") is None
    with pytest.raises(ValueError, match=r"shard-00001\.safetensors is missing or damaged"):
        ShardImages(again.shards)[5]
    again.draw()
    assert again.sampler.calls == 2
    assert torch.equal(images(again), images(whole))


def test_more_images_can_be_asked_for_later(whole, tmp_path):
    few = samples(tmp_path, num_samples=5)
    few.draw()
    assert len(images(few)) == 5
    assert len(open_shards(tmp_path).load("images")["images"]) == 5
    many = samples(tmp_path, Interrupted(None))
    many.draw()
    assert many.sampler.calls == 3  # shard 1 had one image of four
    assert torch.equal(images(many), images(whole))
    fewer = samples(tmp_path, Interrupted(1), num_samples=7)
    fewer.draw()
    assert torch.equal(images(fewer), images(whole)[:7])


@pytest.mark.parametrize(
    "options, differing",
    [
        ({"seed": 1}, "seed"),
        ({"shard_size": 5}, "shard_size"),
        ({"sampler": PredictorCorrectorSampler(pipeline(), 4)}, "sampler"),
        ({"provenance": {"model": "other"}}, "model"),
        ({"sampler": PredictorCorrectorSampler(pipeline(snr=0.2), 3)}, "sampler, scheduler_config"),
        ({"sampler": OdeSampler(pipeline(ScoreSdeOdePipeline))}, "sampler"),
    ],
)
def test_shards_of_other_settings_are_kept(whole, options, differing):
    with pytest.raises(ValueError, match=rf"holds shards of other settings \({differing} differ\).*--overwrite"):
        samples(whole.shards.folder, **options)
    assert images(whole) is not None


def test_settings_tell_where_the_images_come_from(whole):
    settings = whole.shards.settings
    assert settings["sampler"] == {
        "name": "pc",
        "steps": 3,
        "predictor": "reverse_diffusion",
        "corrector": "langevin",
        "snr": 0.15,
        "correct_steps": 1,
        "probability_flow": False,
        "denoise": True,
    }
    assert len(settings["weights_sha256"]) == 64 and settings["dtype"] == "float32"
    assert {"diffusers_sde", "torch", "diffusers"} <= set(settings["versions"])
    assert settings["scheduler_config"]["sigma_max"] == 2.0 and settings["seed"] == 0


def test_overwriting_removes_all_shards(tmp_path):
    first = samples(tmp_path)
    first.draw()
    assert len(images(first)) == 10 and (tmp_path / "manifest.json").is_file()
    other = SampleShards(PredictorCorrectorSampler(pipeline(), 3), tmp_path, num_samples=10, seed=1, shard_size=4)
    with pytest.raises(ValueError, match="--overwrite works in one process alone"):
        other.shards.claim(overwrite=True, num_processes=2)
    other.shards.claim(overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_network_evaluations_are_counted(tmp_path):
    drawn = {}
    for corrector, expected in (("langevin", 6), ("none", 3)):
        drawn[corrector] = samples(tmp_path / corrector, PredictorCorrectorSampler(pipeline(corrector=corrector), 3))
        drawn[corrector].draw()
        assert drawn[corrector].shards.load("nfe")["nfe"].tolist() == 10 * [expected]
    ode = pipeline(ScoreSdeOdePipeline)
    flow = samples(tmp_path / "ode", OdeSampler(ode, denoise=True), num_samples=3)
    flow.draw()
    expected = ode(batch_size=3, generator=image_generators(0, range(3)), denoise=True, output_type="pt")
    found = flow.shards.load("images", "nfe", "success")
    assert found["nfe"].tolist() == expected.nfe.tolist() and bool(found["success"].all())
    assert (255 * expected.images - found["images"].float()).abs().max() < 0.6


def test_a_corrector_of_batch_norms_ties_images_to_their_batch(tmp_path):
    coupled = PredictorCorrectorSampler(pipeline(corrector_norm="batch"), 3)
    samples(tmp_path, coupled).draw()
    with pytest.raises(ValueError, match="batch_size differ"):
        samples(tmp_path, coupled, batch_size=4)
    free = PredictorCorrectorSampler(pipeline(corrector_norm="batch", corrector="none"), 3)
    assert "batch_size" not in samples(tmp_path / "b", free).shards.settings


def test_samples_have_the_moments_of_the_data(tmp_path):
    """An exact network of N(0.5, 0.1^2) pixels: the mean of 64 000 and their deviation, in levels of 8 bits."""
    exact = ScoreSdePipeline(GaussianNetwork("ve", 0.5, 0.1), ScoreSdeVeScheduler(sigma_max=2.0))
    drawn = samples(tmp_path, PredictorCorrectorSampler(exact, 100), num_samples=100, shard_size=50, batch_size=50)
    drawn.draw()
    pixels = images(drawn).double() / 255
    assert pixels.mean().item() == pytest.approx(0.5, abs=5 * 0.1 / 6400**0.5)
    assert pixels.std().item() == pytest.approx(0.1, rel=0.08)  # discretisation, and 5 standard errors of 0.9 %


def test_impossible_sets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 items in shards of 4"):
        ShardFolder(tmp_path, {}, 0, 4)
    with pytest.raises(ValueError, match="process 2 of 2"):
        ShardFolder(tmp_path, {}, 4, 4).share(2, 2)
    with pytest.raises(ValueError, match="not all drawn"):
        open_shards(tmp_path)
