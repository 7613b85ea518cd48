"""Pages whose facts the code knows: commands, families, hook points. `make docs` writes them; a test compares.

A page is made from the same objects that run, so it cannot be out of date without the test saying so.
"""

import contextlib
import inspect
import io
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def cli_page() -> str:
    """Every command's help, as it is printed."""
    os.environ["COLUMNS"] = "100"
    from covector.cli.main import app, run

    parts = ["# Commands", "", "Generated from the program (`make docs`). From Python: [python.md](python.md)."]
    whole = app()
    names = [[c.name] for c in whole.registered_commands if c.name]
    for group in whole.registered_groups:
        inner = group.typer_instance.registered_commands if group.typer_instance else []
        names += [[str(group.name)], *([str(group.name), c.name] for c in inner if c.name)]
    for words in ([], *sorted(names)):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            run([*words, "--help"])
        parts += ["", f"## covector {' '.join(words)}".rstrip(), "", "```", out.getvalue().strip(), "```"]
    return "\n".join(parts) + "\n"


def families_page() -> str:
    """Which config families open, what judges them, and what their anatomy holds."""
    from covector.arch.config import Config
    from covector.arch.family import families

    rows = ["# Families", ""]
    rows += ["Generated from `src/covector/arch` (`make docs`). Anything else opens with a [layout](layouts.md)."]
    rows += [
        "",
        "| family | `model_type` | proven against | norms | attention | MLP | blocks |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, family in sorted(families().items()):
        spec = family.spec(Config(dict(family.tiny())))
        order = "parallel" if spec.blocks[0].parallel else "in turn"
        cells = [
            name,
            ", ".join(family.model_types),
            family.hf_class or "–",
            _norms(spec),
            _attention(spec),
            _mlp(spec),
        ]
        rows.append(f"| {' | '.join([*cells, order])} |")
    return "\n".join(rows) + "\n"


def _norms(spec) -> str:
    subs = [s for b in spec.blocks for s in b.sublayers]
    found = []
    places = {"pre": [s.reads for s in subs], "sandwich": [s.post for s in subs], "post": [s.after for s in subs]}
    for where, norms in places.items():
        kinds = {n.kind for n in norms if n}
        found += [f"{where} {'LayerNorm' if k == 'layer' else 'RMSNorm'}" for k in sorted(kinds)]
    return ", ".join(found) or "none"


def _attention(spec) -> str:
    attns = [b.attn for b in spec.blocks if b.attn]
    if not attns:
        return "none"
    words = ["rotary"] if attns[0].rotary else ["learned positions"] if spec.assembly.positions == "learned" else []
    words += ["grouped"] if attns[0].n_kv_heads < attns[0].n_heads else []
    words += ["windows"] if any(a.window for a in attns) else []
    words += ["q/k norms"] if attns[0].qk_norm else []
    words += ["soft-cap"] if attns[0].softcap else []
    words += [] if attns[0].causal else ["not causal"]
    return ", ".join(words) or "plain"


def _mlp(spec) -> str:
    mlp = next((b.mlp for b in spec.blocks if b.mlp), None)
    return "none" if mlp is None else f"{'gated ' if mlp.gated else ''}{mlp.activation}"


def hooks_page() -> str:
    """The hook points of a forward pass."""
    from covector.run.hooks import HOOKS

    rows = [
        "# Hook points",
        "",
        "Generated from `covector.run.hooks` (`make docs`). The same names for every family; those of",
    ]
    rows += ["a block stand behind `L{i}.`.", "", "| name | axes | what passes there |", "|---|---|---|"]
    rows += [f"| `{h.name}` | {h.axes} | {h.meaning} |" for h in HOOKS]
    return "\n".join(rows) + "\n"


def python_page() -> str:
    """Public names with their docstrings, and what the classes among them offer."""
    import covector

    parts = ["# Python", "", "Generated from the docstrings (`make docs`). The commands: [cli.md](cli.md)."]
    for name in sorted(covector.__all__, key=str.lower):
        value = getattr(covector, name)
        head = f"covector.{name}" + (str(inspect.signature(value)) if inspect.isfunction(value) else "")
        parts += ["", f"## {name}", "", "```python", head, "```", "", inspect.getdoc(value) or ""]
        parts += _members(value) if inspect.isclass(value) and not issubclass(value, Exception) else []
    return "\n".join(parts) + "\n"


def _members(kind: type) -> list[str]:
    """What a class offers besides its fields: one line per public method or property, in the order of the source."""
    lines = []
    for name, value in vars(kind).items():
        method = getattr(value, "__func__", value)
        described = getattr(value, "func", getattr(value, "fget", method))
        told = (inspect.getdoc(described) or "").split("\n\n")[0].replace("\n", " ")
        if name.startswith("_") or not callable(described) or not told:
            continue
        call = f"{name}{_signature(method)}" if inspect.isfunction(method) else name
        lines.append(f"- `.{call}`: {told}")
    return ["", *lines] if lines else []


def _signature(function) -> str:
    given = inspect.signature(function)
    first = list(given.parameters.values())[1:]  # without self
    return str(given.replace(parameters=first, return_annotation=inspect.Signature.empty))


PAGES = {"cli.md": cli_page, "families.md": families_page, "hooks.md": hooks_page, "python.md": python_page}


def main() -> int:
    """Write every page."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        sys.stdout.write(f"docs/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
