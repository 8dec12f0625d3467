// The requests that the ring works on, and how far they are.

import { element, setText } from "./dom.js";
import { count, seconds } from "./units.js";

const TITLES = { waiting: "Waits for a slot", prompt: "Reads its prompt", generating: "Answers" };

export class SampleRow {
    #title = element("span");
    #text = element("span", { className: "numbers" });
    #progress = element("progress");
    node = element("li", {}, this.#title, this.#text, this.#progress);

    update(sample) {
        setText(this.#title, TITLES[sample.phase] ?? sample.phase);
        setText(this.#text, textOf(sample));
        this.#progress.max = sample.max_tokens;
        this.#progress.value = sample.n_generated;
        this.#progress.setAttribute("aria-label", `Tokens of ${sample.id}`);
        this.node.title = sample.id;
    }
}

function textOf(sample) {
    const reused = sample.n_cached > 0 ? `, ${sample.n_cached} reused` : "";
    const prompt = `prompt of ${sample.n_prompt}${reused}`;
    return `${sample.n_generated} of ${count(sample.max_tokens, "token")} · ${prompt} · ${seconds(sample.seconds)}`;
}
