r"""Networks whose features and logits stand for images in the distances between sets of images.

A `FeatureExtractor` maps 8-bit images to features of shape (B, D) and, if it classifies, logits of shape (B, K). It
owns its preprocessing, so that a fingerprint says which numbers may be compared. `load_extractor` knows

    inception, inception:PATH           InceptionV3 of 2015 in torch-fidelity's port of the TensorFlow original
    dinov2:NAME_OR_PATH                 DINOv2 of transformers: the normalised class token
    clip:NAME_OR_PATH                   CLIP of transformers: the projected image embedding
    classifier, classifier:NAME_OR_PATH a `NoiseConditionalClassifier`, by default the embedded one of Fashion-MNIST
    package.module:function             your own: what `function(device)` returns

Reference: Szegedy et al. 2016, arXiv:1512.00567; Oquab et al. 2023, arXiv:2304.07193; Radford et al. 2021,
arXiv:2103.00020; Stein et al. 2023, arXiv:2306.04675, on the choice.
"""

import hashlib
import importlib
import io
import json
import pickle
import re
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from ..models import NoiseConditionalClassifier
from ..optional import require
from ..store import fingerprint as weights_fingerprint

SPECS = (
    "inception, inception:PATH, dinov2:NAME_OR_PATH, clip:NAME_OR_PATH, classifier, classifier:NAME_OR_PATH, "
    "package.module:function"
)
_PREPARATION = (
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
)


class Features(NamedTuple):
    """What an extractor says of B images.

    Args:
        features: of shape (B, D), float32.
        logits: of shape (B, K), of an extractor that classifies; else `None`.
    """

    features: torch.Tensor
    logits: torch.Tensor | None = None


@runtime_checkable
class FeatureExtractor(Protocol):
    """What a network needs to be measured with.

    Args:
        name: for people.
        fingerprint: SHA-256 of weights and preprocessing: features of two sets compare if theirs are equal.
        num_features: D.
    """

    name: str
    fingerprint: str
    num_features: int

    def __call__(self, images: torch.Tensor) -> Features:
        """Features of uint8 images of shape (B, C, H, W), row by row: row i depends on image i alone."""
        ...


def load_extractor(spec: str, device: str | torch.device | None = None) -> FeatureExtractor:
    """The extractor of a specification.

    Args:
        spec: see the top of this module. Modules are imported by name, from where Python finds them; nothing that a
            repository holds is run.
        device: a GPU if there is one and `None` is given.

    Raises:
        ValueError: if there is no such extractor, or a package that it needs is missing.
        OSError: if its weights cannot be read or downloaded.
    """
    device = torch.device("cuda" if device is None and torch.cuda.is_available() else device or "cpu")
    kind, _, source = spec.partition(":")
    if kind == "inception":
        return InceptionExtractor(source or None, device)
    if kind == "classifier":
        return ClassifierExtractor(source or None, device)
    if kind in _TRANSFORMERS and source:
        return TransformersExtractor(kind, source, device)
    if kind not in _TRANSFORMERS and re.fullmatch(r"\w+(\.\w+)*:\w+", spec):
        return _own_extractor(kind, source, device)
    raise ValueError(f"there is no extractor {spec!r}; allowed are {SPECS}.")


