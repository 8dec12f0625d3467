// What a screen reader is told, politely: an answer sentence by sentence, not token by token.

import { element } from "./dom.js";

const KEPT = 20; // older ones have been read
const SENTENCE = /[^]*?(?:[.!?…:]["')\]]*(?=\s)|\n)/y;
const MARKUP = /[*_`#>|~]+/g;

export class Announcer {
    #region;
    #heard = 0; // characters of the answer under way

    /** `region` is an element with `aria-live`. */
    constructor(region) {
        this.#region = region;
    }

    say(text) {
        const plain = text.replace(MARKUP, "").trim();
        if (plain === "") return;
        this.#region.append(element("p", { textContent: plain }));
        while (this.#region.children.length > KEPT) this.#region.firstChild.remove();
    }

    beginAnswer() {
        this.#heard = 0;
        this.say("Answering.");
    }

    /** Say the sentences of `text` that are complete and were not said. */
    follow(text) {
        SENTENCE.lastIndex = this.#heard;
        for (let found = SENTENCE.exec(text); found !== null; found = SENTENCE.exec(text)) {
            this.#heard = SENTENCE.lastIndex;
            this.say(found[0]);
        }
    }

    /** `ending` is a sentence where the answer did not end by itself. */
    endAnswer(text, ending) {
        this.say(text.slice(this.#heard));
        this.say(ending ?? "End of the answer.");
    }
}
