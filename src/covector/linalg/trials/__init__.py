"""Trials: what episodes under several arms on the same seeds say. Arms are columns or rows of numbers, nothing else.

Source: `docs/theory/rollouts.md`, equations 1–26.
"""
