// Typed arrays out of one buffer, without copying; written by `covector/web/packing.py`.

export type Typed = Float32Array | Uint8Array | Uint16Array | Uint32Array | Int16Array;

export interface Packed {
  arrays: Record<string, Typed>;
  about: Record<string, unknown>;
}

const TYPES = { f4: Float32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array } as const;

interface Entry {
  type: keyof typeof TYPES;
  shape: number[];
  at: number;
}

/** The arrays of a packed buffer. Throws where it is none. */
export function unpacked(buffer: ArrayBuffer): Packed {
  const view = new DataView(buffer);
  if (view.byteLength < 8 || view.getUint32(0, false) !== 0x43564354) throw new Error("expected packed arrays");
  const length = view.getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length))) as {
    arrays: Record<string, Entry>;
    about: Record<string, unknown>;
  };
  const arrays: Record<string, Typed> = {};
  for (const [name, entry] of Object.entries(header.arrays)) {
    const count = entry.shape.reduce((a, b) => a * b, 1);
    arrays[name] = new TYPES[entry.type](buffer, 8 + length + entry.at, count);
  }
  return { arrays, about: header.about };
}
