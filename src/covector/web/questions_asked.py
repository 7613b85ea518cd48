"""Which questions the page asks: observables, edits, steering, agents."""

from covector.web.questions import Field, Literals, Question

_TASK = Field(
    "task", "Observable", default="' she' - ' he'", needed=True,
    about="weighted labels whose logits are compared: ' she' - ' he'",
)  # fmt: skip
_TEMPLATE = Field("template", "Template", "lines", "--template",
                  about="a prompt with slots, one a line: So, [NAME] really is")  # fmt: skip
_FILL = Field("fill", "Fill", "lines", "--fill", about="a slot's names for both sides: NAME=Mary,Lisa:John,Mark")
_PROMPTS = (_TEMPLATE, _FILL)
_NEEDED_PROMPTS = tuple(Field(**{**vars(f), "needed": True}) for f in _PROMPTS)
_EDITS = Field(
    "edits", "Edit", "lines", needed=True, about="L2H1.ov:0*0 removes dyad 0, *0.3 keeps 30 %, *2 doubles it"
)
_OBSERVE = Field("observe", "Observables", "lines", "--observe", needed=True, about="what is measured, one a line")
_REFLECT = Field("reflect", "ε below −1", "flag", "--reflect", about="a direction may be turned around")
_RUNS = ("heads", "labels", "torch", "prompts")
_FILLED = (
    "from covector.run.prompts import parse_fill\n"
    "pairs = covector.fill_template(model, {template}, parse_fill({fill}))\n"
)


def _line(text: str):
    """Python of one shape: `text` with the literals put in."""
    return lambda given: text.format_map(given)


def _edits(given: Literals) -> str:
    if given["reflect"] == "True":
        return f"[covector.Edit.parse(text, reflects=True) for text in {given['edits']}]"
    return given["edits"]


def _edit(given: Literals) -> str:
    text = ", tokens=1024" if "neutral=" in given["more"] else ""
    return (
        f"{_FILLED.format_map(given)}covector.edit_effect(model, {_edits(given)}, {given['observe']}, pairs"
        f"{given['more']}{text})"
    )


def _tokens(given: Literals) -> str:
    return (
        f"{_FILLED.format_map(given)}covector.edit_tokens(model, {_edits(given)}, {given['observe']}, pairs"
        f"{given['more']})"
    )


def _predict(given: Literals) -> str:
    return (
        "from covector.analyses.held_out import split_filled\nfrom covector.run.prompts import parse_fill\n"
        f"split = split_filled(model, {given['template']}, parse_fill({given['fill']}))\n"
        f"covector.predict_heads(model, {given['task']}, split.train, split.test, held=split.held)"
    )


def _locate(given: Literals) -> str:
    function, more = {
        "'dyads'": ("agent_map", ""),
        "'contrasts'": ("action_contrasts", ", draws=1000"),
    }.get(given["by"], ("locate", ""))
    return f"covector.{function}(model, {given['basis']}{more})"


def _couple(given: Literals) -> str:
    more = "" if given["others"] == "[]" else f", *{given['others']}"
    return f"covector.couple(model, {given['task']}, {given['second']}{more})"


def _rollout(given: Literals) -> str:
    arms = f"named_arms({given['arm']})"
    targets = f", targets=tuple({given['target']})" if given["target"] != "[]" else ""
    n, controls = given["episodes"], given["controls"] if given["arm"] != "[]" else "0"
    options = f"Options({n}, {controls}, min(30, {n}){targets})"
    head = "from covector.analyses.rollout import Options\nfrom covector.cli.rollout import named_arms\n"
    played = f"{given['reference']}, {arms}, options={options}{given['layout']}"
    if given["by"] == "'arm'":
        return f"{head}covector.rollout({played})"
    by = f"by_{given['by'].strip(chr(39))}"
    home = "rollout_tables" if by == "by_control" else "rollout_details"
    return (
        f"{head}from covector.analyses.{home} import {by}\nfrom covector.rollouts import experiment\n"
        f"{by}(experiment({played}))"
    )


