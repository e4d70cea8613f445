"""Runs of `training/train_sde.py` in processes of their own, started as users start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import diffusers_sde

SCRIPT = Path(__file__).parents[2] / "training" / "train_sde.py"


def start(argv, folder, num_processes=1, script=SCRIPT):
    """Start the script on the CPU in a process group of its own; its output goes to a file in `folder`.

    One process by `accelerate launch`; several by `torchrun`, since the former starts several on GPUs only.
    """
    source = str(Path(diffusers_sde.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source, "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    if num_processes == 1:
        command = ["accelerate.commands.launch", "--quiet", "--cpu", "--num_processes", "1"]
    else:
        command = ["torch.distributed.run", "--nproc-per-node", str(num_processes), "--master-port", str(free_port())]
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *command, str(script), *argv],
            env=environment,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def launch(argv, folder, num_processes=1, script=SCRIPT):
    """Run it to its end; returns the exit status and what it wrote."""
    process = start(argv, folder, num_processes, script)
    status = process.wait(timeout=600)
    return status, (folder / "output.txt").read_text()


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
