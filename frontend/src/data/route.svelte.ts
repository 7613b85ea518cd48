// Which view is open and with what settings: all of it stands in the address, so that a view can be linked.

export const VIEWS = [
  ["glance", "Model"],
  ["site", "Place"],
  ["directions", "Directions"],
  ["concept", "Concept"],
  ["observables", "Observables"],
  ["edits", "Edits"],
  ["steering", "Steering"],
  ["agents", "Agents"],
  ["compare", "Compare"],
  ["results", "Results"],
] as const;

export type View = (typeof VIEWS)[number][0];

interface Route {
  view: View;
  values: Record<string, string>;
}

function read(): Route {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const view = (VIEWS.find(([name]) => name === path)?.[0] ?? "glance") as View;
  return { view, values: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

export const route = $state<Route>(read());

addEventListener("hashchange", () => Object.assign(route, read()));

/** The address of a view with settings; empty ones are left out. */
export function address(view: View, values: Record<string, string> = {}): string {
  const kept = Object.entries(values).filter(([, v]) => v !== "");
  const query = new URLSearchParams(kept).toString();
  return `#/${view}${query ? `?${query}` : ""}`;
}

/** Go to a view. */
export function go(view: View, values: Record<string, string> = {}): void {
  location.hash = address(view, values);
}

/** Change settings of the view that is open, without a step in the browser's history. */
export function set(values: Record<string, string>): void {
  const next = { ...route.values, ...values };
  history.replaceState(null, "", address(route.view, next));
  route.values = Object.fromEntries(Object.entries(next).filter(([, v]) => v !== ""));
}
