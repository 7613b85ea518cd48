"""The page's server: the built page, the four parts of the atlas, and JSON twins of every view.

Addresses name things that the server knows by name or number; none becomes a path. What a person types is translated
to parameters of an analysis, or to a command that runs in a process of its own.
"""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from covector.errors import CovectorError
from covector.render import Table
from covector.render.plain import plain
from covector.web.asking import Asking
from covector.web.assets import assets
from covector.web.beside import beside
from covector.web.bundle import table_data
from covector.web.jobs import Jobs
from covector.web.report import compare_words
from covector.web.results import FILMS, films_of
from covector.web.shown import Shown
from covector.web.words import names, typed

PACKED = "application/x-covector-packed"
Name = Annotated[str, Query(min_length=1, max_length=200)]
Part = Literal["directions", "labels", "spectra"]


class ColumnTwin(BaseModel):
    """One column of a result: its meaning and its values."""

    name: str
    unit: str
    digits: int | None
    about: str
    chance: float | str | None
    numbers: bool
    values: list[Any]


class TableTwin(BaseModel):
    """A result: what the view shows, as JSON."""

    title: str
    says: str
    not_says: str
    next: str
    key: list[str]
    meta: dict[str, Any]
    columns: list[ColumnTwin]
    picture: dict[str, Any] | None
    command: str = Field(default="", description="the command that gives the same")
    python: str = Field(default="", description="the Python line that gives the same")


class Ask(BaseModel):
    """A question to run, with what was filled in."""

    model_config = ConfigDict(extra="forbid")
    question: Annotated[str, Field(max_length=80)]
    values: dict[Annotated[str, Field(max_length=80)], str | bool | int | float]


class Sentences(BaseModel):
    """What a view says, and what it does not."""

    says: str
    not_says: str


class Words(BaseModel):
    """How the same is typed."""

    command: str
    python: str


class JobTwin(BaseModel):
    """A job: how far it is, and its results when it is done."""

    id: int
    question: str
    command: str
    python: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: str
    error: str
    results: list[dict[str, Any]] = []
    films: int = 0


class Refusal(BaseModel):
    """Why a request was refused: what was expected, what came, what to do."""

    detail: Any


REFUSALS: dict[int | str, dict[str, Any]] = {code: {"model": Refusal} for code in (400, 403, 404, 409, 413, 421, 422)}


def create_app(shown: Shown, jobs: Jobs) -> FastAPI:
    """The application for what is shown; `covector.web.guard` must stand in front of it."""
    app = FastAPI(
        title="covector", summary="JSON twins of the explorer's views", docs_url=None, redoc_url=None,
        openapi_url="/api/openapi.json", responses=REFUSALS,
    )  # fmt: skip
    app.exception_handler(CovectorError)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    _serve_page(app)
    _serve_atlas(app, shown, jobs)
    _serve_weights(app, shown)
    _serve_other(app, shown)
    _serve_jobs(app, shown, jobs)
    return app


def _refused(_: Request, error: Exception) -> JSONResponse:
    # What was typed is quoted in the refusal, and half a character cannot be sent back.
    said = str(error).encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"detail": said}, status_code=400)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    """What is wrong where; what came is left out, since half a character cannot be sent back."""
    assert isinstance(error, RequestValidationError)
    told = [{"where": [str(w) for w in e["loc"]], "why": e["msg"]} for e in error.errors()]
    text = json.dumps({"detail": told}, ensure_ascii=True)
    return JSONResponse(json.loads(text.encode("utf-8", "backslashreplace")), status_code=422)


def _serve_page(app: FastAPI) -> None:
    for name, (kind, content) in assets().items():
        for path in (f"/{name}", "/") if name == "index.html" else (f"/{name}",):
            app.get(path, include_in_schema=False)(_given(kind, content))


def _given(kind: str, content: bytes) -> Callable[[], Response]:
    def given() -> Response:
        return Response(content, media_type=kind)

    return given


def _serve_atlas(app: FastAPI, shown: Shown, jobs: Jobs) -> None:
    @app.get("/api/state")
    def state() -> dict[str, Any]:
        """What is shown, whether its atlas is there, and if not the job that builds it."""
        building = None if shown.building is None else jobs.job(shown.building).told(whole=False)
        return {
            "shown": shown.words,
            "built": shown.is_built,
            "building": None if shown.is_built else building,
            "other": shown.other_ref,
        }

    @app.post("/api/build", response_model=JobTwin, status_code=202)
    def build() -> dict[str, Any]:
        """Build the atlas that is shown, or go on where its building was stopped."""
        return shown.build(jobs).told()

    @app.get("/api/overview")
    def overview() -> dict[str, Any]:
        """The model, the atlas and every place at a glance."""
        atlas = shown.bundle.atlas
        named = names(shown.words, str(shown.folder), atlas.manifest)
        return {**shown.bundle.part("overview"), "shown": shown.words, "other": shown.other_ref, "words": named}

    @app.get("/api/parts/{part}", response_class=Response, responses={200: {"content": {PACKED: {}}}})
    def part(part: Part) -> Response:
        """Typed arrays of the atlas: directions, labels or spectra."""
        return Response(shown.bundle.part(part), media_type=PACKED)

    @app.get("/api/directions/{row}")
    def direction(row: int) -> dict[str, Any]:
        """Everything that the atlas says of one direction, with all digits."""
        n = len(shown.bundle.atlas)
        if not 0 <= row < n:
            raise HTTPException(404, f"expected a direction 0–{n - 1}, got {row}")
        return plain(shown.bundle.atlas.rows(np.array([row]))[0], "direction")


