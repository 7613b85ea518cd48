"""Edits: changes of weights as values, term by term, reversible, as text and as JSON.

    Edit.parse("L22H10.ov:3*0")                           removes dyad 3 (ε −1); *0.3 keeps 30 %, *2 doubles
    Edit.parse("L22H10.ov:0,2-4*0; L20H1.ov:0*0.5")       several changes at once; they must commute
    Edit.parse("L9H6.ov:0*0 then L9H6.ov:0*0")            one after the other: dyads of the model edited so far
    model.edited(edit), edit.inverse(model), edit.bound(model).to_json()

Source: F5 of the theory page; `docs/theory/edits.md`, equations 1–7.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.span import span
from covector.model.opened import Model
from covector.model.overlay import Change
from covector.study.edit_json import steps_of, to_list
from covector.study.edit_resolve import Resolved, fixed, hashes, inverted, resolve
from covector.study.edit_terms import Along, Dyads, Replace, Term, rows_of
from covector.study.edit_text import in_words, parse, written

FORMAT, VERSION = "covector-edit", 1


@dataclass(frozen=True, eq=False)
class Edit:
    """Terms laid over a model, step by step; the terms of one step are made at once and must commute.

    ``frame`` and ``base`` are set by `bound`: the frame whose dyads are meant, and the sha256 of every stored tensor
    that the edit's sites are made of. An edit that is not bound means the dyads of whatever model and frame it is laid
    over. ``reflects`` allows ε below −1, which turns a direction around.
    """

    steps: tuple[tuple[Term, ...], ...]
    frame: str | None = None
    base: Mapping[str, str] = field(default_factory=dict)
    reflects: bool = False

    def __post_init__(self) -> None:
        if not self.steps or not all(self.steps):
            raise BadRequest('expected at least one change, got none; type for example "L9H6.ov:0*0"')
        for term in (t for step in self.steps for t in step if not self.reflects):
            if isinstance(term, Dyads | Along) and min(term.epsilon) < -1:
                raise BadRequest(
                    f"edit of {term.site}: expected ε of at least −1 (a factor of at least 0), got ε "
                    f"{min(term.epsilon):g}, which turns a direction around; --reflect (reflects=True) allows it"
                )

    @classmethod
    def parse(cls, text: str, *, reflects: bool = False) -> "Edit":
        """The edit that a text means; ``@edit.json`` reads a saved one. Raises BadRequest, showing what is not read."""
        if text.strip().startswith("@"):
            return cls.load(Path(text.strip()[1:]).expanduser())
        return cls(parse(text), reflects=reflects)

    @classmethod
    def dyads(cls, site: str, epsilon: Mapping[int, float], side: str = "", *, reflects: bool = False) -> "Edit":
        """ε by dyad of one site."""
        term = Dyads(site, tuple(epsilon), tuple(map(float, epsilon.values())), side)
        return cls(((term,),), reflects=reflects)

    @classmethod
    def within(
        cls,
        site: str,
        vectors: Float[np.ndarray, "k m"] | Float[np.ndarray, " m"],
        epsilon: float,
        side: str = "",
        said: str = "",
    ) -> "Edit":
        """The whole span of `vectors` changed by one ε; −1 erases it: M(I − ccᵀ), concept erasure.

        Vectors within about 0.1° of each other are one direction, their common one (`covector.linalg.span.SAME`).
        """
        kept = span(rows_of(site, vectors))
        said = said or ("a given direction" if len(kept) == 1 else f"{len(kept)} given directions")
        return cls(((Along(site, (float(epsilon),) * len(kept), kept, said, side),),))

    @classmethod
    def replace_direction(
        cls, site: str, index: int, vector: Float[np.ndarray, " m"] | str = "ones/d", side: str = ""
    ) -> "Edit":
        """``U[i]`` or ``V[i]`` replaced by a vector as it is, length included (``ones/d``: 1/d everywhere)."""
        given = isinstance(vector, str)
        row, said = (None, vector) if isinstance(vector, str) else (vector, "a given vector")
        return cls(((Replace(site, index, None if given else row, said, side),),))

    @classmethod
    def together(cls, edits: Sequence["Edit"]) -> "Edit":
        """Several as one: at once where each has one step, else one after the other. Raises BadRequest for none."""
        if not edits:
            raise BadRequest("expected an edit, got none; type for example 'L9H6.ov:0*0'")
        whole = edits[0]
        for one in edits[1:]:
            whole = whole + one if len(whole.steps) == len(one.steps) == 1 else whole.then(one)
        return whole

    def __add__(self, other: "Edit") -> "Edit":
        """Both at once. Raises BadRequest for edits in several steps, or bound to other frames or checkpoints."""
        if len(self.steps) > 1 or len(other.steps) > 1:
            raise BadRequest("edits in several steps cannot be made at once: expected one.then(other)")
        return self._joined(other, (tuple(term for step in (*self.steps, *other.steps) for term in step),))

    def then(self, other: "Edit") -> "Edit":
        """This one first, and `other` on the model that it gives: dyads are those of the edited model."""
        return self._joined(other, (*self.steps, *other.steps))

    def _joined(self, other: "Edit", steps: tuple[tuple[Term, ...], ...]) -> "Edit":
        if self.frame and other.frame and self.frame != other.frame:
            raise BadRequest(f"expected two edits of one frame, these are bound to {self.frame} and {other.frame}")
        differing = [name for name in self.base if other.base.get(name, self.base[name]) != self.base[name]]
        if differing:
            raise BadRequest(f"expected two edits of one checkpoint, these differ in {differing[0]}; bind both to one")
        base = {**self.base, **other.base}
        return Edit(steps, self.frame or other.frame, base, self.reflects or other.reflects)

    def resolve(self, model: Model) -> Resolved:
        """What it comes to on a model: changes of stored tensors, and what each term does there; exact in float64.

        Raises BadRequest for an edit bound to another checkpoint, for terms that overlap and do not commute (naming
        an order), for dyads that the site has not, and for a read-side edit in a folded frame whose γ is too small or
        whose bias has no place; BadSite; FrameUnavailable.
        """
        return resolve(self.steps, model, self.frame, self.base)

    def change(self, model: Model) -> Change:
        """The changes of stored tensors alone; see `resolve`."""
        return self.resolve(model).change

    def inverse(self, model: Model) -> "Edit":
        """The edit that undoes this one, to be laid over ``model.edited(this)``: ε → −ε/(1 + ε) along the same rows.

        Raises BadRequest where something was removed (ε = −1): then only the base has it.
        """
        resolved = self.resolve(model)
        return Edit(inverted(resolved), str(resolved.frame), {}, reflects=True)

    def bound(self, model: Model) -> "Edit":
        """The same, tied to this frame and checkpoint (sha256 of what it is made of), its vectors written out."""
        resolved = self.resolve(model)
        return Edit(fixed(resolved), str(resolved.frame), hashes(resolved, model), self.reflects)

    def __str__(self) -> str:
        return written(self.steps)

    def in_words(self) -> str:
        """What it does, for people: ``L22H10.ov: dyad 3 removed (ε −1)``."""
        return in_words(self.steps)

    def record(self) -> Mapping[str, Any]:
        """What results of an edited model say of it: the text, the words, and a hash that tells vectors apart."""
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()
        return {"edit": str(self), "words": self.in_words(), "sha256": digest}

    def to_json(self) -> str:
        """Strict JSON, the same for the same edit; `from_json` reads it back."""
        found = {
            "format": FORMAT, "version": VERSION, "text": str(self), "words": self.in_words(), "frame": self.frame,
            "base": dict(sorted(self.base.items())), "reflects": self.reflects, "steps": to_list(self.steps),
        }  # fmt: skip
        return json.dumps(found, ensure_ascii=False, allow_nan=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Edit":
        """The edit of a JSON text. Raises BadRequest for anything else."""
        try:
            values = json.loads(text)
            if values["format"] != FORMAT or values["version"] != VERSION:
                raise ValueError(f"format {values['format']} {values['version']}, expected {FORMAT} {VERSION}")
            steps = steps_of(values["steps"])
            return cls(steps, values["frame"], dict(values["base"]), bool(values["reflects"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadRequest(
                f"expected the JSON of an edit (covector edit --save writes edit.json), cannot read it: {error!r}"
            ) from error

    @classmethod
    def load(cls, path: Path) -> "Edit":
        """The edit of a file. Raises BadRequest where there is none."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BadRequest(f"expected an edit.json at '{path}', cannot read it: {error}; check the path") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edit) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())
