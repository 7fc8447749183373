// What all parts of the page share: where one is, who reads, and what was said last.
import { signal } from "@preact/signals";
import { get, Refused, type Worklist } from "./api";

export type Place = { name: "worklist" } | { name: "slide"; key: string } | { name: "patient"; key: string };

export const place = signal<Place>(whereabouts());
export const worklist = signal<Worklist | null>(null);
export const needsToken = signal(false);

// When one has entered again.
export function entered(): Promise<void> {
  return new Promise((resolve) => {
    const stop = needsToken.subscribe((needed) => {
      if (needed) return;
      queueMicrotask(() => stop());
      resolve();
    });
  });
}
export const message = signal("");
export const spoken = signal(""); // read out by screen readers
export const showKeys = signal(false);
export const theme = signal(localStorage.getItem("theme") ?? "system");

function whereabouts(): Place {
  const [, name, key] = location.hash.split("/");
  return (name === "slide" || name === "patient") && /^[0-9a-f]{16}$/.test(key ?? "") ? { name, key: key! } : { name: "worklist" };
}

export const guard = { mayLeave: () => true }; // what is on the screen may have something that is not kept

addEventListener("hashchange", () => {
  const to = whereabouts(), now = place.value;
  if (JSON.stringify(to) === JSON.stringify(now)) return;
  if (guard.mayLeave()) place.value = to;
  else go(now);
});

export function go(to: Place): void {
  location.hash = to.name === "worklist" ? "/" : `/${to.name}/${to.key}`;
}

export function setTheme(to: string): void {
  theme.value = to;
  localStorage.setItem("theme", to);
  document.documentElement.dataset.theme = to;
}

export const leaving = signal(false); // on purpose: nothing is asked

export async function refresh(): Promise<void> {
  try {
    const found = await get<Worklist>("/api/worklist");
    if (worklist.value && worklist.value.reader.name !== found.reader.name) {
      leaving.value = true; // what is on the screen, and what waits to be kept, is another reader's
      location.reload();
      return;
    }
    worklist.value = found;
    needsToken.value = false;
  } catch (error) {
    told(error);
  }
}

// An error that a person can act on, in words.
export function told(error: unknown): void {
  if (error instanceof Refused && error.status === 401) needsToken.value = true;
  else message.value = error instanceof TypeError ? "The server does not answer. Is `pathovit review` still running?" : String((error as Error).message);
}

export async function trying(action: () => Promise<void>): Promise<void> {
  try {
    message.value = "";
    await action();
  } catch (error) {
    told(error);
  }
}

export const typing = (event: KeyboardEvent) => {
  const target = event.target as HTMLElement;
  return target.matches("input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]");
};
