"""Calls that users of diffusers make: stopping, callbacks, several runs at once, networks and numbers of all kinds."""

import logging
import threading

import numpy as np
import pytest
import torch
from diffusers import (
    AutoModel,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from PIL import Image

from diffusers_sde import (
    NoiseConditionalClassifier,
    ScoreSdeClassConditionalPipeline,
    ScoreSdeColorizationPipeline,
    ScoreSdeEditPipeline,
    ScoreSdeInpaintPipeline,
    ScoreSdeInverseProblemPipeline,
    ScoreSdeLikelihoodPipeline,
    ScoreSdeOdePipeline,
    ScoreSdePipeline,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
    embedded_classifier_path,
    embedded_colour_model_path,
    embedded_model_path,
)
from diffusers_sde.sde.operators import BlockAverage
from tests.tiny import ChainNetwork, GaussianNetwork, tiny_network

STEPS = 8
IMAGE = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
MASK = torch.zeros(8, 8)
MASK[:, 4:] = 1
PIPELINES = (ScoreSdePipeline, ScoreSdeInpaintPipeline, ScoreSdeEditPipeline, ScoreSdeInverseProblemPipeline)
ALL_PIPELINES = (*PIPELINES, ScoreSdeColorizationPipeline, ScoreSdeOdePipeline, ScoreSdeLikelihoodPipeline)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(channels=1, **options):
    return GaussianNetwork(in_channels=channels, out_channels=channels, **options)


def classifier():
    """The same one at every call: pipelines that are compared have equal ones."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return NoiseConditionalClassifier(
            sample_size=8,
            in_channels=1,
            blocks_per_group=1,
            channel_multiplier=1,
            embedding_features=8,
            image_mean=(0.5,),
            image_std=(0.3,),
        ).eval()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build(cls, net, scheduler):
    return quiet(cls(net, scheduler, classifier()) if cls is ScoreSdeClassConditionalPipeline else cls(net, scheduler))


ARGUMENTS = {
    ScoreSdePipeline: ((), {}),
    ScoreSdeInpaintPipeline: ((IMAGE, MASK), {}),
    ScoreSdeEditPipeline: ((IMAGE,), {"strength": 1.0}),
    ScoreSdeInverseProblemPipeline: ((IMAGE[..., ::2, ::2], BlockAverage(2)), {}),
    ScoreSdeColorizationPipeline: ((IMAGE,), {}),
    ScoreSdeClassConditionalPipeline: (([3],), {}),
}
LOOPS = {
    "predictor_corrector": (ScoreSdePipeline, lambda: ScoreSdeVeScheduler(sigma_max=20.0)),
    "plain": (ScoreSdePipeline, DDIMScheduler),
    "inpaint": (ScoreSdeInpaintPipeline, ScoreSdeVeScheduler),
    "edit": (ScoreSdeEditPipeline, ScoreSdeVeScheduler),
    "inverse": (ScoreSdeInverseProblemPipeline, ScoreSdeVeScheduler),
    "colorize": (ScoreSdeColorizationPipeline, ScoreSdeVeScheduler),
    "class_conditional": (ScoreSdeClassConditionalPipeline, ScoreSdeVeScheduler),
}


def make(loop):
    cls, scheduler = LOOPS[loop]
    net = ChainNetwork() if loop == "plain" else network(3 if loop == "colorize" else 1)
    return build(cls, net, scheduler())


def draw(pipe, steps=STEPS, seed=0, **options):
    positional, keywords = ARGUMENTS[type(pipe)]
    call = {"num_inference_steps": steps, "generator": seeded(seed), "output_type": "latent"}
    return pipe(*positional, **{**call, **keywords, **options}).images


# ---------------------------------------------------------------------------------------------------------------------
# Stopping and callbacks (F5)
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["callback's", "user's"])
@pytest.mark.parametrize("loop", LOOPS)
def test_interrupt_ends_the_run_after_the_step_and_the_next_is_whole(loop, whose):
    pipe, calls = make(loop), []
    states = []
    whole = draw(pipe, callback_on_step_end=lambda p, i, t, kw: states.append(kw["latents"]))

    def stop(p, i, t, kw):
        calls.append(i)
        if i == 2:
            (p if whose == "callback's" else pipe)._interrupt = True
        assert p.interrupt == (i == 2)
        return kw

    assert torch.equal(draw(pipe, callback_on_step_end=stop), states[2])
    assert calls == [0, 1, 2]
    assert pipe.interrupt  # how the last call ended
    assert torch.equal(draw(pipe), whole)
    assert not pipe.interrupt


@pytest.mark.parametrize("loop", LOOPS)
def test_nan_is_found_in_a_run_that_is_stopped(loop):
    def spoil(p, i, t, kw):
        p._interrupt = True
        return {"latents": kw["latents"] * torch.nan}

    with pytest.raises(ValueError, match="NaN or infinite at step 0"):
        draw(make(loop), callback_on_step_end=spoil)


def test_interrupt_before_a_call_does_not_stop_it():
    pipe, calls = make("edit"), []
    pipe._interrupt = True
    draw(pipe, callback_on_step_end=lambda *args: calls.append(args[1]))
    assert len(calls) == STEPS


def test_interrupt_ends_the_langevin_steps_of_code():
    pipe = make("edit")
    options = {"num_langevin_steps": 30, "output_type": "latent", "rtol": 1e-2}
    full = pipe.code(IMAGE, generator=seeded(), **options)
    evaluations, inner = [], pipe.unet.forward

    def forward(*args, **kwargs):
        evaluations.append(1)
        if len(evaluations) == int(full.nfe[0] - 30) // 2 + 5:
            pipe._interrupt = True
        return inner(*args, **kwargs)

    pipe.unet.forward = forward
    stopped = pipe.code(IMAGE, generator=seeded(), **options)
    assert int(stopped.nfe[0]) < int(full.nfe[0]) - 10
    assert len(evaluations) >= int(stopped.nfe[0])


class Recorder(PipelineCallback):
    def __init__(self, tensor_inputs):
        super().__init__()
        self.asked, self.seen = tensor_inputs, []

    tensor_inputs = property(lambda self: self.asked)

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        self.seen.append(sorted(callback_kwargs))
        return callback_kwargs


@pytest.mark.parametrize("loop", LOOPS)
def test_tensor_inputs_of_callback_objects_are_read(loop):
    pipe = make(loop)
    for names in (["latents"], []):
        recorder = Recorder(names)
        draw(pipe, callback_on_step_end=recorder)
        assert recorder.seen == [names] * STEPS
        recorder = Recorder(names)
        draw(pipe, callback_on_step_end=MultiPipelineCallbacks([recorder]))
        assert recorder.seen == [names] * STEPS
    for callback in (Recorder(["noise_pred"]), MultiPipelineCallbacks([Recorder(["noise_pred"])])):
        with pytest.raises(ValueError, match=r"`tensor_inputs` of .* has \['noise_pred'\]; allowed are \['latents'\]"):
            draw(pipe, callback_on_step_end=callback)


@pytest.mark.parametrize(
    "returned, message",
    [
        ({"latents": torch.zeros(1, 1, 4, 8)}, r"shape \(1, 1, 4, 8\)"),
        ({"latents": torch.zeros(2, 1, 8, 8)}, r"shape \(2, 1, 8, 8\)"),
        ({"latents": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}, "torch.int64"),
        ({"latents": [0.0]}, "list"),
        (torch.zeros(1, 1, 8, 8), "returned a Tensor"),
    ],
)
@pytest.mark.parametrize("loop", ["predictor_corrector", "plain", "inpaint", "edit", "inverse", "class_conditional"])
def test_states_of_a_callback_that_are_refused(loop, returned, message):
    with pytest.raises(ValueError, match=message):
        draw(make(loop), callback_on_step_end=lambda *args: returned)


@pytest.mark.parametrize("loop", LOOPS)
def test_half_precision_from_a_callback_stays_in_the_callback(loop):
    seen = []

    def half(p, i, t, kw):
        seen.append(kw["latents"].dtype)
        return {"latents": kw["latents"].half()}

    assert draw(make(loop), callback_on_step_end=half).dtype is torch.float32
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("options", [{"callback_on_step_end": 3}, {"callback_on_step_end_tensor_inputs": "latents"}])
def test_callbacks_that_cannot_be_called(options):
    with pytest.raises(ValueError, match="callback_on_step_end"):
        draw(make("plain"), **options)


@pytest.mark.parametrize("cls", ALL_PIPELINES)
def test_number_of_steps_before_the_first_call(cls):
    assert build(cls, network(3), ScoreSdeVeScheduler()).num_timesteps == 0


# ---------------------------------------------------------------------------------------------------------------------
# Several runs at once (F7)
# ---------------------------------------------------------------------------------------------------------------------


def run_in_step(pipes, counts):
    """Run the pipelines in threads whose first steps are made in turn, so that they meet on any machine."""
    barrier, results = threading.Barrier(len(pipes), timeout=60), [None] * len(pipes)

    def work(k):
        def meet(p, i, t, kw):
            if i < min(counts):
                barrier.wait()
            return kw

        try:
            results[k] = draw(pipes[k], counts[k], seed=k, callback_on_step_end=meet)
        except BaseException as error:
            barrier.abort()
            results[k] = error

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(pipes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("counts", [(4, 4), (3, 9)])
@pytest.mark.parametrize("loop", LOOPS)
def test_two_threads_on_one_pipeline_draw_what_each_draws_alone(loop, counts):
    pipe = make(loop)
    alone = [draw(pipe, count, seed=k) for k, count in enumerate(counts)]
    for together, expected in zip(run_in_step([pipe, pipe], counts), alone, strict=True):
        assert torch.equal(together, expected)


@pytest.mark.parametrize("solver", [DPMSolverMultistepScheduler, DDIMScheduler])
def test_two_threads_with_a_solver_that_keeps_a_history(solver):
    pipe = quiet(ScoreSdePipeline(ChainNetwork(), solver()))
    alone = [draw(pipe, count, seed=k) for k, count in enumerate((5, 11))]
    for together, expected in zip(run_in_step([pipe, pipe], (5, 11)), alone, strict=True):
        assert torch.equal(together, expected)


def test_pipelines_that_share_a_scheduler_draw_what_each_draws_alone():
    first = make("predictor_corrector")
    pipes = [first, quiet(ScoreSdeEditPipeline.from_pipe(first))]
    assert pipes[1].scheduler is first.scheduler
    alone = [draw(pipe, count, seed=k) for k, (pipe, count) in enumerate(zip(pipes, (4, 9)))]
    for together, expected in zip(run_in_step(pipes, (4, 9)), alone, strict=True):
        assert torch.equal(together, expected)


@pytest.mark.parametrize("whose", ["callback's", "user's"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_preview_in_a_callback_changes_nothing(loop, whose):
    pipe, previews, counts = make(loop), [], []
    whole, small = draw(pipe), draw(pipe, 3, seed=7)

    def preview(p, i, t, kw):
        if i == 2:
            previews.append(draw(p if whose == "callback's" else pipe, 3, seed=7))
        counts.append(p.num_timesteps)
        return kw

    assert torch.equal(draw(pipe, callback_on_step_end=preview), whole)
    assert torch.equal(previews[0], small)
    assert counts == [STEPS] * STEPS


def test_stopping_before_or_within_a_preview_stops_what_it_should():
    """A preview begins whole; a request within it, of the pipeline that its callback is given, is for it alone."""
    pipe, inner, outer = make("plain"), [], []

    def within(p, i, t, kw):
        inner.append(i)
        p._interrupt = i == 1
        return kw

    def preview(p, i, t, kw):
        outer.append(i)
        if i == 1:
            draw(p, 4, callback_on_step_end=within)
            assert not p.interrupt
        if i == 3:
            p._interrupt = True
            draw(pipe, 4, callback_on_step_end=lambda *args: inner.append(args[1]))
            assert p.interrupt
        return kw

    draw(pipe, callback_on_step_end=preview)
    assert inner == [0, 1, 0, 1, 2, 3]
    assert outer == [0, 1, 2, 3]


def test_a_callback_reads_the_grid_of_its_run_and_the_scheduler_of_the_pipeline_is_left_alone():
    pipe = make("predictor_corrector")
    before = pipe.scheduler.timesteps.clone()
    grids = []
    draw(pipe, 5, callback_on_step_end=lambda p, i, t, kw: grids.append(p.scheduler.timesteps[i] == t))
    assert len(grids) == 5 and all(grids)
    assert torch.equal(pipe.scheduler.timesteps, before)
    assert pipe.scheduler.step_index is None
    assert pipe.num_timesteps == 5


# ---------------------------------------------------------------------------------------------------------------------
# from_pipe (F6)
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL_PIPELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_from_pipe_keeps_the_dtype_and_says_nothing(cls, dtype, caplog):
    source = ScoreSdePipeline(tiny_network().to(dtype), ScoreSdeVeScheduler())
    logging.getLogger("diffusers").addHandler(caplog.handler)
    caplog.clear()
    try:
        new = cls.from_pipe(source)
    finally:
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert new.unet is source.unet and new.unet.dtype is dtype
    assert not caplog.records
    assert cls.from_pipe(source, torch_dtype=torch.bfloat16).unet.dtype is torch.bfloat16


def test_from_pipe_keeps_each_dtype_and_takes_networks_of_own_classes():
    source = ScoreSdePipeline(network().to(torch.bfloat16), ScoreSdeVeScheduler())
    with pytest.raises(ValueError, match="needs classifier, which ScoreSdePipeline has not; give it"):
        ScoreSdeClassConditionalPipeline.from_pipe(source)
    new = ScoreSdeClassConditionalPipeline.from_pipe(source, classifier=classifier())
    assert (new.unet.dtype, new.classifier.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(ValueError, match="has vae"):
        ScoreSdePipeline.from_pipe(source, vae=None)


# ---------------------------------------------------------------------------------------------------------------------
# Whole labels (F8)
# ---------------------------------------------------------------------------------------------------------------------


class TableNetwork(ChainNetwork):
    """The chain's exact epsilon, of whole labels alone."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 1, out_channels: int = 1, center_input_sample=False):
        super().__init__()
        self.table = torch.nn.Embedding(1000, 1)
        self.labels = []

    def forward(self, sample, timestep, return_dict=True):
        self.table(timestep)  # as a network with a table: a fraction raises RuntimeError
        self.labels.append(timestep)
        return super().forward(sample, timestep, return_dict)


@pytest.mark.parametrize("cls", [*PIPELINES, ScoreSdeClassConditionalPipeline])
def test_networks_of_whole_labels_draw_what_those_of_fractions_draw(cls):
    fractions, table = (draw(build(cls, net, DDPMScheduler())) for net in (ChainNetwork(), TableNetwork()))
    assert float((fractions - table).abs().max()) < 2e-3 * float(fractions.abs().max())


def test_likelihood_and_flow_of_networks_of_whole_labels():
    nets = ChainNetwork(), TableNetwork()
    nats = [
        ScoreSdeLikelihoodPipeline(net, DDPMScheduler())(IMAGE, dequantization="none", exact_trace=True).log_likelihood
        for net in nets
    ]
    assert float((nats[0] - nats[1]).abs()) < 0.05  # of 64 numbers
    latents = [ScoreSdeOdePipeline(net, DDPMScheduler()).encode(IMAGE).latents for net in nets]
    torch.testing.assert_close(latents[0], latents[1], rtol=0, atol=0.01)


def test_learned_time_embedding_of_diffusers():
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        time_embedding_type="learned",
        num_train_timesteps=1000,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).eval()
    scheduler = ScoreSdeVpScheduler.from_config(DDPMScheduler().config)
    for cls in (*PIPELINES, ScoreSdeClassConditionalPipeline):
        assert draw(build(cls, unet, scheduler), 3).isfinite().all()
    assert ScoreSdeOdePipeline(unet, DDPMScheduler()).score(IMAGE, 0.3).isfinite().all()
    continuous = ScoreSdePipeline(unet, ScoreSdeVpScheduler())
    with pytest.raises(ValueError, match=r"whole labels.*continuous=False"):
        continuous(num_inference_steps=3)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of 16 bits and more, masks (F10)
