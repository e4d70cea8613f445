"""The command line `diffusers-sde`: commands and their options, over the package `diffusers_sde`.

A package of its own, since importing `diffusers_sde` loads torch and diffusers: help, version and option errors need
neither. Modules here import `diffusers_sde` and whatever is slow to import only in the functions that run a command.
"""
