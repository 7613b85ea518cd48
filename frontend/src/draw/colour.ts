// Colour scales as in `covector/render/picture.py`: blue to orange over near-white, ordered alike for every common
// colour blindness. In the dark the middle is dark, so that distance from it is what stands out.

const LIGHT = ["#2b6ca3", "#9cc3e0", "#f7f6f3", "#f0bd8c", "#c0640f"];
const DARK = ["#7db8ea", "#3d6d94", "#22262b", "#8f5a26", "#f0a35c"];
const LIGHT_UP = ["#f7f6f3", "#9cc3e0", "#2b6ca3"];
const DARK_UP = ["#22262b", "#3d6d94", "#9fd0f8"];
// Eight hues for groups, alike in lightness; told apart with the common colour blindnesses by order of use.
export const HUES = ["#3b7dbb", "#d07a21", "#4f9d69", "#b25ea8", "#b0a030", "#c9504b", "#3aa5a5", "#7b7b86"];

type Rgb = [number, number, number];
const rgb = (hex: string): Rgb => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)) as Rgb;

// Paper is light whatever the screen is; a page is drawn for it just before it is printed.
export const isDark = (): boolean =>
  !("printing" in document.documentElement.dataset) && matchMedia("screen and (prefers-color-scheme: dark)").matches;

export function rgbOf(hex: string): Rgb {
  return rgb(hex);
}

/** The colour at a level: −1 to 1 around the middle, or 0 to 1 (`up`). */
export function colour(level: number, up = false, dark = isDark()): string {
  const stops = up ? (dark ? DARK_UP : LIGHT_UP) : dark ? DARK : LIGHT;
  const place = Math.min(Math.max(up ? level : (level + 1) / 2, 0), 1) * (stops.length - 1);
  const left = Math.min(Math.floor(place), stops.length - 2);
  const [a, b] = [rgb(stops[left]), rgb(stops[left + 1])];
  const mixed = a.map((v, i) => Math.round(v + (b[i] - v) * (place - left)));
  return `#${mixed.map((v) => v.toString(16).padStart(2, "0")).join("")}`;
}

/** Black or white, whichever is easier to read on the colour (WCAG relative luminance). */
export function inkOn(background: string): string {
  const [r, g, b] = rgb(background).map((c) => {
    const v = c / 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}