# ---------------------------------------------------------------------------------------------------------------------

LEVELS = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
FORMS = {
    "I;16": Image.fromarray(LEVELS),
    "uint16": LEVELS,
    "big-endian": LEVELS.astype(">u2"),
    "tensor": torch.from_numpy(LEVELS)[None],
}


def image_calls(image):
    """All pipelines that take an image, as functions that return what they made of it."""
    noiseless = ScoreSdeVeScheduler(sigma_max=0.02, sigma_min=0.01)
    return {
        "encode": lambda: ScoreSdeOdePipeline(network(), noiseless).encode(image).latents,
        "likelihood": lambda: (
            ScoreSdeLikelihoodPipeline(network(), noiseless)(
                image, probes=torch.ones(1, 1, 1, 8, 8), generator=seeded()
            ).bits_per_dim
        ),
        "edit": lambda: draw_image(ScoreSdeEditPipeline, image, strength=0.5),
        "inpaint": lambda: draw_image(ScoreSdeInpaintPipeline, image, MASK),
        "colorize": lambda: draw_image(ScoreSdeColorizationPipeline, image),
    }


def draw_image(cls, *arguments, **options):
    pipe = build(cls, network(3 if cls is ScoreSdeColorizationPipeline else 1), ScoreSdeVeScheduler())
    return pipe(*arguments, num_inference_steps=3, generator=seeded(), output_type="pt", **options).images


