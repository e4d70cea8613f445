"""`python -m diffusers_sde_cli`, the same as `diffusers-sde`."""

from .main import main

if __name__ == "__main__":
    main(prog_name="diffusers-sde")
