"""`diffusers-sde inpaint`, `colorize`, `class-conditional`, `restore` and `edit`: files, reproducibility, messages."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from diffusers_sde import NoiseConditionalClassifier, ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde.commands.tasks import gaussian_kernel, make_operator
from diffusers_sde_cli import conditional as conditional_commands
from tests.tiny import GaussianNetwork, randomise, tiny_network

COMMANDS = {name: getattr(conditional_commands, name.replace("-", "_")) for name in ("inpaint", "colorize", "restore")}
COMMANDS |= {"edit": conditional_commands.edit, "class-conditional": conditional_commands.class_conditional}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a grey and a colour model of 8 x 8 pixels, and of a classifier."""
    root = tmp_path_factory.mktemp("models")
    scheduler = ScoreSdeVeScheduler(sigma_max=2.0, num_train_timesteps=4)
    for name, channels in (("grey", 1), ("colour", 3)):
        network = tiny_network(in_channels=channels, out_channels=channels)
        ScoreSdePipeline(network, scheduler).save_pretrained(root / name)
    ScoreSdePipeline(GaussianNetwork("ve", 0.5, 0.1), scheduler).save_pretrained(root / "gaussian")
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)  # its frequencies are drawn when it is built
        classifier = NoiseConditionalClassifier(
            sample_size=8,
            in_channels=1,
            num_classes=3,
            blocks_per_group=1,
            channel_multiplier=1,
            embedding_features=8,
            image_mean=(0.5,),
            image_std=(0.3,),
        )
    randomise(classifier).save_pretrained(root / "classifier")
    return root


@pytest.fixture
def files(tmp_path):
    """Paths of pictures, by name."""
    random = np.random.default_rng(0)

    def write(name, *shape, **options):
        array = random.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / name, **options)
        return tmp_path / name

    mask = np.zeros((8, 8), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = {"grey": write("grey.png", 8, 8), "other": write("other.png", 8, 8), "colour": write("c.png", 8, 8, 3)}
    return found | {"odd": write("odd.png", 7, 9), "small": write("small.png", 4, 4), "mask": tmp_path / "mask.png"}


def run(command, *args, expect=0):
    result = CliRunner().invoke(COMMANDS[command], [*map(str, args)])
    assert result.exit_code == expect, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.output


def pixels(path, index=None):
    return np.asarray(Image.open(path if index is None else path / f"{index:05d}.png")).astype(int)


def test_inpainting_keeps_what_is_known(models, files, tmp_path):
    out = tmp_path / "out"
    run("inpaint", files["grey"], files["other"], "--mask", files["mask"], "--model", models / "grey", "--output", out)
    for index in range(8):
        given = pixels(files["grey" if index < 4 else "other"])
        assert np.array_equal(pixels(out, index)[:4], given[:4])
        assert np.abs(pixels(out, index)[4:] - given[4:]).max() > 10
    assert np.abs(pixels(out, 0) - pixels(out, 1)).max() > 10
    grid = pixels(out / "grid.png")[::21, ::21]  # 6 columns of 8 pixels, 21 times
    assert grid.shape == (16, 48)
    assert np.array_equal(grid[8:, :8], pixels(files["other"]))
    assert set(grid[4:8, 8:16].flat) == {127}
    assert np.array_equal(grid[8:, 40:], pixels(out, 7))


def test_hidden_parts(models, files, tmp_path):
    common = ("inpaint", files["grey"], "--model", models / "grey", "--num-samples", 1)
    run(*common, "--mask", files["mask"], "--output", tmp_path / "a")
    run(*common, "--hide", "lower", "--output", tmp_path / "b")
    assert np.array_equal(pixels(tmp_path / "a", 0), pixels(tmp_path / "b", 0))
    run(*common, "--hide", "centre", "--output", tmp_path / "c")
    same = pixels(tmp_path / "c", 0) == pixels(files["grey"])
    assert same.sum() - same[2:6, 2:6].sum() == 48


def test_a_result_depends_on_seed_number_and_input_alone(models, files, tmp_path):
    common = ("edit", "--model", models / "grey", "--num-samples", 2, "--strength", 1)
    run(*common, files["grey"], files["other"], "--batch-size", 3, "--output", tmp_path / "a")
    run(*common, files["grey"], "--batch-size", 1, "--output", tmp_path / "b")
    run(*common, files["grey"], "--seed", 1, "--output", tmp_path / "c")
    for index in range(2):
        # Convolutions may sum in another order for another batch size: one grey level at most.
        assert np.abs(pixels(tmp_path / "a", index) - pixels(tmp_path / "b", index)).max() <= 1
        assert np.abs(pixels(tmp_path / "c", index) - pixels(tmp_path / "b", index)).max() > 10


def test_a_run_goes_on_and_other_settings_do_not_touch_it(models, files, tmp_path):
    common = ("edit", files["grey"], "--model", models / "grey", "--num-samples", 2, "--output", tmp_path / "out")
    run(*common)
    expected, kept = pixels(tmp_path / "out", 1), (tmp_path / "out" / "00000.png").stat().st_mtime_ns
    (tmp_path / "out" / "00001.png").unlink()
    run(*common)
    assert np.abs(pixels(tmp_path / "out", 1) - expected).max() <= 1
    assert (tmp_path / "out" / "00000.png").stat().st_mtime_ns == kept
    assert "strength differ" in run(*common, "--strength", 0.9, expect=1)
    files["other"].replace(files["grey"])  # another image under the same name
    assert "inputs differ" in run(*common, expect=1)
    run(*common, "--overwrite")
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["strength"], settings["steps"], settings["num_samples"]) == (0.5, 4, 2)
    assert settings["inputs"][0]["name"] == str(files["grey"])
    assert settings["scheduler"]["sigma_max"] == 2.0