QUESTIONS = (
    Question(
        "norms", "observables", "Head map", "How strongly each head could move the observable, from weights alone.",
        ("observe", "norms"), (_TASK,),
        _line("covector.head_norms(model, {task})"), ("heads", "labels"),
    ),
    Question(
        "paths", "observables", "Paths", "Which paths carry the difference between two kinds of prompts, exactly.",
        ("observe", "paths"),
        (_TASK, *_NEEDED_PROMPTS, Field("expand", "Parts split", "number", "--expand", "60", keyword="expansions",
                                        about="more split parts, longer paths")),
        _line(_FILLED + "covector.paths(model, {task}, pairs{more})"), _RUNS,
    ),
    Question(
        "predict", "observables", "Prediction against measurement",
        "The effect of patching each head, predicted on some names and measured on others.",
        ("observe", "predict"), (_TASK, *_NEEDED_PROMPTS),
        _predict, _RUNS,
    ),
    Question(
        "couple", "observables", "Coupling", "Do tasks use the same features? Their coupling at every head.",
        ("observe", "couple"),
        (
            _TASK,
            Field("second", "Second observable", needed=True, default="' her' - ' his'"),
            Field("others", "More observables", "lines", about="one a line; every pair is compared"),
        ),
        _couple, ("heads", "labels"),
    ),
    Question(
        "edit", "edits", "Edit", "Change directions: what comes next, what was predicted and measured, side effects.",
        ("edit",),
        (
            _EDITS, _OBSERVE, *_NEEDED_PROMPTS,
            Field("dose", "Doses of the effect", "numbers", "--dose", "0.25,0.5,0.75,1", keyword="doses",
                  about="shares of the edit, with commas"),
            Field("draws", "Random changes", "number", "--draws", "20", keyword="draws", about="behind every p"),
            Field("neutral", "Text for side effects", "document", "--neutral", keyword="neutral",
                  about="any text; KL and loss on it, before and after"),
            _REFLECT,
        ),
        _edit, _RUNS, beside="tokens",
    ),
    Question(
        "tokens", "edits", "What it says next", "The likeliest next tokens at every dose of the edit, of either sign.",
        ("edit", "--by=token"),
        (
            _EDITS, _OBSERVE, *_NEEDED_PROMPTS,
            Field("doses", "Doses", "numbers", "--dose", "-1,-0.75,-0.5,-0.25,0.25,0.5,0.75,1", keyword="doses",
                  about="shares of the edit, with commas; below 0 the other way"),
            _REFLECT,
        ),
        _tokens, _RUNS,
    ),
    Question(
        "steer", "steering", "Steer", "Add a vector to one token's stream: dose–response on held-out names.",
        ("steer",),
        (
            _TASK,
            Field("path", "Path", flag="--path", needed=True, keyword="path",
                  about="whose data-free feature is added: L2H1>out"),
            *_NEEDED_PROMPTS,
            Field("scale", "Doses", "numbers", "--scale", keyword="scales",
                  about="predicted logits with commas: -2,-1,1,2; empty: up to ‖x‖"),
            Field("draws", "Random vectors", "number", "--draws", "20", keyword="draws", about="behind every p"),
        ),
        _line(_FILLED + "covector.steer(model, [{task}], pairs{more})"), _RUNS,
    ),
    Question(
        "rollout", "agents", "Play", "Episodes of the agent, as it is and edited: return, success, length.",
        ("rollout",),
        (
            Field("arm", "Edits", "lines", "--arm", about="late=L2.mlp.out:0*0, one a line; none plays it as it is"),
            Field("episodes", "Episodes", "number", "--episodes", "20", about="of every arm, on the same seeds"),
            Field("controls", "Random changes", "number", "--controls", "19", about="of equal output, behind p"),
            Field("target", "Targets", "numbers", "--target", about="returns asked for, with commas; empty: its own"),
            Field("by", "Row", "choice", "--by", "arm", choices=("arm", "control", "episode", "target")),
            Field("film", "Record a film", "flag", "--record", about="one seed side by side, where it can be drawn"),
        ),
        _rollout, ("agent", "torch", "plays"), films=True, from_checkpoint=True,
    ),
    Question(
        "locate", "agents", "Where actions are written", "The matrices that hold a basis, with chance and confidence.",
        ("locate",),
        (
            Field("basis", "Basis", default="action_out", needed=True),
            Field("by", "Row", "choice", "--by", "places", choices=("places", "dyads", "contrasts")),
        ),
        _locate, ("agent",),
    ),
    Question(
        "map", "agents", "Grid map", "What a dyad reads of the cells of a grid, beside a spatial null.",
        ("locate",),
        (
            Field("grid_basis", "Basis", default="state_in", needed=True),
            Field("map", "Dyad", flag="--map", default="L0.mlp.in:0", needed=True,
                  about="L0.mlp.in:0, or a head's: L0H0.qk:0.key"),
        ),
        _line("covector.grid_map(model, {map}, {grid_basis}, draws=1000)"), ("agent", "grid"),
    ),
)  # fmt: skip
