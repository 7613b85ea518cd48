// The columns of a result, by name.

import type { TableTwin } from "./types";

/** The values of a column; none where the result has no such column, or there is no result. */
export function valuesOf(table: TableTwin | null | undefined, name: string): unknown[] {
  return table?.columns.find((c) => c.name === name)?.values ?? [];
}