def test_colorization_keeps_the_grey(models, files, tmp_path):
    run("colorize", files["colour"], files["grey"], "--model", models / "colour", "--output", tmp_path / "out")
    for index, name in ((0, "colour"), (5, "grey")):
        grey = pixels(files[name])
        grey = grey.mean(axis=-1) if grey.ndim == 3 else grey
        assert np.abs(pixels(tmp_path / "out", index).mean(axis=-1) - grey).max() <= 0.51
    assert np.ptp(pixels(tmp_path / "out", 0), axis=-1).max() > 10
    message = run("colorize", files["grey"], "--model", models / "grey", "--output", tmp_path / "no", expect=1)
    assert "1 channel" in message


def test_restoring_agrees_with_the_measurement(models, files, tmp_path):
    common = ("restore", files["grey"], "--method", "replacement", "--factor", 2, "--model", models / "gaussian")
    run(*common, "--num-samples", 2, "--output", tmp_path / "out")

    def means(array):
        return array.reshape(4, 2, 4, 2).mean(axis=(1, 3))

    # Rounding to 8 bits; pixels at 0 and 255 may have been clamped.
    difference = np.abs(means(pixels(tmp_path / "out", 1)) - means(pixels(files["grey"])))
    extremes = pixels(tmp_path / "out", 1).reshape(4, 2, 4, 2).transpose(0, 2, 1, 3).reshape(4, 4, 4) % 255 == 0
    assert not extremes.all() and difference[~extremes.any(axis=2)].max() < 0.6
    assert np.abs(pixels(tmp_path / "out", 1) - pixels(tmp_path / "out", 0)).mean() > 5
    grid = pixels(tmp_path / "out" / "grid.png")[::32, ::32]
    exact = np.kron(means(pixels(files["grey"])), np.ones((2, 2)))
    assert np.abs(grid[:, 8:16] - exact).max() <= 0.51
    common = (*common[:2], "--operator", "block-average", *common[4:], "--noise-std", 0.1, "--num-samples", 1)
    run(*common, "--output", tmp_path / "noisy")
    noise = (pixels(tmp_path / "noisy" / "grid.png")[::42, ::42][:, 8:16] - exact)[::2, ::2]
    assert 18 < noise.std() < 33  # 25.5 and three standard errors of 16 numbers


