"""Claim: with 100,000 directions the explorer draws in 1 s, filters in 150 ms and opens a detail in 200 ms.

A synthetic atlas in the shape of gpt2-medium (99,984 directions), served by `covector view` and shown by headless
Chromium; medians of at least 9 rounds, on the clock, since that is what a person waits for: run it on a quiet machine.

    first drawing   from navigation until the points are on the canvas (the server has run before; its own time to
                    make the typed arrays is printed, it is spent while the browser opens)
    filter          from the event until two frames later, over filters of q, kind, side and words in lists
    detail          from the click on a row until two frames later
    ready           from `serve` until the server answers, imports not counted
    page code       script and style, gzip

Exits with 1 when a limit is missed, with 2 where there is no Chromium.
"""

import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "web"))

ROUNDS = 9
LIMITS = {"first drawing": 1000.0, "filter": 150.0, "detail": 200.0, "ready": 2000.0, "page code": 400 * 1024}
UNITS = {"page code": "bytes"}
READY = """
import sys, time, threading
from covector.web.serve import serve
from covector.web.shown import Shown
start = time.perf_counter()
def say(text):
    print(time.perf_counter() - start, flush=True)
    import os; os._exit(0)
serve(Shown(sys.argv[1]), browser=False, say=say)
"""
FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
TIMED = f"""async ([find, event, value]) => {{
  const element = document.querySelector(find);
  const start = performance.now();
  if (event === 'click') element.click();
  else {{ element.value = value; element.dispatchEvent(new Event(event, {{ bubbles: true }})); }}
  await {FRAMES};
  return performance.now() - start;
}}"""
Q, SIDE = (f"main form label:nth-of-type({place}) select" for place in (5, 3))
LABELS, KIND = "input[placeholder=fire]", ".kinds button:nth-of-type(2)"
FILTERS = (
    (LABELS, "input", "tion"), (LABELS, "input", ""), (Q, "change", "0.05"), (Q, "change", ""),
    (KIND, "click", ""), (KIND, "click", ""), (SIDE, "change", "write"), (SIDE, "change", ""),
)  # fmt: skip


def chromium() -> str:
    """The system's Chromium."""
    named = os.environ.get("COVECTOR_CHROMIUM")
    found = named or next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    if not found:
        print("no Chromium here (COVECTOR_CHROMIUM names one): nothing was measured")
        raise SystemExit(2)
    return found


def measured(address: str) -> dict[str, list[float]]:
    """Times in ms: first drawings, filters, details."""
    from playwright.sync_api import sync_playwright

    times: dict[str, list[float]] = {"first drawing": [], "filter": [], "detail": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 950})
        for _ in range(ROUNDS + 1):
            page.goto("about:blank")
            page.goto(f"{address}#/directions", wait_until="commit")
            page.wait_for_selector("canvas[width]")  # set when the points are drawn
            times["first drawing"].append(page.evaluate("performance.now()"))
        page.wait_for_timeout(3000)
        for _ in range(ROUNDS):
            for words in FILTERS:
                times["filter"].append(page.evaluate(TIMED, list(words)))
            for row in (2, 9):
                found = f"tbody tr[data-row]:nth-of-type({row})"
                times["detail"].append(page.evaluate(TIMED, [found, "click", ""]))
                assert page.locator("aside article").count() == 1, "no detail was opened"
        browser.close()
    times["first drawing"] = times["first drawing"][1:]
    return times


def ready(atlas: Path) -> float:
    """Seconds from `serve` until it listens, in a fresh process, imports not counted."""
    told = subprocess.run([sys.executable, "-c", READY, str(atlas)], check=True, capture_output=True, text=True)
    return float(told.stdout.split()[-1])


def main() -> int:
    from big_atlas import write_big_atlas

    chromium()
    with tempfile.TemporaryDirectory() as temporary:
        atlas = Path(temporary) / "big.atlas"
        n = write_big_atlas(atlas)
        process = subprocess.Popen(
            [sys.executable, "-m", "covector", "view", str(atlas), "--no-open"], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        found = re.search(r"http://\S+/", process.stderr.readline())
        assert found, "the server did not say its address"
        time.sleep(4)  # the arrays are made in the background
        try:
            times = measured(found[0])
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(10)
        times["ready"] = [1000 * ready(atlas) for _ in range(3)]
    static = files("covector.web") / "static"
    code = [len(gzip.compress((static / name).read_bytes())) for name in ("app.js", "app.css", "index.html")]
    times["page code"] = [float(sum(code))]
    print(f"{n:,} directions, headless Chromium, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    failed = False
    for name, limit in LIMITS.items():
        middle, worst = median(times[name]), max(times[name])
        failed |= middle > limit
        unit = UNITS.get(name, "ms")
        print(f"  {name:<14}{middle:>9,.0f} {unit} (worst of {len(times[name])} {worst:,.0f}); at most {limit:,.0f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
