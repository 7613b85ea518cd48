"""The explorer beside Streamlit: the same hundred thousand directions, scatter, table and filter, in one browser.

    python benchmarks/peers/the_explorer_against_streamlit.py .venv-bench/bin/streamlit

Streamlit (in the environment of peers) gets what its users would write: the index as a frame, cached; a text box over
the labels, a select box for q, `st.scatter_chart` and `st.dataframe`. Timed in headless Chromium, on the clock, by
turns: from navigation until the picture stands, and from a change of the q filter until it stands again (Streamlit:
until its status widget is gone and the canvas is there). Medians of `ROUNDS`; nothing is claimed but that ours is the
faster of the two, and the exit code says so.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "tests" / "web"), str(HERE.parent)]

ROUNDS = 5
APP = """
import pandas as pd, streamlit as st
st.set_page_config(layout="wide")

@st.cache_data
def frame(path):
    columns = ["site", "kind", "side", "dyad", "sigma", "zeta", "p_dir", "q_dir", "label"]
    table = pd.read_parquet(path, columns=columns)
    table["strength"] = table.zeta.abs()
    return table

table = frame(r"{index}")
most = st.selectbox("q below", [1.0, 0.05, 0.01], index=0)
words = st.text_input("labels")
shown = table[table.q_dir <= most]
if words:
    shown = shown[shown.label.str.contains(words, regex=False)]
st.scatter_chart(shown, x="sigma", y="strength", color="kind")
st.dataframe(shown)
st.caption(f"rows {{len(shown)}}")
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def of_streamlit(page, address: str) -> tuple[list[float], list[float]]:
    """Milliseconds until the first drawing, and until a filter is drawn."""
    firsts, filters = [], []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        page.goto(address)
        page.get_by_text(re.compile(r"^rows \d+")).wait_for()
        page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()
        firsts.append(1000 * (time.perf_counter() - start))
    for value in ("0.05", "0.01") * ((ROUNDS + 1) // 2):
        before = page.get_by_text(re.compile(r"^rows \d+")).inner_text()
        page.get_by_role("combobox").first.click()
        start = time.perf_counter()
        page.get_by_role("option", name=value, exact=True).click()
        while page.get_by_text(re.compile(r"^rows \d+")).inner_text() == before:
            time.sleep(0.005)
        page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()
        filters.append(1000 * (time.perf_counter() - start))
    return firsts[1:], filters


def main() -> int:
    from big_atlas import write_big_atlas
    from playwright.sync_api import sync_playwright
    from the_explorer_is_immediate import chromium, measured

    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    port = free_port()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        n = write_big_atlas(folder / "big.atlas")
        (folder / "app.py").write_text(APP.format(index=folder / "big.atlas" / "index.parquet"), encoding="utf-8")
        quiet = ["--server.headless", "true", "--browser.gatherUsageStats", "false", "--server.address", "127.0.0.1"]
        peer = subprocess.Popen(
            [str(Path(sys.argv[1]).absolute()), "run", "app.py", *quiet, "--server.port", str(port)],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        ours = subprocess.Popen(
            [sys.executable, "-m", "covector", "view", str(folder / "big.atlas"), "--no-open"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert ours.stderr is not None
        address = ours.stderr.readline().split()[-1]
        try:
            time.sleep(6)
            own = measured(address)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1400, "height": 950})
                page.set_default_timeout(120_000)
                firsts, filters = of_streamlit(page, f"http://127.0.0.1:{port}")
                browser.close()
        finally:
            for process in (peer, ours):
                process.send_signal(signal.SIGINT)
                process.wait(20)
    print(f"{n:,} directions, headless Chromium, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians, ms")
    slower = False
    for name, mine, theirs in (("first drawing", own["first drawing"], firsts), ("filter", own["filter"], filters)):
        a, b = median(mine), median(theirs)
        slower |= a > b
        print(f"  {name:<14} ours {a:7,.0f}   Streamlit {b:7,.0f}   {b / a:.1f} ×")
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
