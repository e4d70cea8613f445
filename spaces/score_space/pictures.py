"""States of a network as pictures, and a strip of them."""

import torch
from PIL import Image, ImageDraw, ImageFont

from .models import Model

TILE, GAP, BOTTOM, LEFT = 96, 4, 26, 116  # pixels of a strip
INK, FRAME, PAPER = (31, 41, 55), (209, 213, 219), (255, 255, 255)


def is_centered(model: Model) -> bool:
    """Whether the data range is [-1, 1] rather than [0, 1]."""
    return not getattr(model.network.config, "center_input_sample", False)


def to_pictures(x: torch.Tensor, model: Model) -> list[Image.Image]:
    """Images of shape (B, C, H, W) in the data range as PIL, values outside it clamped."""
    x = x / 2 + 0.5 if is_centered(model) else x
    arrays = (255 * x.float().clamp(0, 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def noisy_picture(x: torch.Tensor, t: float, model: Model) -> Image.Image:
    """A state at time t in its own contrast: black to white is alpha(t) times the data range, and 2 sigma(t) beyond.

    Args:
        x: shape (C, H, W).
        t: time in [0, 1].
        model: whose state it is.
    """
    sde, time = model.scheduler.sde, torch.tensor(t, dtype=torch.float64)
    alpha, sigma = (float(f(time)) for f in (sde.alpha, sde.sigma))
    low, high = (-1, 1) if is_centered(model) else (0, 1)
    bottom, top = alpha * low - 2 * sigma, alpha * high + 2 * sigma
    unit = (x - bottom) / (top - bottom)
    return to_pictures((low + (high - low) * unit)[None], model)[0]


def strip(rows: dict[str, list[Image.Image | None]], columns: list[str]) -> Image.Image:
    """Rows of pictures with their names at the left and those of the columns below; `None` leaves a place empty."""
    height = len(rows) * (TILE + GAP)
    sheet = Image.new("RGB", (LEFT + len(columns) * (TILE + GAP), height + BOTTOM), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for i, (name, row) in enumerate(rows.items()):
        y = i * (TILE + GAP)
        pen.multiline_text((LEFT / 2, y + TILE / 2), name, INK, font, anchor="mm", align="center")
        for j, picture in enumerate(row):
            x = LEFT + j * (TILE + GAP)
            if picture is None:
                pen.rectangle((x, y, x + TILE - 1, y + TILE - 1), outline=FRAME)
            else:
                sheet.paste(picture.convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
    for j, column in enumerate(columns):
        pen.text((LEFT + j * (TILE + GAP) + TILE / 2, height + BOTTOM / 2), column, INK, font, anchor="mm")
    return sheet
