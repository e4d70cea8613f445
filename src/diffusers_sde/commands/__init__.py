"""Runs of the commands of `diffusers-sde` for images under a condition."""
