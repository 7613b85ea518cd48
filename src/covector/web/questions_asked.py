"""Which questions the page asks: observables, edits, steering, agents."""

from covector.web.questions import Field, Question

_TASK = Field(
    "task", "Observable", default="' she' - ' he'", needed=True,
    about="weighted labels whose logits are compared: ' she' - ' he'",
)  # fmt: skip
_PROMPTS = (
    Field("template", "Template", "lines", "--template", about="a prompt with slots, one a line: So, [NAME] really is"),
    Field("fill", "Fill", "lines", "--fill", about="a slot's names for both sides: NAME=Mary,Lisa:John,Mark"),
)
_NEEDED_PROMPTS = tuple(Field(**{**vars(f), "needed": True}) for f in _PROMPTS)
_PAIRS = "covector.fill_template({template}, {fill})"

QUESTIONS = (
    Question(
        "norms", "observables", "Head map", "How strongly each head could move the observable, from weights alone.",
        ("observe", "norms"), (_TASK,),
        "covector.head_norms({model}, {task})",
    ),
    Question(
        "couple", "observables", "Coupling", "Do tasks use the same features? Their coupling at every head.",
        ("observe", "couple"),
        (
            _TASK,
            Field("second", "Second observable", needed=True, default="' her' - ' his'"),
            Field("others", "More observables", "lines", about="one a line; every pair is compared"),
        ),
        "covector.couple({model}, {task}, {second}, *{others})",
    ),
    Question(
        "paths", "observables", "Paths", "Which paths carry the difference between two kinds of prompts, exactly.",
        ("observe", "paths"),
        (_TASK, *_NEEDED_PROMPTS, Field("expand", "Parts split", "number", "--expand", "60")),
        f"covector.paths({{model}}, {{task}}, {_PAIRS}, expand={{expand}})",
    ),
    Question(
        "predict", "observables", "Prediction against measurement",
        "The effect of patching each head, predicted on some names and measured on others.",
        ("observe", "predict"), (_TASK, *_NEEDED_PROMPTS),
        f"covector.predict_heads({{model}}, {{task}}, {_PAIRS})",
    ),
    Question(
        "edit", "edits", "Edit", "Change directions: predicted and measured effect, side effects, random changes.",
        ("edit",),
        (
            Field("edits", "Edit", "lines", needed=True, about="L2H1.ov:0*0 removes dyad 0, *0.3 keeps 30 %"),
            Field("observe", "Observables", "lines", "--observe", about="what is measured, one a line"),
            *_PROMPTS,
            Field("dose", "Doses", "text", "--dose", "0.25,0.5,0.75,1", about="shares of the edit, with commas"),
            Field("neutral", "Text for side effects", "document", "--neutral"),
            Field("draws", "Random changes", "number", "--draws", "20", about="behind every p"),
        ),
        f"covector.edit_effect({{model}}, {{edits}}, {{observe}}, {_PAIRS}, draws={{draws}})",
    ),
    Question(
        "steer", "steering", "Steer", "Add a vector to one token's stream: dose–response on held-out names.",
        ("steer",),
        (
            _TASK,
            Field("path", "Path", flag="--path", about="whose data-free feature is added: L2H1>out", needed=True),
            *_NEEDED_PROMPTS,
            Field("scale", "Doses", flag="--scale", about="with commas: -2,-1,1,2; leave out for up to ‖x‖"),
            Field("draws", "Random vectors", "number", "--draws", "20"),
        ),
        f"covector.steer({{model}}, [{{task}}], {_PAIRS}, path={{path}}, draws={{draws}})",
    ),
    Question(
        "locate", "agents", "Where actions are written", "The matrices that hold a basis, with chance and confidence.",
        ("locate",),
        (
            Field("basis", "Basis", default="action_out", needed=True),
            Field("by", "Row", "choice", "--by", "places", choices=("places", "dyads", "contrasts")),
        ),
        "covector.locate({model}, {basis})",
    ),
    Question(
        "map", "agents", "Grid map", "What a dyad reads of the cells of a grid, beside a spatial null.",
        ("locate",),
        (
            Field("basis", "Basis", default="state_in", needed=True),
            Field("map", "Dyad", flag="--map", default="L0.mlp.in:0", needed=True),
        ),
        "covector.grid_map({model}, {map})",
    ),
    Question(
        "rollout", "agents", "Play", "Episodes of the agent, as it is and edited: return, success, length.",
        ("rollout",),
        (
            Field("arm", "Edits", "lines", "--arm", about="late=L2.mlp.out:0*0, one a line; none plays it as it is"),
            Field("episodes", "Episodes", "number", "--episodes", "40"),
            Field("controls", "Random changes", "number", "--controls", "20"),
            Field("target", "Targets", flag="--target", about="returns asked for, with commas"),
            Field("by", "Row", "choice", "--by", "arm", choices=("arm", "control", "episode", "target")),
            Field("film", "Record a film", "flag", "--record"),
        ),
        "covector.rollout({model}, arms={arm}, episodes={episodes}, controls={controls})",
        films=True,
    ),
)  # fmt: skip
