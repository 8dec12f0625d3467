// The messages on their way round the ring, as dots that move along it.

import { KeyedChildren, setAttributes, shape } from "./dom.js";
import { clamp } from "./ring_geometry.js";

const QUICKEST_LAP_S = 2; // a real one may take a few milliseconds, which nobody sees
const SLOWEST_LAP_S = 20;
const GOLDEN = 0.381966; // parts of a circle that never fall together
const RADII = { alone: 4.5, many: 6.5 };

export class Messages {
    #dots;
    #all = [];
    #geometry = null;
    #frame = null;
    #calm = matchMedia("(prefers-reduced-motion: reduce)");

    constructor(group) {
        this.#dots = new KeyedChildren(
            group,
            (dot) => dot.key,
            () => new Dot(),
        );
        this.#calm.addEventListener("change", () => this.#move());
    }

    /** `messages` are those of a snapshot. Which dot was which of them is not told, so dots keep their places. */
    update(messages, geometry) {
        this.#geometry = geometry;
        const nowS = performance.now() / 1000;
        const before = this.#all;
        this.#all = [];
        messages.forEach((message, i) => {
            const lapS = clamp(message.expected_s ?? 0, QUICKEST_LAP_S, SLOWEST_LAP_S);
            const keepsPlace = i < before.length && lapS === QUICKEST_LAP_S && !this.#calm.matches;
            const place = keepsPlace ? placeOf(before[i], nowS) : this.#apart(shareOf(message), i);
            this.#all.push({ key: i, message, lapS, place, sinceS: nowS });
        });
        this.#move();
    }

    /** Dots are set apart: where they are quick, their true places have passed by the time they are drawn. */
    #apart(share, i) {
        const isTaken = this.#all.some((dot) => Math.abs(dot.place - share) < 0.05);
        return isTaken ? (share + GOLDEN * i) % 1 : share;
    }

    #move() {
        cancelAnimationFrame(this.#frame);
        if (this.#geometry === null) return;
        const nowS = performance.now() / 1000;
        const dots = this.#all.map((dot) => ({
            ...dot,
            at: this.#geometry.at(this.#calm.matches ? dot.place : placeOf(dot, nowS)),
        }));
        this.#dots.update(dots);
        if (dots.length > 0 && !this.#calm.matches) this.#frame = requestAnimationFrame(() => this.#move());
    }
}

/** The part of its way that a message has gone, by its age. */
function shareOf(message) {
    return message.expected_s > 0 ? Math.min(0.98, message.age_s / message.expected_s) : 0;
}

function placeOf(dot, nowS) {
    return (dot.place + (nowS - dot.sinceS) / dot.lapS) % 1;
}

class Dot {
    node = shape("circle");

    update({ message, at: [cx, cy] }) {
        const isPrompt = message.prompt_rows > 0;
        setAttributes(this.node, {
            cx,
            cy,
            r: message.rows > 1 ? RADII.many : RADII.alone,
            class: isPrompt ? "prompt" : "",
        });
    }
}
