"""How the spectrum of one place looks in a terminal: one line, in parentheses what noise of its shape would show."""

from typing import Any


def site_line(row: dict[str, Any], width: int) -> str:
    """``L0H3.ov  σ₁ 2.41 (1.9) ‖M‖ 5.2 | stable 4.6 (22) eff 21.3 (29) | spikes 3 p .001 | z σ₁ +1.2 ‖M‖ +0.3 (6.9)``.

    σ₁: noise of the same norm stays below the level in parentheses; stable and effective rank: it stays above. z is
    that of σ₁ and of the norm, with what the largest |z| of the request stays below.
    """
    head = f"{row['site']:<11} σ₁ {_short(row['sigma1'])} ({_short(row['sigma1_null']).strip()})"
    ranks = " ".join(f"{word} {_count(row[n])} {_level(row[f'{n}_null'])}" for word, n in _RANKS)
    parts = [
        f"{head:<28} ‖M‖ {_short(row['frobenius'])}",
        ranks,
        f"spikes {row['spikes']:>3} p {_p(row['p_spike'])}",
        f"z {_z(row['z'])}{_z(row['z_norm'])}" + ("" if row["z_level"] is None else f" ({row['z_level']:.1f})"),
    ]
    line = " | ".join(parts)
    return line if len(line) <= width else " | ".join([parts[0], *parts[2:]])


_RANKS = (("stable", "stable"), ("eff", "effective"))


def _z(value: float | None) -> str:
    return "    –" if value is None else f"{value:>+5.1f}"


def _count(value: float | None) -> str:
    return "   –" if value is None else f"{value:>4.1f}" if value < 99.95 else f"{value:>4.0f}"


def _level(value: float | None) -> str:
    return "".rjust(5) if value is None else f"({value:.0f})".rjust(5)


def _p(value: float | None) -> str:
    if value is None:
        return "   –"
    return f"{value:.3f}".lstrip("0").rjust(4) if value < 0.9995 else "1".rjust(4)


def _short(value: float | None) -> str:
    """Three significant digits in five cells."""
    return "–".rjust(5) if value is None else f"{value:.3g}".rjust(5)
