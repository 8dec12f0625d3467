// The conversation as it is led: what was asked, the answer under way, and taking both back.

import { fillAnswer } from "./answer.js";
import { explain } from "./explain.js";

export class Chat {
    #server;
    #settings;
    #conversation;
    #view;
    #askForKey;
    #model;
    #running = null; // the answer under way: its turn, and what stops it

    /** `askForKey(sentence)` resolves to whether the user gave one; `model()` to the name of the model. */
    constructor({ server, settings, conversation, view, askForKey, model }) {
        this.#server = server;
        this.#settings = settings;
        this.#conversation = conversation;
        this.#view = view;
        this.#askForKey = askForKey;
        this.#model = model;
        view.show(conversation.turns);
        addEventListener("pagehide", () => this.#leave());
    }

    send(text) {
        this.#conversation.add("user", text);
        return this.#answer();
    }

    /** Ask something else instead, and forget what came behind. */
    edit(turn, text) {
        this.#conversation.cutAt(turn);
        return this.send(text);
    }

    /** Answer anew what this turn answered. */
    retry(turn) {
        this.#conversation.cutAt(turn);
        return this.#answer();
    }

    stop() {
        this.#running?.controller.abort();
    }

    clear() {
        this.stop();
        this.#conversation.clear();
        this.#view.show(this.#conversation.turns);
    }

    async #answer() {
        const messages = this.#conversation.messages(this.#settings.system);
        const turn = this.#conversation.add("assistant");
        const running = { turn, controller: new AbortController() };
        this.#running = running;
        this.#view.begin(this.#conversation.turns);
        try {
            await this.#fill(turn, messages, running.controller.signal);
        } catch (error) {
            if (error.name === "AbortError") turn.note = "You stopped this answer.";
            else turn.problem = this.#problem(error, turn);
        } finally {
            this.#finish(running);
        }
    }

    /** The conversation may have been cleared meanwhile, and another one begun. */
    #finish(running) {
        if (this.#running === running) this.#running = null;
        if (!this.#conversation.turns.includes(running.turn)) return;
        this.#conversation.save();
        this.#view.end(this.#conversation.turns, running.turn);
    }

    /** Keep what has come of the answer that ends with the page. */
    #leave() {
        if (this.#running === null) return;
        this.#running.turn.note = "The page was left before the answer was complete.";
        this.#conversation.save();
    }

    async #fill(turn, messages, signal) {
        const onChange = (status) => this.#view.grow(turn, status);
        for (;;) {
            try {
                const body = { model: await this.#model(), messages, ...this.#settings.sampling };
                await fillAnswer(turn, this.#server, body, signal, onChange);
                return;
            } catch (error) {
                if (error.status !== 401 || !(await this.#askForKey(explain(error, this.#server.hasKey)))) throw error;
            }
        }
    }

    #problem(error, turn) {
        if (error.status === 0 && turn.content !== "") return "The connection broke before the answer was complete.";
        if (error.status === undefined) throw error; // a fault of this page
        return explain(error, this.#server.hasKey);
    }
}
