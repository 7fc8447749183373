// What the keys do.
import { Dialog } from "./parts";
import { showKeys } from "./state";

const KEYS: [title: string, keys: [key: string, does: string][]][] = [
  ["Worklist", [["↑ ↓", "choose a slide"], ["Enter", "open it"], ["/", "find a slide or patient"]]],
  ["Reading", [
    ["1 … 9, 0", "first impression: class, unsure"], ["a d u", "agree, disagree, unsure (of the region that is chosen, else of the slide)"], ["x", "show an answer that is in doubt"],
    ["Enter", "keep the decision"], ["s", "sign"], ["z", "take back"], ["j k", "next slide, previous slide"], ["Esc", "back"],
  ]],
  ["Map", [["n p", "next region, previous region"], ["h", "map on or off"], ["Space", "map off while held"], ["o", "outlines"], ["l", "next layer"], ["[ ]", "threshold"]]],
  ["Slide", [["arrows", "move"], ["+ -", "closer, further"], ["f", "whole slide"], ["r", "turn"], ["m", "measure: drag, or Enter where it begins and where it ends"], ["Enter", "what is known of the tile in the middle"]]],
  ["Paint", [
    ["b", "brush on or off; Shift moves the slide meanwhile"], ["1 … 9, 0, e", "class, unsure, erase"], ["arrows, Enter", "move the brush, paint"], [", .", "size"], ["L", "learn now"],
    ["q", "next tile that the model asks for; 1 … 9, 0 answer"],
  ]],
  ["Patient", [["y", "move together"]]],
];

export function Keys() {
  if (!showKeys.value) return null;
  return (
    <Dialog title="Keys" onClose={() => (showKeys.value = false)}>
      <div class="keys">
        {KEYS.map(([title, keys]) => (
          <section key={title}>
            <h3>{title}</h3>
            <dl>
              {keys.map(([key, does]) => (
                <div key={key}>
                  <dt>{key.split(" ").map((one) => (one === "…" ? " … " : <kbd key={one}>{one}</kbd>))}</dt>
                  <dd>{does}</dd>
                </div>
              ))}
            </dl>
          </section>
        ))}
      </div>
    </Dialog>
  );
}