@pytest.mark.parametrize("task", ["encode", "edit", "inpaint", "colorize"])
@pytest.mark.parametrize("form", FORMS)
def test_pictures_of_16_bits_are_read_as_their_fraction_of_65535(task, form):
    expected = image_calls(torch.from_numpy(LEVELS.astype(np.float32) / 65535)[None])[task]()
    assert torch.equal(image_calls(FORMS[form])[task](), expected)


def test_bits_per_dimension_of_16_bits_are_of_65536_levels():
    expected = ScoreSdeLikelihoodPipeline(network(), ScoreSdeVeScheduler(sigma_max=0.02, sigma_min=0.01))(
        torch.from_numpy(LEVELS.astype(np.float32) / 65535)[None],
        probes=torch.ones(1, 1, 1, 8, 8),
        bin_width=1 / 65536,
        generator=seeded(),
    ).bits_per_dim
    for form in FORMS.values():
        torch.testing.assert_close(image_calls(form)["likelihood"](), expected)


@pytest.mark.parametrize("task", ["encode", "likelihood", "edit", "inpaint", "colorize"])
@pytest.mark.parametrize("mode", ["I", "F"])
def test_pictures_of_unknown_range_are_refused_with_a_recipe_that_works(task, mode):
    picture = Image.fromarray(LEVELS.astype(np.int32 if mode == "I" else np.float32))
    assert picture.mode == mode
    with pytest.raises(ValueError, match=r"np\.asarray\(image, dtype=np\.float32\) / 65535") as error:
        image_calls(picture)[task]()
    assert "convert('" not in str(error.value)
    if task != "likelihood":  # which wants the number of levels besides
        assert image_calls(np.asarray(picture, dtype=np.float32) / 65535)[task]().isfinite().all()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_other_whole_numbers_are_refused_with_the_way_out(dtype):
    with pytest.raises(ValueError, match="divide by the largest level"):
        image_calls(LEVELS.astype(dtype))["edit"]()


