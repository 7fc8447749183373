// The reading itself: a first impression, then the answer, then a decision, then a signature.
import { useSignal } from "@preact/signals";
import { useLayoutEffect } from "preact/hooks";
import type { Judgement } from "./api";
import { Key, number } from "./parts";
import type { Reading } from "./reading";

const MEANINGS = { reviewed: "Reviewed", agreed: "Agreed with the answer", corrected: "Corrected" } as const;

export function Steps({ reading }: { reading: Reading }) {
  const page = reading.page.value!;
  if (page.group === "failed")
    return (
      <section>
        <h2>Failed</h2>
        <p>{page.cause}</p>
      </section>
    );
  return (
    <>
      {!page.first_done ? <FirstImpression reading={reading} /> : <Answer reading={reading} />}
      {page.first_done && <Decision reading={reading} />}
      {page.others.length > 0 && page.opinion.label !== null && <Settle reading={reading} />}
    </>
  );
}

function FirstImpression({ reading }: { reading: Reading }) {
  return (
    <section aria-labelledby="first-title">
      <h2 id="first-title">Your first impression</h2>
      <p class="quiet">Look first. The model's answer and its map appear when you have said what you see.</p>
      <div class="choices">
        {reading.classes.value.map((name, i) => (
          <button type="button" class="big" key={name} onClick={() => void reading.firstImpression(name)}>
            {name} <Key>{i + 1}</Key>
          </button>
        ))}
        <button type="button" class="big" onClick={() => void reading.firstImpression(null)}>
          unsure <Key>0</Key>
        </button>
      </div>
    </section>
  );
}

function Answer({ reading }: { reading: Reading }) {
  const page = reading.page.value!, answer = page.answer;
  const doubtful = page.doubtful;
  return (
    <section aria-labelledby="answer-title">
      <h2 id="answer-title">The model</h2>
      {!answer ? (
        <p>No model was asked; there are features alone. Teach one below.</p>
      ) : doubtful && !page.may_see ? (
        <div class="doubt">
          <p class="word">{answer.word === "unsure" ? "unsure" : "no answer"}</p>
          <p>{page.cause}</p>
          <button type="button" onClick={() => void reading.showAnyway()}>
            Show anyway <Key>x</Key>
          </button>
        </div>
      ) : (
        <>
          <p class="word">{page.is_map ? "a map" : answer.word}</p>
          {page.cause && <p class="quiet">{page.cause}</p>}
          <details>
            <summary>Numbers</summary>
            <table>
              <tbody>
                {Object.entries(answer.numbers).map(([name, value]) => (
                  <tr key={name}>
                    <th scope="row">{name.replace(/^(prob|share)_/, "").replace(/_/g, " ")}</th>
                    <td>{number(value, 3)}</td>
                  </tr>
                ))}
                {answer.novelty !== null && (
                  <tr>
                    <th scope="row">novelty</th>
                    <td>{number(answer.novelty)}</td>
                  </tr>
                )}
              </tbody>
            </table>
          </details>
        </>
      )}
      {page.trial && <p class="warning">This is {page.trial}: no answer for the slide.</p>}
      {page.verdict === "degraded" && <p class="warning">{page.tiles!.unread.toLocaleString("en")} tiles could not be read: hatched on the slide.</p>}
    </section>
  );
}

