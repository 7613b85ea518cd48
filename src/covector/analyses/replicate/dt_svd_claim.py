"""The claims of the decision-transformer post, and what an answer to one is.

Source: document 000 of the sources; `docs/replicate-dt-svd.md`.
"""

from dataclasses import dataclass

CLAIMS = {
    "A1": "Singular vectors of K (W_in) have high cosines with the action outputs.",
    "A2": "Those of V (W_out) have much lower ones.",
    "A3": "The cosine is greater for K than for any other part of a block.",
    "A4": "The first singular vector of K corresponds to the most common actions.",
    "B1": "Setting the first direction of K to [1, 1, …]/d makes the agent fail.",
    "B2": "Setting the third direction of K to [1, 1, …]/d makes it fail.",
    "B3": "Setting the first direction of V to [1, 1, …]/d harms it much less.",
    "B4": "Setting the third direction of V to [1, 1, …]/d harms it much less.",
    "B5": "Editing K has a very significant effect, in whatever block.",
    "B6": "Edits of K harm more than the same edits of V.",
    "B7": "What harms is the vector that is put in place, not the removal of the old one (K).",
    "B8": "The same of V.",
    "B9": "It matters that the vector is [1, 1, …]/d (K).",
    "B10": "The same of V.",
    "B11": "The edited directions, first and third of K, matter more than others.",
    "B12": "The stronger the cosine with actions, the more an edit does.",
    "C1": "The first block's K reads the state.",
    "C2": "The first block's OV reads the state.",
    "C3": "The return is strongest in V of the second block.",
    "C4": "A cosine of .24 there is more than one would expect at random in 128 dimensions.",
    "C5": "V of the first block shows reactions to the timesteps.",
    "C6": "The timesteps show no structure.",
    "D1": "All results are inner products of two vectors of norm 1.",
    "D2": "The method works worse on larger models, because cosines are smaller there.",
}
PUBLISHED = {
    "A1": "figure", "A2": "figure", "A3": "stated", "A4": "stated", "B1": "one video", "B2": "one video",
    "B3": "one video", "B4": "one video", "B5": "stated", "B6": "stated", "B12": "stated", "C1": "figure",
    "C2": "figure", "C3": "cos .24", "C4": "stated", "C5": "stated", "C6": "stated", "D1": "stated", "D2": "stated",
}  # fmt: skip
# What the post's edit takes for granted; asked because the edit is several things at once.
IMPLIED = ("B7", "B8", "B9", "B10", "B11")
ALPHA = 0.05
HOLDS, FAILS, SILENT = "holds here", "does not", "cannot be decided here"
NAN = float("nan")


@dataclass(frozen=True)
class Claim:
    """One claim and its answer: `ours` against `chance`, with p and perhaps an interval; NaN where there is none.

    ``defect``, ``defect_p`` and ``as_published`` (a verdict) are the same question put as the post's code put it.
    """

    key: str
    number: str
    ours: float
    chance: float
    p: float
    verdict: str
    why: str
    low: float = NAN
    high: float = NAN
    defect: float = NAN
    defect_p: float = NAN
    as_published: str = ""

    @property
    def claim(self) -> str:
        """What was claimed, in a sentence."""
        return CLAIMS[self.key]

    @property
    def published(self) -> str:
        """What the post gives for it."""
        return PUBLISHED.get(self.key, "implied")


def silent(key: str, why: str) -> Claim:
    """A claim that cannot be decided here, and why."""
    return Claim(key, "", NAN, NAN, NAN, SILENT, why)


def verdict(holds: object) -> str:
    """In words."""
    return HOLDS if holds else FAILS


def at(p: float) -> str:
    """``p .003``, ``p < .001``."""
    if p != p:
        return "p –"
    return "p < .001" if p < 0.001 else f"p {p:.3f}".replace("0.", ".") if p < 0.9995 else "p 1"


def short(value: float) -> str:
    """``.753``, ``−.033``, ``12.4``."""
    if value != value:
        return "–"
    if value == int(value):
        return f"{value:.0f}".replace("-", "−")
    text = f"{abs(value):.3f}".removeprefix("0") if abs(value) < 1 else f"{abs(value):.3g}"
    return f"−{text}" if value < 0 and text != ".000" else text
