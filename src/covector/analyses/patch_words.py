"""What a patch can be asked for: kinds of places, sources, guesses; checked without anything that runs a model."""

from covector.errors import BadRequest

WHATS = ("heads", "ov", "qk", "resid", "attn", "mlp", "q", "k", "v", "pattern")
SOURCES = ("corrupt", "zero", "mean", "resample")
GUESSES = ("plain", "integrated", "softmax")


def check_what(what: str, source: str = "corrupt") -> None:
    """Raise BadRequest for a kind of place, or a source of activations, that there is not."""
    if what not in WHATS or source not in SOURCES:
        raise BadRequest(f"expected --what {', '.join(WHATS)} and --source {', '.join(SOURCES)}, got {what}, {source}")


def check_guess(guess: str, what: str, steps: int, *, through: bool = False) -> None:
    """Raise BadRequest for a guess that there is not, or not of these places."""
    if guess not in GUESSES:
        raise BadRequest(f"--first-order: expected {', '.join(GUESSES)}, got '{guess}'")
    if guess == "softmax" and what not in ("q", "k"):
        raise BadRequest(f"--first-order softmax: expected --what q or k, whose change a softmax takes, got {what}")
    if steps < 1:
        raise BadRequest(f"--steps: expected at least one node along the line, got {steps}")
    if through and guess != "plain":
        raise BadRequest(
            f"--first-order {guess}: not defined through receivers; leave --to out, or --first-order plain"
        )
