import pytest

from tests.checkpoints import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Function from the name of a recorded checkpoint to its file, which tests must not change."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return lambda name: write_checkpoint(folder, name)