@pytest.mark.parametrize(
    "options",
    [
        ("--operator", "block-average", "--factor", 4, "--method", "dps"),
        ("--operator", "blur", "--blur-std", 0.7),
        ("--operator", "projection", "--fraction", 0.5),
        ("--operator", "mask", "--fraction", 0.5, "--method", "replacement", "--corrector", "none"),
    ],
)
def test_every_operator(models, files, tmp_path, options):
    common = ("restore", files["colour"], "--model", models / "colour", "--noise-std", 0.02, "--num-samples", 1)
    run(*common, *options, "--output", tmp_path / "out")
    assert pixels(tmp_path / "out", 0).shape == (8, 8, 3)
    assert pixels(tmp_path / "out" / "grid.png").shape[1] // 42 == 24


def test_given_measurements(models, files, tmp_path):
    common = ("restore", files["small"], "--measured", "--model", models / "grey", "--output", tmp_path / "out")
    run(*common, "--factor", 3, "--method", "replacement")
    assert pixels(tmp_path / "out", 3).shape == (12, 12)
    assert "--measured goes with" in run(*common, "--operator", "blur", expect=2)


def test_operators_are_what_they_are_called():
    x = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert make_operator("projection", 0.25, (2, 8, 8), 0).A(x).shape == (1, 32)
    known = make_operator("mask", 0.25, (2, 8, 8), 0).A(torch.ones_like(x))
    assert 4 < known[0, 0].sum() < 30 and torch.equal(known[0, 0], known[0, 1])
    assert torch.equal(known, make_operator("mask", 0.25, (2, 8, 8), 0).A(torch.ones_like(x)))
    assert not torch.equal(known, make_operator("mask", 0.25, (2, 8, 8), 1).A(torch.ones_like(x)))
    kernel = gaussian_kernel(1.5, 32)
    places = torch.arange(11.0) - 5
    assert kernel.shape == (11, 11) and float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    assert float((kernel.sum(0) * places**2).sum()) == pytest.approx(1.5**2, rel=0.03)
    assert gaussian_kernel(5.0, 8).shape == (7, 7)


def test_editing_a_little_and_sizes(models, files, tmp_path):
    for name, options in (("sdedit", ("--strength", 0.25)), ("code", ("--langevin-steps", 0, "--confidence", 9))):
        common = ("edit", files["odd"], "--method", name, "--model", models / "grey", "--num-samples", 1)
        run(*common, *options, "--output", tmp_path / name)
        assert pixels(tmp_path / name, 0).shape == (7, 9)
    assert np.abs(pixels(tmp_path / "code", 0) - pixels(files["odd"])).mean() < 3
    assert json.loads((tmp_path / "code" / "settings.json").read_text())["code"]["num_langevin_steps"] == 0


def test_interpolation_goes_from_one_image_to_the_other(models, files, tmp_path):
    common = ("edit", files["grey"], files["other"], "--interpolate", "--model", models / "grey", "--output")
    run(*common, tmp_path / "out", "-n", 3)
    a, b = pixels(files["grey"]), pixels(files["other"])
    assert np.abs(pixels(tmp_path / "out", 0) - a).mean() < np.abs(b - a).mean() / 10
    assert np.abs(pixels(tmp_path / "out", 2) - b).mean() < np.abs(b - a).mean() / 10
    assert not (tmp_path / "out" / "00003.png").exists()
    assert pixels(tmp_path / "out" / "grid.png").shape[1] // 25 == 40


def test_class_conditional(models, tmp_path):
    common = ("class-conditional", "--model", models / "grey", "--classifier", models / "classifier", "--output")
    run(*common, tmp_path / "out", "--labels", "0,2", "--num-images", 2, "--guidance-scale", 2)
    assert pixels(tmp_path / "out" / "grid.png").shape == (1024, 1024)
    run(*common, tmp_path / "same", "--labels", "0,0", "--num-images", 2, "--guidance-scale", 2)
    differences = [np.abs(pixels(tmp_path / "out", i) - pixels(tmp_path / "same", i)).max() for i in range(4)]
    assert max(differences[:2]) <= 1 < 4 < min(differences[2:])  # of the same label, and of another
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["labels"] == [0, 2] and len(settings["classifier"]) == 64
    assert "the classifier knows 3 classes" in run(*common, tmp_path / "no", "--labels", "3", expect=1)
    for bad in ("", "a,b", "-1", "1,,2"):
        assert "is not a list like 0,3,5" in run(*common, tmp_path / "no", "--labels", bad, expect=2)


