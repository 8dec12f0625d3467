// The turns of a conversation, kept over a reload: in this tab, so that two tabs are two conversations.

import { thisTab } from "./store.js";

export class Conversation {
    // A turn: role, content; of an answer also sentences: `problem`, why it failed; `note`, why it is short; `facts`.
    #turns = thisTab.load("conversation", []);

    get turns() {
        return this.#turns;
    }

    add(role, content = "") {
        const turn = { role, content, problem: null, note: null, facts: null };
        this.#turns.push(turn);
        this.save();
        return turn;
    }

    /** Forget a turn and those behind it. */
    cutAt(turn) {
        this.#turns.length = this.#turns.indexOf(turn);
        this.save();
    }

    clear() {
        this.#turns.length = 0;
        this.save();
    }

    save() {
        thisTab.save("conversation", this.#turns);
    }

    /**
     * The messages of a request. Roles alternate, as the templates of many models demand: where there was no answer,
     * what was asked before and after are one message.
     */
    messages(system) {
        const messages = [];
        for (const { role, content } of this.#turns) {
            const last = messages.at(-1);
            if (content === "") continue;
            if (last?.role === role) last.content += `\n\n${content}`;
            else messages.push({ role, content });
        }
        return system.trim() === "" ? messages : [{ role: "system", content: system }, ...messages];
    }
}
