"""The Gradio Space of `diffusers_sde`: shared networks, one run per user at a time, one tab per task.

models   networks, loaded once and shared read-only
runs     one run over a shared network: counted, stoppable, with a look at what it is doing
uploads  what users send, checked
guard    what requests may be
pictures what they see
layout   what the tabs share
tabs     one task each: a function that draws, the inputs, the outputs
page     all of them
"""
