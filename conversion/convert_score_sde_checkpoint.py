"""Convert a checkpoint of the official code; the same as `diffusers-sde convert`.

python conversion/convert_score_sde_checkpoint.py checkpoint_24.pth --config ve/cifar10_ncsnpp_continuous --output DIR
"""

from diffusers_sde_cli.convert import convert

if __name__ == "__main__":
    convert()
