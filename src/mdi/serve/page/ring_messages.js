// The messages on their way round the ring, as dots that move along it.

import { KeyedChildren, setAttributes, shape } from "./dom.js";

const QUICKEST_LAP_S = 2; // a real one may take a few milliseconds, which nobody sees
const SLOWEST_LAP_S = 20;
const RADII = { alone: 4.5, many: 6.5 };

export class Messages {
  #dots;
  #all = [];
  #geometry = null;
  #frame = null;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(group) {
    this.#dots = new KeyedChildren(group, (dot) => dot.key, () => new Dot());
    this.#calm.addEventListener("change", () => this.#move());
  }

  /** `messages` are those of a snapshot. Which dot is which message is not known, so dots keep their places. */
  update(messages, geometry) {
    this.#geometry = geometry;
    const nowS = performance.now() / 1000;
    this.#all.length = Math.min(this.#all.length, messages.length);
    messages.forEach((message, i) => {
      const lapS = Math.min(SLOWEST_LAP_S, Math.max(QUICKEST_LAP_S, message.expected_s ?? 0));
      const share = message.expected_s > 0 ? Math.min(0.98, message.age_s / message.expected_s) : 0;
      const isSlowEnough = message.expected_s >= QUICKEST_LAP_S;
      const old = this.#all[i];
      const place = old === undefined || isSlowEnough || this.#calm.matches ? this.#spread(share, i) : placeOf(old, nowS);
      this.#all[i] = { key: i, message, lapS, place, sinceS: nowS };
    });
    this.#move();
  }

  /** Dots of quick messages are set apart, since their true places have passed by the time they are drawn. */
  #spread(share, i) {
    const taken = this.#all.slice(0, i).some((dot) => Math.abs(dot.place - share) < 0.05);
    return taken ? (share + 0.381966 * i) % 1 : share;
  }

  #move() {
    cancelAnimationFrame(this.#frame);
    if (this.#geometry === null) return;
    const nowS = performance.now() / 1000;
    const dots = this.#all.map((dot) => ({ ...dot, at: this.#geometry.at(this.#calm.matches ? dot.place : placeOf(dot, nowS)) }));
    this.#dots.update(dots);
    if (dots.length > 0 && !this.#calm.matches) this.#frame = requestAnimationFrame(() => this.#move());
  }
}

function placeOf(dot, nowS) {
  return (dot.place + (nowS - dot.sinceS) / dot.lapS) % 1;
}

class Dot {
  node = shape("circle");

  update({ message, at: [cx, cy] }) {
    const isPrompt = message.prompt_rows > 0;
    setAttributes(this.node, { cx, cy, r: message.rows > 1 ? RADII.many : RADII.alone, class: isPrompt ? "prompt" : "" });
  }
}
