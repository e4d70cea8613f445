"""The Space as a process: users who leave, ten at once, and what two hundred requests leave behind."""

import json
import threading
import time
import urllib.request

import pytest

pytest.importorskip("gradio", reason="the Space needs gradio: pip install -e '.[demo]'")

from tests.hostile.space import METHOD, Server, file_data, picture

LONG = [METHOD, 16, 0, 1000, "reverse_diffusion", "langevin", 0.16]
FASHION = "Fashion-MNIST, grey, VE (embedded)"


@pytest.fixture(scope="module")
def server():
    started = Server()
    yield started
    started.stop()


def processor_seconds(server) -> float:
    """Time that the server has computed."""
    with open(f"/proc/{server.pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def leave_in_the_middle(server) -> None:
    """Start a run of minutes, and close the connection once it computes."""
    body = json.dumps({"data": [FASHION, *LONG]}).encode()
    headers = {"Content-Type": "application/json"}
    event = json.loads(server.request("POST", "/gradio_api/call/generate", body, headers)[2])["event_id"]
    url = f"http://127.0.0.1:{server.port}/gradio_api/call/generate/{event}"
    with urllib.request.urlopen(url, timeout=30) as stream:
        for _ in range(6):
            stream.readline()


@pytest.mark.slow
def test_a_run_ends_when_its_user_leaves(server):
    """Otherwise four runs of people who have left would keep all others waiting for minutes."""
    for _ in range(4):
        leave_in_the_middle(server)
    time.sleep(5)
    before = processor_seconds(server)
    time.sleep(4)
    assert processor_seconds(server) - before < 1
    assert server.call("generate", [server.model, METHOD, 1, 0, 10, "reverse_diffusion", "none", 0.16])


@pytest.mark.slow
def test_ten_users_at_once_get_their_own_pictures(server):
    results = {}

    def use(seed):
        arguments = [server.model, METHOD, 2, seed, 20, "reverse_diffusion", "langevin", 0.16]
        gallery = server.call("generate", arguments, patience=60)[0]
        paths = ["/gradio_api/file=" + item["image"]["path"] for item in gallery]
        results.setdefault(seed, []).append([server.request("GET", path)[2] for path in paths])

    for _ in range(2):  # again, with other neighbours
        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == list(range(10))
    assert all(first == second for first, second in results.values())
    assert len({images[0][0] for images in results.values()}) == 10


@pytest.mark.slow
def test_memory_stays_over_two_hundred_requests(server):
    def draw(seed):
        image = file_data(server.upload(picture(size=64), f"{seed}.png"))
        server.call("edit", [server.model, image, 0.5, 2, seed, 10, "reverse_diffusion", "langevin", 0.16])
        with pytest.raises(ValueError):
            server.call("edit", [server.model, image, 7, 2, seed, 10, "reverse_diffusion", "langevin", 0.16])

    for seed in range(75):  # until Gradio begins to forget sessions
        draw(seed)
    before = server.memory()
    for seed in range(100):
        draw(seed)
    grown = server.memory() - before
    print(f"{before:.0f} MB, {grown:+.1f} MB after 200 requests")
    assert before > 200  # of the server, not of what started it
    assert grown < 40