def check_images(images: torch.Tensor) -> None:
    """Check that images are 8-bit, in a batch, and grey or RGB.

    Raises:
        ValueError: if they are not.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images of shape {tuple(images.shape)} and {images.dtype} were given; an extractor takes torch.uint8 of "
            "shape (batch, 1 or 3, height, width). Round images in [0, 1] by (255 * x).round()."
        )


class InceptionExtractor:
    """InceptionV3 as most published FID, KID and Inception scores have it: 2048 features, 1008 logits without bias.

    Images are resized to 299 x 299 as TensorFlow 1 did, without antialiasing.

    Args:
        path: of the weights of torch-fidelity in PyTorch format; downloaded if `None`.
        device: of the network.
    """

    name = "inception"
    num_features = 2048

    def __init__(self, path: str | None, device: torch.device):
        inception = require("torch_fidelity.feature_extractor_inceptionv3", "eval", "the extractor inception")
        state = _inception_weights(inception.URL_INCEPTION_V3) if path is None else _read_weights(path)
        # torch-fidelity would unpickle whatever the file holds; so it gets one that was written here.
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        try:
            network = inception.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=file
            )
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"{path or 'the download'} does not hold the weights of InceptionV3; they are those of "
                f"{inception.URL_INCEPTION_V3}: {error}"
            ) from error
        self.network, self.device = network.to(device), device
        self.fingerprint = weights_fingerprint(network)  # the preprocessing has no parameters

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Features:
        check_images(images)
        return Features(*self.network(_three_channels(images).to(self.device)))


class ClassifierExtractor:
    """A `NoiseConditionalClassifier` at its smallest noise: what it feeds into its last layer, and its logits.

    Takes images of its own size and channels only.

    Args:
        source: folder or Hub repository; the embedded classifier of Fashion-MNIST if `None`.
        device: of the network.
    """

    sigma = 0.01  # the smallest noise in training, by default

    def __init__(self, source: str | None, device: torch.device):
        from ..assets import embedded_classifier_path

        self.name = _name("classifier", source)
        network = NoiseConditionalClassifier.from_pretrained(source or embedded_classifier_path())
        self.network, self.device = network.eval().requires_grad_(False).to(device), device
        self.fingerprint = _combined(network, network.config.image_mean, network.config.image_std, self.sigma)
        self.num_features = network.linear_out.in_features

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Features:
        check_images(images)
        config = self.network.config
        expected = (config.in_channels, config.sample_size, config.sample_size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images of shape {tuple(images.shape[1:])} were given; the {self.name} takes {expected}. Pad, resize "
                "or convert them, or take another extractor."
            )
        taken = []
        handle = self.network.linear_out.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
        try:
            logits = self.network(images.to(self.device) / 255, self.sigma).logits
        finally:
            handle.remove()
        return Features(taken[0], logits)


class TransformersExtractor:
    """A vision network of transformers, with the resizing, cropping and normalisation that its repository says.

    Args:
        kind: "dinov2" or "clip".
        source: folder or Hub repository.
        device: of the network.
    """

    def __init__(self, kind: str, source: str, device: torch.device):
        transformers = require("transformers", "eval", f"the extractor {kind}")
        try:
            model_type = transformers.AutoConfig.from_pretrained(source).model_type
            if model_type not in _TRANSFORMERS[kind]:
                raise ValueError(
                    f"{source} is a model of type {model_type!r}; {kind}: takes {', '.join(_TRANSFORMERS[kind])}."
                )
            # Pillow's resizing, which is the same on every device.
            self.processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil")
            network = transformers.AutoModel.from_pretrained(source).float()
        except OSError as error:
            raise OSError(
                f"the extractor {kind}:{source} cannot be loaded ({error}). Offline, give {kind}:PATH with a folder "
                "of config.json, preprocessor_config.json and model.safetensors."
            ) from error
        self.name, self._embed = _name(kind, source), _TRANSFORMERS[kind][model_type]
        self.network, self.device = network.eval().requires_grad_(False).to(device), device
        preparation = {key: self.processor.to_dict().get(key) for key in _PREPARATION}
        self.fingerprint = _combined(network, preparation)
        with torch.no_grad():
            self.num_features = self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).features.shape[1]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Features:
        check_images(images)
        arrays = [image.numpy() for image in _three_channels(images).cpu()]
        prepared = self.processor(arrays, return_tensors="pt", input_data_format="channels_first")
        return Features(self._embed(self.network, prepared["pixel_values"].to(self.device)))


def _pooled(network: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    return network(pixel_values=pixel_values).pooler_output


def _projected(network: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    return network.visual_projection(_pooled(network.vision_model, pixel_values))


# Types of models in transformers, and what their features are.
_TRANSFORMERS = {"dinov2": {"dinov2": _pooled, "dinov2_with_registers": _pooled}, "clip": {"clip": _projected}}


def _own_extractor(module: str, function: str, device: torch.device) -> FeatureExtractor:
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"there is no extractor {module}:{function} ({error}); allowed are {SPECS}. A module must be where Python "
            "finds it, in PYTHONPATH for instance."
        ) from error
    extractor = make(device)
    if not isinstance(extractor, FeatureExtractor):
        raise ValueError(
            f"{module}:{function} returned {type(extractor).__name__}; an extractor has name, fingerprint, "
            "num_features and can be called, see `diffusers_sde.evaluation.extractors.FeatureExtractor`."
        )
    return extractor


def _inception_weights(url: str) -> dict:
    """Weights of torch-fidelity's release, from its cache or the network, checked against the hash in their name."""
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no network; another hash
        raise OSError(
            f"the weights of InceptionV3 cannot be downloaded ({error}). Fetch {url} elsewhere and give "
            "inception:PATH, or take the extractor classifier or a local dinov2:PATH."
        ) from error


def _read_weights(path: str) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except OSError as error:
        raise OSError(f"the weights of inception:{path} cannot be read: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a PyTorch file of tensors alone, as weights must be: {error}") from error


def _three_channels(images: torch.Tensor) -> torch.Tensor:
    return images.expand(-1, 3, -1, -1)


def _name(kind: str, source: str | None) -> str:
    """Of a repository in full, of a folder its last part: what others can make sense of."""
    if source is None:
        return kind
    return f"{kind}:{Path(source).resolve().name if Path(source).exists() else source}"


def _combined(network: torch.nn.Module, *preparation) -> str:
    content = json.dumps([weights_fingerprint(network), *preparation], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()
