"""What a location says and does not say, in words."""

import shlex
from collections.abc import Mapping

from covector.model.address import Site
from covector.model.circuits import cautions, site_tensors
from covector.model.opened import Model
from covector.render import Table

# Places whose cautions are printed.
CAUTIONED = 5


def title(table: Table, model: Model) -> str:
    """``demo-lm · token_out (1910 labels) at 72 places · frame raw · 1000 rotations``."""
    meta = table.meta
    concept = f" {', '.join(map(repr, meta['concept']))}" if meta["concept"] else ""
    count = f"{meta['labels']} label{'s' * (meta['labels'] != 1)}"
    return (
        f"{model.name} · {meta['basis']}{concept} ({count}) at {meta['places']} places · frame {model.frame} · "
        f"{meta['draws']} rotations"
    )


def says(table: Table, level: float) -> str:
    """How many places are beyond chance, which is the strongest, and how sure that is."""
    rows = table.rows
    top = rows[0]
    beyond = sum(row["familywise"] is not None and row["familywise"] <= level for row in rows)
    if not beyond:
        return (
            f"At none of {len(rows)} places is the gain beyond chance (familywise {level:.0%}; "
            f"least p {top_familywise(rows):.2g}): nothing is located."
        )
    first = f"{top['site']} ({top['side']}) is the strongest, {top['gain']:.3g} times the gain of a random direction"
    are = "is" if beyond == 1 else "are"
    return f"{beyond} of {len(rows)} places {are} beyond chance (familywise {level:.0%}). {first}{_sure(rows)}."


def top_familywise(rows: list[dict]) -> float:
    """The least familywise p."""
    return min((row["familywise"] for row in rows if row["familywise"] is not None), default=1.0)


def _sure(rows: list[dict]) -> str:
    top, rival = rows[0], max(rows[1:], key=lambda row: row["first"] or 0.0, default=None)
    if top["first"] is None:
        return "; how sure its rank is cannot be told from one label"
    rest = f"; next {rival['site']} ({rival['side']}), {rival['first']:.0%}" if rival and rival["first"] else ""
    return f", and with {top['first']:.0%} confidence it is the first place for labels like these{rest}"


def not_says(table: Table, model: Model, level: float) -> str:
    """What the numbers cannot show: use, meaning, and whatever the anatomy hides at the strongest places."""
    meta, rows = table.meta, table.rows
    parts = ["It does not say that the model uses these places (nothing was run); covector patch measures it"]
    shown = [row for row in rows if row["familywise"] is not None and row["familywise"] <= level][:CAUTIONED]
    said: dict[str, list[str]] = {}
    for row in shown:
        site = model.site(row["site"])
        for text in (*cautions(model.stored.spec, site), *_own_rows(model, meta, site)):
            said.setdefault(text, []).append(row["site"])
    parts += [f"{', '.join(dict.fromkeys(sites))}: {text}" for text, sites in said.items()]
    if meta["hardly_trained"]:
        advice = "" if meta["concept"] else "; --without trained"
        parts.append(f"{meta['hardly_trained']} of {meta['labels']} labels look hardly trained{advice}")
    if meta["left_out"]:
        parts.append(f"{meta['left_out']} labels have no direction and are left out")
    if meta["maps_of_zeros"]:
        parts.append(f"{len(meta['maps_of_zeros'])} places have a map of zeros and are left out")
    if meta["cosines_at"] < len(rows):
        parts.append(f"cosines are of the strongest {meta['cosines_at']} places")
    parts.append("p_cos and p_energy are of one place, not corrected for choosing among them")
    return "; ".join(parts) + "."


def _own_rows(model: Model, meta: Mapping, site: Site) -> list[str]:
    """A caution where a map is met with its own rows: its gain is high by construction."""
    plain = meta["basis"].partition(":")[0]
    own, named = set(site_tensors(site)), set(model.bases[plain].tensors)
    if model.stored.spec.tied and {"W_E", "W_U"} & own and {"W_E", "W_U"} & named:
        own |= named
    return ["the basis is this map's own rows, so it is strong for random weights too"] if own & named else []


def next_command(table: Table, model: Model) -> str:
    """The dyads of the strongest place, against the same basis."""
    frame = "" if str(model.frame) == "raw" else f" --frame {model.frame}"
    left = "".join(f" --without {f}" for f in table.meta["without"])
    tokens = "".join(f" --token {shlex.quote(t)}" for t in table.meta["concept"])
    return f"covector svd {model.words} {table.rows[0]['site']} --basis {table.meta['basis']}{left}{tokens}{frame}"
