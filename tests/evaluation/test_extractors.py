"""Feature extractors: what each says of images, against its own network called by hand; loading and messages."""

import os
import sys
import urllib.error

import numpy as np
import pytest
import torch
import transformers

from diffusers_sde import NoiseConditionalClassifier
from diffusers_sde.assets import embedded_classifier_path
from diffusers_sde.evaluation.extractors import FeatureExtractor, load_extractor
from tests.evaluation.test_distances import import_torch_fidelity
from tests.tiny import randomise


def pictures(count=4, channels=3, height=20, width=26, seed=0):
    shape = (count, channels, height, width)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def he_init(network, seed=0):
    """Random weights under which activations neither vanish nor grow."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            std = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.add_(std * torch.randn(parameter.shape, generator=generator) - (parameter.ndim > 1) * parameter)
    return network.eval()


# ---------------------------------------------------------------------------------------------------------------------
# InceptionV3
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in the layout of torch-fidelity's file."""
    import_torch_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            pass

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    network = Unloaded("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    torch.save(he_init(network).state_dict(), path)
    return path


def test_inception_is_torch_fidelitys(inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor, images = load_extractor(f"inception:{inception_file}", "cpu"), pictures(2)
    images[1] //= 4
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=inception_file
    )
    features, logits = theirs(images)
    ours = extractor(images)
    assert torch.equal(ours.features, features) and torch.equal(ours.logits, logits)
    assert features.shape == (2, extractor.num_features) and features.std(dim=0).mean() > 0.01
    assert (extractor.name, len(extractor.fingerprint)) == ("inception", 64)
    alone = extractor(images[1:])
    assert torch.allclose(alone.features, features[1:], rtol=1e-3, atol=1e-4)


def test_inception_weights_are_read_without_running_what_a_file_holds(inception_file, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"fc.weight": Malicious()}, tmp_path / "bad.pth")
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "empty.pth").touch()
    for name in ("bad", "text", "empty"):
        with pytest.raises(ValueError, match=rf"{name}.pth is not a PyTorch file of tensors alone"):
            load_extractor(f"inception:{tmp_path / name}.pth", "cpu")
    assert not (tmp_path / "run").exists()
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold the weights of InceptionV3; they are those of"):
        load_extractor(f"inception:{tmp_path / 'other.pth'}", "cpu")
    with pytest.raises(OSError, match=r"the weights of inception:.* cannot be read"):
        load_extractor(f"inception:{tmp_path / 'none.pth'}", "cpu")


