"""The bundled models, their truth, and how they were made."""

from pathlib import Path

DEMO_LM = Path(__file__).parent / "lm"
"""Folder of the bundled language model, in Hugging Face layout."""

DEMO_DT = Path(__file__).parent / "dt"
"""Folder of the bundled agent, in Hugging Face layout, with its agent.json."""
