"""An opened model: its anatomy, canonical weights, bases and places, in one frame.

model.spec, model.bases["token_out"], model.map("L9H6.ov"), model.framed("folded")
"""

import dataclasses
import shlex
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any, Protocol, runtime_checkable

from covector.linalg.maps import Map
from covector.model.address import Site, site, sites
from covector.model.bases import Bases
from covector.model.circuits import map_at
from covector.model.frames import Frame, frame, framed, reader_norm
from covector.model.overlay import Overlay, Resolvable
from covector.model.spec import ModelSpec
from covector.model.weights import Weights


@runtime_checkable
class Vocabulary(Protocol):
    """Tokens as text, both ways; io reads it from a tokenizer."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Token texts by id."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        ...

    def one(self, text: str) -> int:
        """Id of the single token that `text` is; raises NotOneToken."""
        ...


@dataclass(frozen=True)
class Model:
    """One opened model in one frame. A value: `framed` returns another.

    ``stored`` are the weights as the checkpoint has them, whatever the frame; ``labels`` name the rows of bases;
    ``identity`` says where it comes from and goes into the meta of every result; ``typed`` is how a command names it;
    ``device`` is where analyses run it (weights are decomposed on the CPU whatever it is).
    """

    name: str
    stored: Weights
    weights: Weights
    frame: Frame = field(default_factory=Frame)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vocabulary: Vocabulary | None = field(default=None, repr=False)
    identity: Mapping[str, Any] = field(default_factory=dict, repr=False)
    typed: str = ""
    device: str = "cpu"

    @property
    def words(self) -> str:
        """The model as words of a command line: its name, and the layout that was given with it."""
        return self.typed or shlex.quote(self.name)

    @property
    def framing(self) -> str:
        """The frame as an option of a command line, with a space in front; empty for raw, which needs none."""
        return "" if str(self.frame) == "raw" else f" --frame {shlex.quote(str(self.frame))}"

    @property
    def spec(self) -> ModelSpec:
        """Sizes and anatomy, in this frame."""
        return self.weights.spec

    @cached_property
    def bases(self) -> Bases:
        """Labelled directions of the residual stream, by name."""
        return Bases(self.weights, self.labels)

    def site(self, address: str | Site) -> Site:
        """The place that `address` names. Raises BadSite."""
        return address if isinstance(address, Site) else site(address, self.spec)

    def sites(self, addresses: str) -> tuple[Site, ...]:
        """All places that a pattern names (``L*H*.ov``). Raises BadSite."""
        return sites(addresses, self.spec)

    def map(self, address: str | Site) -> Map:
        """The map at a site, factored, in this frame; see `covector.model.circuits.map_at`."""
        return map_at(self.weights, self.site(address), self.frame.bias)

    def framed(self, name: str | Frame) -> "Model":
        """The same model in another frame. Raises UnknownFrame, FrameUnavailable."""
        chosen = frame(name) if isinstance(name, str) else name
        return dataclasses.replace(self, weights=framed(self.stored, chosen), frame=chosen)

    def on(self, device: str) -> "Model":
        """The same model, run on another device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

        An analysis that runs it raises BadRequest where there is no such device.
        """
        return dataclasses.replace(self, device=device)

    def edited(self, edit: Resolvable) -> "Model":
        """The same model with an edit laid over its weights, in the same frame; this one is not touched.

        The edit is resolved here and now: its dyads are those of this model in this frame (or in the frame that the
        edit was bound to). Raises what `Edit.change` raises.
        """
        over = Overlay(self.stored, edit.change(self))
        record = {"edits": [*self.identity.get("edits", ()), dict(edit.record())]}
        identity = {**self.identity, **record}
        return dataclasses.replace(self, stored=over, weights=framed(over, self.frame), identity=identity)

    def origins(self, *names: str) -> dict[str, str]:
        """Stored name → sha256 of its stored bytes, for canonical tensors and, in a frame, the norms in front of them.

        A result that records these can be told from one of another checkpoint with the same shapes.
        """
        norms = {reader_norm(self.stored.spec, name) for name in names} - {None} if self.frame.name != "raw" else set()
        wanted = (*names, *(f"{norm}.{part}" for norm in sorted(map(str, norms)) for part in ("gain", "bias")))
        return dict(self.stored.origin(name) for name in dict.fromkeys(wanted) if name in self.stored)

    def _repr_html_(self) -> str:
        """The model's sizes, for a notebook."""
        rows = "".join(f"<tr><th style='text-align:left'>{n}</th><td>{escape(v)}</td></tr>" for n, v in _sizes(self))
        return f"<table><caption>{escape(self.name)}</caption>{rows}</table>"

    def hash_ahead(self) -> None:
        """Begin to hash the token tables, which most results are made from, while the caller goes on.

        A thread does it on another core; `origins` then finds the digests, or waits for them.
        """
        names = [name for name in ("W_E", "W_U") if name in self.stored]
        threading.Thread(target=self.origins, args=names, daemon=True).start()

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What every result records about where it comes from (no clock: the same request gives the same bytes)."""
        dtypes = sorted({self.stored.stored(n) for n in self.stored.names()})
        return {
            "model": self.name,
            "family": self.spec.family,
            "dtype": dtypes[0] if len(dtypes) == 1 else dtypes,
            "frame": str(self.frame),
            **({} if self.device == "cpu" else {"device": self.device}),
            **self.identity,
        }


def _sizes(model: Model) -> list[tuple[str, str]]:
    """What a model is, in a few rows."""
    spec = model.spec
    heads = spec.attention
    mlp = next((block.mlp for block in spec.blocks if block.mlp), None)
    inputs = f"{spec.n_vocab:,} tokens" if spec.n_vocab else ", ".join(given.name for given in spec.assembly.inputs)
    found = [("family", spec.family), ("frame", str(model.frame)), ("layers", str(spec.n_layers))]
    found += [("d_model", f"{spec.d_model:,}")]
    if heads is not None:
        shared = "" if heads.n_kv_heads == heads.n_heads else f" on {heads.n_kv_heads} key/value heads"
        found += [("heads", f"{heads.n_heads} of size {heads.d_head}{shared}")]
    found += [("MLP", f"{mlp.d_mlp:,} ({mlp.activation}{', gated' if mlp.gated else ''})")] if mlp else []
    return [*found, ("inputs", inputs), ("context", f"{spec.n_ctx:,}"), ("stored as", str(model.meta["dtype"]))]
