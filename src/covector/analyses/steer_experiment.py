"""A steering experiment, resolved: the vector, its place, token and doses, decided by training prompts alone.

Source: theory page §4.6; `docs/theory/steering.md`, equations 1–4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from covector.analyses.steer_setup import (
    Prompts,
    Vector,
    feature_of,
    halves,
    mean_gradients,
    prompts_of,
    spot_for,
    token_of,
    vector_of,
)
from covector.axes import Float
from covector.errors import BadRequest
from covector.linalg.steering import shrunk_covariance
from covector.model.opened import Model
from covector.propagation.entry import Spot
from covector.run.along import along
from covector.run.decoder import Decoder
from covector.run.pairs import check_reading
from covector.run.prompts import Pair
from covector.run.steered import Arm, steered
from covector.study.feature import Feature
from covector.study.observable import Observable
from covector.study.path import parse_path

# Doses when none are named: fractions of the stream's length at the token; of wishes: multiples of them.
STREAM_SCALES, WISH_SCALES = (-1.0, -0.3, -0.1, 0.1, 0.3, 1.0), (-1.0, 0.25, 0.5, 1.0, 2.0)
UNITS = ("logits", "stream", "feature")


@dataclass(frozen=True, eq=False)
class Setup:
    """A steering experiment, resolved: everything that the training prompts decide.

    ``slopes``: predicted change of each observable per unit of the vector, from training prompts. ``stream``: mean
    length of the stream at the token. ``doses``: multiples of the unit.
    """

    model: Model
    observables: tuple[Observable, ...]
    spot: Spot
    token: str
    vector: Vector
    gradient: Float[np.ndarray, "observable d_model"]
    slopes: Float[np.ndarray, " observable"]
    stream: float
    doses: Float[np.ndarray, " dose"]
    train: list[Prompts]
    held: list[Prompts]
    decoder: Decoder
    disjoint: bool
    covariance: Float[np.ndarray, "d_model d_model"]
    shrink: float

    @property
    def clusters(self) -> list[str]:
        """The name of every held-out prompt."""
        return [c for p in self.held for c in p.clusters]

    def measured(
        self, deltas: Float[np.ndarray, "world d_model"], arm: Arm = "whole"
    ) -> Float[np.ndarray, "observable world n"]:
        """Change of every observable on every held-out prompt."""
        found = []
        for p in self.held:
            values = steered(self.decoder, p.base, self.spot, deltas, p.mask, self.observables, p.at, arm)
            found.append(values - np.stack([p.unsteered(o) for o in self.observables])[:, None])
        return np.concatenate(found, axis=2)

    @property
    def where(self) -> str:
        """The operation in words."""
        return f"added at {self.spot} on token {self.token}"


def set_up(
    model: Model,
    observables: Sequence[Observable | str],
    pairs: Sequence[Pair],
    *,
    feature: Feature | None = None,
    path: str | None = None,
    wants: Sequence[float] = (),
    place: str | None = None,
    token: str = "auto",
    at: str = "end",
    scales: Sequence[float] = (),
    unit: str = "logits",
    whiten: bool = False,
    text: str | None = None,
    held: float = 0.5,
    bos: str = "auto",
    seed: int = 0,
) -> Setup:
    """Resolve the options of `steer`; see there. Raises BadRequest for options that contradict each other."""
    asked = tuple(Observable.parse(o, model) if isinstance(o, str) else o for o in observables)
    _check(asked, pairs, feature, path, wants, unit, whiten, text)
    if path is not None and feature is None:
        feature = feature_of(model, asked[0], path)
    for o in asked:
        check_reading(model, o.output, pairs, at, "--read")
    spot = spot_for(model, place, feature)
    training, testing = halves(pairs, held, seed)
    decoder = Decoder(model.weights, device=model.device)
    if token == "auto":
        if feature is None or not feature.path:
            raise BadRequest("--token auto: expected --path or a feature of a path, whose head says it; name the token")
        token = token_of(model, decoder, training, asked[0], parse_path(feature.path, model.spec), at, bos)
    train = prompts_of(decoder, training, token, at)
    test = train if training == testing else prompts_of(decoder, testing, token, at)
    covariance, shrink = _covariance(model, spot, train, text)
    gradient = mean_gradients(model, train, asked, spot)
    functionals = gradient
    if wants and path is not None:
        functionals = np.stack([feature_of(model, o, path).vector for o in asked])
    vector = vector_of(model, None if wants else feature, wants, functionals, covariance if whiten else None, shrink)
    slopes = gradient @ vector.unit
    length = float(np.linalg.norm(np.concatenate([p.rows(spot) for p in train]), axis=1).mean())
    doses = _doses(scales, unit, slopes, gradient, vector, length, bool(wants))
    return Setup(model, asked, spot, token, vector, gradient, slopes, length, doses, train, test, decoder,
                 training != testing, covariance, shrink)  # fmt: skip


def _check(
    observables: Sequence[Observable],
    pairs: Sequence[Pair],
    feature: Feature | None,
    path: str | None,
    wants: Sequence[float],
    unit: str,
    whiten: bool,
    text: str | None,
) -> None:
    if not pairs:
        raise BadRequest("expected prompts, got none; give --template and --fill, or --prompts FILE")
    if unit not in UNITS:
        raise BadRequest(f"--unit: expected {', '.join(UNITS)}, got '{unit}'")
    if wants and len(wants) != len(observables):
        raise BadRequest(f"expected a wish for each of {len(observables)} observables, got {len(wants)}")
    if feature is not None and (path is not None or wants):
        raise BadRequest("expected one of --feature, --path and --want (a --path may say how wishes are read)")
    if feature is None and path is None and not wants:
        raise BadRequest("expected a vector: --feature FILE, --path 'L9H7>out' or --want \"' she' - ' he'=+2\"")
    if whiten and text is None:
        raise BadRequest("--whiten takes the covariance of the stream along a text: expected --text FILE with it")


def _covariance(model: Model, spot: Spot, train: Sequence[Prompts], text: str | None) -> tuple[np.ndarray, float]:
    """Of the stream along the text, or over all positions but the first of the training prompts."""
    if text is not None:
        return shrunk_covariance(along(model, text, [spot.hook])[spot.hook])
    return shrunk_covariance(np.concatenate([p.base[spot.hook][:, 1:].reshape(-1, model.spec.d_model) for p in train]))


def _doses(
    scales: Sequence[float],
    unit: str,
    slopes: np.ndarray,
    gradient: np.ndarray,
    vector: Vector,
    length: float,
    wished: bool,
) -> Float[np.ndarray, " dose"]:
    """What the scales are in units of the vector."""
    size = float(np.linalg.norm(vector.unit))
    if wished and unit != "stream":
        return np.array(scales or WISH_SCALES)
    given = np.array(scales or STREAM_SCALES)
    if unit == "stream" or not scales:
        return given * length / size * sign(slopes[0])
    if unit == "feature":
        return given if np.isnan(vector.times) else given / vector.times
    if abs(slopes[0]) < 1e-4 * np.linalg.norm(gradient[0]) * size:
        raise BadRequest(
            f"the vector moves the first observable by {slopes[0] / size:.2g} logits per length 1 there, next to "
            "nothing: give its size as a fraction of the stream, --unit stream --scale 0.5"
        )
    return given / slopes[0]


def sign(x: float) -> float:
    """−1 below 0, else 1."""
    return -1.0 if x < 0 else 1.0
