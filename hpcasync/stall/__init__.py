"""What a rank is doing, its sign of life, and who holds up a run: for the ranks' watchdogs and `hpcasync status`.

Nothing here needs PyTorch, so that the launcher and `status` start at once.
"""