function Decision({ reading }: { reading: Reading }) {
  const page = reading.page.value!, { opinion } = page;
  const modelSays = page.may_see && page.answer && page.classes?.includes(page.answer.word) ? page.answer.word : null;
  const nothingSaid = !modelSays;
  const chosen = useSignal<Judgement | null>(null);
  const judgement = nothingSaid ? "none" : chosen.value;
  const label = useSignal(""), note = useSignal(""), reason = useSignal("");
  const decided = opinion.label !== null;
  const changing = useSignal(false);
  const open = !decided || changing.value;
  const drafting = open && (nothingSaid ? !!(label.value || note.value) : !!chosen.value);
  useLayoutEffect(() => {
    reading.drafting.value = drafting;
    return () => void (reading.drafting.value = false);
  }, [reading, drafting]);
  useLayoutEffect(() => reading.changed(), [reading, chosen.value, label.value, note.value, reason.value]); // of what is new one is warned again

  const choose = (wanted: Judgement) => {
    chosen.value = wanted;
    if (wanted === "agree") label.value = modelSays ?? label.value;
    else if (wanted === "disagree" && label.value === modelSays) label.value = "";
    if (wanted === "disagree" && page.classes!.length === 2 && modelSays) label.value = page.classes!.find((name) => name !== modelSays)!;
  };
  const save = async () => {
    const kept = await reading.decide(judgement!, judgement === "unsure" ? null : label.value || null, note.value, reason.value);
    if (!kept) return; // what was written stays
    changing.value = false;
    chosen.value = null;
    reason.value = "";
  };

  if (decided && !changing.value)
    return (
      <section aria-labelledby="decision-title">
        <h2 id="decision-title">Your decision</h2>
        <p class="word">{opinion.label || "unsure"}</p>
        <p class="quiet">
          {opinion.judged && opinion.judged !== page.about.model_sha256 ? "You judged another model than this one. " : ""}
          {opinion.judgement === "agree" ? "You agree with the model." : opinion.judgement === "disagree" ? "You disagree with the model." : opinion.judgement === "unsure" ? "You are unsure." : ""}
          {opinion.first !== null && ` First impression: ${opinion.first || "unsure"}.`}
        </p>
        {opinion.note && <p class="note">{opinion.note}</p>}
        {opinion.signed ? (
          <p class="signed">
            Signed: {MEANINGS[opinion.signed as keyof typeof MEANINGS].toLowerCase()}, by {opinion.reader}
          </p>
        ) : (
          <div class="choices">
            {(Object.keys(MEANINGS) as (keyof typeof MEANINGS)[]).map((meaning) => (
              <button
                type="button" key={meaning} class={meaning === signedAs(opinion) ? "primary" : ""} onClick={() => void reading.sign(meaning)}
              >
                Sign: {MEANINGS[meaning].toLowerCase()} {meaning === signedAs(opinion) && <Key>s</Key>}
              </button>
            ))}
          </div>
        )}
        <button type="button" class="plain" onClick={() => ((changing.value = true), (chosen.value = null), (note.value = opinion.note), (label.value = opinion.label ?? ""))}>Change…</button>
      </section>
    );
  return (
    <section aria-labelledby="decision-title">
      <h2 id="decision-title">Your decision</h2>
      {!nothingSaid && (
        <div class="choices" role="group" aria-label="The model's answer">
          {(["agree", "disagree", "unsure"] as const).map((one) => (
            <button
              type="button" key={one} data-judgement={one} aria-pressed={judgement === one} 
              onClick={() => choose(one)}
            >
              {one[0]!.toUpperCase() + one.slice(1)} <Key>{one[0]}</Key>
            </button>
          ))}
        </div>
      )}
      {judgement && (
        <form
          id="decision"
          onSubmit={(event) => {
            event.preventDefault();
            void save();
          }}
        >
          {judgement !== "unsure" && judgement !== "agree" && (
            <div class="choices" role="group" aria-label="What the slide is">
              {reading.classes.value.map((name) => (
                <button type="button" key={name} aria-pressed={label.value === name} onClick={() => (label.value = name)}>{name}</button>
              ))}
            </div>
          )}
          {judgement !== "unsure" && judgement !== "agree" && (
            <label class="field">
              The slide is
              <input list="classes" value={label.value} required={judgement !== "none"} placeholder={judgement === "none" ? "unsure" : ""} maxLength={80} onInput={(event) => (label.value = event.currentTarget.value)} />
              <datalist id="classes">{reading.classes.value.map((name) => <option key={name} value={name} />)}</datalist>
            </label>
          )}
          <label class="field">
            Note
            <textarea rows={2} maxLength={4000} value={note.value} onInput={(event) => (note.value = event.currentTarget.value)} />
          </label>
          {opinion.decided_before && (
            <label class="field">
              Why it changes
              <input required maxLength={4000} value={reason.value} onInput={(event) => (reason.value = event.currentTarget.value)} />
            </label>
          )}
          <button type="submit" class="primary">Keep <Key>Enter</Key></button>
        </form>
      )}
      {decided && <button type="button" class="plain" onClick={() => ((changing.value = false), (chosen.value = null))}>Leave it as it was</button>}
    </section>
  );
}

export function signedAs(opinion: { judgement: string }): keyof typeof MEANINGS {
  if (opinion.judgement === "disagree") return "corrected";
  return opinion.judgement === "agree" ? "agreed" : "reviewed";
}

function Settle({ reading }: { reading: Reading }) {
  const page = reading.page.value!;
  const label = useSignal(page.settled?.label ?? ""), note = useSignal("");
  return (
    <section aria-labelledby="settle-title">
      <h2 id="settle-title">Other readers</h2>
      <ul class="others">
        {page.others.map((one) => (
          <li key={one.reader}>
            <b>{one.reader}</b>: {one.label || "unsure"}
            {one.note && <span class="note">{one.note}</span>}
          </li>
        ))}
      </ul>
      {page.settled && <p class="signed">Settled as {page.settled.label || "unsure"} by {page.settled.by}</p>}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void reading.settle(label.value || null, note.value);
        }}
      >
        <label class="field">
          Settle as
          <input list="settled" value={label.value} maxLength={80} onInput={(event) => (label.value = event.currentTarget.value)} placeholder="unsure" />
          <datalist id="settled">{reading.classes.value.map((name) => <option key={name} value={name} />)}</datalist>
        </label>
        <label class="field">
          Note
          <input value={note.value} maxLength={4000} onInput={(event) => (note.value = event.currentTarget.value)} />
        </label>
        <button type="submit">Settle</button>
      </form>
    </section>
  );
}
