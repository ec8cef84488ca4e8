"""Adversarial distillation of a language model, as a library: the loop of the Lion paper (arXiv 2305.12870).

Start with `trainer.loop`. Nothing here imports Django or Celery; `python -m trainer` runs the whole loop in a shell.
"""
