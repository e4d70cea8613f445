"""Loading for the Space: by whom, how often, and what is refused before it is read."""

import json
import threading
import time

import pytest

pytest.importorskip("gradio", reason="the Space needs gradio: pip install -e '.[demo]'")

from score_space.models import CIFAR, FASHION, MODELS, ModelCache, Turns, load_classifier, load_model

from diffusers_sde import ScoreSdePipeline, ScoreSdeSubVpScheduler
from tests.tiny import tiny_network


@pytest.fixture
def repository(tmp_path):
    pipeline = ScoreSdePipeline(tiny_network(in_channels=3, out_channels=3), ScoreSdeSubVpScheduler())
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_embedded_models_are_described():
    assert "VE SDE" in MODELS.get(FASHION).describe()
    assert "σ(t) from 0.01 to 20" in MODELS.get(FASHION).describe()
    assert "VP SDE" in MODELS.get(CIFAR).describe()
    assert "3 × 32 × 32" in MODELS.get(CIFAR).describe()


def test_networks_cannot_be_trained_by_a_run():
    for network in (MODELS.get(FASHION).network, load_classifier()):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_a_folder_is_loaded(repository):
    model = load_model(str(repository))
    assert (model.channels, model.size) == (3, (8, 8))
    assert "sub-VP SDE" in model.describe()


def test_on_a_space_folders_are_not_opened(repository, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "someone/something")
    with pytest.raises(ValueError, match="not a name of a model"):
        load_model(str(repository))
    monkeypatch.chdir(repository.parent.parent)  # nor when they look like a name of the Hub
    with pytest.raises(ValueError, match="not a name of a model"):
        load_model(f"{repository.parent.name}/model")


@pytest.mark.parametrize("name", ["", " ", "nothing", "../../etc/passwd", "a/b/c", "https://a.org/x", 201 * "x", None])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(ValueError, match="owner/name"):
        load_model(name)


def test_a_repository_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"'no-such/model' cannot be loaded.*embedded model"):
        load_model("no-such/model")


@pytest.mark.parametrize(
    ("pipeline", "network"),
    [
        ("StableDiffusionPipeline", "UNet2DConditionModel"),
        ("DDPMPipeline", "UNet2DConditionModel"),
        ("ScoreSdePipeline", None),
    ],
)
def test_another_pipeline_is_refused_by_its_index_alone(tmp_path, pipeline, network):
    index = {"_class_name": pipeline, "_diffusers_version": "0.42.1", "unet": ["diffusers", network]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"it is a {pipeline} over a {network}"):
        load_model(str(tmp_path))


def test_code_of_a_repository_is_not_run(tmp_path):
    pipeline = ScoreSdePipeline(tiny_network(), ScoreSdeSubVpScheduler())
    pipeline.save_pretrained(tmp_path, remote_code=True)
    for path in tmp_path.rglob("*.py"):
        path.write_text(f"open({str(tmp_path / 'was-here')!r}, 'w')\n" + path.read_text())
    with pytest.raises(ValueError, match="contains custom code"):
        load_model(str(tmp_path))
    assert not (tmp_path / "was-here").exists()


def test_broken_weights_are_a_message(repository):
    next(repository.rglob("*.safetensors")).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(str(repository))


def test_many_users_load_a_model_once():
    loads = []

    def load(name):
        loads.append(name)
        time.sleep(0.05)
        return object()

    cache, found = ModelCache(2, load), []
    threads = [threading.Thread(target=lambda: found.append(cache.get("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["a"]
    assert len(set(found)) == 1
    assert len(found) == 8


def test_the_least_recently_used_goes_first():
    loads = []
    cache = ModelCache(2, lambda name: loads.append(name))
    for name in "abaca":
        cache.get(name)
    assert loads == ["a", "b", "c"]
    cache.get("b")
    assert loads == ["a", "b", "c", "b"]


def test_a_failure_is_tried_again():
    answers = [ValueError("not now"), "model"]

    def load(name):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache = ModelCache(2, load)
    with pytest.raises(ValueError, match="not now"):
        cache.get("a")
    assert cache.get("a") == "model"


def test_turns_come_in_order_and_one_at_a_time():
    turns, order, threads, inside, most = Turns(), [], [], [], []

    def take(i):
        with turns:
            order.append(i)
            inside.append(i)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(i)

    with turns:
        for i in range(5):
            threads.append(threading.Thread(target=take, args=(i,)))
            threads[-1].start()
            while turns._next_ticket != i + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert max(most) == 1
