// Small parts that several pages use.
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { css, type RGB } from "./heat";

export function Key({ children }: { children: ComponentChildren }) {
  return <kbd aria-hidden="true">{children}</kbd>;
}

export function Swatch({ colour }: { colour: RGB }) {
  return <span class="swatch" style={{ background: css(colour) }} aria-hidden="true" />;
}

export function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    dialog.current?.showModal();
  }, []);
  return (
    <dialog ref={dialog} aria-label={title} onClose={onClose} onClick={(event) => event.target === dialog.current && onClose()}>
      <div class="inside">
        <header>
          <h2>{title}</h2>
          <button type="button" class="plain" onClick={onClose} aria-label="Close">✕</button>
        </header>
        {children}
      </div>
    </dialog>
  );
}

export const number = (value: number, digits = 2) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });

// A number that can be far below 1.
export const scarce = (value: number) => value.toLocaleString("en", { maximumSignificantDigits: 3 });

export function length(um: number): string {
  return um >= 1000 ? `${number(um / 1000, um >= 10000 ? 1 : 2)} mm` : `${number(um, um < 10 ? 1 : 0)} µm`;
}

// About what an objective would show: 10x is 1 µm a pixel.
export function magnification(umPerPixel: number): string {
  const times = 10 / umPerPixel;
  return `${times >= 10 ? times.toFixed(0) : times >= 1 ? times.toFixed(1) : times.toFixed(2)}×`;
}
