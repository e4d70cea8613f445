"""Upload of a trained model."""

import argparse
from pathlib import Path


def create_repository(args: argparse.Namespace) -> str:
    """Create the repository of `--push_to_hub` if it does not exist, so that a missing right shows at the start.

    Returns:
        Its full name.
    """
    import huggingface_hub

    name = args.hub_model_id or Path(args.output_dir).resolve().name
    url = huggingface_hub.create_repo(name, exist_ok=True, private=args.hub_private_repo, token=args.hub_token)
    return url.repo_id


def upload(args: argparse.Namespace, repository: str, step: int) -> None:
    """Upload pipeline, samples and logs; checkpoints stay here."""
    import huggingface_hub

    huggingface_hub.upload_folder(
        repo_id=repository,
        folder_path=args.output_dir,
        commit_message=f"Step {step}",
        ignore_patterns=["checkpoint-*", "*-checkpoint-*", ".*"],
        token=args.hub_token,
    )
