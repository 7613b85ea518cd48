// Whether the page is being printed, and what a printed report needs at once: a print dialogue waits for nothing.

import { flushSync } from "svelte";
import { source } from "./source";
import type { Stored, TableTwin } from "./types";

class Printing {
  now = $state(false);
  kept = $state.raw<Stored[]>([]);
  compared = $state.raw<TableTwin | null>(null);

  constructor() {
    if (source.live) return;
    void source.stored().then((all) => (this.kept = all));
    void source.state().then(async (state) => {
      if (state.other) this.compared = await source.compared();
    });
    const set = (on: boolean) => {
      document.documentElement.toggleAttribute("data-printing", on);
      flushSync(() => (this.now = on));
    };
    addEventListener("beforeprint", () => set(true));
    addEventListener("afterprint", () => set(false));
    matchMedia("print").addEventListener("change", (e) => set(e.matches));
  }
}

export const printing = new Printing();
