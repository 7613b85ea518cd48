"""Pictures as files: .png, .svg, and .html that loads nothing; the same picture gives the same bytes.

Drawn by matplotlib through its object interface, under our settings alone: neither the user's matplotlibrc nor a
figure of theirs is touched. Text in .svg and .html stays text, so that it can be searched and any script shows that
the viewer has a font for; in .png a character without a glyph on this machine is drawn as its escape.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covector.errors import BadRequest, MissingExtra
from covector.render.draw import draw
from covector.render.files import write_beside
from covector.render.html import page
from covector.render.labels import escaped, printable
from covector.render.picture import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Tried in this order where installed; DejaVu comes with matplotlib and has no Chinese, Japanese or Korean.
_FONTS = (
    *("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Source Han Sans"),
    *("Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    *("WenQuanYi Micro Hei", "IPAexGothic", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Emoji"),
)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "covector",  # else the ids in the file are random
    "text.parse_math": False,  # a token may hold two dollar signs
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.linewidth": 0.7,
    "axes.labelcolor": "#1c1c1c",
    "text.color": "#1c1c1c",
    "xtick.color": "#8a8a8a",
    "ytick.color": "#8a8a8a",
    "xtick.labelcolor": "#1c1c1c",
    "ytick.labelcolor": "#1c1c1c",
    "legend.frameon": False,
}
_DPI = 200  # a figure of 6 in fills half a page in print and a laptop's width on screen


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture with its title and sentences, ready to be seen in a notebook or saved."""

    picture: Picture
    title: str = ""
    caption: tuple[str, ...] = ()

    def save(self, path: str | Path) -> Path:
        """Write .png, .svg or .html, by suffix, and return the path. Raises BadRequest for another suffix."""
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".png":
            return write_beside(path, self.png())
        if suffix == ".svg":
            return write_beside(path, self.svg().encode())
        if suffix == ".html":
            return write_beside(path, self.html().encode())
        raise BadRequest(f"a picture's file ends in .png, .svg or .html, came '{path.name}': give one of these")

    def png(self) -> bytes:
        """The picture in pixels."""
        return _drawn(self.picture, self.title, self.caption, "png")

    def svg(self) -> str:
        """The picture as an SVG document."""
        return _drawn(self.picture, self.title, self.caption, "svg").decode()

    def html(self) -> str:
        """A page of its own with title, picture and sentences, that loads nothing from anywhere."""
        svg = _drawn(self.picture, "", self.caption, "svg").decode()
        return page(self.title, svg[svg.index("<svg") :], self.caption)

    def _repr_svg_(self) -> str:
        return self.svg()


def figure(picture: Picture, title: str = "", *, glyphs_only: bool = False) -> "Figure":
    """The picture as a matplotlib Figure, free to be changed further.

    `glyphs_only` replaces characters that no installed font can draw by their escapes.
    """
    with _matplotlib() as figure_class:
        fig = figure_class()
        draw(fig, picture, printable(title), _only_glyphs if glyphs_only else str)
    return fig


def _drawn(picture: Picture, title: str, caption: Sequence[str], kind: str) -> bytes:
    """The file's bytes: no date, no random ids; the title and the sentences also as metadata."""
    told = {"Title": printable(title), "Description": printable(" ".join(filter(None, caption)))}
    told = {k: v for k, v in told.items() if v}
    nothing = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    fig = figure(picture, title, glyphs_only=kind == "png")
    out = io.BytesIO()
    with _matplotlib(), warnings.catch_warnings():
        # In an SVG the viewer's fonts draw the text; that this machine lacks one for it changes nothing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        fig.savefig(out, format=kind, dpi=_DPI, bbox_inches="tight", pad_inches=0.12, metadata=told | nothing)
    return out.getvalue()


@contextmanager
def _matplotlib() -> Iterator[type]:
    """The Figure class, with our settings and no others while the context lasts."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise MissingExtra("a picture needs matplotlib, not installed here: pip install covector[plot]") from missing
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["font.family"] = list(_fonts())
        yield Figure


@cache
def _fonts() -> tuple[str, ...]:
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed)


@cache
def _glyphs() -> frozenset[int]:
    """The code points that the fonts in use can draw."""
    from matplotlib import font_manager, ft2font

    found = [font_manager.findfont(font_manager.FontProperties(family=[name])) for name in _fonts()]
    return frozenset(code for path in found for code in ft2font.FT2Font(path).get_charmap())


def _only_glyphs(text: str) -> str:
    return "".join(c if ord(c) in _glyphs() else escaped(c) for c in text)
