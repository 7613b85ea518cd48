"""The keys of a layout.toml: what each takes and what it means; whatever else is written there is refused by name."""

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covector.errors import BadLayout


@dataclass(frozen=True)
class Key:
    """One key: what it takes in words, the test of a value, and whether it may be a list with one entry per block."""

    takes: str
    fits: Callable[[Any], bool]
    per_layer: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_labels(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(_is_labels(v) or (type(v) is int and v > 0) for v in value.values())
    return value == "numbers" or (isinstance(value, list) and all(type(v) in (str, int) for v in value))


def _one_of(*words: str) -> Key:
    return Key(" | ".join(f'"{w}"' for w in words), lambda value: value in words)


_TRUTH = Key("true | false", lambda value: isinstance(value, bool))
_TRUTHS = Key("true | false", _TRUTH.fits, per_layer=True)
_NUMBER = Key("a number", _is_number)
_WHOLE = Key("a whole number", lambda value: type(value) is int and value >= 0)
_SIZE = Key("a whole number above 0", lambda value: type(value) is int and value > 0)
_SIZES = Key(_SIZE.takes, _SIZE.fits, per_layer=True)
_TEXT = Key("a text", _is_text)
_TEXTS = Key("a list of texts", lambda value: isinstance(value, list) and all(map(_is_text, value)))
_TEXT_OR_TEXTS = Key("a text or a list of texts", lambda value: _is_text(value) or _TEXTS.fits(value))
_LABELS = Key('a list of names, "numbers", or a table of such (slowest axis first)', _is_labels)

ANATOMY: Mapping[str, Key] = {
    "norm": _one_of("none", "layer", "rms"),
    "placement": _one_of("pre", "post", "sandwich", "output"),
    "eps": _NUMBER,
    "norm_offset": _NUMBER,
    "final_norm": _TRUTH,
    "causal": _TRUTHS,
    "attention": _TRUTHS,
    "mlp": _TRUTHS,
    "parallel": _TRUTH,
    "activation": _TEXT,
    "gated": _TRUTHS,
    "bias_after_gate": _TRUTH,
    "score_scale": Key("a number", _is_number, per_layer=True),
    "softcap": _NUMBER,
    "window": _SIZES,
    "qk_norm": _one_of("none", "layer", "rms"),
    "attn_scale": _NUMBER,
    "mlp_scale": _NUMBER,
    "tied": _TRUTH,
    "n_layers": _SIZE,
    "n_ctx": _SIZE,
    "d_model": _SIZE,
    "n_heads": _SIZES,
    "n_kv_heads": _SIZES,
    "d_head": _SIZES,
    "d_mlp": _SIZES,
}
ROTARY: Mapping[str, Key] = {
    "interleaved": _TRUTH,
    "theta": _NUMBER,
    "dim": _SIZE,
    "rule": _one_of("default", "linear", "llama3"),
    "factor": _NUMBER,
    "low": _NUMBER,
    "high": _NUMBER,
    "original": _NUMBER,
}
ASSEMBLY: Mapping[str, Key] = {
    "mode": _one_of("tokens", "interleaved", "summed"),
    "order": _TEXTS,
    "timestep": _TEXT,
    "positions": _one_of("learned", "zero", "none"),
    "position_offset": _WHOLE,
    "norm": _one_of("none", "before_positions", "after_positions"),
}
INPUT: Mapping[str, Key] = {
    "kind": _one_of("lookup", "linear"),
    "scale": _NUMBER,
    "activation": _one_of("none", "tanh"),
    "labels": _LABELS,
}
OUTPUT: Mapping[str, Key] = {
    "at": _TEXT,
    "scale": _NUMBER,
    "softcap": _NUMBER,
    "activation": _TEXT,
    "transform": _TEXT,
    "labels": _LABELS,
}
TENSORS: Mapping[str, Key] = {"use": _TEXT_OR_TEXTS, "prefix": _TEXT, "ignore": _TEXT_OR_TEXTS}
# Names in a file of recorded pairs: one text per input or hook point (`inputs.state = "image: … -> …"`).
RECORDED = Key("a table of texts", lambda value: isinstance(value, dict) and all(map(_is_text, value.values())))
CHECK: Mapping[str, Key] = {"file": _TEXT, "inputs": RECORDED, "expected": RECORDED}
TABLES = ("name", "anatomy", "rotary", "assembly", "inputs", "outputs", "tensors", "check")

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Declaration:
    """A layout.toml with known keys and values of the right kind; nothing is compared with a file yet."""

    name: str
    anatomy: Table
    rotary: Table | None
    assembly: Table
    inputs: Mapping[str, Table]
    outputs: Mapping[str, Table]
    use: tuple[str, ...]
    prefix: str
    ignore: tuple[str, ...]
    words: Mapping[str, str]
    check: Table


def read_declaration(text: str, where: str) -> Declaration:
    """The declaration that `text` (TOML) makes. Raises BadLayout: not TOML, an unknown key, a value of another kind."""
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadLayout(f"{where}: expected TOML, got {error}; quote tensor names and texts") from error
    _refuse_unknown(given, TABLES, where, "the top of the file")
    if not _is_text(given.get("name", "")):
        raise BadLayout(f'{where}: name takes a text, got {_brief(given["name"])}; write name = "my-model"')
    for table in set(TABLES) - {"name"}:
        if not isinstance(given.get(table, {}), dict):
            raise BadLayout(
                f"{where}: expected a table [{table}], got {_brief(given[table])}; write [{table}] above it"
            )
    tensors = given.get("tensors", {})
    settings = {key: value for key, value in tensors.items() if key in TENSORS}
    _check_values(settings, TENSORS, where, "tensors")
    return Declaration(
        name=given.get("name", "declared"),
        anatomy=_table(given, "anatomy", ANATOMY, where),
        rotary=_table(given, "rotary", ROTARY, where) if "rotary" in given else None,
        assembly=_table(given, "assembly", ASSEMBLY, where),
        inputs=_named_tables(given, "inputs", INPUT, where),
        outputs=_named_tables(given, "outputs", OUTPUT, where),
        use=_several(settings.get("use", [])),
        prefix=settings.get("prefix", ""),
        ignore=_several(settings.get("ignore", [])),
        words=_words({k: v for k, v in tensors.items() if k not in TENSORS}, where),
        check=_table(given, "check", CHECK, where),
    )


def per_layer(table: Table, key: str, n_layers: int, where: str, default: Any = None) -> list[Any]:
    """The value of `key` in every block: one value for all, or a list with one entry each. Raises BadLayout."""
    value = table.get(key, default)
    if not isinstance(value, list):
        return [value] * n_layers
    if len(value) != n_layers:
        raise BadLayout(
            f"{where}: [anatomy] {key}: expected one value, or {n_layers} (one per block), got {len(value)}; "
            "count the blocks again"
        )
    return value


def meant(word: str, known: Sequence[str]) -> str:
    """``. Did you mean 'x'?`` when `word` is close to a known one, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f". Did you mean '{close[0]}'?" if close else ""


def _table(given: Table, name: str, keys: Mapping[str, Key], where: str) -> Table:
    table = given.get(name, {})
    _refuse_unknown(table, tuple(keys), where, f"[{name}]")
    _check_values(table, keys, where, name)
    return table


def _named_tables(given: Table, name: str, keys: Mapping[str, Key], where: str) -> Mapping[str, Table]:
    tables = given.get(name, {})
    for label, table in tables.items():
        if not isinstance(table, dict):
            raise BadLayout(
                f"{where}: [{name}] holds one table per name, got {label} = {_brief(table)}; "
                f"write [{name}.NAME], or put the key under [assembly]"
            )
        _refuse_unknown(table, tuple(keys), where, f"[{name}.{label}]")
        _check_values(table, keys, where, f"{name}.{label}")
    return tables


def _refuse_unknown(table: Table, known: Sequence[str], where: str, place: str) -> None:
    for key in table:
        if key not in known:
            raise BadLayout(f"{where}: unknown key '{key}' in {place}; known: {', '.join(known)}{meant(key, known)}")


def _check_values(table: Table, keys: Mapping[str, Key], where: str, place: str) -> None:
    for name, value in table.items():
        key = keys[name]
        if key.per_layer and isinstance(value, list):
            fits, takes = all(map(key.fits, value)), f"{key.takes} for every entry"
        else:
            fits = key.fits(value)
            takes = key.takes + (", or a list with one entry per block" if key.per_layer else "")
        if not fits:
            raise BadLayout(f"{where}: [{place}] {name} takes {takes}; got {_brief(value)}")


def _words(table: Table, where: str, lead: str = "") -> dict[str, str]:
    """Tensor names and their words; a name written without quotes comes as nested tables and is put together again."""
    flat: dict[str, str] = {}
    for name, value in table.items():
        if not lead and difflib.get_close_matches(name, tuple(TENSORS), cutoff=0.8):
            _refuse_unknown({name: value}, tuple(TENSORS), where, "[tensors] (no tensor's name either)")
        if isinstance(value, dict):
            flat |= _words(value, where, f"{lead}{name}.")
        elif isinstance(value, str):
            flat[lead + name] = value
        else:
            raise BadLayout(
                f"{where}: [tensors] '{lead}{name}' takes a layout in words such as \"W_Q: head d_model d_head\", "
                f'or "-" to leave it out; got {_brief(value)}'
            )
    return flat


def _several(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