def _serve_weights(app: FastAPI, shown: Shown) -> None:
    @app.get("/api/readout", response_model=TableTwin)
    def readout(
        site: Name,
        frame: Annotated[str, Query(max_length=40)] = "raw",
        basis: Annotated[str, Query(max_length=200)] = "auto",
        rank: Annotated[int, Query(ge=1, le=200)] = 10,
        k: Annotated[int, Query(ge=1, le=50)] = 12,
    ) -> dict[str, Any]:
        """What a place reads and writes, from the checkpoint: dyads with both sides and both poles."""
        table = shown.readout(site, frame=frame, basis=basis, rank=rank, k=k)
        more = [f"--{n} {v}" for n, v, usual in (("frame", frame, "raw"), ("basis", basis, "auto")) if v != usual]
        command = f"covector svd {typed(shown.words)} {typed(site)} --rank {rank} -k {k} {' '.join(more)}"
        python = f"covector.readout({shown.in_python}, {site!r}, rank={rank}, k={k}, frame={frame!r}, basis={basis!r})"
        return twin(table, command.rstrip(), python)

    @app.get("/api/search", response_model=TableTwin)
    def search(
        query: Annotated[str, Query(min_length=1, max_length=2000)],
        by: Literal["direction", "site"] = "direction",
        top: Annotated[int, Query(ge=1, le=500)] = 50,
        expand: Annotated[int, Query(ge=0, le=5)] = 0,
        last: bool = False,
    ) -> dict[str, Any]:
        """Concept tracing: which directions read or write weighted tokens."""
        table = shown.search(query, by=by, top=top, expand=expand, last=last)
        more = f" --top {top}" + (f" --by {by}" if by != "direction" else "")
        more += (f" --expand {expand}" if expand else "") + (" --last" if last else "")
        extra = (f", expand={expand}" if expand else "") + (", last=True" if last else "")
        command = f"covector search {typed(str(shown.folder))} {typed(query)}{more}"
        return twin(table, command, f"covector.trace({str(shown.folder)!r}, {query!r}, by={by!r}, top={top}{extra})")


def _serve_other(app: FastAPI, shown: Shown) -> None:
    @app.get("/api/compare", response_model=TableTwin)
    def compared() -> dict[str, Any]:
        """Which directions of every place stand in the second atlas, beside chance."""
        return twin(shown.compared, *compare_words(str(shown.folder), str(shown.other_ref)))

    @app.get("/api/beside")
    def side_by_side(site: Name, side: Name) -> list[dict[str, Any]]:
        """The leading dyads of one place, each with its nearest in the second atlas."""
        return beside(shown.bundle.atlas, shown.second, site, side)


def _serve_jobs(app: FastAPI, shown: Shown, jobs: Jobs) -> None:
    asking = Asking(shown)

    @app.get("/api/questions")
    def questions() -> list[dict[str, Any]]:
        """What can be asked of the model, as forms."""
        jobs.warm()
        return asking.forms()

    @app.get("/api/openings")
    def opened() -> dict[str, Sentences]:
        """For each view of questions two sentences: what it can say of this model, and what it cannot."""
        return {view: Sentences(says=says, not_says=bound) for view, (says, bound) in asking.openings().items()}

    @app.post("/api/words")
    def words(given: Ask) -> Words:
        """The command and the Python lines of a question as it is filled in; nothing is run."""
        command, python = asking.words(given.question, given.values)
        return Words(command=command, python=python)

    @app.post("/api/jobs", response_model=JobTwin, status_code=202)
    def ask(given: Ask) -> dict[str, Any]:
        """Ask a question; the answer comes as a job."""
        name, values = given.question, given.values
        command, python = asking.words(name, values)
        return jobs.ask(name, command, python, lambda folder: asking.arguments(name, values, folder)).told()

    @app.get("/api/jobs", response_model=list[JobTwin])
    def unfinished() -> list[dict[str, Any]]:
        """Jobs that wait or run, in order, whoever started them."""
        return [job.told() for job in jobs.unfinished()]

    @app.get("/api/jobs/{number}", response_model=JobTwin)
    def job(number: int) -> dict[str, Any]:
        """How far a job is, and what came out."""
        return jobs.job(number).told()

    @app.delete("/api/jobs/{number}", response_model=JobTwin)
    def cancel(number: int) -> dict[str, Any]:
        """End a job."""
        return jobs.cancel(number).told()

    @app.get(
        "/api/jobs/{number}/films/{which}", response_class=Response, responses={200: {"content": {"image/gif": {}}}}
    )
    def film(number: int, which: int) -> Response:
        """A film that a job recorded, by its number."""
        found = films_of(jobs.job(number).folder)
        if not 0 <= which < len(found):
            raise HTTPException(404, f"job {number} has {len(found)} films, {which} is none")
        return Response(found[which].read_bytes(), media_type=FILMS[found[which].suffix])


def twin(table: Table, command: str, python: str) -> dict[str, Any]:
    """A result with the words that give the same."""
    return {**table_data(table), "command": command, "python": python}
