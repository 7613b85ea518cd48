// Numbers and labels as people read them; the terminal's rules are those of `covector/render/number.py`.

/** A number with so many decimals, or with three significant digits where none are named. */
export function numberText(value: unknown, digits: number | null = null): string {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : value > 0 ? "∞" : "−∞";
  let text: string;
  const size = Math.abs(value);
  if (digits !== null) text = size >= 1e6 || digits > 8 ? value.toPrecision(4) : value.toFixed(digits);
  else if (size === 0 || Number.isInteger(value)) text = size < 1e7 ? String(value) : value.toExponential(2);
  else if (size < 1e-3 || size >= 1e5) text = value.toExponential(1);
  else text = value.toPrecision(3);
  return text.replace("e+", "e").replace("-", "−").replace("e-", "e−");
}

/** A number at a tick: as many decimals as the step between ticks has. */
export function tickText(on: { ticks: number[]; log: boolean }, value: number): string {
  if (on.log || on.ticks.length < 2) return numberText(value);
  const step = Math.abs(on.ticks[1] - on.ticks[0]);
  const size = Math.max(...on.ticks.map(Math.abs));
  if (size >= 1e5 || step < 1e-4) return numberText(value);
  return numberText(value, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
}

/** A chance: never a bare zero. */
export function chanceText(p: number): string {
  if (Number.isNaN(p)) return "–";
  if (p < 1e-30) return "< 1e−30";
  return p >= 0.001 ? p.toFixed(3) : numberText(p);
}

/** A label as it is shown: its leading space as a middle dot, control characters as pictures. */
export function labelText(label: string): string {
  const space = label.startsWith(" ") || label.startsWith("▁") || label.startsWith("Ġ");
  const rest = space ? label.slice(1) : label;
  const shown = rest.replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)));
  return (space ? "·" : "") + (shown || (space ? "" : "∅"));
}

/** A count with thin separators. */
export function countText(n: number): string {
  return n.toLocaleString("en-US");
}

/** One word of a shell line. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}
