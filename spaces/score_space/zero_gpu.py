"""`GPU(duration=...)`: the decorator of ZeroGPU where its package `spaces` is installed, else one that does nothing.

It has to be imported before torch. The package has the name of our own folder, which is no package: found by accident,
as from the root of the repository, it has no `GPU` in it.
"""

try:
    from spaces import GPU
except ImportError:

    def GPU(duration: int):
        return lambda function: function


__all__ = ["GPU"]
