"""Look at the grid that `make demo` draws, as a person would: garments in rows, neither noise nor blank.

    python tests/demo_picture.py demo/grid.png

Exits with 1 and a sentence where the picture is not what README shows. Needs numpy and Pillow alone.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROWS = COLUMNS = 4
TILE = 32
# Mean absolute difference of vertical neighbours: real garments have 0.02 to 0.15, uniform noise has 0.33.
MOST_ROUGHNESS = 0.2
# Standard deviation of the pixels: real garments have 0.15 to 0.45, 0.5 is black and white at random.
LEAST_CONTRAST, MOST_CONTRAST = 0.1, 0.47


def fault_of_grid(path: str | Path) -> str | None:
    """Sentence on what is wrong with the picture of a grid; `None` if nothing is."""
    if not Path(path).is_file():
        return f"there is no {path}"
    with Image.open(path) as image:
        size, pixels = image.size, np.asarray(image.convert("L").resize((COLUMNS * TILE, ROWS * TILE)), float) / 255
    if size[0] % (COLUMNS * TILE) or size[0] * ROWS != size[1] * COLUMNS:
        return (
            f"the grid has {size[0]} x {size[1]} pixels, no multiple of {COLUMNS} x {ROWS} pictures of {TILE} pixels"
        )
    tiles = pixels.reshape(ROWS, TILE, COLUMNS, TILE).swapaxes(1, 2).reshape(-1, TILE, TILE)
    for i, tile in enumerate(tiles):
        contrast, roughness = tile.std(), np.abs(np.diff(tile, axis=0)).mean()
        if not LEAST_CONTRAST < contrast < MOST_CONTRAST:
            return f"picture {i} is blank or clipped: its standard deviation is {contrast:.3f}"
        if roughness > MOST_ROUGHNESS:
            return f"picture {i} is noise: neighbours differ by {roughness:.3f} on average"
    if len(np.unique(tiles.round(2), axis=0)) < len(tiles):
        return "two pictures of the grid are the same"
    return None


if __name__ == "__main__":
    fault = fault_of_grid(sys.argv[1])
    if fault is not None:
        sys.exit(f"The demo's picture is not right: {fault}.")
    print(f"{sys.argv[1]}: {ROWS * COLUMNS} pictures, none noise, none blank.")
