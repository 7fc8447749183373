// The review page. It asks nothing of any other machine.
import { useSignal } from "@preact/signals";
import { render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { post } from "./api";
import { Keys } from "./keys";
import { PatientPage } from "./patient";
import { SlidePageView } from "./slide";
import { message, needsToken, place, refresh, setTheme, showKeys, spoken, theme, told, typing, worklist } from "./state";
import "./review.css";
import { hasGraphicsCard } from "./viewer";
import { WorklistPage } from "./worklist";

function App() {
  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "?" && !typing(event) && !showKeys.value) {
        showKeys.value = true;
        event.preventDefault();
      }
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  const here = place.value;
  return (
    <>
      <Top />
      {message.value && (
        <div class="message" role="alert">
          <span>{message.value}</span>
          <button type="button" class="plain" aria-label="Close" onClick={() => (message.value = "")}>✕</button>
        </div>
      )}
      {needsToken.value && worklist.value && <div class="entering"><Login /></div>}
      {needsToken.value && !worklist.value ? (
        <Login />
      ) : here.name === "slide" ? (
        <SlidePageView slideKey={here.key} key={here.key} />
      ) : here.name === "patient" ? (
        <PatientPage slideKey={here.key} key={here.key} />
      ) : (
        <WorklistPage />
      )}
      <Keys />
      <div class="sr" aria-live="polite">{spoken.value}</div>
    </>
  );
}

function Top() {
  const here = place.value;
  const list = worklist.value;
  const next = { system: "light", light: "dark", dark: "system" }[theme.value] ?? "system";
  return (
    <header class="top">
      <a class="brand" href="#/">pathovit</a>
      {list && <span class="folder">{list.folder}</span>}
      {here.name !== "slide" && list && list.models.length > 0 && <span class="folder">model {list.models.length > 2 ? `${list.models.length} models` : list.models.join(", ")}</span>}
      <span class="ruo-top">{list?.research_use ?? "For research use only."}</span>
      {list && <span class="who">{list.reader.name}</span>}
      <button type="button" class="plain" title="Light or dark" aria-label={`Colours: ${theme.value}`} onClick={() => setTheme(next)}>
        {{ system: "◐", light: "☀", dark: "☾" }[theme.value]}
      </button>
      <button type="button" class="plain" title="Keys ( ? )" aria-label="Keys" onClick={() => (showKeys.value = true)}>?</button>
    </header>
  );
}

function Login() {
  const token = useSignal("");
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => field.current?.focus(), []);
  return (
    <main class="login">
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void enter(token.value);
        }}
      >
        <h1>Your token</h1>
        {worklist.value && <p>Your session is over. What you were doing is still there, and goes on when you have entered.</p>}
        <p class="quiet">`pathovit review` prints an address with a token in it; `pathovit review users` gives one to each reader.</p>
        <input ref={field} type="password" autocomplete="off" aria-label="Token" required maxLength={200} value={token.value} onInput={(event) => (token.value = event.currentTarget.value)} />
        <button type="submit" class="primary">Enter</button>
      </form>
    </main>
  );
}

async function enter(token: string): Promise<void> {
  try {
    message.value = "";
    await post("/api/enter", { token });
    await refresh();
  } catch (error) {
    told(error);
    if (needsToken.value) message.value = String((error as Error).message);
  }
}

const tokenGiven = () => /^#token=([\w-]+)/.exec(location.hash)?.[1];

async function begin(): Promise<void> {
  const given = tokenGiven();
  if (given) {
    history.replaceState(null, "", location.pathname + location.search + "#/");
    place.value = { name: "worklist" };
    await enter(given);
  } else await refresh();
}

render(<App />, document.getElementById("page")!);
setTheme(theme.value);
void begin();
addEventListener("hashchange", () => {
  if (tokenGiven()) void begin(); // an address that was given again, in a page that is open
});
setTimeout(hasGraphicsCard, 500);
