import { svelte } from "@sveltejs/vite-plugin-svelte";
import { readFileSync } from "node:fs";
import { defineConfig } from "vite";

// What the script contains of others goes with their licence, into the page and every report.
const parts = { Svelte: "svelte/LICENSE.md", clsx: "clsx/license" };
const licences = Object.values(parts).map((file) => readFileSync(`node_modules/${file}`, "utf8").trim());
const notice = `/*!\n Contains parts of ${Object.keys(parts).join(" and ")}.\n\n${licences.join("\n\n")}\n*/`;

// One script and one style under fixed names: the server serves them by name, the report puts them into one file.
export default defineConfig({
  plugins: [svelte()],
  base: "./",
  build: {
    outDir: "../build/page",
    emptyOutDir: true,
    target: "es2022",
    cssCodeSplit: false,
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    rollupOptions: {
      output: { entryFileNames: "app.js", assetFileNames: "app.[ext]", inlineDynamicImports: true, banner: notice },
    },
  },
});
