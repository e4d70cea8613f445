"""Three optimisation steps of the official code, from its recorded batches and seeds.

The record holds the losses, the state of Adam, and the weights and their average after the steps. The weights before
them follow from those after, since the warm-up makes the steps tiny: the first has the learning rate 0, the others
4e-8 and 8e-8. What the average lacks to the weights then tests warm-up, Adam and the decay together.
"""

import json

import pytest
import torch

from diffusers_sde.conversion.architectures import build_architecture
from diffusers_sde.conversion.convert import load_checkpoint
from diffusers_sde.conversion.pytorch import trained_names
from diffusers_sde.conversion.torch_file import read_torch_file as read
from diffusers_sde.training import Trainer
from tests.checkpoints import description, write_checkpoint

# The losses of `train_losses`, and the seed: 1 + 100 + 10 times the position in the list of the record.
RECORDED = {
    "ve_ncsnpp_continuous": (101, [408.77923583984375, 415.5377197265625, 411.29595947265625]),
    "ve_ncsnpp_skip_continuous": (111, [471.4167785644531, 458.968017578125, 450.21429443359375]),
    "vp_ddpmpp_continuous": (121, [0.9471473693847656, 0.9831540584564209, 0.9579442143440247]),
    "subvp_ddpmpp_continuous": (131, [1.064511775970459, 1.0849354267120361, 1.0425885915756226]),
    "vp_ddpm_discrete": (141, [1.2180235385894775, 1.2373247146606445, 1.1980695724487305]),
    "ve_ncsnpp_discrete": (151, [414.9655456542969, 413.68408203125, 428.4000244140625]),
}


class OfficialNoise:
    """In place of `PositionNoise`: draws from the global generator, in the order of the official code."""

    def __init__(self, count, num_labels):
        self.count, self.num_labels = count, num_labels

    def uniform(self, purpose, shape=()):
        if self.num_labels is None:
            return torch.rand(self.count)
        return (torch.randint(0, self.num_labels, (self.count,)) + 0.5) / self.num_labels

    def normal(self, purpose, shape=()):
        return torch.randn(self.count, *shape)


# Dropout draws in the order of memory, and the linear layers of the official DDPM leave channels last.
CHANNELS_LAST = {"vp_ddpm_discrete": ("mid_block.resnets.0", "mid_block.resnets.1", "up_blocks.0.resnets.0")}


@pytest.fixture
def run(make_args, tmp_path):
    """Make three steps of our `Trainer` from given weights on the recorded batches; returns it and the losses."""

    def make(name, weights):
        config = description(name)["config"] | {"seed": 0}
        config["training"]["batch_size"] = 4
        (tmp_path / "config.json").write_text(json.dumps(config))
        args = make_args(
            config=tmp_path / "config.json",
            model_config_name_or_path="",
            train_batch_size=None,
            lr_warmup_steps=None,
            channels=3,
            output_dir=tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}",
        )
        args.model_config_name_or_path = None
        args.channels_last = False
        trainer = Trainer(args, start=0.0)
        trainer.network.load_state_dict(weights)
        trainer.ema.shadow_params = [p.detach().clone() for p in trainer.network.parameters()]
        torch.manual_seed(RECORDED[name][0])
        batches = torch.rand(3, 4, 3, 16, 16)
        if config["data"]["centered"]:
            batches = 2 * batches - 1
        labels = None if config["training"]["continuous"] else config["model"]["num_scales"]
        trainer._batch = lambda images, micro_step: (images, OfficialNoise(4, labels))
        for module in CHANNELS_LAST.get(name, ()):
            trainer.network.get_submodule(f"{module}.dropout").register_forward_pre_hook(
                lambda module, inputs: inputs[0].contiguous(memory_format=torch.channels_last)
            )
        trainer.model.train()
        losses = []
        for batch in batches:
            losses.append(trainer._train_step(iter([batch]))[0].item())
            trainer.step += 1
        return trainer, losses

    return make


def official(name, tmp_path):
    """Weights, average and (where the record has them) both moments of Adam, each as one vector in our order."""
    path = write_checkpoint(tmp_path, name)
    architecture = build_architecture(description(name)["config"], "pytorch")
    raw = load_checkpoint(path, use_ema=False).state_dict
    weights, average = (architecture.convert(load_checkpoint(path, use_ema).state_dict) for use_ema in (False, True))
    states = list(read(path)["optimizer"]["state"].values())
    moments = [
        architecture.convert(
            raw | {key: state[moment] for key, state in zip(trained_names(list(raw)), states, strict=True)}
        )
        for moment in ("exp_avg", "exp_avg_sq")
        if states
    ]
    return weights, average, moments


def vector(network, tensors):
    return torch.cat([tensors[name].flatten() for name, p in network.named_parameters() if p.requires_grad])


def weights_before(run, name, after):
    """The weights from which three steps lead to `after`: found by repeating the steps from a better guess."""
    guess = after
    for _ in range(2):
        network = run(name, guess)[0].network
        reached = network.state_dict()
        guess = {key: guess[key] + (after[key] - reached[key]) for key in after}
    return guess


@pytest.mark.parametrize("name", RECORDED)
def test_losses_weights_and_average_are_the_recorded_ones(name, run, tmp_path):
    weights, average, moments = official(name, tmp_path)
    before = weights_before(run, name, weights)
    trainer, losses = run(name, before)
    assert losses == pytest.approx(RECORDED[name][1], rel=2e-6)
    network = trainer.network
    after = vector(network, network.state_dict())
    assert (after - vector(network, weights)).abs().max() <= 2 * torch.finfo().eps * after.abs().max()

    # Where a weight is small enough for its steps to show in float32, the average lags behind it as recorded.
    small = after.abs() < 0.02
    ours = (torch.cat([p.flatten() for p in trainer.ema.shadow_params]) - after)[small].double()
    theirs = (vector(network, average) - vector(network, weights))[small].double()
    assert small.sum() > 1000
    assert float(ours @ theirs / (ours @ ours)) == pytest.approx(1, abs=0.02)
    assert float((ours - theirs).norm() / theirs.norm()) < 0.1

    for moment, recorded in zip(("exp_avg", "exp_avg_sq"), moments, strict=False):
        state = torch.cat(
            [trainer.optimizer.state[p][moment].flatten() for p in network.parameters() if p.requires_grad]
        )
        recorded = vector(network, recorded)
        assert float((state - recorded).norm() / recorded.norm()) < 1e-4
