"""Sentences about an experiment with an agent: what its tables say, what they do not, and what is worth asking next."""

from collections.abc import Mapping, Sequence
from typing import Any

from covector.analyses.rollout import Experiment, Options
from covector.analyses.rollout_stopping import said_of_stops
from covector.linalg.trials.calibration import Calibration

Words = tuple[str, str, str, str]
# With fewer controls no rank reaches .05.
FEWEST = 19
# A change of the return is beyond chance below this p.
LEVEL = 0.05
# Looks of --stop where --looks is not given.
LOOKS = 5


def _title(x: Experiment, more: str) -> str:
    asked = ", ".join(f"{t:g}" for t in x.targets)
    return f"{x.model.name} in {x.agent.environment.id} · return asked for {asked} · {more}"


def said_by_arm(x: Experiment, rows: Sequence[Mapping[str, Any]]) -> Words:
    """Title, what it says, what it does not, and the next command."""
    clean, edits = rows[0], [r for r in rows if r["kind"] == "edit" and r["asked"] == x.targets[0]]
    text = f"Unchanged it returns {clean['return']:.3f} ({clean['low']:.3f} to {clean['high']:.3f})"
    text += "." if clean["success"] != clean["success"] else f" and succeeds in {clean['success']:.0%} of episodes."
    for row in edits[:3]:
        text += " " + of_edit(row, len(x.names(row["arm"], "random")))
    if x.stopping:
        text += said_of_stops(x.stopping, x.stops)
    if not x.sham_is_clean:
        text += " The sham differs from clean: this machine does not repeat itself, and paired changes are not exact."
    versions = ", ".join(f"{name} {number}" for name, number in x.packages.items())
    no = (
        f"Episodes of {x.agent.environment.id} under {versions}; other versions may return otherwise. A random change "
        "of equal output is matched at the edited matrix on clean episodes, not on what later steps make of it."
    )
    if not x.controls:
        no = f"Episodes of {x.agent.environment.id} under {versions}; without controls, not what a random edit does."
    if not edits:
        no = f"Episodes of {x.agent.environment.id} under {versions}; nothing was edited, so nothing is said of causes."
    if x.stopping:
        no += " An edit that is not decided may still do something small."
    most = f"up to {x.options.episodes} episodes per arm, {len(x.stopping.ends)} looks" if x.stopping else ""
    return _title(x, most or f"{x.options.episodes} episodes per arm"), text, no, _next(x)


def of_edit(row: Mapping[str, Any], count: int) -> str:
    """How an edit moves the return, and whether that is more than `count` random changes of equal output do."""
    moved = f"'{row['arm']}' changes the return by {row['change']:+.3f} ({row['change_low']:+.3f} to "
    moved += f"{row['change_high']:+.3f}, p {row['p']:.2g})"
    worse = row.get("worse")
    if worse is None:
        return moved + "."
    verb = "less than" if row["p_random"] > 0.5 else "as much as" if row["p_random"] > 0.05 else "more than"
    share = f"{worse:.0%} of {count} random changes of equal output lower it as much"
    if count < FEWEST and worse < 0.5:
        return f"{moved}; {share}: too few to tell (rank p {row['p_random']:.2g}; --controls {FEWEST} or more)."
    if verb == "more than" and not row["p"] < LEVEL:  # the worst of all that do next to nothing
        return f"{moved}; {share} (rank p {row['p_random']:.2g}), but the change itself is within chance."
    return f"{moved}; {share}, so it harms {verb} chance edits do (rank p {row['p_random']:.2g})."


def _next(x: Experiment) -> str:
    base = f"covector rollout {x.typed}{_played(x)}"
    if not x.arms:
        return f"{base} --arm cut='L{x.model.spec.n_layers - 1}.mlp.out:0*0'"
    arms = " ".join(f"--arm {arm.name}={_quoted(str(arm.part.edit))}" for arm in x.arms)
    return f"{base} {arms} --by control"


def _played(x: Experiment) -> str:
    """What was asked for besides the defaults, so that the next command plays, or goes on with, the same episodes."""
    usual, own = Options(), x.options
    numbers = (("--episodes", own.episodes, usual.episodes), ("--first-seed", own.first_seed, usual.first_seed))
    if x.arms:
        numbers += (("--controls", own.controls, usual.controls), ("--norm-controls", own.norm_controls, 0))
    if x.controls:
        numbers += (("--control-episodes", own.control_episodes, usual.control_episodes),)
    found = "".join(f" {option} {value}" for option, value, default in numbers if value != default)
    if own.looks:
        found += " --stop" + (f" --looks {own.looks}" if own.looks != LOOKS else "")
    return found + (f" --target={','.join(f'{t:g}' for t in own.targets)}" if own.targets else "")


def _quoted(text: str) -> str:
    return f"'{text}'"


def said_by_control(x: Experiment) -> Words:
    """As `said_by_arm`, for the table of controls."""
    parts = []
    for arm in x.arms:
        effects = x.control_effects(arm.name).mean(axis=1) if x.names(arm.name, "random") else []
        if len(effects):
            n = x.options.control_episodes
            own = float((x.returns(arm.name, count=n) - x.returns("clean", count=n)).mean())
            parts.append(
                f"'{arm.name}' {own:+.3f} where random changes give {min(effects):+.3f} to {max(effects):+.3f}"
            )
    return (
        _title(x, "the edits among their controls"),
        f"On the first {x.options.control_episodes} seeds: " + "; ".join(parts) + ".",
        "Each control has few episodes: single rows are noisy, their distribution is what the ranks use.",
        _next(x).replace("--by control", "--by episode"),
    )


def said_by_episode(x: Experiment) -> Words:
    """As `said_by_arm`, for single episodes."""
    return (
        _title(x, "episode by episode"),
        f"{x.count('clean')} seeds from {x.options.first_seed}; the same seed is the same beginning in every arm.",
        "After the first different action two arms see different things: single episodes say little about causes.",
        _next(x).replace(" --by control", ""),
    )


def said_by_target(x: Experiment, slopes: Mapping[str, Calibration]) -> Words:
    """As `said_by_arm`, for several returns asked for."""
    clean = slopes["clean"]
    text = (
        f"Over the returns asked for the clean agent's achieved return rises with slope {clean.slope:.2f} "
        f"({clean.low:.2f} to {clean.high:.2f}; 1 is obedience), p {clean.p:.2g} that asking makes no difference."
    )
    return (
        _title(x, "achieved against asked return"),
        text,
        "Only the targets played are spoken of; between and beyond them the agent may do anything.",
        _next(x).replace(" --by control", ""),
    )
