// What every view shares: the overview, the directions once they are there, and what went wrong.

import { Directions } from "./atlas";
import { source } from "./source";
import type { Overview, ServerState } from "./types";

class Store {
  state = $state.raw<ServerState | null>(null);
  overview = $state.raw<Overview | null>(null);
  directions = $state.raw<Directions | null>(null);
  /** Whether the lists of labels are there; they come after the first drawing. */
  labelled = $state(false);
  error = $state("");

  /** Whether the building of the atlas ended before it was whole. */
  get stopped(): boolean {
    return ["failed", "cancelled"].includes(this.state?.building?.state ?? "");
  }

  /** Go on with a building that was stopped. */
  async build(): Promise<void> {
    try {
      await source.build();
    } catch (error) {
      this.error = error instanceof Error ? error.message : String(error);
      return;
    }
    await this.load();
  }

  /** Load what the views need: the overview and the directions first, then their labels. */
  async load(): Promise<void> {
    try {
      this.state = await source.state();
      this.error = "";
      if (!this.state.built) {
        if (!this.stopped) setTimeout(() => void this.load(), 700);
        return;
      }
      const [overview, packed] = await Promise.all([source.overview(), source.part("directions")]);
      this.directions = new Directions(packed, overview);
      this.overview = overview;
      document.title = `${overview.meta.model} · covector`;
      this.directions.take(await source.part("labels"));
      this.labelled = true;
    } catch (error) {
      this.error = error instanceof Error ? error.message : String(error);
    }
  }
}

export const store = new Store();
