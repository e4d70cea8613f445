"""What requests may be, before Gradio looks at them."""

# ruff: noqa: E402  (what needs gradio is imported after the check that it is there)

import asyncio

import pytest

gr = pytest.importorskip("gradio", reason="the Space needs gradio: pip install -e '.[demo]'")

from score_space import models
from score_space.guard import Guard, check_inputs
from score_space.models import MODELS, load_model

from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler
from tests.tiny import tiny_network


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["x" * 6000], "too long"),
        ([[0] * 3000], "too long"),
        ([{"x" * 6000: 1}], "too long"),
        ([{"path": "https://example.org/a.png"}], "not its address"),
        ([{"background": None, "layers": [{"path": "http://10.0.0.1/"}]}], "not its address"),
    ],
)
def test_inputs_are_refused_by_size_and_by_address(inputs, message):
    """Gradio downloads an address of the public net without a limit, and keeps inputs of any size."""
    with pytest.raises(gr.Error, match=message) as caught:
        check_inputs(inputs)
    assert not caught.value.print_exception


def test_usual_inputs_pass():
    check_inputs(["model", {"path": "/tmp/a.png", "url": "http://127.0.0.1/a.png"}, 3, None, ["Bag", "Coat"]])


def answer(path, length=None, parts=()):
    """Status of a request, and what the app behind the guard was sent."""
    sent, seen = [], []
    waiting = [{"type": "http.request", "body": part} for part in parts]

    async def app(scope, receive, send):
        for _ in parts:
            seen.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    asyncio.run(Guard(app)({"type": "http", "path": path, "headers": headers}, receive, send))
    return sent[0]["status"], seen


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        ("/gradio_api/call/generate", 1000, 200),
        ("/gradio_api/call/generate", 2_000_000, 413),
        ("/gradio_api/upload", 2_000_000, 200),
        ("/gradio_api/upload", 40_000_000, 413),
        ("/gradio_api/call/generate", "-5", 413),
        ("/gradio_api/file=http://example.org/a.png", None, 403),
        ("/gradio_api/file=HTTPS:/example.org", None, 403),
        ("/gradio_api/file=/tmp/a.png", None, 200),
        ("/" + "x" * 3000, None, 414),
    ],
)
def test_requests_are_refused_by_size_and_by_address(path, length, status):
    assert answer(path, length)[0] == status


def test_a_body_without_a_length_ends_at_the_limit():
    _, seen = answer("/gradio_api/call/generate", parts=[bytes(600_000)] * 3)
    assert [message["type"] for message in seen] == ["http.request", "http.disconnect", "http.disconnect"]


@pytest.mark.parametrize("name", [["a"], {"a": 1}, None, 3])
def test_a_name_that_is_no_text_is_refused_in_words(name):
    """A list was "unhashable"."""
    with pytest.raises(ValueError, match=r"the model's name is a .*, not a text"):
        MODELS.get(name)


def test_a_model_that_is_too_large_is_refused_when_it_is_loaded(tmp_path, monkeypatch):
    network = tiny_network(sample_size=2048)
    ScoreSdePipeline(network, ScoreSdeVeScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="images of 2048 x 2048 pixels are too large here"):
        load_model(str(tmp_path))
    monkeypatch.setattr(models, "MAX_REPOSITORY", 1000)
    with pytest.raises(ValueError, match=r"it has .* GB; at most 1e-06 GB"):
        load_model(str(tmp_path))
