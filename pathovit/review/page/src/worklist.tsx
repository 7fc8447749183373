// The worklist: slides by how much they need a person, the riskiest of each group first.
import { computed, signal, useComputed, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { GroupName, Row, Worklist } from "./api";
import { go, refresh, typing, worklist } from "./state";

const ROW_PX = 36;
const GROUP_PX = 58;
const TITLES: Record<GroupName, string> = {
  failed: "Failed",
  unread: "Tissue unread",
  strange: "Strange",
  unsure: "Unsure",
  answered: "Answered",
  "no answer": "No answer",
};
const STATES = { new: "not opened", opened: "opened", decided: "decided", signed: "signed" };

type Line = { kind: "group"; name: GroupName; count: number; cause: string; shown: number } | { kind: "row"; row: Row };

export function filtered(list: Worklist, wanted: { search: string; open: boolean; mine: boolean; disagreement: boolean }): Row[] {
  const search = wanted.search.trim().toLowerCase();
  return list.rows.filter(
    (row) =>
      (!search || row.file.toLowerCase().includes(search) || row.patient.toLowerCase().includes(search)) &&
      (!wanted.open || row.state !== "signed") &&
      (!wanted.mine || row.mine) &&
      (!wanted.disagreement || row.disagreement),
  );
}

// They stay while one looks at a slide.
const search = signal(""), open = signal(false), mine = signal(true), disagreement = signal(false), top = signal(0), selected = signal(0);

const lines = computed<Line[]>(() => {
  const list = worklist.value;
  if (!list) return [];
  const rows = filtered(list, { search: search.value, open: open.value, mine: mine.value, disagreement: disagreement.value });
  return list.groups.flatMap((group): Line[] => {
    const inside = rows.filter((row) => row.group === group.name);
    return inside.length ? [{ kind: "group", ...group, shown: inside.length }, ...inside.map((row): Line => ({ kind: "row", row }))] : [];
  });
});

// Slides as they are listed, by key.
export const order = computed(() => lines.value.flatMap((line) => (line.kind === "row" ? [line.row.key] : [])));

export function WorklistPage() {
  const list = worklist.value;
  const height = useSignal(800);
  const box = useRef<HTMLDivElement>(null);
  const searchBox = useRef<HTMLInputElement>(null);

  const tops = useComputed(() => {
    let y = 0;
    return lines.value.map((line) => {
      const here = y;
      y += line.kind === "group" ? GROUP_PX : ROW_PX;
      return here;
    });
  });

  useEffect(() => {
    const onFocus = () => void refresh();
    addEventListener("focus", onFocus);
    return () => removeEventListener("focus", onFocus);
  }, []);
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    element.scrollTop = top.value;
    const watch = new ResizeObserver(() => (height.value = element.clientHeight));
    watch.observe(element);
    return () => watch.disconnect();
  }, [list === null]);
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (typing(event)) {
        if (event.key === "Escape") (event.target as HTMLElement).blur();
        return;
      }
      const rows = lines.value.map((line, i) => (line.kind === "row" ? i : -1)).filter((i) => i >= 0);
      const at = rows.indexOf(selected.value);
      const move = (to: number) => {
        selected.value = rows[Math.max(0, Math.min(rows.length - 1, to))] ?? 0;
        const y = tops.value[selected.value] ?? 0;
        const element = box.current!;
        if (y < element.scrollTop + GROUP_PX) element.scrollTop = y - GROUP_PX;
        else if (y + ROW_PX > element.scrollTop + element.clientHeight) element.scrollTop = y + ROW_PX - element.clientHeight;
      };
      if (event.key === "ArrowDown" || event.key === "j") move(at + 1);
      else if (event.key === "ArrowUp" || event.key === "k") move(at < 0 ? 0 : at - 1);
      else if (event.key === "PageDown") move(at + 15);
      else if (event.key === "PageUp") move(at - 15);
      else if (event.key === "Home") move(0);
      else if (event.key === "End") move(rows.length - 1);
      else if (event.key === "/") searchBox.current?.focus();
      else if (event.key === "Enter" && !(event.target as HTMLElement).closest("button, a")) {
        const line = lines.value[rows[Math.max(0, at)] ?? -1];
        if (line?.kind === "row") go({ name: "slide", key: line.row.key });
        else return;
      } else return;
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);

  if (!list) return <p class="empty">Reading the folder…</p>;
  const done = list.rows.filter((row) => row.state === "signed").length;
  const total = lines.value.length ? tops.value.at(-1)! + (lines.value.at(-1)!.kind === "group" ? GROUP_PX : ROW_PX) : 0;
  const shown = lines.value
    .map((line, i) => ({ line, i, y: tops.value[i]! }))
    .filter(({ y }) => y > top.value - 400 && y < top.value + height.value + 400);

  return (
    <main class="worklist">
      <div class="tools" role="search">
        <input
          ref={searchBox}
          type="search"
          placeholder="Find a slide or patient  ( / )"
          aria-label="Find a slide or patient"
          value={search.value}
          onInput={(event) => ((search.value = event.currentTarget.value), (box.current!.scrollTop = 0))}
        />
        <Toggle label="Not signed" on={open} />
        {list.readers > 0 && <Toggle label="Mine" on={mine} />}
        {list.reader.may_settle && list.readers > 1 && <Toggle label="Disagreement" on={disagreement} />}
        <span class="progress" aria-live="polite">
          {done.toLocaleString("en")} of {list.rows.length.toLocaleString("en")} signed
        </span>
      </div>
      {!list.rows.length ? (
        <p class="empty">
          No slide here yet. <code>pathovit run SLIDES --out {list.folder}</code> puts some in.
        </p>
      ) : !lines.value.length ? (
        <p class="empty">No slide fits these filters.</p>
      ) : (
        <div class="rows" ref={box} tabIndex={0} role="region" aria-label="Slides" onScroll={(event) => (top.value = event.currentTarget.scrollTop)}>
          <div class="columns head" aria-hidden="true">
            <span>Slide</span>
            <span>Patient</span>
            <span>Answer</span>
            <span>Why</span>
            <span>Yours</span>
          </div>
          <ul class="tall" aria-label="Worklist" style={{ height: `${total}px` }}>
            {shown.map(({ line, i, y }) =>
              line.kind === "group" ? (
                <li class={`group ${line.name.replace(" ", "-")}`} key={`g${line.name}`} style={{ top: `${y}px` }}>
                  <h2>
                    {TITLES[line.name]} <span class="count">{line.shown.toLocaleString("en")}</span>
                  </h2>
                  <p>{line.cause}</p>
                </li>
              ) : (
                <li class="item" key={line.row.key} style={{ top: `${y}px` }}>
                  <a class={`columns row ${i === selected.value ? "selected" : ""}`} href={`#/slide/${line.row.key}`} tabIndex={-1}>
                    <span class="file" title={line.row.file}>{line.row.file}</span>
                    <span class="patient">{line.row.patient}</span>
                    <span class="answer">{line.row.answer}</span>
                    <span class="why" title={line.row.reason}>{why(line.row)}</span>
                    <span class={`state ${line.row.state}`}>{yours(line.row)}</span>
                  </a>
                </li>
              ),
            )}
          </ul>
        </div>
      )}
    </main>
  );
}

function why(row: Row): string {
  if (row.group === "strange" && row.novelty !== null) return `novelty ${row.novelty.toFixed(1)}; 95 % of the model's own are below 1`;
  return row.reason;
}

function yours(row: Row): string {
  const label = row.label ? `: ${row.label}` : row.label === "" ? ": unsure" : "";
  return `${STATES[row.state]}${label}${row.disagreement ? " · readers disagree" : ""}`;
}

function Toggle({ label, on }: { label: string; on: { value: boolean } }) {
  return (
    <button type="button" class="toggle" aria-pressed={on.value} onClick={() => (on.value = !on.value)}>
      {label}
    </button>
  );
}
