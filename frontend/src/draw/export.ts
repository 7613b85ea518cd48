// Pictures and tables as files that a browser saves; nothing leaves the page.

import type { ColumnTwin } from "../data/types";

function save(name: string, blob: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-family", "font-weight", "opacity", "text-anchor"];

/** A drawing with the page's style written into it, so that it looks alike elsewhere. */
function standalone(svg: SVGSVGElement): string {
  const copy = svg.cloneNode(true) as SVGSVGElement;
  const own = [svg, ...svg.querySelectorAll<SVGElement>("*")];
  const copied = [copy, ...copy.querySelectorAll<SVGElement>("*")];
  own.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of STYLES) copied[i].setAttribute(name, style.getPropertyValue(name));
    copied[i].removeAttribute("class");
  });
  const { width, height } = svg.getBoundingClientRect();
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", String(width));
  copy.setAttribute("height", String(height));
  const back = getComputedStyle(document.body).backgroundColor;
  return new XMLSerializer().serializeToString(copy).replace(/(<svg[^>]*>)/, `$1<rect width="100%" height="100%" fill="${back}"/>`);
}

export function saveSvg(svg: SVGSVGElement, name: string): void {
  save(`${name}.svg`, new Blob([standalone(svg)], { type: "image/svg+xml" }));
}

export async function savePng(drawn: SVGSVGElement | HTMLCanvasElement, name: string): Promise<void> {
  const { width, height } = drawn.getBoundingClientRect();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width * 2, height * 2];
  const pen = canvas.getContext("2d")!;
  pen.fillStyle = getComputedStyle(document.body).backgroundColor;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (drawn instanceof HTMLCanvasElement) pen.drawImage(drawn, 0, 0, canvas.width, canvas.height);
  else {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standalone(drawn))}`;
    await image.decode();
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  }
  canvas.toBlob((blob) => blob && save(`${name}.png`, blob), "image/png");
}

const cell = (v: unknown): string => {
  const text = v === null || v === undefined ? "" : Array.isArray(v) ? JSON.stringify(v) : String(v);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

export function saveCsv(columns: ColumnTwin[], name: string): void {
  const rows = columns[0]?.values.map((_, i) => columns.map((c) => cell(c.values[i])).join(",")) ?? [];
  const text = [columns.map((c) => cell(c.name)).join(","), ...rows].join("\r\n");
  save(`${name}.csv`, new Blob([text], { type: "text/csv" }));
}

export function saveText(text: string, name: string, type: string): void {
  save(name, new Blob([text], { type }));
}

export function saveJson(value: unknown, name: string): void {
  save(`${name}.json`, new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
}