HALF = MASK.numpy()
MASKS = {
    "uint8": HALF.astype(np.uint8),
    "int64": HALF.astype(np.int64),
    "bool": HALF.astype(bool),
    "uint16 levels": HALF.astype(np.uint16) * 65535,
    "batch": np.stack([HALF, HALF]).astype(np.uint8),
    "tensor int64": MASK.long(),
    "tensor uint8 of 255": (MASK * 255).byte(),
    "tensor batch": torch.stack([MASK, MASK]).long(),
    "tensor batch of floats": torch.stack([MASK, MASK]),
    "PIL of 0 and 1": Image.fromarray(HALF.astype(np.uint8)),
    "PIL of 16 bits": Image.fromarray(HALF.astype(np.uint16) * 65535),
    "list": [HALF.astype(np.uint8), MASK.long()],
}


@pytest.mark.parametrize("form", MASKS)
def test_masks_of_all_forms(form):
    images = IMAGE.repeat(2, 1, 1, 1)
    expected = draw_image(ScoreSdeInpaintPipeline, images, MASK)
    assert torch.equal(draw_image(ScoreSdeInpaintPipeline, images, MASKS[form]), expected)


def test_masks_that_are_refused_are_called_masks():
    for mask in (MASK.long() * 255, Image.new("F", (8, 8)), MASK[None, None, None]):
        with pytest.raises(ValueError, match=r"^`mask_image` "):
            draw_image(ScoreSdeInpaintPipeline, IMAGE, mask)


