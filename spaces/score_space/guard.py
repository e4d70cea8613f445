"""What stands between the network and the page: sizes of requests, no addresses to fetch, one line per refusal.

Gradio would download an address that is given in place of an image, stream one through its file endpoint, keep inputs
of any size, and print a traceback for each input of a wrong type.
"""

import html
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
from gradio.route_utils import FnIndexInferError

MAX_PATH = 2000  # letters
MAX_BODY = 1_000_000  # bytes of a request that uploads no file
MAX_UPLOAD = 25_000_000  # of one that does; Gradio has the limit of each file
MAX_VALUES = 2000  # of all inputs together
MAX_LETTERS = 5000  # of one text
MAX_MESSAGE = 500  # letters of Gradio's own messages, which repeat what was sent

logger = logging.getLogger("score_space")


class Page(gr.Blocks):
    """A page whose inputs are checked before Gradio looks at them, and that logs a refusal in one line."""

    async def preprocess_data(self, block_fn, inputs, state, explicit_call: bool = False):
        """Inputs as the handlers take them.

        Raises:
            gr.Error: for inputs that are too large, have an address in place of a file, or are of a wrong type.
        """
        try:
            check_inputs(inputs)
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error as error:
            message = error.message
        except Exception as error:  # of Gradio's own checks of what a client sent
            logger.info("input of %s: %s", block_fn.api_name, error)
            message = "An input has a type or a value that its field does not take."
        logger.warning("%s refused: %.200s", block_fn.api_name, message)
        raise gr.Error(html.escape(message[:MAX_MESSAGE]), print_exception=False)  # the page shows HTML


def check_inputs(inputs: Any) -> None:
    """Check the inputs of a call as they came.

    Raises:
        gr.Error: if they are too many or too long, or name a file by an address.
    """
    waiting, count = [inputs], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_VALUES or (isinstance(value, str) and len(value) > MAX_LETTERS):
            raise gr.Error("The inputs are too long.", print_exception=False)
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and "://" in path:
                raise gr.Error("Send an image itself, not its address.", print_exception=False)
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


class Guard:
    """ASGI middleware: refuses large bodies, and the file endpoint with an address.

    Args:
        app: what answers the rest.
    """

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if "://" in path or ("file=" in path and path.split("file=", 1)[1].lower().startswith(("http:", "https:"))):
            await _answer(send, 403, b"Addresses are not fetched here.")
            return
        if len(path) > MAX_PATH:
            await _answer(send, 414, b"The address is too long.")
            return
        most = MAX_UPLOAD if path.rstrip("/").endswith("/upload") else MAX_BODY
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            await _answer(send, 413, b"The request is too large.")
            return
        try:
            await self.app(scope, _limited(receive, most), send)
        except FnIndexInferError as error:  # before anything is answered
            logger.warning("refused: %.200s", error)
            await _answer(send, 404, b"There is no such event.")


def _limited(receive: Callable[[], Awaitable[dict]], most: int) -> Callable[[], Awaitable[dict]]:
    """`receive` of a request without a declared length: the client is gone once it has sent too much."""
    seen = 0

    async def limited() -> dict:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= most else {"type": "http.disconnect"}

    return limited


async def _answer(send: Callable, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
