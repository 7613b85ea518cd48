import { expect, test } from "vitest";
import { unpacked } from "./packing";

/** A buffer as the Python side writes it, spelled out byte by byte. */
function buffer(header: object, body: number[]): ArrayBuffer {
  let text = JSON.stringify(header);
  while ((text.length + 8) % 8) text += " ";
  const bytes = [0x43, 0x56, 0x43, 0x54, text.length & 255, text.length >> 8, 0, 0, ...new TextEncoder().encode(text), ...body];
  return new Uint8Array(bytes).buffer;
}

test("arrays come out with their type, shape and values", () => {
  const { arrays, about } = unpacked(
    buffer(
      { arrays: { a: { type: "u2", shape: [2], at: 0 }, b: { type: "f4", shape: [1, 1], at: 8 } }, about: { rows: 2 } },
      [1, 0, 2, 1, 0, 0, 0, 0, 0, 0, 128, 63, 0, 0, 0, 0],
    ),
  );
  expect([...arrays.a]).toEqual([1, 258]);
  expect([...arrays.b]).toEqual([1]);
  expect(about.rows).toBe(2);
});

test("anything else is refused", () => {
  expect(() => unpacked(new Uint8Array(16).buffer)).toThrow("packed");
});