# ---------------------------------------------------------------------------------------------------------------------
# Networks that cannot be called (F11)
# ---------------------------------------------------------------------------------------------------------------------

SMALL = {"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4}
BLOCKS = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}


class Bare(ModelMixin, ConfigMixin):
    """A network whose config has channels alone."""

    @register_to_config
    def __init__(self, in_channels: int = 1, out_channels: int = 1):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return UNet2DOutput(sample=-x + self.weight)


class Tensors(Bare):
    def forward(self, x, t):
        return -x + self.weight


class Nothing(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self):
        super().__init__()


REFUSED = {
    "none": (lambda: None, "no network: `unet` is None"),
    "class_embeds": (
        lambda: UNet2DModel(num_class_embeds=10, **SMALL, **BLOCKS),
        "class-conditional.*num_class_embeds",
    ),
    "class_type": (lambda: UNet2DModel(class_embed_type="timestep", **SMALL, **BLOCKS), "class_embed_type"),
    "text": (
        lambda: UNet2DConditionModel(cross_attention_dim=8, **SMALL, **BLOCKS),
        "needs `encoder_hidden_states`.*unconditional",
    ),
    "parallel": (lambda: torch.nn.DataParallel(network()), "DataParallel.*unet.module"),
    "plain": (lambda: torch.nn.Conv2d(1, 1, 3), "no `config`.*ModelMixin"),
    "function": (lambda: lambda x, t: x, "no torch module"),
    "no_channels": (Nothing, "no `in_channels` in its config, no `out_channels`"),
}


