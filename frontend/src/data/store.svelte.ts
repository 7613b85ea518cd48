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

  /** Load what the views need: the overview and the directions first, then their labels. */
  async load(): Promise<void> {
    try {
      this.state = await source.state();
      this.error = "";
      if (!this.state.built) {
        const ended = this.state.building?.state;
        if (ended === "failed") this.error = this.state.building!.error;
        else if (ended === "cancelled") this.error = "The building was cancelled; start covector view again, it goes on.";
        else setTimeout(() => void this.load(), 700);
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
