// Where the page's data come from: the server that gave the page, or the report that the page is.

import { unpacked, type Packed } from "./packing";
import type { Beside, Job, Overview, QuestionForm, Sentences, ServerState, Stored, TableTwin } from "./types";

export interface Source {
  /** Whether a server answers: models can be run, frames changed. */
  readonly live: boolean;
  state(): Promise<ServerState>;
  /** Go on with an atlas whose building was stopped. */
  build(): Promise<Job>;
  overview(): Promise<Overview>;
  part(name: string): Promise<Packed>;
  compared(): Promise<TableTwin>;
  /** The leading dyads of a place, each with its nearest in the other atlas. */
  beside(site: string, side: string): Promise<Beside[]>;
  stored(): Promise<Stored[]>;
  table(path: string, values: Record<string, string | number | boolean>): Promise<TableTwin>;
  questions(): Promise<QuestionForm[]>;
  /** The two sentences of each view of questions. */
  openings(): Promise<Record<string, Sentences>>;
  /** How a question as it is filled in is typed; nothing is run. */
  words(question: string, values: Record<string, string | boolean>): Promise<{ command: string; python: string }>;
  ask(question: string, values: Record<string, string | boolean>): Promise<Job>;
  unfinished(): Promise<Job[]>;
  job(id: number): Promise<Job>;
  cancel(id: number): Promise<Job>;
  film(job: number, which: number): string;
}

async function answered(response: Response): Promise<Response> {
  if (response.ok) return response;
  const told = (await response.json().catch(() => null)) as { detail?: unknown } | null;
  const why = told?.detail;
  throw new Error(typeof why === "string" ? why : why ? JSON.stringify(why) : `the server answered ${response.status}`);
}

class Server implements Source {
  readonly live = true;
  private readonly parts = new Map<string, Promise<Packed>>();

  private async json<T>(path: string, init?: RequestInit): Promise<T> {
    return (await answered(await fetch(`api/${path}`, init))).json() as Promise<T>;
  }

  private sent<T>(path: string, body: object): Promise<T> {
    return this.json<T>(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  }

  state = () => this.json<ServerState>("state");
  build = () => this.sent<Job>("build", {});
  overview = () => this.json<Overview>("overview");
  compared = () => this.json<TableTwin>("compare");
  beside = (site: string, side: string) => this.json<Beside[]>(`beside?${new URLSearchParams({ site, side }).toString()}`);
  stored = () => Promise.resolve([]);

  part(name: string): Promise<Packed> {
    const known = this.parts.get(name);
    if (known) return known;
    const asked = fetch(`api/parts/${name}`)
      .then(answered)
      .then(async (r) => unpacked(await r.arrayBuffer()));
    this.parts.set(name, asked);
    asked.catch(() => this.parts.delete(name));
    return asked;
  }

  table(path: string, values: Record<string, string | number | boolean>): Promise<TableTwin> {
    const query = new URLSearchParams(Object.entries(values).map(([k, v]) => [k, String(v)]));
    return this.json<TableTwin>(`${path}?${query.toString()}`);
  }

  questions = () => this.json<QuestionForm[]>("questions");
  openings = () => this.json<Record<string, Sentences>>("openings");
  words = (question: string, values: Record<string, string | boolean>) =>
    this.sent<{ command: string; python: string }>("words", { question, values });
  ask = (question: string, values: Record<string, string | boolean>) => this.sent<Job>("jobs", { question, values });
  unfinished = () => this.json<Job[]>("jobs");
  job = (id: number) => this.json<Job>(`jobs/${id}`);
  cancel = (id: number) => this.json<Job>(`jobs/${id}`, { method: "DELETE" });
  film = (job: number, which: number) => `api/jobs/${job}/films/${which}`;
}

/** The data blocks of a report: base64 of gzip, one script element a part, which no browser runs. */
class Report implements Source {
  readonly live = false;
  private readonly parts = new Map<string, Promise<Packed>>();

  private async bytes(name: string): Promise<ArrayBuffer> {
    const block = document.getElementById(`data-${name}`)?.textContent?.trim();
    if (!block) throw new Error(`this report has no ${name}`);
    const text = atob(block);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const opened = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(opened).arrayBuffer();
  }

  private async json<T>(name: string): Promise<T> {
    return JSON.parse(new TextDecoder().decode(await this.bytes(name))) as T;
  }

  async state(): Promise<ServerState> {
    const shown = await this.overview();
    return { shown: shown.shown, built: true, building: null, other: shown.other };
  }

  overview = () => this.json<Overview>("overview");
  compared = () => this.json<TableTwin>("compare");
  beside = async (site: string, side: string) => (await this.json<Record<string, Beside[]>>("beside"))[`${site} ${side}`] ?? [];
  stored = () => this.json<Stored[]>("stored");

  part(name: string): Promise<Packed> {
    const known = this.parts.get(name);
    if (known) return known;
    const asked = this.bytes(name).then(unpacked);
    this.parts.set(name, asked);
    return asked;
  }

  private readonly none = () => Promise.reject(new Error("a report computes nothing: run the command that is shown"));
  build = this.none;
  table = this.none;
  questions = () => Promise.resolve([]);
  openings = () => Promise.resolve({});
  words = this.none;
  ask = this.none;
  unfinished = () => Promise.resolve([]);
  job = this.none;
  cancel = this.none;
  film = () => "";
}

export const source: Source = document.getElementById("data-overview") ? new Report() : new Server();
