"""Every task of the Space without a browser: the right pipeline with the right arguments, and what is refused."""

# ruff: noqa: E402  (what needs gradio is imported after the check that it is there)

import numpy as np
import pytest
import torch
from PIL import Image

gr = pytest.importorskip("gradio", reason="the Space needs gradio: pip install -e '.[demo]'")

from score_space.layout import EXAMPLES
from score_space.models import CIFAR, FASHION
from score_space.page import TABS, build
from score_space.runs import friendly
from score_space.tabs import class_conditional, colorize, edit, generate, inpaint, interpolate, likelihood, process

import diffusers_sde as package
from diffusers_sde.seeding import image_generators

SAMPLER = (10, "reverse_diffusion", "langevin", 0.16)
VP_SAMPLER = (10, "euler_maruyama", "none", 0.16)


def picture(name):
    return Image.open(EXAMPLES / f"{name}.png").convert("RGB")


def grey(name):
    return np.asarray(Image.open(EXAMPLES / f"{name}.png"))[None, ..., None].copy()


def result(handler, *inputs):
    """The last outputs of a handler, as Gradio gets them."""
    return list(friendly(handler)(*inputs))[-1]


def images(gallery):
    return np.stack([np.asarray(image) for image, _ in gallery])


def load(name, path=None, **components):
    pipeline = getattr(package, name).from_pretrained(path or package.embedded_model_path(), **components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def arrays(output):
    return np.stack([np.asarray(image) for image in output.images])


def test_generate_follows_its_settings():
    gallery, status = result(generate.handle, FASHION, generate.METHODS[0], 2, 5, 12, "euler_maruyama", "none", 0.1)
    pipeline = load("ScoreSdePipeline")
    scheduler = type(pipeline.scheduler)
    pipeline.scheduler = scheduler.from_config(
        pipeline.scheduler.config, predictor="euler_maruyama", corrector="none", snr=0.1
    )
    expected = pipeline(batch_size=2, num_inference_steps=12, generator=image_generators(5, range(2)))
    assert np.array_equal(images(gallery), arrays(expected))
    assert [caption for _, caption in gallery] == ["seed 5, image 0", "seed 5, image 1"]
    assert "Done: 12 network evaluations" in status


def test_generate_by_the_ode():
    gallery, _ = result(generate.handle, FASHION, generate.METHODS[1], 1, 7, *SAMPLER)
    expected = load("ScoreSdeOdePipeline")(generator=image_generators(7, [0]))
    assert np.array_equal(images(gallery), arrays(expected))


def test_inpaint_keeps_what_is_not_painted():
    mask = Image.new("L", (320, 320))
    mask.paste(255, (80, 80, 240, 240))
    gallery, _ = result(inpaint.handle, FASHION, (picture("large-boot"), mask), 2, 1, *SAMPLER)
    found, hidden = images(gallery), np.zeros((32, 32), bool)
    hidden[8:24, 8:24] = True
    assert np.array_equal(found[0][~hidden], grey("grey-boot")[0, ..., 0][~hidden])
    assert not np.array_equal(found[0][hidden], found[1][hidden])


def test_colorize_keeps_the_grey():
    gallery, _ = result(colorize.handle, CIFAR, picture("colour-1"), 2, 1, *VP_SAMPLER)
    given, *found = [np.asarray(image).astype(float) for image, _ in gallery]
    assert given.shape == (32, 32)
    for image in found:
        assert np.abs(image.mean(axis=-1) - given).max() < 1
        assert image.std(axis=-1).max() > 5


def test_class_conditional_draws_the_chosen_classes():
    inputs = (["Bag", "T-shirt"], 2, 3.0, 4, *SAMPLER)
    gallery, _ = result(class_conditional.handle, *inputs)
    classifier = package.NoiseConditionalClassifier.from_pretrained(package.embedded_classifier_path())
    pipeline = load("ScoreSdeClassConditionalPipeline", classifier=classifier)
    call = {"num_inference_steps": 10, "generator": image_generators(4, range(4))}
    assert np.array_equal(images(gallery), arrays(pipeline([8, 8, 0, 0], guidance_scale=3.0, **call)))
    assert [caption for _, caption in gallery] == ["Bag", "Bag", "T-shirt", "T-shirt"]


def test_edit_is_sdedit():
    gallery, status = result(edit.handle, FASHION, picture("sketch-bag"), 0.5, 2, 6, *SAMPLER)
    call = {"num_samples": 2, "num_inference_steps": 10, "generator": image_generators(6, range(2))}
    expected = load("ScoreSdeEditPipeline")(grey("sketch-bag"), 0.5, **call)
    assert np.array_equal(images(gallery), arrays(expected))
    assert "Done: 10 network evaluations" in status


def test_interpolation_ends_in_its_seeds_and_images():
    gallery, _ = result(interpolate.handle, FASHION, None, 3, picture("grey-boot"), 0, 3)
    found = images(gallery).astype(int)
    drawn = np.asarray(load("ScoreSdeOdePipeline")(generator=image_generators(3, [0])).images[0]).astype(int)
    assert np.abs(found[0] - drawn).max() <= 1
    assert np.abs(found[2] - grey("grey-boot")[0, ..., 0].astype(int)).mean() < 2
    assert [caption for _, caption in gallery] == ["0% of the way", "50% of the way", "100% of the way"]


def test_likelihood_is_that_of_the_pipeline(monkeypatch):
    monkeypatch.setattr(likelihood, "TIMES", [0.7, 0.4])
    figures, plot, _ = result(likelihood.handle, FASHION, picture("grey-dress"), 2, 8)
    output = load("ScoreSdeLikelihoodPipeline")(grey("grey-dress"), num_probes=2, generator=image_generators(8, [0]))
    assert f"{float(output.bits_per_dim):.4f} ± {float(output.bits_per_dim_standard_error):.4f} bits/dim" in figures
    t, density = plot[likelihood.TIME].to_numpy(), plot[likelihood.DENSITY].to_numpy()
    assert t.tolist() == [0, 0.4, 0.7, 1]
    assert density[0] == pytest.approx(float(output.log_likelihood) / 1024)
    assert density[1] > density[2] > density[3]  # noise spreads what the density holds together


def test_one_probe_tells_no_standard_error():
    found = dict.fromkeys(("bits_per_dim", "log_likelihood", "error", "nfe"), 1.0)
    nothing = {"standard_error": float("nan"), "bits_per_dim_standard_error": float("nan")}
    text = likelihood.summary({**found, **nothing, "success": False})
    assert "nan" not in text
    assert "one probe" in text
    assert "did not meet its tolerance" in text


def test_the_strip_ends_where_it_began(monkeypatch):
    """The reverse row starts from the noise in which the forward row ends, and no place is left empty."""
    rows = {}
    monkeypatch.setattr(process, "strip", lambda given, columns: rows.update(given) or Image.new("RGB", (1, 1)))
    states = []
    perturb = package.ScoreSdeVeScheduler().sde.__class__.perturb

    def watched(self, x_0, noise, t):
        states.append((float(t), perturb(self, x_0, noise, t)))
        return states[-1][1]

    monkeypatch.setattr("diffusers_sde.sde.base.SDE.perturb", watched)
    result(process.handle, FASHION, picture("grey-boot"), 2, *SAMPLER)
    forward, reverse, guesses = rows.values()
    assert all(len(row) == len(process.TIMES) and None not in row for row in (forward, reverse, guesses))
    at_the_end = [x for t, x in states if t == 1]
    assert len(at_the_end) == 2  # ours, and the pipeline's
    assert torch.equal(*at_the_end)
    assert reverse[-1] is forward[-1]
    assert np.abs(np.asarray(forward[0]).astype(int) - grey("grey-boot")[0, ..., 0]).max() < 10


MASK = (Image.new("RGB", (32, 32)), Image.new("L", (32, 32)))
REFUSED = {
    "no image": (edit.handle, (FASHION, None, 0.5, 1, 0, *SAMPLER), "An image is missing"),
    "no drawing": (inpaint.handle, (FASHION, None, 1, 0, *SAMPLER), "An image is missing"),
    "nothing painted": (inpaint.handle, (FASHION, MASK, 1, 0, *SAMPLER), "Nothing is painted"),
    "all painted": (
        inpaint.handle,
        (FASHION, (MASK[0], Image.new("L", (32, 32), 255)), 1, 0, *SAMPLER),
        "All of the image is painted over",
    ),
    "grey model": (colorize.handle, (FASHION, MASK[0], 1, 0, *SAMPLER), "colours need one of 3 channels"),
    "no class": (class_conditional.handle, ([], 1, 3, 0, *SAMPLER), "No class is chosen"),
    "strange class": (class_conditional.handle, (["Hat"], 1, 3, 0, *SAMPLER), "allowed are T-shirt"),
    "many": (class_conditional.handle, (list(class_conditional.LABELS), 4, 3, 0, *SAMPLER), "at most 20"),
    "method": (generate.handle, (FASHION, "x", 1, 0, *SAMPLER), "The method is"),
    "count": (generate.handle, (FASHION, generate.METHODS[0], 1000, 0, *SAMPLER), "from 1 to 16"),
    "seed": (generate.handle, (FASHION, generate.METHODS[0], 1, -1, *SAMPLER), "The seed is -1"),
    "steps": (generate.handle, (FASHION, generate.METHODS[0], 1, 0, 10**6, *SAMPLER[1:]), "from 10 to 1000"),
    "predictor": (generate.handle, (FASHION, generate.METHODS[0], 1, 0, 10, "x", "none", 0.1), "The predictor is"),
    "coarse": (generate.handle, (CIFAR, generate.METHODS[0], 1, 0, *SAMPLER), "more than 20 steps"),
    "model": (generate.handle, ("no-such/model", generate.METHODS[0], 1, 0, *SAMPLER), "cannot be loaded"),
    "probes": (likelihood.handle, (FASHION, MASK[0], 0, 0), "from 1 to 16"),
    "one image": (interpolate.handle, (FASHION, None, 0, None, 1, 1), "from 2 to 16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_a_reason(case):
    handler, inputs, reason = REFUSED[case]
    with pytest.raises(gr.Error) as caught:
        result(handler, *inputs)
    assert reason in caught.value.message


def test_the_page_has_a_limited_queue_and_remembers_nobody():
    page = build()
    assert page.max_threads >= 4
    assert page._queue.max_size == 32
    runs = [fn for fn in page.fns.values() if fn.concurrency_id == "runs"]
    assert len(runs) == len(TABS)
    assert {fn.concurrency_limit for fn in runs} == {4}
    assert not any(isinstance(block, gr.State) for block in page.blocks.values())
    assert not page.analytics_enabled
    cancelled = {index for fn in page.fns.values() for index in fn.cancels}
    assert len(cancelled) == len(TABS)