def test_images_of_a_data_set(models, files, tmp_path):
    for name in ("odd", "grey", "colour"):
        folder = tmp_path / "data" / "test"
        folder.mkdir(parents=True, exist_ok=True)
        Image.open(files[name]).save(folder / f"{name}.png")
    common = ("inpaint", "--data", tmp_path / "data", "--hide", "left", "--num-samples", 1, "--model", models / "grey")
    run(*common, "--index", "1", "--output", tmp_path / "out")  # in the order of names
    assert np.array_equal(pixels(tmp_path / "out", 0)[:, 4:], pixels(files["grey"])[:, 4:])
    assert "split 'test' has images 0 to 2" in run(*common, "--index", "3", "--output", tmp_path / "no", expect=1)
    assert "--resize" in run(*common, "--index", "2", "--output", tmp_path / "no", expect=1)
    run(*common, "--index", "0,1,2", "--resize", "--output", tmp_path / "all")
    assert pixels(tmp_path / "all", 2).shape == (8, 8)


def test_files_that_do_not_fit(models, files, tmp_path):
    common = ("inpaint", "--hide", "lower", "--model", models / "grey", "--output", tmp_path / "no")
    (tmp_path / "text.png").write_text("not an image")
    assert "text.png is not a picture that can be read" in run(*common, tmp_path / "text.png", expect=1)
    assert "mode 'RGB', the network takes images of 1 channels" in run(*common, files["colour"], expect=1)
    assert "the images have sizes [(7, 9), (8, 8)]" in run(*common, files["odd"], files["grey"], expect=1)
    assert "give either image files, or --data" in run(*common, expect=2)
    assert "give either image files, or --data" in run(*common, files["grey"], "--data", tmp_path, expect=2)
    assert "does not exist" in run(*common, tmp_path / "nothing.png", expect=2)
    assert not (tmp_path / "no").exists()
    Image.open(files["grey"]).convert("RGB").save(tmp_path / "grey_in_colour.png")
    Image.open(files["odd"]).save(tmp_path / "odd.jpg")
    run(*common, tmp_path / "grey_in_colour.png", tmp_path / "odd.jpg", "--resize", "--num-samples", 1)
    assert np.array_equal(pixels(tmp_path / "no", 0)[:4], pixels(files["grey"])[:4])


@pytest.mark.parametrize(
    "command, options, words, code",
    [
        ("inpaint", (), "give either --mask FILE", 2),
        ("inpaint", ("--hide", "left", "--mask", "mask"), "give either --mask FILE", 2),
        ("inpaint", ("--mask", "small"), "of 4 x 4", 1),
        ("inpaint", ("--hide", "left", "--guidance-scale", 2), "'replacement' has no guidance", 1),
        ("inpaint", ("--hide", "left", "--predictor", "magic"), "reverse_diffusion", 2),
        ("inpaint", ("--hide", "left", "--index", "0"), "--index goes with --data", 2),
        ("restore", ("--operator", "blur", "--factor", 2), "--factor does not go with --operator blur", 2),
        ("restore", ("--factor", 3), "8 x 8 have no whole blocks of 3 x 3", 1),
        ("restore", ("--noise-std", -1), "`noise_std` is -1.0", 1),
        ("edit", ("--strength", 0), "`strength` is 0.0; it must lie in (0, 1]", 1),
        ("edit", ("--strength", "nan"), "`strength` is nan", 1),
        ("edit", ("--confidence", 2), "go with --method code only", 2),
        ("edit", ("--method", "code", "--confidence", -1), "`confidence` is -1.0", 1),
        ("edit", ("--interpolate", "odd"), "the images have sizes [(7, 9), (8, 8)]", 1),
        ("edit", ("--interpolate",), "goes from one image to another; 1 given, not 2", 2),
        ("edit", ("--interpolate", "--strength", "0.3"), "--strength has no meaning with --interpolate", 2),
    ],
)
def test_bad_options(models, files, tmp_path, command, options, words, code):
    options = [files.get(option, option) for option in options]
    common = (command, files["grey"], "--model", models / "grey", "--output", tmp_path / "no")
    message = run(*common, *options, expect=code)
    assert words in " ".join(message.split())
    assert not list((tmp_path / "no").glob("*.png"))