def test_inception_without_a_network_or_without_torch_fidelity(monkeypatch):
    def offline(url, **options):
        assert options["weights_only"] and options["check_hash"]
        raise urllib.error.URLError("offline")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(OSError, match=r"cannot be downloaded \(.*offline.*\). Fetch http.* and give inception:PATH"):
        load_extractor("inception", "cpu")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"needs torch_fidelity, which is not installed; pip install .*\[eval\]"):
        load_extractor("inception", "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# Networks of transformers
# ---------------------------------------------------------------------------------------------------------------------

SIZES = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def save(network, folder, **options):
    network.save_pretrained(folder)
    processor = transformers.BitImageProcessor if "dinov2" in folder.name else transformers.CLIPImageProcessor
    processor(**SIZES, **options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of tiny random DINOv2 and CLIP networks."""
    root = tmp_path_factory.mktemp("networks")
    dino = he_init(transformers.Dinov2Model(transformers.Dinov2Config(mlp_ratio=2, **VISION)))
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": 10, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**VISION, "intermediate_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    clip = he_init(transformers.CLIPModel(config))
    std = {"image_std": [0.3, 0.3, 0.3]}
    folders = {"dinov2": save(dino, root / "dinov2"), "clip": save(clip, root / "clip")}
    return folders | {"other dinov2": save(dino, root / "dinov2-std", **std)}


@pytest.mark.parametrize("kind, features", [("dinov2", 16), ("clip", 12)])
def test_transformers_networks_say_what_they_say_by_hand(networks, kind, features):
    """Images whose shortest side is 32 need no resizing: crop, scale and normalise by hand."""
    folder = networks[kind]
    extractor, images = load_extractor(f"{kind}:{folder}", "cpu"), pictures(3, height=32, width=36)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    pixels = (images[:, :, 2:30, 4:32] / 255 - mean) / std
    network = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        output = network(pixels) if kind == "dinov2" else network.get_image_features(pixel_values=pixels)
    expected = output if isinstance(output, torch.Tensor) else output.pooler_output
    found = extractor(images)
    assert found.logits is None and found.features.shape == (3, features) == (3, extractor.num_features)
    assert torch.allclose(found.features, expected, atol=1e-5) and expected.std(dim=0).min() > 0.01
    assert isinstance(extractor, FeatureExtractor) and extractor.name == f"{kind}:{folder.name}"


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_transformers_networks_take_any_size_grey_and_any_batch(networks, kind):
    extractor, images = load_extractor(f"{kind}:{networks[kind]}", "cpu"), pictures(3)
    together = extractor(images).features
    alone = torch.cat([extractor(image[None]).features for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
    grey = pictures(2, channels=1, height=8, width=8)
    assert torch.equal(extractor(grey).features, extractor(grey.repeat(1, 3, 1, 1)).features)


def test_the_fingerprint_is_of_weights_and_preprocessing_not_of_the_place(networks, tmp_path):
    first = load_extractor(f"dinov2:{networks['dinov2']}", "cpu")
    first.network.save_pretrained(tmp_path / "copy")
    first.processor.save_pretrained(tmp_path / "copy")
    assert load_extractor(f"dinov2:{tmp_path / 'copy'}", "cpu").fingerprint == first.fingerprint
    other = load_extractor(f"dinov2:{networks['other dinov2']}", "cpu")  # the same weights
    assert other.fingerprint != first.fingerprint
    with torch.no_grad():
        first.network.layernorm.bias[0] += 1e-3
    first.network.save_pretrained(tmp_path / "copy")
    assert load_extractor(f"dinov2:{tmp_path / 'copy'}", "cpu").fingerprint != first.fingerprint


def test_transformers_networks_that_are_others_or_missing(networks, tmp_path):
    with pytest.raises(ValueError, match="is a model of type 'dinov2'; clip: takes clip"):
        load_extractor(f"clip:{networks['dinov2']}", "cpu")
    with pytest.raises(OSError, match=r"cannot be loaded \(.*Offline, give dinov2:PATH with a folder"):
        load_extractor(f"dinov2:{tmp_path / 'none'}", "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# The classifier, one's own, and what all refuse
# ---------------------------------------------------------------------------------------------------------------------


def test_the_embedded_classifier():
    """Its features are what the last layer turns into its logits, at sigma = 0.01."""
    extractor, images = load_extractor("classifier", "cpu"), pictures(3, 1, 32, 32)
    network = NoiseConditionalClassifier.from_pretrained(embedded_classifier_path()).eval()
    features, logits = extractor(images)
    with torch.no_grad():
        assert torch.equal(logits, network(images / 255, 0.01).logits)
        assert torch.allclose(network.linear_out(features), logits, atol=1e-5)
    assert features.shape == (3, extractor.num_features) == (3, 128) and (features >= 0).all()
    assert torch.allclose(extractor(images[1:2]).features, features[1:2], atol=1e-5)
    assert not network.linear_out._forward_pre_hooks and extractor.name == "classifier"
    assert not extractor.network.linear_out._forward_pre_hooks


def test_a_classifier_of_ones_own(tmp_path):
    options = {"blocks_per_group": 1, "channel_multiplier": 1, "embedding_features": 8, "num_classes": 4}
    randomise(NoiseConditionalClassifier(sample_size=8, **options)).save_pretrained(tmp_path / "mine")
    extractor = load_extractor(f"classifier:{tmp_path / 'mine'}", "cpu")
    features, logits = extractor(pictures(2, 3, 8, 8))
    assert (features.shape, logits.shape, extractor.name) == ((2, 64), (2, 4), "classifier:mine")
    with pytest.raises(ValueError, match=r"shape \(3, 20, 26\) were given; the classifier:mine takes \(3, 8, 8\)"):
        extractor(pictures(1))


OWN = """
from diffusers_sde.evaluation.extractors import Features

class Mean:
    name, fingerprint, num_features = "mean", "0" * 64, 3
    def __init__(self, device): self.device = device
    def __call__(self, images): return Features(images.float().mean(dim=(2, 3)).to(self.device))

def broken(device): return "no extractor"
"""


def test_an_extractor_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_extractors.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    extractor, images = load_extractor("own_extractors:Mean", "cpu"), pictures(2)
    assert torch.equal(extractor(images).features, images.float().mean(dim=(2, 3)))
    assert extractor.device == torch.device("cpu")
    with pytest.raises(ValueError, match="own_extractors:broken returned str; an extractor has name, fingerprint"):
        load_extractor("own_extractors:broken")
    for spec in ("own_extractors:none", "no_such_module.at_all:function"):
        with pytest.raises(ValueError, match=f"there is no extractor {spec} .*A module must be where Python finds it"):
            load_extractor(spec)


@pytest.mark.parametrize("spec", ["", "vgg", "dinov2", "clip:", "inceptions", "http://x/y:z", "module:", ":function"])
def test_an_unknown_extractor(spec):
    with pytest.raises(ValueError, match=f"no extractor '{spec}'; allowed are inception, .*package.module:function"):
        load_extractor(spec)


@pytest.mark.parametrize("images", [pictures().float(), pictures()[0], pictures(channels=2), pictures().int()])
@pytest.mark.parametrize("spec", ["classifier", "clip"])
def test_images_that_are_not_8_bit_grey_or_rgb(networks, spec, images):
    extractor = load_extractor(spec if spec == "classifier" else f"clip:{networks['clip']}", "cpu")
    with pytest.raises(ValueError, match=r"were given; an extractor takes torch.uint8 of shape \(batch, 1 or 3,"):
        extractor(images)
