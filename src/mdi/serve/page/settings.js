// The system prompt and the sampling of all requests, kept in this browser.

import { thisBrowser } from "./store.js";

const DEFAULTS = { system: "", temperature: "0.7" };

export class Settings {
    #fields;
    #values = {};

    /** `form` has a field for each setting, by the name that the API has for it. */
    constructor(form) {
        this.#fields = [...form.elements].filter((field) => field.name);
        this.#show({ ...DEFAULTS, ...thisBrowser.load("settings", {}) });
        form.addEventListener("input", () => {
            this.#read();
            thisBrowser.save("settings", this.#values);
        });
        form.addEventListener("reset", (event) => {
            event.preventDefault();
            this.#show(DEFAULTS);
            thisBrowser.save("settings", this.#values);
        });
    }

    get system() {
        return this.#values.system;
    }

    /** The parameters of a request. A field that is empty is left to the server. */
    get sampling() {
        const given = Object.entries(this.#values).filter(([name, value]) => name !== "system" && value !== "");
        return Object.fromEntries(given.map(([name, value]) => [name, Number(value)]));
    }

    #show(values) {
        for (const field of this.#fields) field.value = values[field.name] ?? "";
        this.#read();
    }

    /** What is out of bounds is marked by the browser, and not taken. */
    #read() {
        for (const field of this.#fields) {
            if (field.validity.valid) this.#values[field.name] = field.value;
        }
    }
}