@pytest.mark.parametrize("cls", [*ALL_PIPELINES, ScoreSdeClassConditionalPipeline])
@pytest.mark.parametrize("kind", REFUSED)
def test_networks_that_are_refused_in_words(cls, kind):
    make_network, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        build(cls, make_network(), DDPMScheduler())
    pipe = build(cls, network(3), ScoreSdeVeScheduler())
    if kind == "none":
        pipe.unet = None  # frees its memory
        with pytest.raises(ValueError, match=message):
            pipe(IMAGE)
    else:
        with pytest.raises(ValueError, match=message):
            pipe.unet = make_network()


def test_a_network_with_channels_alone_in_its_config_is_enough():
    pipe = quiet(ScoreSdePipeline(Bare(), ScoreSdeVeScheduler()))
    assert pipe(num_inference_steps=3, height=7, width=5, output_type="np").images.shape == (1, 7, 5, 1)
    with pytest.raises(ValueError, match="no `sample_size`"):
        pipe(num_inference_steps=3)
    assert draw(build(ScoreSdeInpaintPipeline, Bare(), ScoreSdeVeScheduler()), 3).shape == IMAGE.shape


def test_a_network_that_returns_no_sample_is_refused():
    for call in (
        lambda: ScoreSdePipeline(Tensors(), ScoreSdeVeScheduler())(num_inference_steps=2, height=8, width=8),
        lambda: ScoreSdeOdePipeline(Tensors(), ScoreSdeVeScheduler()).score(IMAGE, 0.3),
    ):
        with pytest.raises(ValueError, match="returned a Tensor with no `sample`"):
            call()


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and paths (F12)
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_counts_of_numpy(loop):
    pipe = make(loop)
    expected = draw(pipe)
    assert torch.equal(draw(pipe, np.int64(STEPS)), expected)
    for wrong in (True, np.bool_(True), 2.0, np.float32(2), np.array([2, 3]), "2"):
        with pytest.raises(ValueError, match=r"`num_inference_steps` is .* it must be an integer"):
            draw(pipe, wrong)


