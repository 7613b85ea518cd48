"""The bundled models, their truth, and how they were made."""

from pathlib import Path

DEMO_LM = Path(__file__).parent / "lm"
"""Folder of the bundled language model, in Hugging Face layout."""
