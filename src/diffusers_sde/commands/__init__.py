"""The commands of `diffusers-sde` for images under a condition, and the options that all commands share."""