def test_other_counts_of_numpy():
    count = np.int32(2)
    assert len(make("plain")(count, 3, output_type="np").images) == 2
    assert len(draw(make("inpaint"), num_samples=count)) == 2
    ode = ScoreSdeOdePipeline(network(), ScoreSdeVeScheduler())
    assert len(ode(count, max_nfe=np.int64(500), height=np.int64(8), output_type="np").images) == 2
    likelihood = ScoreSdeLikelihoodPipeline(network(), ScoreSdeVeScheduler())
    assert likelihood(IMAGE, "none", num_probes=count).log_likelihood.shape == (1,)
    assert likelihood.elbo(IMAGE, count, dequantization="none").prior.shape == (1,)


@pytest.mark.parametrize("value", [[1, 2], "0.5", None, np.array([0.5, 0.5]), True])
@pytest.mark.parametrize(
    "loop, name",
    [
        ("class_conditional", "guidance_scale"),
        ("inverse", "guidance_scale"),
        ("inverse", "data_std"),
        ("inverse", "noise_std"),
        ("edit", "strength"),
    ],
)
def test_what_is_no_number_is_refused_by_name(loop, name, value):
    with pytest.raises(ValueError, match=f"`{name}` is .* give one number"):
        draw(make(loop), **{name: value})
    draw(make("edit"), strength=np.float32(0.5))


def test_no_labels_are_no_labels():
    with pytest.raises(ValueError, match=r"`class_labels` is \[\]; give at least one"):
        make("class_conditional")([])


@pytest.mark.parametrize("path", [embedded_model_path, embedded_colour_model_path])
def test_paths_of_embedded_models_go_with_a_subfolder(path):
    assert isinstance(AutoModel.from_pretrained(path(), subfolder="unet"), torch.nn.Module)
    assert DiffusionPipeline.load_config(path())["_class_name"] == "ScoreSdePipeline"


def test_path_of_the_embedded_classifier_is_text():
    assert isinstance(embedded_classifier_path(), str)


@pytest.mark.parametrize("loop", ["predictor_corrector", "inpaint", "inverse", "class_conditional", "colorize"])
def test_latents_of_the_wrong_scale_are_warned_of(loop, caplog):
    pipe = make(loop)
    noise = torch.randn(1, 3 if loop == "colorize" else 1, 8, 8, generator=seeded())
    for latents, warned in ((noise, True), (noise * pipe.scheduler.init_noise_sigma, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="diffusers_sde"):
            draw(pipe, latents=latents)
        assert ("`latents` has a standard deviation" in caplog.text) == warned


@pytest.mark.parametrize("value", ["picture", "constant", "faint noise"])
def test_latents_of_images_are_not_warned_of(value, caplog):
    images = {"picture": IMAGE, "constant": torch.full_like(IMAGE, 0.3), "faint noise": 0.5 + 0.1 * (IMAGE - 0.5)}
    pipe = ScoreSdeOdePipeline(network(), ScoreSdeVeScheduler(sigma_max=20.0))
    with caplog.at_level(logging.WARNING, logger="diffusers_sde"):
        latents = pipe.encode(images[value]).latents
        pipe.decode(latents, output_type="latent")
        pipe(latents=latents, output_type="latent")
    assert not caplog.records


# ---------------------------------------------------------------------------------------------------------------------
# PiGDM in half precision
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("sigma_max", [50.0, 1348.0])
def test_posterior_of_pigdm_in_half_precision(dtype, sigma_max):
    """Means of blocks of 2 x 2 pixels with noise: the posterior of N(0.5, 0.3^2) pixels is known in closed form."""
    net, noise_std = network().to(dtype), 0.1
    pipe = build(ScoreSdeInverseProblemPipeline, net, ScoreSdeVeScheduler(sigma_max=sigma_max, corrector="none"))
    y = torch.full((1, 1, 4, 4), 0.8)
    call = {"noise_std": noise_std, "data_std": 0.3, "num_samples": 128, "num_inference_steps": 200}
    x = pipe(y, BlockAverage(2), generator=seeded(), output_type="latent", **call).images
    block = x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    prior = 0.3**2 / 4
    mean = 0.5 + prior / (prior + noise_std**2) * 0.3
    std = (prior * noise_std**2 / (prior + noise_std**2)) ** 0.5
    assert abs(float(block.mean()) - mean) < 0.1 * std
    assert abs(float(block.std()) / std - 1) < 0.1
    offsets = x - block.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert abs(float(offsets.std()) / (0.3 * 0.75**0.5) - 1) < 0.1
