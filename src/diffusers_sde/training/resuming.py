"""Options of a resumed run against those of its checkpoint: every option is applied as typed, or refused.

Optimiser and schedule take their options at each start, so nothing in a checkpoint overrides them.
"""

import json
import logging

logger = logging.getLogger(__name__)

FIXED = frozenset("seed sde streaming shuffle_buffer_size label_column".split())
"""Refused if changed: the state in a checkpoint means nothing under another value."""

APPLIED = frozenset(
    "loss loss_weighting time_sampling loss_reduction training_eps random_flip uniform_dequantization "
    "crop_size pad center_crop learning_rate lr_scheduler lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay "
    "adam_epsilon max_grad_norm ema_decay max_train_steps num_epochs mixed_precision "
    "predictor corrector snr correct_steps sampling_eps".split()
)
"""Applied from the next step on, and told: the weights, or the sampler that is saved, depend on them."""

COMPARED_BY_EFFECT = frozenset(
    "config set model_config_name_or_path resolution channels sigma_min sigma_max beta_min beta_max continuous "
    "num_train_timesteps data dataset_name dataset_config_name train_data_dir image_column "
    "train_batch_size gradient_accumulation_steps total_batch_size".split()
)
"""Compared by what they come to, see `facts`: the network, the SDE, the data, the images of a step."""

FREE = frozenset(
    "cache_dir in_memory_limit dataloader_num_workers channels_last gradient_checkpointing torch_compile "
    "max_train_seconds output_dir overwrite_output_dir checkpointing_steps checkpoints_total_limit "
    "resume_from_checkpoint dry_run logger logging_dir logging_steps save_images_steps save_images_sampler "
    "save_images_time_share eval_batch_size num_inference_steps push_to_hub hub_model_id hub_token hub_private_repo "
    "validation_data_dir".split()
)
"""Applied without a word: where and how fast a run goes on, and what it writes beside the weights."""

_SDE_FACTS = ("sigma_min", "sigma_max", "beta_min", "beta_max", "continuous", "num_train_timesteps")


def facts(network, scheduler, images_per_step: int, num_images: int | None, data_digest: str) -> dict:
    """What a run is by its effect, as JSON: network, SDE, data, images of a step; none of it may change."""
    found = {f"network.{key}": value for key, value in network.config.items() if not key.startswith("_")}
    found.pop("network.decay", None)
    found |= {f"sde.{key}": scheduler.config[key] for key in _SDE_FACTS if key in scheduler.config}
    found |= {"images_per_step": images_per_step, "num_images": num_images, "data_digest": data_digest}
    return json.loads(json.dumps(found))


def check_resumed(before: dict, now: dict, checkpoint: str) -> list[str]:
    """Compare the options of a checkpoint with those of the run that goes on from it.

    Args:
        before: options and facts of the checkpoint.
        now: options and facts of the run.
        checkpoint: name of the checkpoint, for the message.

    Returns:
        A line for each option that is applied with a new value.

    Raises:
        ValueError: if an option differs that may not, with old and new values.
    """
    now = json.loads(json.dumps(now))
    old_facts, new_facts = before.get("facts") or {}, now["facts"]
    refused = [
        f"{key} is {_short(new_facts.get(key))}, it was {_short(old_facts[key])}"
        for key in sorted(old_facts)
        if old_facts[key] is not None and old_facts[key] != new_facts.get(key)
    ]
    refused += [
        f"--{key} is {_short(now[key])}, it was {_short(before[key])}"
        for key in sorted(FIXED)
        if key in before and key in now and before[key] != now[key]
    ]
    if refused:
        raise ValueError(
            f"{checkpoint} is of a run with other options: {'; '.join(refused)}. These make it another run. Give the "
            "old values, or start a new run in another --output_dir."
        )
    return [
        f"--{key} {_short(now[key])} instead of {_short(before[key])}"
        for key in sorted(APPLIED)
        if key in before and key in now and before[key] != now[key]
    ]


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
